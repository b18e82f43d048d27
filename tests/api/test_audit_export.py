"""All of the audit as NDJSON: whole, in order, in chunks, and never a part that is taken for the whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from daemon.api import audit
from daemon.api import callers as callers_room
from daemon.errors import StoreUnavailable
from daemon.store.trail import Trail
from tests.api.answers import assert_problem
from tests.api.auditing import AUDIT, exported
from tests.api.harness import Stack
from tests.api.people import introduce
from tests.patience import eventually


@pytest.fixture(autouse=True)
def people(live: Stack) -> None:
    introduce(live)


@pytest.fixture
async def full(live: Stack) -> Stack:
    """2,100 lines: 1,050 each about ann's things and bob's."""
    await live.sql(
        "INSERT INTO audit_log (at, actor, action, outcome, owner, comment)"
        " SELECT now() - make_interval(secs => 3000 - n / 3), 'eve', 'thing.done', 'applied',"
        " CASE WHEN n % 2 = 0 THEN 'ann' ELSE 'bob' END, repeat('x', 500) FROM generate_series(1, 2100) AS n"
    )
    return live


@pytest.mark.parametrize(("sub", "query", "expected"), [("root", "", 2100), ("ann", "", 1050), ("root", "?limit=7", 7)])
async def test_an_export_is_everything_that_matches_once_and_in_order(
    full: Stack, monkeypatch: pytest.MonkeyPatch, sub: str, query: str, expected: int
) -> None:
    monkeypatch.setattr(audit, "CHUNK", 400)
    told = await exported(full, query, sub=sub)
    assert len({line["id"] for line in told}) == expected
    assert told == sorted(told, key=lambda line: (line["at"], line["id"]), reverse=True)
    assert {line["owner"] for line in told} == ({"ann"} if sub == "ann" else {"ann", "bob"})


async def test_an_export_says_what_it_is_and_may_be_asked_for_by_the_query(full: Stack) -> None:
    wanted = {"format": "ndjson", "limit": "1"}
    async with full.http.get(full.base + AUDIT, params=wanted, headers=full.headers("root")) as answer:
        assert answer.content_type == "application/x-ndjson"
        assert (await answer.read()).count(b"\n") == 1
    async with full.http.head(full.base + AUDIT, params=wanted, headers=full.headers("root")) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    page = await full.ask("GET", f"{AUDIT}?format=json", sub="root", headers={"Accept": "application/x-ndjson"})
    assert len(page.body["items"]) == 50


async def test_an_export_ends_with_its_client_and_holds_no_more_than_a_chunk(
    full: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "CHUNK", 20)
    await full.sql(
        "INSERT INTO audit_log (actor, action, outcome, comment)"
        " SELECT 'eve', 'thing.done', 'applied', repeat('y', 100000) FROM generate_series(1, 2000) AS n"
    )
    chunks, ended, real = 0, False, audit._export

    async def counted(trail: Trail, *arguments: Any, **more: Any) -> Any:
        nonlocal chunks
        chunks += 1
        return await listed(trail, *arguments, **more)

    async def export(*arguments: Any) -> web.StreamResponse:
        nonlocal ended
        try:
            return await real(*arguments)
        finally:
            ended = True

    listed = Trail.listed
    monkeypatch.setattr(Trail, "listed", counted)
    monkeypatch.setattr(audit, "_export", export)
    async with full.http.get(f"{full.base}{AUDIT}?format=ndjson", headers=full.headers("root")) as answer:
        await answer.content.readexactly(1000)
        answer.close()
    await eventually(lambda: ended, what="the end of the export")
    assert chunks < 100, "it would be 205 to the end"


async def test_an_export_that_cannot_go_on_is_not_taken_for_the_whole(
    full: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "CHUNK", 100)
    listed, asked = Trail.listed, 0

    async def twice(trail: Trail, *arguments: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked > 2:
            raise StoreUnavailable("gone")
        return await listed(trail, *arguments, **more)

    monkeypatch.setattr(Trail, "listed", twice)
    with pytest.raises(Exception, match=r"payload|closed|reset"):
        await exported(full)
    monkeypatch.setattr(Trail, "listed", lambda *_, **__: _gone())
    assert_problem(await full.ask("GET", f"{AUDIT}?format=ndjson", sub="root"), 503, "store_unavailable")


@pytest.mark.parametrize("ends", ["revoked", "expired", "withdrawn"])
async def test_an_export_is_cut_off_when_its_token_ends(
    full: Stack, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr(audit, "CHUNK", 100)
    listed, asked, callers = Trail.listed, 0, full.context.callers
    if ends == "revoked":
        body = {"name": "export", "scopes": ["admin"]}
        made = await full.ask("POST", "/v1/service-tokens", sub="root", json=body)
        full.tokens["robot"] = made.body["token"]

    async def ending(trail: Trail, *arguments: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3 and ends == "revoked":
            await full.sql("UPDATE service_tokens SET revoked_at = now(), revoked_by = 'root'")
        elif asked == 3 and ends == "expired":
            monkeypatch.setattr(callers_room, "time", SimpleNamespace(time=lambda: 2**40))
        elif asked == 3:
            monkeypatch.setattr(callers._keyring, "withdrawn", lambda name: True)
        return await listed(trail, *arguments, **more)

    monkeypatch.setattr(Trail, "listed", ending)
    with pytest.raises(Exception, match=r"payload|closed|reset"):
        await exported(full, sub="robot" if ends == "revoked" else "root")
    assert asked == 3


async def _gone() -> None:
    raise StoreUnavailable("gone")
