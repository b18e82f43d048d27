"""Tokens by keys and rules: no algorithm is taken for another, claims are held to the settings, memory is honest."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest

from daemon.auth.agent_tokens import agent_token
from daemon.auth.claims import Rules
from daemon.auth.keys import Keyring, published
from daemon.auth.tokens import REMEMBERED, Tokens, UnknownKey, bearer, mint
from daemon.errors import SetupError, Unauthenticated
from tests.auth.signers import ALGORITHMS, Signer, key_set, signer

SECRET = "a secret of these tests, long enough"
NOW = int(time.time())


def ring_of(*keys: Signer | dict[str, Any], secret: str = "") -> Keyring:
    ring = Keyring(secret)
    if keys:
        ring.publish(published(key_set(*keys)))
    return ring


def by_hand(header: dict[str, Any], claims: dict[str, Any], key: bytes) -> str:
    """A token with an HMAC over whatever it says, as an attacker makes it."""
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims))
    proof = hmac.new(key, text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(proof).rstrip(b"=")).decode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("secret", ["", SECRET], ids=["alone", "beside a secret"])
def test_a_token_of_the_identity_providers_is_verified(algorithm: str, secret: str) -> None:
    tokens = Tokens(ring_of(*(signer(one, one) for one in ALGORITHMS), secret=secret))
    caller = tokens.authenticate(signer(algorithm, algorithm).sign("ann"))
    assert (caller.user_id, caller.via) == ("ann", None)
    if secret:
        assert tokens.authenticate(mint("bob", secret, lifetime_s=60)).user_id == "bob"


CLAIMS = {"sub": "mallory", "exp": NOW + 600}
RSA = signer("RS256")
CONFUSED: dict[str, str] = {
    "HS256 keyed with the public key's PEM": by_hand({"alg": "HS256", "kid": "one"}, CLAIMS, RSA.pem()),
    "the same without a kid": by_hand({"alg": "HS256"}, CLAIMS, RSA.pem()),
    "the same without the last newline": by_hand({"alg": "HS256", "kid": "one"}, CLAIMS, RSA.pem().rstrip()),
    "HS256 keyed with the JWK": by_hand({"alg": "HS256", "kid": "one"}, CLAIMS, json.dumps(RSA.jwk()).encode()),
    "HS256 keyed with the modulus": by_hand({"alg": "HS256", "kid": "one"}, CLAIMS, RSA.jwk()["n"].encode()),
    "HS256 keyed with nothing": by_hand({"alg": "HS256", "kid": "one"}, CLAIMS, b""),
    "RS256 by name, an HMAC with the PEM": by_hand({"alg": "RS256", "kid": "one"}, CLAIMS, RSA.pem()),
    "RS256 by name, an HMAC with the secret": by_hand({"alg": "RS256", "kid": "one"}, CLAIMS, SECRET.encode()),
    "none": jwt.encode(CLAIMS, None, algorithm="none", headers={"kid": "one"}),
    "nOnE": by_hand({"alg": "nOnE", "kid": "one"}, CLAIMS, b"").rpartition(".")[0] + ".",
    "no alg": by_hand({"kid": "one"}, CLAIMS, SECRET.encode()),
    "a list of algs": by_hand({"alg": ["RS256"], "kid": "one"}, CLAIMS, RSA.pem()),
    "ES256 with the kid of an RSA key": signer("ES256", "other").sign("mallory", header={"kid": "one"}),
    "EdDSA with the kid of an RSA key": signer("EdDSA", "other").sign("mallory", header={"kid": "one"}),
    "PS256 by the right key": jwt.encode(CLAIMS, RSA.private, algorithm="PS256", headers={"kid": "one"}),
    "RS512 by the right key": jwt.encode(CLAIMS, RSA.private, algorithm="RS512", headers={"kid": "one"}),
    "another key under this kid": signer("RS256", "other").sign("mallory", header={"kid": "one"}),
    "a key that it brings along": signer("RS256", "other").sign(
        "mallory", header={"kid": "one", "jwk": signer("RS256", "other").jwk(), "jku": "https://mallory.example/jwks"}
    ),
    "an extension that is critical": RSA.sign("mallory", header={"crit": ["exp"], "exp": 1}),
    "a kid of numbers": by_hand({"alg": "RS256", "kid": 1}, CLAIMS, RSA.pem()),
}


@pytest.mark.parametrize("secret", ["", SECRET], ids=["keys alone", "keys and a secret"])
@pytest.mark.parametrize("name", CONFUSED)
def test_no_algorithm_is_taken_for_another(name: str, secret: str) -> None:
    tokens = Tokens(ring_of(RSA, secret=secret))
    with pytest.raises(Unauthenticated) as refused:
        tokens.authenticate(CONFUSED[name])
    assert refused.value.problem_code == "token_invalid"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_secret_alone_verifies_no_public_keys_signature(algorithm: str) -> None:
    with pytest.raises(Unauthenticated):
        Tokens(Keyring(SECRET)).authenticate(signer(algorithm).sign())


def test_a_public_key_is_refused_where_the_secret_belongs() -> None:
    """Everybody could sign with it."""
    with pytest.raises(SetupError, match="RUNWARDEN_JWT_SECRET"):
        Keyring(RSA.pem().decode())


REFUSED: dict[str, tuple[Rules, dict[str, Any], str]] = {
    "another issuer": (Rules(issuers=("https://idp",)), {"iss": "https://evil"}, "another issuer"),
    "no issuer": (Rules(issuers=("https://idp",)), {}, "iss"),
    "a part of the issuer": (Rules(issuers=("https://idp",)), {"iss": "https"}, "another issuer"),
    "another audience": (Rules(audiences=("us",)), {"aud": "them"}, "another audience"),
    "other audiences": (Rules(audiences=("us",)), {"aud": ["them", "those"]}, "another audience"),
    "no audience": (Rules(audiences=("us",)), {}, "aud"),
    "an audience where none is ours": (Rules(), {"aud": "them"}, "RUNWARDEN_JWT_AUDIENCE"),
    "expired beyond the leeway": (Rules(leeway_s=30), {"exp": NOW - 60}, "expired"),
    "not yet valid": (Rules(leeway_s=30), {"nbf": NOW + 600}, "not yet valid"),
    "issued in the future": (Rules(), {"iat": NOW + 600}, "not yet valid"),
    "no exp where one is required": (Rules(required=("exp",)), {"exp": None}, "'exp'"),
    "no claim on a path": (Rules(required=("realm_access.roles",)), {"realm_access": {}}, "'realm_access.roles'"),
    "a claim of null": (Rules(required=("email",)), {"email": None}, "'email'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_token_against_the_rules_is_refused_and_told_why(name: str) -> None:
    rules, claims, says = REFUSED[name]
    with pytest.raises(Unauthenticated, match=says):
        Tokens(ring_of(RSA), rules).authenticate(RSA.sign(**claims))


ACCEPTED: dict[str, tuple[Rules, dict[str, Any]]] = {
    "the issuer": (Rules(issuers=("https://idp",)), {"iss": "https://idp"}),
    "one of two issuers": (Rules(issuers=("https://a", "https://b")), {"iss": "https://b"}),
    "any issuer": (Rules(), {"iss": "https://anybody"}),
    "the audience among others": (Rules(audiences=("us", "we")), {"aud": ["them", "we"]}),
    "expired within the leeway": (Rules(leeway_s=3600), {"exp": NOW - 10}),
    "valid within the leeway": (Rules(leeway_s=30), {"nbf": NOW + 10, "iat": NOW + 10}),
    "no end": (Rules(), {"exp": None}),
    "what is required": (Rules(required=("exp", "realm_access.roles")), {"realm_access": {"roles": []}}),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_token_within_the_rules_is_accepted(name: str) -> None:
    rules, claims = ACCEPTED[name]
    tokens = Tokens(ring_of(RSA), rules)
    token = RSA.sign(**claims)
    assert tokens.authenticate(token) == tokens.authenticate(token)


def test_a_callers_end_has_the_leeway_in_it() -> None:
    """So that what ends with the token (streams, tickets) is as long as the token is accepted."""
    assert Tokens(ring_of(RSA), Rules(leeway_s=1.5)).authenticate(RSA.sign(exp=NOW + 6000)).expires_at == NOW + 6002


def test_a_key_that_nobody_knows_is_told_apart_from_a_bad_signature() -> None:
    """Only the first is worth a look at the identity provider's set."""
    tokens = Tokens(ring_of(RSA, secret=SECRET))
    with pytest.raises(UnknownKey):
        tokens.authenticate(signer("RS256", "new").sign())
    with pytest.raises(UnknownKey):
        tokens.authenticate(signer("ES256", "one").sign())
    for nameless in (signer("RS256", None), signer("EdDSA", None)):
        with pytest.raises(UnknownKey):
            tokens.authenticate(nameless.sign())
    for token in (CONFUSED["another key under this kid"], by_hand({"alg": "HS256", "kid": "new"}, CLAIMS, b"x")):
        with pytest.raises(Unauthenticated) as refused:
            tokens.authenticate(token)
        assert not isinstance(refused.value, UnknownKey)


