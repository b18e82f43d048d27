"""Who is asking, as every room above knows them. A role opens doors; whose things these are is decided behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from daemon.errors import Forbidden

Role = Literal["viewer", "operator", "approver", "admin"]
"""``viewer`` reads; ``operator`` makes and drives what is their own; ``approver`` has an inbox and decides what they
are asked; ``admin`` does everything but approve what they are not asked. Each of them reads."""

ROLES: frozenset[Role] = frozenset(get_args(Role))
PLAIN: frozenset[Role] = frozenset({"viewer", "operator", "approver"})
"""A user whose token names no role: operator and approver of their own runs."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user. ``expires_at``: epoch seconds, None for a token without end."""

    user_id: str
    expires_at: int | None = None
    roles: frozenset[Role] = PLAIN
    groups: frozenset[str] = frozenset()
    via: str | None = None
    """The service token that spoke for them, as ``token:<id>``; None for a token of their own."""
    token_maker: str | None = None
    """Who made that service token; a ticket, which starts nothing, does not tell."""
    key: str | None = None
    """The name of the key that proved their JWT (``keys.Key``); None for a service token."""

    @property
    def admin(self) -> bool:
        return "admin" in self.roles

    @property
    def subjects(self) -> frozenset[str]:
        """Under which names grants and approvals may mean them."""
        return frozenset({f"user:{self.user_id}", *(f"group:{group}" for group in self.groups)})

    def require(self, role: Role) -> None:
        """Raises Forbidden unless they have the role."""
        if role not in self.roles and not self.admin:
            raise Forbidden(f"This needs the role {role!r}; your token has {_told(self.roles)}.", code="role_required")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Whose word it is and from where it came: all of it from the token and its connection, never from a body."""

    actor: str
    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    via: str | None = None
    address: str | None = None
    client: str | None = None
    """The ``User-Agent``."""


def _told(roles: frozenset[Role]) -> str:
    return ", ".join(sorted(roles)) or "none"
