"""Tickets: each opens one run's event stream, for a browser's ``EventSource``, which sends no headers.

A ticket is signed with a key of its own and names its audience, so that neither it nor a token passes for the other.
"""

from __future__ import annotations

import hashlib
import hmac
import time

import jwt

from daemon.auth.caller import Caller
from daemon.auth.tokens import ALGORITHM
from daemon.errors import Unauthenticated

TICKET_S = 60
"""Within this time a ticket must be used; the stream that it opened may stay."""
_TICKET_FOR = "runwarden:events"


def ticket_for(caller: Caller, run_id: str, secret: str) -> tuple[str, int]:
    """A ticket for the events of one run, and its end in epoch seconds: never later than the caller's token's."""
    now = int(time.time())
    ends = now + TICKET_S if caller.expires_at is None else min(now + TICKET_S, caller.expires_at)
    claims = {"sub": caller.user_id, "run": run_id, "aud": _TICKET_FOR, "iat": now, "exp": ends}
    if caller.expires_at is not None:
        claims["until"] = caller.expires_at
    return jwt.encode(claims, _ticket_key(secret), algorithm=ALGORITHM), ends


def admit(ticket: str, run_id: str, secret: str) -> Caller:
    """Who was given this ticket for this run; ``expires_at`` is that of their token. Raises Unauthenticated."""
    if not ticket.isascii():
        raise Unauthenticated("The ticket is not valid.", code="ticket_invalid")
    try:
        claims = jwt.decode(
            ticket,
            _ticket_key(secret),
            algorithms=[ALGORITHM],
            audience=_TICKET_FOR,
            options={"require": ["sub", "exp", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise Unauthenticated("The ticket has expired: get a new one.", code="ticket_expired") from None
    except jwt.InvalidTokenError:
        raise Unauthenticated("The ticket is not valid.", code="ticket_invalid") from None
    if claims.get("run") != run_id:
        raise Unauthenticated("The ticket is for another run.", code="ticket_invalid")
    return Caller(claims["sub"], claims.get("until"))


def _ticket_key(secret: str) -> bytes:
    return hmac.new(secret.encode(), b"events-ticket", hashlib.sha256).digest()
