"""Callers of every kind, by name: what their tokens say of their roles and groups."""

from __future__ import annotations

from daemon.auth.caller import Role
from daemon.auth.tokens import mint
from tests.api.harness import SECRET, Stack

ROLES: dict[str, tuple[Role, ...]] = {"root": ("admin",), "vera": ("viewer",), "otto": ("approver", "viewer")}
GROUPS: dict[str, tuple[str, ...]] = {"gus": ("team", "night")}


def token(sub: str) -> str:
    """Of ann, the owner in most tests, of bob, who is nobody in particular, of root, gus, vera or otto."""
    return mint(sub, SECRET, lifetime_s=600, roles=ROLES.get(sub), groups=GROUPS.get(sub, ()))


def introduce(stack: Stack) -> Stack:
    """The stack speaks with such tokens from now on."""
    stack.tokens |= {sub: token(sub) for sub in (*ROLES, *GROUPS)}
    return stack