def test_a_token_without_a_kid_is_tried_with_each_key_of_its_algorithm() -> None:
    nameless = signer("ES256", None)
    tokens = Tokens(ring_of(RSA, signer("ES256", "two"), nameless.jwk(kid="three")))
    assert tokens.authenticate(nameless.sign("ann")).user_id == "ann"


def test_a_key_without_a_kid_verifies_tokens_that_name_one() -> None:
    """And a key that came since may be the right one as well: the set is worth a look when this one is not."""
    nameless = signer("ES256", None)
    tokens = Tokens(ring_of(nameless))
    assert tokens.authenticate(nameless.sign("ann", header={"kid": "any"})).user_id == "ann"
    with pytest.raises(UnknownKey):
        tokens.authenticate(signer("ES256", "new").sign())


def test_a_remembered_verdict_ends_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_of(RSA, signer("ES256"))
    tokens, token = Tokens(ring), RSA.sign()
    tokens.authenticate(token)
    with monkeypatch.context() as patched:
        patched.setattr(jwt, "decode", _never)
        ring.publish(published(key_set(signer("EdDSA"), RSA)))  # the same key, read again
        assert tokens.authenticate(token).user_id == "ann"  # by memory
    ring.publish(published(key_set(signer("EdDSA"))))
    with pytest.raises(UnknownKey):
        tokens.authenticate(token)
    ring.publish(published(key_set(signer("RS256", "other").jwk(kid="one"))))
    with pytest.raises(Unauthenticated):
        tokens.authenticate(token)
    ring.publish(())
    with pytest.raises(UnknownKey):
        tokens.authenticate(token)


