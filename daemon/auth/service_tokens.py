"""Service tokens: opaque, for automation. Their form, their digest, and what one may be made for; ``store`` keeps them.

256 random bits need no salt and no slow hash: nobody finds them by trying, so SHA-256 is all that is kept.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from uuid import UUID

from daemon.auth.caller import Caller, Role
from daemon.errors import Forbidden

PREFIX = "rwt_"
"""By it a token is told from a JWT, and found by those who look for secrets in the wrong places."""
_FORM = re.compile(r"rwt_[A-Za-z0-9_-]{43}")
_VIA = "token:"


def new_token() -> str:
    """A token that nobody has."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> bytes | None:
    """What is kept of a token; None of what cannot be one."""
    return hashlib.sha256(token.encode()).digest() if _FORM.fullmatch(token) else None


def check_maker(caller: Caller, *, user_id: str, scopes: Collection[Role]) -> None:
    """Raises Forbidden unless the caller may make a token with these scopes that speaks for this user."""
    if caller.via is not None:
        raise Forbidden(
            "A service token makes no others: use a token of your own to make one.", code="not_by_service_token"
        )
    if user_id != caller.user_id:
        caller.require("admin")
        deciding = sorted(set(scopes) & {"approver", "admin"})
        if deciding:
            raise Forbidden(
                f"Nobody decides in another's name: a token for {user_id!r} may not have {', '.join(deciding)}.",
                code="scope_exceeds_roles",
            )
    beyond = [] if caller.admin else sorted(set(scopes) - caller.roles)
    if beyond:
        raise Forbidden(
            f"A service token may do no more than its maker: you have not {', '.join(beyond)}.",
            code="scope_exceeds_roles",
        )


def bearer_of(
    *,
    token_id: UUID,
    user_id: str,
    scopes: Collection[Role],
    groups: Collection[str],
    expires_at: int | None,
    made_by: str,
) -> Caller:
    """The caller that a service token is: the user it speaks for, with its scopes for roles; each of them reads."""
    return Caller(
        user_id,
        expires_at,
        frozenset(scopes) | {"viewer"},
        frozenset(groups),
        via=f"{_VIA}{token_id}",
        token_maker=made_by,
    )


def token_id_of(via: str | None) -> UUID | None:
    """The id of the service token that ``Caller.via`` names, if it does."""
    return UUID(via.removeprefix(_VIA)) if via is not None and via.startswith(_VIA) else None
