"""Grants over HTTP: what an owner lets others do, and that nobody else gives or takes it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from daemon.store import grants
from tests.api.harness import AGENT, Stack
from tests.api.test_agents import AGENTS, bound, granted

GRANTS = f"{AGENTS}/{AGENT}/grants"


async def _listed(stack: Stack, sub: str = "ann") -> list[dict[str, Any]]:
    found = await stack.ask("GET", GRANTS, sub=sub)
    assert found.status == 200, found.body
    items: list[dict[str, Any]] = found.body["items"]
    return items


async def test_an_owner_and_an_admin_grant_list_and_revoke(strict: Stack) -> None:
    await bound(strict)
    for sub in ("ann", "root"):
        body = {
            "subject": "group:team",
            "permission": "use",
            "tools": ["b*", "a"],
            "expires_at": "2099-01-01T00:00:00+02:00",
        }
        made = await strict.ask("POST", GRANTS, sub=sub, json=body)
        assert made.status == 200, made.body
        assert made.body["expires_at"] == "2098-12-31T22:00:00.000Z"
        assert made.body["granted_by"] == sub
        assert await _listed(strict, sub) == [made.body]
        assert made.body["tools"] == ["a", "b*"]
        gone = await strict.ask("DELETE", f"{GRANTS}/{made.body['grant_id']}", sub=sub)
        assert gone.body == made.body
        assert (await strict.ask("DELETE", f"{GRANTS}/{made.body['grant_id']}", sub=sub)).status == 404
    told = await strict.sql(
        "SELECT action, actor, owner, detail ->> 'subject' FROM audit_log WHERE action LIKE 'grant.%' ORDER BY id"
    )
    assert [tuple(row) for row in told] == [
        (action, actor, "ann", "group:team") for actor in ("ann", "root") for action in ("grant.added", "grant.revoked")
    ]


@pytest.mark.parametrize("permission", ["use", "approve", "view"])
async def test_grantees_of_any_kind_see_the_agent_and_not_its_grants(strict: Stack, permission: str) -> None:
    await bound(strict)
    grant_id = await granted(strict, "user:bob", permission)
    assert (await strict.ask("GET", f"{AGENTS}/{AGENT}", sub="bob")).status == 200
    for method, path, body in (
        ("GET", GRANTS, None),
        ("POST", GRANTS, {"subject": "user:bob", "permission": "approve"}),
        ("DELETE", f"{GRANTS}/{grant_id}", None),
    ):
        refused = await strict.ask(method, path, sub="bob", **({} if body is None else {"json": body}))
        assert (refused.status, refused.body["code"]) == (403, "not_the_owner")
        assert (await strict.ask(method, path, sub="gus", **({} if body is None else {"json": body}))).status == 404
    assert [grant["grant_id"] for grant in await _listed(strict)] == [grant_id]


async def test_the_same_grant_twice_is_one(strict: Stack) -> None:
    await bound(strict)
    first = await asyncio.gather(*(granted(strict, "user:bob", "use", tools=["x", "y"]) for _ in range(4)))
    assert len(set(first)) == 1
    assert await granted(strict, "user:bob", "use", tools=["y", "x", "y"]) == first[0]
    assert await granted(strict, "user:bob", "use", tools=["x"]) != first[0]
    assert len(await _listed(strict)) == 2


async def test_an_agent_has_only_so_many_grants(strict: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grants, "MOST", 3)
    await bound(strict)
    asked = [
        strict.ask("POST", GRANTS, json={"subject": f"user:u{n}", "permission": "use"}, sub="ann") for n in range(6)
    ]
    statuses = sorted(answer.status for answer in await asyncio.gather(*asked))
    assert statuses == [200] * 3 + [409] * 3


async def test_an_agent_of_nobody_has_no_grants(strict: Stack) -> None:
    refused = await strict.ask("POST", GRANTS, sub="root", json={"subject": "user:bob", "permission": "use"})
    assert (refused.status, refused.body["code"]) == (409, "agent_unbound")


@pytest.mark.parametrize(
    "said",
    [
        {"subject": "bob"},
        {"subject": "user:"},
        {"subject": "role:admin"},
        {"permission": "own"},
        {"tools": []},
        {"tools": [""]},
        {"tools": ["*"] * 101},
        {"expires_at": "2001-01-01T00:00:00Z"},
        {"expires_at": "tomorrow"},
    ],
)
async def test_what_makes_no_sense_is_refused(strict: Stack, said: dict[str, Any]) -> None:
    await bound(strict)
    body = {"subject": "user:bob", "permission": "use"} | said
    assert (await strict.ask("POST", GRANTS, sub="ann", json=body)).status == 422
