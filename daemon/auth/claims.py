"""What a token's claims say of its bearer: subject, roles and groups. A pure reading of what was verified before.

No claim of roles at all is a plain user. A claim that is there and names none of ours gives ``viewer`` alone: whoever
keeps roles decides by them, and a name that is misspelt must not open more than was meant.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemon.auth.caller import PLAIN, ROLES, Role
from daemon.config import Identity
from daemon.errors import Unauthenticated

MAX_SUBJECT = 255
MAX_GROUPS = 200
"""Groups of one caller; a token with more is refused, since nobody could say which of them count."""
MAX_GROUP = 255
"""Characters; a longer name is none that a grant could have, so it is passed over."""
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL and lone surrogates: Postgres keeps neither."""
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a token must be, beside signed. Empty ``issuers`` are any; with empty ``audiences`` it must have none."""

    issuers: tuple[str, ...] = ()
    audiences: tuple[str, ...] = ()
    leeway_s: float = 0.0
    required: tuple[str, ...] = ()
    roles_claim: str = "roles"
    groups_claim: str = "groups"


def rules_of(settings: Identity) -> Rules:
    """The rules that the settings make."""
    return Rules(
        issuers=_listed(settings.jwt_issuer),
        audiences=_listed(settings.jwt_audience),
        leeway_s=settings.jwt_leeway_s,
        required=_listed(settings.jwt_required_claims),
        roles_claim=settings.jwt_roles_claim,
        groups_claim=settings.jwt_groups_claim,
    )


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def found(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name, or by the names on the way to it (``realm_access.roles``); ``_ABSENT`` without one."""
    if path in claims:  # a name may have dots in it: https://example.com/roles
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return _ABSENT
        value = value[name]
    return value


def require(claims: Mapping[str, Any], rules: Rules) -> None:
    """Raises Unauthenticated unless every required claim is there and says something."""
    for path in rules.required:
        if found(claims, path) in (_ABSENT, None):
            raise Unauthenticated(f"The token is not valid: it has no claim {path!r}.", code="token_invalid")


def subject_of(claims: Mapping[str, Any]) -> str:
    """The user. Raises Unauthenticated."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 1 <= len(subject) <= MAX_SUBJECT or _UNSTORABLE.search(subject):
        raise Unauthenticated(f"The token's sub must be text of 1 to {MAX_SUBJECT} characters.", code="token_invalid")
    return subject


def roles_of(claims: Mapping[str, Any], rules: Rules) -> frozenset[Role]:
    """The roles that a list, or a text with blanks between, names; each of them reads."""
    told = found(claims, rules.roles_claim)
    if told is _ABSENT:
        return PLAIN
    names = told.split() if isinstance(told, str) else told if isinstance(told, list) else []
    return frozenset(role for role in ROLES if role in names) | {"viewer"}


def groups_of(claims: Mapping[str, Any], rules: Rules) -> frozenset[str]:
    """The groups of a list; a text is the name of one. Raises Unauthenticated."""
    told = found(claims, rules.groups_claim)
    names = [told] if isinstance(told, str) else told if isinstance(told, list) else []
    groups = frozenset(name for name in names if isinstance(name, str) and _nameable(name))
    if len(groups) > MAX_GROUPS:
        raise Unauthenticated(
            f"The token names {len(groups)} groups, and {MAX_GROUPS} is the most: let the identity provider put only "
            f"those into {rules.groups_claim!r} that grants are about.",
            code="token_invalid",
        )
    return groups


def _nameable(name: str) -> bool:
    return 1 <= len(name) <= MAX_GROUP and not _UNSTORABLE.search(name)
