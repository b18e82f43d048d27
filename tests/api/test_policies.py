"""Tool policies over HTTP: an admin's alone, one for each pair of patterns, and each change in the audit."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from daemon.store import policies
from tests.api.harness import Stack

POLICIES = "/v1/tool-policies"
HIGH = {"agents": "prod-*", "tools": "fs__*", "risk": "high", "requires_approval": True, "note": "files of others"}


async def _made(stack: Stack, **said: Any) -> Any:
    made = await stack.ask("POST", POLICIES, sub="root", json=HIGH | said)
    assert made.status == 200, made.body
    return made.body


async def test_a_policy_is_made_changed_and_deleted(strict: Stack) -> None:
    made = await _made(strict)
    assert {name: made[name] for name in HIGH} == HIGH
    assert (made["denied"], made["writes"], made["set_by"]) == (None, None, "root")
    assert (await strict.ask("GET", POLICIES, sub="root")).body == {"items": [made]}
    place = f"{POLICIES}/{made['policy_id']}"
    changed = await strict.ask("PUT", place, sub="root", json={"tools": "fs__*", "denied": True})
    assert (changed.body["agents"], changed.body["risk"], changed.body["denied"]) == ("*", None, True)
    assert (await strict.ask("DELETE", place, sub="root")).body == changed.body
    assert (await strict.ask("GET", POLICIES, sub="root")).body == {"items": []}
    for method in ("PUT", "DELETE"):
        more = {"json": HIGH} if method == "PUT" else {}
        assert (await strict.ask(method, place, sub="root", **more)).status == 404
    told = await strict.sql("SELECT action, actor, target FROM audit_log ORDER BY id")
    assert [tuple(row) for row in told] == [
        (action, "root", made["policy_id"]) for action in ("policy.added", "policy.changed", "policy.deleted")
    ]


async def test_patterns_have_one_policy(strict: Stack) -> None:
    asked = [strict.ask("POST", POLICIES, sub="root", json=HIGH) for _ in range(4)]
    answers = await asyncio.gather(*asked)
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409]
    other = await _made(strict, agents="*")
    clash = await strict.ask("PUT", f"{POLICIES}/{other['policy_id']}", sub="root", json=HIGH)
    assert (clash.status, clash.body["code"]) == (409, "policy_exists")
    nothing = await strict.ask("PUT", f"{POLICIES}/{uuid4()}", sub="root", json=HIGH)
    assert (nothing.status, nothing.body["code"]) == (404, "not_found"), "what is not there clashes with nothing"
    same = await strict.ask("PUT", f"{POLICIES}/{other['policy_id']}", sub="root", json=HIGH | {"agents": "*"})
    assert same.status == 200


async def test_there_are_only_so_many(strict: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "MOST", 2)
    asked = [strict.ask("POST", POLICIES, sub="root", json=HIGH | {"tools": f"t{n}"}) for n in range(4)]
    assert sorted(answer.status for answer in await asyncio.gather(*asked)) == [200, 200, 409, 409]


@pytest.mark.parametrize("sub", ["ann", "vera", "otto", "gus"])
async def test_they_are_an_admins_alone(strict: Stack, sub: str) -> None:
    made = await _made(strict)
    place = f"{POLICIES}/{made['policy_id']}"
    for method, path in (("GET", POLICIES), ("POST", POLICIES), ("PUT", place), ("DELETE", place)):
        more = {"json": HIGH} if method in ("POST", "PUT") else {}
        refused = await strict.ask(method, path, sub=sub, **more)
        assert (refused.status, refused.body["code"]) == (403, "role_required")
    assert (await strict.ask("GET", POLICIES, sub="root")).body == {"items": [made]}


@pytest.mark.parametrize(
    "said",
    [
        {"tools": "x"},
        {"risk": "low"},
        {"tools": "", "risk": "low"},
        {"tools": "x", "risk": "none"},
        {"tools": "x", "denied": "yes"},
        {"tools": "x" * 256, "denied": True},
    ],
)
async def test_what_says_nothing_or_nonsense_is_refused(strict: Stack, said: dict[str, Any]) -> None:
    assert (await strict.ask("POST", POLICIES, sub="root", json=said)).status == 422
