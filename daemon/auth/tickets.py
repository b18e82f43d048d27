"""Tickets: each opens one run's event stream, for a browser's ``EventSource``, which sends no headers.

A ticket is signed with a key of its own and names its audience, so that neither it nor a token passes for the other.
It says all that the token said of its bearer: with it they may do no more, and no less, than see this one stream.
"""

from __future__ import annotations

import hashlib
import hmac
import time

import jwt

from daemon.auth.caller import Caller
from daemon.errors import Unauthenticated

ALGORITHM = "HS256"
TICKET_S = 60
"""Within this time a ticket must be used; the stream that it opened may stay."""
_TICKET_FOR = "runwarden:events"
_NO_TICKET = "This is no ticket: POST …/events-ticket of the run gives one."


def ticket_key(secret: str) -> bytes:
    """The key of tickets that follows from the secret of tokens."""
    return hmac.new(secret.encode(), b"events-ticket", hashlib.sha256).digest()


def ticket_for(caller: Caller, run_id: str, key: bytes) -> tuple[str, int]:
    """A ticket for the events of one run, and its end in epoch seconds: never later than the caller's token's."""
    now = int(time.time())
    ends = now + TICKET_S if caller.expires_at is None else min(now + TICKET_S, caller.expires_at)
    claims = {"sub": caller.user_id, "run": run_id, "aud": _TICKET_FOR, "iat": now, "exp": ends}
    claims["roles"] = sorted(caller.roles)
    if caller.groups:
        claims["groups"] = sorted(caller.groups)
    if caller.expires_at is not None:
        claims["until"] = caller.expires_at
    if caller.via is not None:
        claims["via"] = caller.via
    if caller.key is not None:
        claims["key"] = caller.key
    return jwt.encode(claims, key, algorithm=ALGORITHM), ends


def admit(ticket: str, run_id: str, key: bytes) -> Caller:
    """Who was given this ticket for this run; ``expires_at`` is that of their token. Raises Unauthenticated."""
    if not ticket.isascii():
        raise Unauthenticated(_NO_TICKET, code="ticket_invalid")
    try:
        claims = jwt.decode(
            ticket,
            key,
            algorithms=[ALGORITHM],
            audience=_TICKET_FOR,
            options={"require": ["sub", "exp", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise Unauthenticated(
            "The ticket has expired: POST …/events-ticket gives a new one.", code="ticket_expired"
        ) from None
    except jwt.InvalidTokenError:
        raise Unauthenticated(_NO_TICKET, code="ticket_invalid") from None
    if claims.get("run") != run_id:
        raise Unauthenticated(
            "The ticket is for another run: POST …/events-ticket of this one gives one.", code="ticket_invalid"
        )
    roles, groups = frozenset(claims.get("roles", ())), frozenset(claims.get("groups", ()))
    return Caller(claims["sub"], claims.get("until"), roles, groups, claims.get("via"), key=claims.get("key"))
