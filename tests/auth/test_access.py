"""What may be called, what a tool is like and who must agree, decided from values alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.auth.access import (
    Agent,
    Grant,
    Hold,
    Policy,
    deciders,
    ground_of,
    matches,
    may_view,
    next_expiry,
    permissions,
    traits_of,
    use_refusal,
)
from daemon.auth.caller import ROLES, Caller
from daemon.machine.ground import Traits

NOW = 1_800_000_000_000
TEXTS = st.text("ab*_", max_size=6)


@given(TEXTS, st.text("ab_", max_size=8))
def test_a_star_stands_for_any_text_and_nothing_else_is_special(pattern: str, text: str) -> None:
    wanted = re.compile("".join(".*" if one == "*" else re.escape(one) for one in pattern), re.DOTALL)
    assert matches(pattern, text) == (wanted.fullmatch(text) is not None)


def given_to(subject: str, permission: Any = "use", *tools: str, until: int | None = None) -> Agent:
    grant = Grant(subject=subject, permission=permission, tools=tools or ("*",), expires_ms=until)
    return Agent(agent_id="laptop", owner="ann", grants=(grant,))


@pytest.mark.parametrize(
    ("agent", "admin", "says"),
    [
        (Agent(agent_id="laptop"), False, "belongs to nobody"),
        (Agent(agent_id="laptop"), True, None),
        (Agent(agent_id="laptop", owner="bob"), False, None),
        (Agent(agent_id="laptop", owner="ann"), False, "was not given"),
        (Agent(agent_id="laptop", owner="ann"), True, "was not given"),
        (given_to("user:bob"), False, None),
        (given_to("group:ops"), False, None),
        (given_to("group:dev"), False, "was not given"),
        (given_to("user:bob", "view"), False, "was not given"),
        (given_to("user:bob", "approve"), False, "was not given"),
        (given_to("user:bob", "use", "git__*"), False, None),
        (given_to("user:bob", "use", "fs__*"), False, "not its tool"),
        (given_to("user:bob", until=NOW + 1), False, None),
        (given_to("user:bob", until=NOW), False, "is over"),
    ],
)
def test_who_may_use_a_tool_and_else_why_not(agent: Agent, admin: bool, says: str | None) -> None:
    found = use_refusal(agent, "git__log", user_id="bob", groups={"ops"}, admin=admin, now_ms=NOW)
    assert (found is None) if says is None else (found is not None and says in found and "'laptop'" in found)


def test_what_somebody_may_do_is_told_and_an_agent_is_seen_by_whoever_may_do_anything() -> None:
    agent = Agent(
        agent_id="laptop",
        owner="ann",
        grants=(
            Grant(subject="user:bob", permission="view"),
            Grant(subject="group:ops", permission="approve", tools=("git__*",)),
            Grant(subject="user:eve", permission="use", expires_ms=NOW),
        ),
    )
    assert permissions(agent, Caller("ann"), NOW) == {"owner"}
    assert permissions(agent, Caller("bob", groups=frozenset({"ops"})), NOW) == {"view", "approve"}
    seen = {
        who.user_id
        for who in (Caller("ann"), Caller("bob"), Caller("eve"), Caller("root", roles=ROLES))
        if may_view(agent, who, NOW)
    }
    assert seen == {"ann", "bob", "root"}
    assert deciders(agent, "git__log", NOW) == {"user:ann", "group:ops"}
    assert deciders(agent, "fs__write", NOW) == {"user:ann"}
    assert next_expiry(agent, NOW - 5) == NOW
    assert next_expiry(agent, NOW) is None


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (None, Traits(risk="medium", writes=True, open_world=True, idempotent=False)),
        ({}, Traits(risk="medium", writes=True, open_world=True, idempotent=False)),
        ({"readOnlyHint": True}, Traits(risk="low", writes=False, open_world=True, idempotent=True)),
        ({"readOnlyHint": True, "destructiveHint": True}, Traits(risk="low", writes=False, idempotent=True)),
        ({"destructiveHint": True}, Traits(risk="high")),
        ({"destructiveHint": False, "openWorldHint": False}, Traits(risk="medium", open_world=False)),
        ({"idempotentHint": True}, Traits(idempotent=True)),
        ({"readOnlyHint": "yes"}, Traits()),
    ],
)
def test_annotations_say_what_a_tool_is_like_and_absent_ones_the_worst(annotations: Any, expected: Traits) -> None:
    assert traits_of(annotations, "laptop", "git__log", ()) == expected


def test_the_more_specific_policy_is_heard_field_by_field_and_of_equals_the_worse() -> None:
    policies = [
        Policy(agents="*", tools="*", requires_approval=True, risk="high"),
        Policy(agents="*", tools="git__*", requires_approval=False),
        Policy(agents="*", tools="git__push", denied=True),
        Policy(agents="lap*", tools="git__*", writes=False, risk="low"),
        Policy(agents="*top", tools="git__*", writes=True, risk="medium"),
    ]
    pull = traits_of(None, "laptop", "git__pull", policies)
    assert (pull.requires_approval, pull.denied, pull.writes, pull.risk) == (False, False, True, "medium")
    assert traits_of(None, "laptop", "git__push", policies).denied
    other = traits_of(None, "laptop", "fs__write", policies)
    assert (other.requires_approval, other.risk) == (True, "high")


def test_only_an_admin_s_own_word_says_that_a_call_may_be_repeated() -> None:
    assert traits_of({"idempotentHint": True}, "a", "t", ()).repeat is None
    assert traits_of(None, "a", "t", [Policy(agents="*", tools="*", idempotent=True)]).repeat is True
    assert (
        traits_of({"readOnlyHint": True}, "a", "t", [Policy(agents="*", tools="*", idempotent=False)]).repeat is False
    )


def test_a_ground_tells_the_bar_before_the_policy_and_what_is_held() -> None:
    denied = [Policy(agents="*", tools="*", denied=True)]
    about: dict[str, Any] = {"user_id": "bob", "groups": (), "admin": False, "now_ms": NOW}
    stranger = ground_of(Agent(agent_id="laptop", owner="ann"), "t", policies=denied, **about)
    assert stranger.barred is not None
    assert stranger.barred.code == "agent_unauthorized"
    grantee = ground_of(given_to("user:bob"), "t", policies=denied, **about)
    assert grantee.barred is not None
    assert (grantee.barred.code, "laptop" in grantee.barred.message) == ("tool_denied", True)
    for scope, target, held in (
        ("everything", "", True),
        ("agent", "laptop", True),
        ("agent", "other", False),
        ("user", "bob", True),
        ("user", "ann", False),
    ):
        hold = Hold(scope=scope, target=target, reason="smoke", held_by="root")  # type: ignore[arg-type] # each is a scope
        ground = ground_of(given_to("user:bob"), "t", holds=[hold], **about)
        assert (ground.held is not None and "smoke" in ground.held) is held
