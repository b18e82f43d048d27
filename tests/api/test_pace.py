"""Nobody changes who may do what without end: each change makes every node look again."""

from __future__ import annotations

import pytest

from daemon.api import pace
from daemon.api.app import ROUTES
from daemon.auth.caller import ROLES, Caller
from daemon.errors import TooMany
from tests.api.answers import assert_problem
from tests.api.harness import Stack, step


def test_each_caller_has_a_bound_of_their_own_and_admins_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    kept = pace.Pace()
    for _ in range(pace.MOST):
        kept.keep(Caller("ann"))
    with pytest.raises(TooMany):
        kept.keep(Caller("ann"))
    kept.keep(Caller("bob"))
    for _ in range(pace.MOST + 1):
        kept.keep(Caller("root", roles=ROLES))
    now[0] += pace.WINDOW_S
    kept.keep(Caller("ann"))


def test_whatever_changes_authority_is_paced() -> None:
    paced = {route.name for route in ROUTES if route.paced}
    assert paced == {"agents_bind", "grants_add", "grants_revoke", "agent_tokens_mint", "holds_hold", "holds_release"}
    changing = {
        route.name for route in ROUTES if route.method != "GET" and "/bridge/" in route.path and route.role != "admin"
    }
    assert changing <= paced


async def test_one_change_too_many_is_429_and_says_when_to_come_back(
    live: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "MOST", 2)
    await live.workflow(step("a"))  # which makes the agent ann's
    grant = {"subject": "user:bob", "permission": "view"}
    for _ in range(2):
        assert (await live.post("/v1/bridge/agents/agent-1/grants", grant)).status == 200
    answered = await live.post("/v1/bridge/agents/agent-1/grants", grant)
    assert_problem(answered, 429, "too_many_changes", "2 times a minute")
    assert answered.headers["Retry-After"] == "10"
