"""What of a JWK Set verifies tokens: a key's kind says its algorithm, and whatever is odd about one is passed over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from hypothesis import given
from hypothesis import strategies as st

from daemon.auth.keys import MAX_KEYS, Keyring, NoKeySet, published
from tests.auth.signers import ALGORITHMS, Signer, key_set, signer

RSA, EC, ED = (signer(algorithm) for algorithm in ALGORITHMS)
SHORT = Signer(rsa.generate_private_key(public_exponent=65537, key_size=1024), "RS256", "short")
P384 = Signer(ec.generate_private_key(ec.SECP384R1()), "ES256", "p384")
ED448 = Signer(ed448.Ed448PrivateKey.generate(), "EdDSA", "ed448")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "said", [{}, {"alg": None}, {"use": None}, {"key_ops": ["verify"]}, {"x5t": "x"}, {"kid": None}]
)
def test_a_public_key_is_for_the_algorithm_of_its_kind(algorithm: str, said: dict[str, Any]) -> None:
    jwk = signer(algorithm).jwk(**said) | ({"kid": None} if "kid" in said else {})
    (key,) = published(json.dumps({"keys": [jwk]}).encode())
    assert (key.algorithm, key.kid) == (algorithm, jwk.get("kid"))


def test_an_ed25519_key_may_call_its_algorithm_by_its_new_name() -> None:
    assert published(key_set(ED.jwk(alg="Ed25519")))[0].algorithm == "EdDSA"


UNUSABLE: dict[str, Any] = {
    "a secret": {"kty": "oct", "kid": "one", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
    "a key for encryption": RSA.jwk(use="enc"),
    "a key to sign with": RSA.jwk(key_ops=["sign"]),
    "operations of words": RSA.jwk(key_ops="verify"),
    "an algorithm of lists": RSA.jwk(alg=["RS256"]),
    "another algorithm of its kind": RSA.jwk(alg="RS512"),
    "an RSA key for PSS": RSA.jwk(alg="PS256"),
    "an RSA key for HS256": RSA.jwk(alg="HS256"),
    "an RSA key for none": RSA.jwk(alg="none"),
    "an RSA key for ES256": RSA.jwk(alg="ES256"),
    "an EC key for RS256": EC.jwk(alg="RS256"),
    "an EC key for EdDSA": EC.jwk(alg="EdDSA"),
    "an Ed25519 key for ES256": ED.jwk(alg="ES256"),
    "an EC key that says it is RSA": EC.jwk(kty="RSA", alg="RS256"),
    "an RSA key that says it is EC": RSA.jwk(kty="EC", alg="ES256"),
    "an RSA key with a curve": RSA.jwk(crv="P-256"),
    "an Ed25519 key that says it is P-256": ED.jwk(crv="P-256", kty="EC", alg="ES256"),
    "a curve of another size": P384.jwk(),
    "a curve of another size that says P-256": P384.jwk(crv="P-256"),
    "Ed448": ED448.jwk(),
    "a short RSA key": SHORT.jwk(),
    "an RSA key with its private half": RSA.private_jwk(),
    "a point that is not on the curve": EC.jwk(x=EC.jwk()["y"]),
    "no modulus": RSA.jwk(n=None),
    "a modulus of numbers": RSA.jwk(n=7),
    "a modulus of no base64": RSA.jwk(n="żółć"),
    "an even exponent": RSA.jwk(e="AAAA"),
    "no kty": RSA.jwk(kty=None),
    "a kty of lists": RSA.jwk(kty=["RSA"]),
    "a kid of numbers": RSA.jwk(kid=7),
    "a kid too long": RSA.jwk(kid="x" * 256),
    "a text": "RSA",
    "nothing": None,
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_key_that_is_for_something_else_or_broken_is_passed_over(name: str) -> None:
    with pytest.raises(NoKeySet, match="none of its 1 keys"):
        published(key_set(UNUSABLE[name]))
    assert [key.kid for key in published(key_set(UNUSABLE[name], signer("EdDSA", "good")))] == ["good"]


ODD: list[Any] = ["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "AA", "", "====", "żółć", "a\x00b", "x" * 300]
ODD += [None, True, 0, -1, 2**63, 1.5, [], ["RSA"], [[]], {}, {"n": []}]
MEMBERS = ("kty", "crv", "kid", "alg", "use", "key_ops", "n", "e", "x", "y")
CHANGES = st.dictionaries(st.sampled_from(MEMBERS), st.sampled_from(ODD), max_size=4)


@given(st.sampled_from([RSA, EC, ED]), CHANGES)
def test_whatever_stands_in_a_key_it_is_read_or_passed_over(good: Signer, changes: dict[str, Any]) -> None:
    keys = published(json.dumps({"keys": [good.jwk() | changes, signer("EdDSA", "good").jwk()]}).encode())
    assert keys[-1].kid == "good"


@pytest.mark.parametrize("document", [b"", b"<html>", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"\xff", b"null"])
def test_what_is_no_key_set_is_refused(document: bytes) -> None:
    with pytest.raises(NoKeySet):
        published(document)


def test_a_set_is_read_to_a_bound() -> None:
    assert len(published(key_set(*(ED.jwk(kid=str(number)) for number in range(MAX_KEYS + 5))))) == MAX_KEYS


def test_a_key_keeps_its_name_as_long_as_it_is_the_same() -> None:
    first, again = published(key_set(RSA)), published(key_set(EC, RSA.jwk(use=None)))
    assert first[0].name == again[1].name
    others = [RSA.jwk(kid="two"), signer("RS256", "three").jwk(kid="one")]
    assert len({first[0].name, *(key.name for key in published(key_set(*others)))}) == 3


def test_a_header_only_chooses_among_keys() -> None:
    ring = Keyring("a secret that is long enough")
    ring.publish(published(key_set(RSA, EC, EC.jwk(kid="two"), ED.jwk(kid=None))))
    fitting = [("HS256", None), ("HS256", "one"), ("RS256", "one"), ("RS256", "two"), ("ES256", None), ("EdDSA", "x")]
    assert [len(ring.fitting(*header)) for header in fitting] == [1, 1, 1, 0, 2, 1]
    for algorithm in ("none", "None", "HS384", "RS384", "PS256", ""):
        assert ring.fitting(algorithm, None) == []


def test_keys_that_are_not_published_any_more_are_not_held() -> None:
    ring = Keyring()
    keys = published(key_set(RSA, EC))
    ring.publish(keys)
    ring.publish(keys[:1])
    assert [ring.holds(key.name) for key in keys] == [True, False]
    assert ring.fitting("HS256", None) == []
