"""Callers of every kind, by name: what their tokens say of their roles and groups."""

from __future__ import annotations

import time

import jwt
import pytest

from daemon.auth import tokens
from daemon.auth.caller import PLAIN, Caller
from tests.api.harness import SECRET, Stack

ROLES: dict[str, list[str]] = {"root": ["admin"], "vera": ["viewer"], "otto": ["approver", "viewer"]}
GROUPS: dict[str, list[str]] = {"gus": ["team", "night"]}


def token(sub: str) -> str:
    """Of ann, the owner in most tests, of bob, who is nobody in particular, of root, gus, vera or otto."""
    now = int(time.time())
    claims: dict[str, object] = {"sub": sub, "iat": now, "exp": now + 600}
    if sub in ROLES:
        claims["roles"] = ROLES[sub]
    if sub in GROUPS:
        claims["groups"] = GROUPS[sub]
    return jwt.encode(claims, SECRET, algorithm="HS256")


def introduce(stack: Stack) -> Stack:
    """The stack speaks with such tokens from now on."""
    stack.tokens |= {sub: token(sub) for sub in (*ROLES, *GROUPS)}
    return stack


def recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until tokens are read for roles and groups by themselves."""

    def read(said: str, secret: str) -> Caller:
        claims = jwt.decode(said, secret, algorithms=["HS256"])
        roles = frozenset(claims["roles"]) if "roles" in claims else PLAIN
        return Caller(claims["sub"], claims["exp"], roles, frozenset(claims.get("groups", ())))

    if hasattr(tokens, "_verified"):
        monkeypatch.setattr(tokens, "_verified", read)
