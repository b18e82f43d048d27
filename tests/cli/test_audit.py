"""``runwarden audit`` against a real node, and ``runwarden migrate --app-role``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from tests.api.harness import AGENT, Stack, stack, step
from tests.cli.talking import Person


@pytest.fixture
async def live(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    async with stack(database, redis_url, redis_prefix) as opened:
        yield opened


@pytest.fixture
def ann(live: Stack, tmp_path: Path) -> Person:
    return Person(live.base, live.token(), tmp_path)


async def test_who_did_what_is_listed_filtered_and_exported(live: Stack, ann: Person) -> None:
    run_id = await live.start(step("a", approval_policy="manual"))
    await live.until(run_id, "paused")
    rejected = await ann.says("run", "reject", run_id, "--step", "a", "--reason", "not\x1b[2J today")
    assert rejected.exit_code == 0, rejected.output

    listed = await ann.says("audit", "--action", "run.")
    assert listed.exit_code == 0, listed.output
    heading, line, start = [row.split("\t") for row in listed.stdout.splitlines()]
    assert heading == ["when", "who", "what", "outcome", "about", "said", "from"]
    assert line[1:] == ["ann", "run.reject", "applied", f"a of {run_id} of {AGENT}", "not[2J today", "127.0.0.1"]
    assert start[1:5] == ["ann", "run.start", "applied", run_id]

    filters = ("--actor", "ann", "--outcome", "applied", "--run", run_id, "--search", "TODAY")
    filters += ("--since", "2026-01-01T00:00:00Z", "--until", "2096-01-01T00:00:00Z", "--limit", "7")
    page = await ann.gets("audit", *filters)
    assert [item["action"] for item in page["items"]] == ["run.reject"]
    none = await ann.says("audit", "--agent", "nobody")
    assert (none.exit_code, none.stdout) == (0, "")

    first = await ann.gets("audit", "--limit", "1")
    more = await ann.says("audit", "--limit", "1")
    assert f"More: --cursor {first['next_cursor']}" in more.stderr
    rest = await ann.gets("audit", "--cursor", first["next_cursor"])
    exported = await ann.says("audit", "--export")
    assert [json.loads(row) for row in exported.stdout.splitlines()] == first["items"] + rest["items"]
    assert (await ann.refused("audit", "--since", "yesterday", code=7))["code"] == "invalid_parameter"


async def test_an_export_goes_on_past_a_page(live: Stack, ann: Person) -> None:
    await live.sql(
        "INSERT INTO audit_log (actor, action, outcome)"
        " SELECT 'ann', 'n.' || n, 'applied' FROM generate_series(1, 450) AS n"
    )
    exported = await ann.says("audit", "--export")
    assert [json.loads(row)["action"] for row in exported.stdout.splitlines()] == [f"n.{n}" for n in range(450, 0, -1)]


async def test_a_role_is_given_what_nodes_need(ann: Person, database: str, admin: psycopg.Connection) -> None:
    arguments, settings = ("migrate", "--app-role", "the_nodes"), {"postgres_url": database}
    missing = await ann.says(*arguments, **settings)
    assert missing.exit_code == 1
    assert "CREATE ROLE the_nodes LOGIN" in missing.output
    both = await ann.says(*arguments, "--rollback-all", "--yes", **settings)
    assert both.exit_code == 2
    admin.execute("CREATE ROLE the_nodes")
    try:
        told = await ann.says(*arguments, **settings)
        assert told.output == "Nothing to do: up to date.\nthe_nodes may do what nodes need, and no more.\n"
        as_json = await ann.says(*arguments, "--json", **settings)
        assert json.loads(as_json.stdout) == {"applied": [], "app_role": "the_nodes"}
        with psycopg.connect(database) as owner:
            rights = "SELECT privilege_type FROM information_schema.role_table_grants WHERE grantee = 'the_nodes'"
            found = owner.execute(f"{rights} AND table_name = 'audit_log' ORDER BY 1").fetchall()
            assert found == [("INSERT",), ("SELECT",)]
    finally:
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute("DROP OWNED BY the_nodes")
        admin.execute("DROP ROLE the_nodes")