def test_a_remembered_verdict_ends_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, token = Tokens(Keyring(SECRET)), mint("ann", SECRET, lifetime_s=60)
    tokens.authenticate(token)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Unauthenticated, match="expired"):
        tokens.authenticate(token)


def test_the_memory_has_a_bound() -> None:
    tokens = Tokens(Keyring(SECRET))
    for number in range(REMEMBERED + 10):
        assert tokens.authenticate(mint(f"user {number}", SECRET, lifetime_s=60)).user_id == f"user {number}"
    assert len(tokens._remembered) == REMEMBERED


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic x", "x"])
def test_what_is_no_bearer_token_is_unauthenticated(header: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        bearer(header)
    assert refused.value.problem_code == "unauthenticated"


@pytest.mark.parametrize("claim", ["roles", "realm_access.roles", "https://runwarden.example/roles"])
def test_a_minted_token_is_one_that_the_rules_accept(claim: str) -> None:
    rules = Rules(issuers=("https://idp",), audiences=("us",), roles_claim=claim, groups_claim="realm_access.groups")
    token = mint("ann", SECRET, lifetime_s=60, roles=["approver"], groups=["ops", "dev"], rules=rules)
    caller = Tokens(Keyring(SECRET), rules).authenticate(token)
    assert (caller.roles, caller.groups) == ({"viewer", "approver"}, {"ops", "dev"})


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("it was verified once more")


def test_what_an_agent_shows_the_gateway_says_nothing_of_a_person() -> None:
    """Though somebody gave both the same secret."""
    shown = agent_token("laptop", owner="ann", version=1, secret=SECRET, issuer="", issued_at=0, expires_at=2**40)
    with pytest.raises(Unauthenticated, match="an agent's"):
        Tokens(Keyring(SECRET), Rules()).authenticate(shown)
