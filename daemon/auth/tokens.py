"""Bearer tokens: who a JWT names, by the keys and rules passed in. Used by ``api/identity`` and ``runwarden token``.

Which keys there are is ``keys``' business, what claims mean is ``claims``'. Here signatures and times are checked, and
verdicts remembered: a caller sends the same token with every request, and to verify it costs 0.2 ms. A remembered one
ends with its token, and with its key.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import Any, NamedTuple

import jwt

from daemon.auth import agent_tokens
from daemon.auth.caller import Caller, Role
from daemon.auth.claims import Rules, groups_of, require, roles_of, subject_of
from daemon.auth.keys import PUBLISHED, Key, Keyring
from daemon.errors import Unauthenticated

FOREVER = 2**53
"""Epoch seconds no clock reaches: what expires later is told as this, so that it can be reckoned with."""
REMEMBERED = 1024
"""Tokens whose signature is known to be good."""


class UnknownKey(Unauthenticated):
    """The token is signed with a key that is not, or not any more, among those of the identity provider."""

    code = "token_invalid"


class _Verdict(NamedTuple):
    caller: Caller
    key: str


class Tokens:
    """The tokens that a node accepts."""

    def __init__(self, keyring: Keyring, rules: Rules | None = None) -> None:
        self._keyring = keyring
        self._rules = rules or Rules()
        self._remembered: dict[str, _Verdict] = {}

    def authenticate(self, token: str) -> Caller:
        """The caller whom a token names; ``expires_at`` has the leeway in it.

        Raises UnknownKey when a key that was not read yet might verify it, else Unauthenticated.
        """
        verdict = self._remembered.get(token)
        if verdict is None or not self._keyring.holds(verdict.key):
            self._remembered.pop(token, None)
            verdict = self._verified(token)
            while len(self._remembered) >= REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            self._remembered[token] = verdict
        expires = verdict.caller.expires_at
        if expires is not None and expires <= time.time():  # as PyJWT, which saw it at first use only
            del self._remembered[token]
            raise _expired()
        return verdict.caller

    def _verified(self, token: str) -> _Verdict:
        """The verdict once signature, times and claims were found good. Refusals are not remembered."""
        claims, key = self._claims(token)
        if claims.get("type") == agent_tokens.TYPE:  # it is an agent's, for the Gateway, and says nothing of a person
            raise _invalid("it is an agent's, not a person's")
        require(claims, self._rules)
        ends = claims.get("exp")
        caller = Caller(
            subject_of(claims),
            min(int(ends) + math.ceil(self._rules.leeway_s), FOREVER) if ends is not None else None,
            roles_of(claims, self._rules),
            groups_of(claims, self._rules),
            key=key.name,
        )
        return _Verdict(caller, key.name)

    def _claims(self, token: str) -> tuple[dict[str, Any], Key]:
        """What the token says, and the key that proves it."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as fault:
            raise _invalid(str(fault)) from None
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str):
            raise _invalid("its header names no algorithm")
        keys = self._keyring.fitting(algorithm, kid)
        for key in keys:
            try:
                return self._decoded(token, key), key
            except jwt.InvalidSignatureError:
                continue
        if algorithm in PUBLISHED and (kid is None or all(key.kid != kid for key in keys)):
            raise UnknownKey
        raise _invalid("Signature verification failed" if keys else f"no key of ours is for {algorithm[:20]!r}")

    def _decoded(self, token: str, key: Key) -> dict[str, Any]:
        """By this key and its algorithm. Raises InvalidSignatureError when it was another's, else Unauthenticated."""
        rules = self._rules
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.material,
                algorithms=[key.algorithm],
                issuer=rules.issuers or None,
                audience=rules.audiences or None,
                leeway=rules.leeway_s,
                options={"require": ["sub"]},
            )
        except jwt.InvalidSignatureError:
            raise
        except jwt.ExpiredSignatureError:
            raise _expired() from None
        except jwt.InvalidAudienceError:
            raise _invalid("it is for another audience (RUNWARDEN_JWT_AUDIENCE says which is ours)") from None
        except jwt.InvalidIssuerError:
            raise _invalid("it is of another issuer (RUNWARDEN_JWT_ISSUER says whom we trust)") from None
        except jwt.InvalidTokenError as fault:
            raise _invalid(str(fault)) from None
        return claims


def bearer(authorization: str | None) -> str:
    """The token of an ``Authorization`` header. Raises Unauthenticated."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated
    if not token.isascii():  # a header may hold any bytes; PyJWT raises what is none of its own errors
        raise _invalid("it is not base64url")
    return token.strip()


def mint(
    subject: str,
    secret: str,
    *,
    lifetime_s: int,
    roles: Collection[Role] | None = None,
    groups: Collection[str] = (),
    rules: Rules | None = None,
) -> str:
    """A token for development that ``rules`` accept: HS256; without ``roles`` it is a plain user's."""
    now, rules = int(time.time()), rules or Rules()
    claims: dict[str, Any] = {"sub": subject, "iat": now, "exp": now + lifetime_s}
    if rules.issuers:
        claims["iss"] = rules.issuers[0]
    if rules.audiences:
        claims["aud"] = rules.audiences[0]
    if roles is not None:
        _put(claims, rules.roles_claim, sorted(roles))
    if groups:
        _put(claims, rules.groups_claim, sorted(groups))
    return jwt.encode(claims, secret, algorithm="HS256")


def _put(claims: dict[str, Any], path: str, value: Any) -> None:
    """Where ``claims.found`` finds it. A name with a scheme in it is one name, as providers mean it."""
    if "://" in path:
        claims[path] = value
        return
    *way, name = path.split(".")
    for part in way:
        claims = claims.setdefault(part, {})
    claims[name] = value


def _invalid(why: str) -> Unauthenticated:
    return Unauthenticated(f"The token is not valid: {why}.", code="token_invalid")


def _expired() -> Unauthenticated:
    return Unauthenticated("The token has expired: get a new one.", code="token_expired")
