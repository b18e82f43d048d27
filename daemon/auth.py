"""Who is asking: decided from a token and the secret passed in. Reads nothing, stores nothing.

Used by ``api/gate``, ``api/tickets`` and ``runwarden token``. HS256 only: the algorithm is ours to name, never the
token's. A *ticket* opens one run's event stream, for a browser's ``EventSource``, which sends no headers. It is signed
with a key of its own and names its audience, so that neither passes for the other.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from functools import lru_cache

import jwt

from daemon.errors import Unauthenticated

ALGORITHM = "HS256"
MAX_SUBJECT = 255
FOREVER = 2**53
"""Epoch seconds no clock reaches: what expires later is told as this, so that it can be reckoned with."""
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL and lone surrogates: Postgres keeps neither."""
_REMEMBERED = 1024
"""Tokens whose signature is known to be good: a caller sends the same one with every request, and to verify it costs
0.2 ms."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated user. ``expires_at``: epoch seconds, None for a token without end."""

    user_id: str
    expires_at: int | None


def authenticate(authorization: str | None, secret: str) -> Caller:
    """The caller behind an ``Authorization`` header. Raises Unauthenticated, saying what is wrong with it."""
    if not authorization:
        raise Unauthenticated
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    if not token.isascii():  # a header may hold any bytes; PyJWT raises what is none of its own errors
        raise Unauthenticated("The token is not valid: it is not base64url.", code="token_invalid")
    caller = _verified(token.strip(), secret)
    if caller.expires_at is not None and caller.expires_at <= time.time():  # as PyJWT, which saw it at first use only
        raise Unauthenticated("The token has expired: get a new one.", code="token_expired")
    return caller


@lru_cache(maxsize=_REMEMBERED)
def _verified(token: str, secret: str) -> Caller:
    """The caller that a token names, once its signature and its times were found good. Refusals are not remembered."""
    try:
        claims = jwt.decode(token, secret, algorithms=[ALGORITHM], options={"require": ["sub"]})
    except jwt.ExpiredSignatureError:
        raise Unauthenticated("The token has expired: get a new one.", code="token_expired") from None
    except jwt.InvalidTokenError as fault:
        raise Unauthenticated(f"The token is not valid: {fault}.", code="token_invalid") from None
    subject = claims["sub"]
    if not isinstance(subject, str) or not 1 <= len(subject) <= MAX_SUBJECT or _UNSTORABLE.search(subject):
        raise Unauthenticated(f"The token's sub must be text of 1 to {MAX_SUBJECT} characters.", code="token_invalid")
    expires = claims.get("exp")
    return Caller(subject, min(int(expires), FOREVER) if expires is not None else None)


def mint(subject: str, secret: str, *, lifetime_s: int) -> str:
    """A token for development: HS256, ``sub``, ``iat`` and ``exp``."""
    now = int(time.time())
    return jwt.encode({"sub": subject, "iat": now, "exp": now + lifetime_s}, secret, algorithm=ALGORITHM)


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
