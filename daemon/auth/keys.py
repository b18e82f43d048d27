"""Keys that tokens are verified with, each for the one algorithm that it decides: never the token's header.

A shared secret is for HS256 and nothing else; of an identity provider's JWK Set (RFC 7517) an RSA key is for RS256, a
P-256 key for ES256, an Ed25519 key for EdDSA. What a header says only chooses among keys, so a public key is never
taken for a secret. Documents are passed in; ``issuer`` fetches them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import jwt
import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from jwt.algorithms import HMACAlgorithm

from daemon.errors import SetupError

Algorithm: TypeAlias = Literal["HS256", "RS256", "ES256", "EdDSA"]

PUBLISHED: frozenset[Algorithm] = frozenset({"RS256", "ES256", "EdDSA"})
"""What a JWK Set may hold keys for."""
MAX_KEYS = 100
"""Keys read of a set; what follows is ignored."""
MAX_KID = 255
RSA_BITS = range(2048, 8193)
"""Smaller ones are broken, larger ones cost their verifier too much."""
_KINDS: dict[tuple[object, object], tuple[Algorithm, frozenset[str]]] = {
    ("RSA", None): ("RS256", frozenset({"RS256"})),
    ("EC", "P-256"): ("ES256", frozenset({"ES256"})),
    ("OKP", "Ed25519"): ("EdDSA", frozenset({"EdDSA", "Ed25519"})),
}
"""By ``kty`` and ``crv``: the algorithm, and what a key's own ``alg`` may call it, if it has one (RFC 9864)."""
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class NoKeySet(Exception):
    """The document is no JWK Set, or none of its keys can be used. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key; two that are the same in all that matters have the same ``name``."""

    name: str
    algorithm: Algorithm
    kid: str | None
    material: Any = field(repr=False, compare=False)


def shared(secret: str) -> Key:
    """The key that a shared secret is. Raises SetupError for a key file: what everybody may read is no secret."""
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except jwt.InvalidKeyError as fault:
        raise SetupError(f"RUNWARDEN_JWT_SECRET cannot be a shared secret: {fault}") from None
    return Key(name="secret", algorithm="HS256", kid=None, material=secret)


def published(document: bytes) -> list[Key]:
    """The keys of a JWK Set that can verify tokens; those that cannot are passed over. Raises NoKeySet."""
    try:
        told = orjson.loads(document)
    except orjson.JSONDecodeError as fault:
        raise NoKeySet(f"it is no JSON: {fault}") from None
    keys = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(keys, list):
        raise NoKeySet("it is no JWK Set: an object with a list of keys")
    found = list(_usable(keys[:MAX_KEYS]))
    if not found:
        raise NoKeySet(f"none of its {len(keys)} keys is a public one for RS256, ES256 or EdDSA signatures")
    return found


def _usable(keys: Iterable[Any]) -> Iterator[Key]:
    for jwk in keys:
        if isinstance(jwk, dict) and (key := _key(jwk)) is not None:
            yield key


def _key(jwk: dict[str, Any]) -> Key | None:
    """What a JWK is good for, by its kind; None when it is for something else, contradicts itself or is malformed."""
    kind, kid, named = (jwk.get("kty"), jwk.get("crv")), jwk.get("kid"), jwk.get("alg")
    if not all(isinstance(said, str | None) for said in (*kind, kid, named)) or len(kid or "") > MAX_KID:
        return None
    algorithm, names = _KINDS.get(kind, (None, frozenset[str]()))
    says_other = named is not None and named not in names
    if algorithm is None or says_other or not _for_signatures(jwk) or _PRIVATE & jwk.keys():
        return None
    try:
        material = jwt.PyJWK(jwk, algorithm).key
    except (jwt.PyJWTError, UnsupportedAlgorithm, ValueError, TypeError, AttributeError, OverflowError):
        return None  # PyJWT trusts the shape of what it is given
    if algorithm == "RS256" and material.key_size not in RSA_BITS:
        return None
    public = orjson.dumps([algorithm, kid, *(jwk.get(part) for part in ("n", "e", "x", "y"))])
    return Key(name=hashlib.sha256(public).hexdigest(), algorithm=algorithm, kid=kid, material=material)


def _for_signatures(jwk: dict[str, Any]) -> bool:
    use, operations = jwk.get("use"), jwk.get("key_ops")
    return use in (None, "sig") and (operations is None or (isinstance(operations, list) and "verify" in operations))


class Keyring:
    """The keys of this moment: the secret's, if there is one, and the identity provider's as they were last read."""

    def __init__(self, secret: str = "") -> None:
        self._own = (shared(secret),) if secret else ()
        self._published: tuple[Key, ...] = ()
        self._names = frozenset(key.name for key in self._own)

    def publish(self, keys: Iterable[Key]) -> None:
        """The identity provider's keys are these and no others; none, when nobody knows them any more."""
        self._published = tuple(keys)
        self._names = frozenset(key.name for key in (*self._own, *self._published))

    def holds(self, name: str) -> bool:
        """Whether a key is still trusted."""
        return name in self._names

    def withdrawn(self, name: str) -> bool:
        """Whether a key is among ours no more. Of none while nobody knows the identity provider's."""
        return bool(self._published) and name not in self._names

    def fitting(self, algorithm: str, kid: str | None) -> list[Key]:
        """The keys that may have signed a token with this header. One that names no key is tried with each."""
        return [
            key
            for key in (*self._own, *self._published)
            if key.algorithm == algorithm and (kid is None or key.kid is None or key.kid == kid)
        ]
