"""Service tokens, without their store: their form, and who may make which; and what tickets keep of a caller."""

from __future__ import annotations

import time
from uuid import uuid4

import pytest

from daemon.auth.caller import PLAIN, Caller, Role
from daemon.auth.service_tokens import bearer_of, check_maker, digest_of, new_token, token_id_of
from daemon.auth.tickets import admit, ticket_for, ticket_key
from daemon.errors import Forbidden


def test_a_token_has_its_form_and_256_bits_that_nobody_had_before() -> None:
    made = {new_token() for _ in range(1000)}
    assert len(made) == 1000
    assert {(one[:4], len(one)) for one in made} == {("rwt_", 4 + 43)}
    assert len({digest_of(one) for one in made}) == 1000


@pytest.mark.parametrize(
    "text", ["", "rwt_", "rwt_" + "a" * 42, "rwt_" + "a" * 44, "rwt_" + "a" * 42 + ".", "RWT_" + "a" * 43, "rwt_é" * 20]
)
def test_what_cannot_be_one_has_no_digest(text: str) -> None:
    assert digest_of(text) is None


ADMIN = frozenset[Role]({"viewer", "admin"})
MAKERS: list[tuple[Caller, str, set[Role], str | None]] = [
    (Caller("ann"), "ann", {"viewer", "operator", "approver"}, None),
    (Caller("ann"), "ann", {"admin"}, "scope_exceeds_roles"),
    (Caller("ann"), "bob", {"viewer"}, "role_required"),
    (Caller("ann", roles=frozenset({"viewer"})), "ann", {"viewer"}, None),
    (Caller("ann", roles=frozenset({"viewer"})), "ann", {"viewer", "operator"}, "scope_exceeds_roles"),
    (Caller("ann", roles=ADMIN), "ann", {"admin", "approver"}, None),
    (Caller("ann", roles=ADMIN), "ci", {"operator"}, None),
    (Caller("ann", roles=ADMIN, via="token:x"), "ann", {"viewer"}, "not_by_service_token"),
]


@pytest.mark.parametrize(("maker", "user_id", "scopes", "code"), MAKERS)
def test_nobody_makes_a_token_that_may_more_than_they(
    maker: Caller, user_id: str, scopes: set[Role], code: str | None
) -> None:
    if code is None:
        check_maker(maker, user_id=user_id, scopes=scopes)
        return
    with pytest.raises(Forbidden) as refused:
        check_maker(maker, user_id=user_id, scopes=scopes)
    assert refused.value.problem_code == code


def test_a_bearer_is_its_user_within_its_scopes() -> None:
    token_id = uuid4()
    caller = bearer_of(
        token_id=token_id, user_id="ci", scopes=["operator"], groups=["ops"], expires_at=7, made_by="root"
    )
    assert caller == Caller("ci", 7, frozenset({"viewer", "operator"}), frozenset({"ops"}), f"token:{token_id}", "root")
    assert token_id_of(caller.via) == token_id
    assert token_id_of(None) is None


def test_a_ticket_keeps_what_its_holder_is() -> None:
    key, ends = ticket_key("a secret"), int(time.time()) + 600
    for caller in (
        Caller("ann", None, frozenset({"viewer"})),
        Caller("ann", ends, PLAIN, frozenset({"ops"}), f"token:{uuid4()}"),
    ):
        assert admit(ticket_for(caller, "run", key)[0], "run", key) == caller
