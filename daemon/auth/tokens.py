"""Bearer tokens: who a JWT names, from the secret passed in.

Used by ``api/gate`` and ``runwarden token``. HS256 only: the algorithm is ours to name, never the token's.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache

import jwt

from daemon.auth.caller import Caller
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
