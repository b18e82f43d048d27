"""Holds over HTTP: who stops what, who sees it, and who lets it go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.harness import AGENT, Answer, Stack
from tests.api.test_agents import bound, granted

HOLDS = "/v1/holds"
EVERYTHING: dict[str, Any] = {"scope": "everything", "reason": "fire"}
ON_AGENT = {"scope": "agent", "target": AGENT, "reason": "it smokes"}
ON_BOB = {"scope": "user", "target": "bob", "reason": "on leave"}


async def _hold(stack: Stack, said: dict[str, Any], sub: str = "root") -> Any:
    made = await stack.ask("POST", HOLDS, sub=sub, json=said)
    assert made.status == 200, made.body
    return made.body


async def _release(stack: Stack, hold: Any, sub: str = "root") -> Answer:
    return await stack.ask("POST", f"{HOLDS}/{hold['hold_id']}/release", sub=sub)


async def _seen(stack: Stack, sub: str, query: str = "") -> list[str]:
    found = await stack.ask("GET", HOLDS + query, sub=sub)
    return [hold["scope"] for hold in found.body["items"]]


@pytest.mark.parametrize("said", [EVERYTHING, ON_AGENT, ON_BOB])
async def test_an_admin_holds_and_releases_anything(strict: Stack, said: dict[str, Any]) -> None:
    held = await _hold(strict, said)
    assert {name: held[name] for name in said} == said
    assert (held["held_by"], held["by_admin"], held["released_at"]) == ("root", True, None)
    released = await _release(strict, held)
    assert (released.body["released_by"], released.body["hold_id"]) == ("root", held["hold_id"])
    assert (await _release(strict, held)).body == released.body
    told = await strict.sql("SELECT action, actor, target, comment FROM audit_log ORDER BY id")
    assert [tuple(row) for row in told] == [
        (action, "root", held["hold_id"], said["reason"]) for action in ("hold.set", "hold.released")
    ]


async def test_what_is_held_already_stays_held_once(strict: Stack) -> None:
    held = await asyncio.gather(*(_hold(strict, EVERYTHING) for _ in range(4)))
    assert len({hold["hold_id"] for hold in held}) == 1
    assert await _hold(strict, EVERYTHING | {"reason": "again"}) == held[0]
    await _release(strict, held[0])
    assert (await _hold(strict, EVERYTHING))["hold_id"] != held[0]["hold_id"]
    assert await _seen(strict, "root") == ["everything"]
    assert await _seen(strict, "root", "?released=true") == ["everything"] * 2


async def test_an_owner_holds_and_releases_their_agent_and_nothing_else(strict: Stack) -> None:
    await bound(strict)
    held = await _hold(strict, ON_AGENT, "ann")
    assert held["by_admin"] is False
    assert (await _release(strict, held, "ann")).body["released_by"] == "ann"
    for said in (EVERYTHING, ON_BOB):
        refused = await strict.ask("POST", HOLDS, sub="ann", json=said)
        assert (refused.status, refused.body["code"]) == (403, "role_required")
        other = await _hold(strict, said)
        assert (await _release(strict, other, "ann")).status == 404
        await _release(strict, other)
    assert (await strict.ask("POST", HOLDS, sub="ann", json=ON_AGENT | {"target": "other"})).status == 404


async def test_an_admins_hold_is_released_by_admins_only(strict: Stack) -> None:
    await bound(strict)
    held = await _hold(strict, ON_AGENT, "ann")
    raised = await _hold(strict, ON_AGENT | {"reason": "an incident"})
    assert (raised["hold_id"], raised["by_admin"], raised["reason"]) == (held["hold_id"], True, "an incident")
    assert await _hold(strict, ON_AGENT, "ann") == raised
    refused = await _release(strict, held, "ann")
    assert (refused.status, refused.body["code"]) == (403, "held_by_admin")
    assert (await _release(strict, held)).status == 200
    (line,) = await strict.sql("SELECT * FROM audit_log WHERE outcome = 'refused'")
    assert (line["actor"], line["action"], line["code"]) == ("ann", "hold.released", "held_by_admin")


async def test_others_neither_hold_nor_release(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "user:bob", "use")
    held = await _hold(strict, ON_AGENT, "ann")
    for sub, status in (("bob", 403), ("gus", 404), ("vera", 403), ("otto", 403)):
        assert (await strict.ask("POST", HOLDS, sub=sub, json=ON_AGENT)).status == status
        assert (await _release(strict, held, sub)).status == status
    assert await _seen(strict, "ann") == ["agent"]


async def test_they_are_seen_by_those_whom_they_stop(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "group:team", "view")
    for said in (ON_AGENT, ON_BOB, EVERYTHING):
        await _hold(strict, said)
    seen = {sub: await _seen(strict, sub) for sub in ("root", "ann", "bob", "gus", "vera")}
    assert seen == {
        "root": ["everything", "user", "agent"],
        "ann": ["everything", "agent"],
        "bob": ["everything", "user"],
        "gus": ["everything", "agent"],
        "vera": ["everything"],
    }
    first = (await strict.ask("GET", f"{HOLDS}?limit=2", sub="root")).body
    rest = (await strict.ask("GET", f"{HOLDS}?limit=2&cursor={first['next_cursor']}", sub="root")).body
    assert [hold["scope"] for hold in first["items"] + rest["items"]] == seen["root"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    "said",
    [
        {"scope": "everything", "target": "x", "reason": "r"},
        {"scope": "agent", "reason": "r"},
        {"scope": "user", "target": "", "reason": "r"},
        {"scope": "tool", "target": "x", "reason": "r"},
        {"scope": "everything", "reason": ""},
        {"scope": "everything"},
    ],
)
async def test_what_makes_no_sense_is_refused(strict: Stack, said: dict[str, Any]) -> None:
    assert (await strict.ask("POST", HOLDS, sub="root", json=said)).status == 422
