"""Keys of an identity provider's, made for tests: each signs tokens and tells its public half as a JWK."""

from __future__ import annotations

import base64
import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ALGORITHMS = ("RS256", "ES256", "EdDSA")
_TELLERS: dict[str, Any] = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


class Signer:
    """One private key with a name."""

    def __init__(self, private: Any, algorithm: str, kid: str | None) -> None:
        self.private = private
        self.algorithm = algorithm
        self.kid = kid

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """The public half; ``changes`` to None leave a member out."""
        told = _TELLERS[self.algorithm].to_jwk(self.private.public_key(), as_dict=True)
        told |= {"kid": self.kid, "alg": self.algorithm, "use": "sig", "key_ops": None} | changes
        return {name: value for name, value in told.items() if value is not None}

    def private_jwk(self) -> dict[str, Any]:
        """Both halves, as nobody should publish them."""
        d = self.private.private_numbers().d
        return self.jwk(d=base64.urlsafe_b64encode(d.to_bytes(256, "big")).rstrip(b"=").decode())

    def pem(self) -> bytes:
        """The public half as everybody may read it."""
        return self.private.public_key().public_bytes(  # type: ignore[no-any-return] # whichever kind of key it is
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, sub: str = "ann", *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token for ten minutes; claims that are None are left out."""
        now = int(time.time())
        told = {"sub": sub, "iat": now, "exp": now + 600} | claims
        said = {"kid": self.kid} if self.kid is not None else {}
        return jwt.encode(
            {name: value for name, value in told.items() if value is not None},
            self.private,
            algorithm=self.algorithm,
            headers=said | (header or {}),
        )


@cache
def signer(algorithm: str, kid: str | None = "one") -> Signer:
    """The signer of this name; a new one for each name, made once."""
    private: Any
    if algorithm == "RS256":
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    elif algorithm == "ES256":
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        private = ed25519.Ed25519PrivateKey.generate()
    return Signer(private, algorithm, kid)


def key_set(*keys: Signer | dict[str, Any]) -> bytes:
    """A JWK Set of these."""
    return json.dumps({"keys": [key.jwk() if isinstance(key, Signer) else key for key in keys]}).encode()
