"""``import-v0`` of a real v0 database: what it takes and refuses, and that a live node carries on what it brought."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner, Result

from daemon.cli import main
from tests.api.harness import AGENT, Stack, stack
from tests.api.people import introduce
from tests.cli.command import PATIENCE_S, running
from tests.cli.v0 import V0, call, spec, waits
from tests.patience import eventually, wait_until

TABLES = ("workflows", "workflow_runs", "workflow_run_specs", "workflow_run_steps", "workflow_run_attempts")
TABLES += ("workflow_run_events", "workflow_run_commands")


@pytest.fixture
def v0(bare_database: str) -> V0:
    made = V0(bare_database)
    made.make()
    return made


def bring(v0: V0, target: str, *options: str) -> Result:
    environment = {"RUNWARDEN_POSTGRES_URL": target}
    return CliRunner().invoke(main, ("import-v0", "--from", v0.url, *options), env=environment)


def report(v0: V0, target: str, *options: str, code: int = 0) -> dict[str, Any]:
    told = bring(v0, target, "--json", *options)
    assert told.exit_code == code, told.output
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def everything(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, as text."""
    with psycopg.connect(url) as connection:
        return {name: sorted(connection.execute(f"SELECT t::text FROM {name} t").fetchall()) for name in TABLES}


def test_a_dry_run_counts_names_what_cannot_be_taken_and_changes_nothing(v0: V0, database: str) -> None:
    good = spec("ok")
    workflow_id = v0.workflow(good)
    v0.workflow(spec("ok", nonsense=1))
    v0.run(good, [*call(0), ("run.completed", {})], status="completed", index=1, workflow_id=workflow_id)
    v0.run(good, call(0, state=None))
    odd = v0.run(good, status="queued")
    bad = v0.run(spec())
    before = everything(database)
    told = report(v0, database, code=1)
    assert (told["workflows"], told["runs"], told["parked"]) == (1, {"completed": 1, "paused": 1}, 1)
    why = {finding["id"]: finding["why"] for finding in told["refused"]}
    assert "'queued'" in why[str(odd)]
    assert "/steps" in why[str(bad)]
    assert any("/nonsense" in reason for reason in why.values())
    assert everything(database) == before
    people = bring(v0, database)
    assert "Nothing was changed: repeat it with --yes." in people.stdout
    assert f"cannot be taken: workflow_runs {odd}: " in people.stdout


def test_a_second_run_copies_nothing_and_changes_nothing(v0: V0, database: str) -> None:
    for status in ("completed", "failed", "canceled", "running"):
        v0.run(spec("ok", "ok"), call(0), status=status, index=1, workflow_id=v0.workflow(spec("ok")))
    first = report(v0, database, "--yes")
    assert first["runs"] == {"completed": 1, "failed": 1, "canceled": 1, "paused": 1}
    after = everything(database)
    second = report(v0, database, "--yes")
    assert (second["runs"], second["workflows"], second["present"]) == ({}, 0, {"workflows": 4, "runs": 4})
    assert everything(database) == after
    with psycopg.connect(database) as connection:
        kept = connection.execute("SELECT DISTINCT tableoid::regclass::text FROM workflow_run_single_events").fetchall()
    assert kept == [("workflow_run_single_events_default",)]


def test_a_log_with_gaps_repeats_and_nul_characters_becomes_dense(v0: V0, database: str) -> None:
    events = call(0)
    events[2] = ("tool.log", events[2][1] | {"data": "a\x00b"})
    run_id = v0.run(spec("ok"), [events[0], *events], status="completed", seqs=[1, 1, 4, 5, 5, 9])
    told = report(v0, database, "--yes")
    assert len(told["notes"]) == 2
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT seq, event_type, payload ->> 'data' FROM workflow_run_events WHERE run_id = %s ORDER BY seq",
            (run_id,),
        ).fetchall()
    kinds = ["step.progress", "tool.status", "tool.log", "tool.result", "step.completed", "run.completed"]
    assert [(seq, kind) for seq, kind, _ in rows] == list(enumerate(kinds, 1))
    assert rows[2][2] == "a\ufffdb"


def test_a_call_id_of_another_run_refuses_that_run_alone(v0: V0, database: str) -> None:
    for _ in range(2):
        v0.run(spec("ok"), call(0, req_id="the-same"), status="completed")
    v0.run(spec("ok"), call(0), status="completed")
    told = report(v0, database, "--yes", code=1)
    assert told["runs"] == {"completed": 2}
    assert [("Postgres refuses it" in finding["why"]) for finding in told["refused"]] == [True]


async def test_a_live_node_carries_on_what_was_brought(
    v0: V0, database: str, redis_url: str, redis_prefix: str
) -> None:
    waiting = v0.run(spec("ok", "ok!"), [*call(0), waits(1)], status="paused", reason="awaiting_approval", index=1)
    failed = v0.run(spec("ok"), call(0, state="failed"), status="paused", reason="step_failed")
    between = v0.run(spec("ok!", "ok", "ok"), [waits(0), *call(0)], index=1)
    amid = v0.run(spec("ok", "ok"), call(0, state=None))
    behind = v0.run(spec("ok", "ok"), call(0)[:2], index=1)
    done = v0.run(spec("ok"), [*call(0), ("run.completed", {})], status="completed", index=1)
    stopped = v0.run(spec("ok", "ok"), call(0), status="paused", reason="user_pause", index=1)
    assert (await asyncio.to_thread(report, v0, database, "--yes"))["parked"] == 4
    async with stack(database, redis_url, redis_prefix) as live:
        of_agent = (await live.ask("GET", f"/v1/workflow-runs?agent_id={AGENT}")).body["items"]
        brought = {str(one) for one in (waiting, failed, between, amid, behind, done, stopped)}
        assert {item["run_id"] for item in of_agent} == brought
        first = (await live.run(str(waiting)))["steps_state"]["s0"]
        assert first["status"] == "success"
        assert (first["attempts"][0]["result_json"], first["attempts"][0]["log_preview"]) == (
            {"content": []},
            "a line\n",
        )
        assert (await live.run(str(between)))["steps_state"]["s0"]["approved_by"] == "ann"
        seen = await _frozen(live, waiting, "s1")
        assert (seen["agent_id"], seen["tool_name"], seen["votes"]) == ("agent-1", "ok", [])
        said = {"step_id": "s1", "digest": seen["digest"]}
        assert (await live.decide(str(waiting), "approve", said)).status == 200
        for run_id in (failed, between):
            resumed = await live.decide(str(run_id), "resume")
            assert resumed.status == 200, resumed.body
        for run_id in (amid, behind):
            assert (await live.run(str(run_id)))["paused_reason"] == "engine_interrupted"
            assert (await live.decide(str(run_id), "resume")).status == 200
            run = await live.until(str(run_id), "paused")
            assert run["paused_reason"] == "outcome_unknown"
            assert (await live.decide(str(run_id), "resume")).body["code"] == "confirm_required"
            assert (await live.decide(str(run_id), "resume", {"confirm": "run_again"})).status == 200
        assert (await live.decide(str(stopped), "cancel")).body["status"] == "canceled"
        for run_id in (waiting, failed, between, amid, behind, done):
            run = await live.until(str(run_id), "completed")
            assert {step["status"] for step in run["steps_state"].values()} == {"success"}
            log = await live.log(str(run_id))
            assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
            assert len(log) >= run["last_seq"]  # a late log line may have come since
        again = (await live.run(str(amid)))["steps_state"]["s0"]["attempts"]
        assert [attempt["state"] for attempt in again] == ["unknown", "done"]
        native = await live.start({"id": "s0", "name": "S", "tool_config": {"agent_id": "agent-1", "tool_name": "ok"}})
        await live.until(native, "completed")
        filled = "SELECT jsonb_object_keys(jsonb_strip_nulls(to_jsonb(r))) FROM workflow_runs r WHERE id = $1"
        ours, theirs = [{key for (key,) in await live.sql(filled, run_id)} for run_id in (native, str(done))]
        assert ours - theirs <= {"owner", "wake_at"}, "what the API fills in, the import must"
    after = everything(database)
    assert (await asyncio.to_thread(report, v0, database, "--yes"))["runs"] == {}
    assert everything(database) == after


async def _frozen(live: Stack, run_id: UUID, step_id: str) -> dict[str, Any]:
    """What exactly waits for approval, once a node has looked, though nobody said a word."""

    async def there() -> dict[str, Any] | None:
        found: dict[str, Any] | None = (await live.run(str(run_id)))["steps_state"][step_id].get("approval")
        return found

    approval = await eventually(there, what=f"{run_id} being frozen")
    assert approval is not None
    assert approval["state"] == "open"
    return approval


async def test_what_was_brought_asks_for_agents_as_any_other_run(
    v0: V0, strict_database: str, redis_url: str, redis_prefix: str
) -> None:
    waiting = v0.run(spec("ok!"), [waits(0)], status="paused", reason="awaiting_approval")
    await asyncio.to_thread(report, v0, strict_database, "--yes")
    async with stack(strict_database, redis_url, redis_prefix) as live:
        introduce(live)
        assert [row["principal"] for row in await live.sql("SELECT principal FROM workflow_run_specs")] == [None]
        seen = await _frozen(live, waiting, "s0")
        said = {"step_id": "s0", "digest": seen["digest"]}
        assert (await live.decide(str(waiting), "approve", said)).status == 200
        run = await live.until(str(waiting), "paused")
        assert (run["paused_reason"], live.tools.intervals) == ("agent_unauthorized", [])
        assert AGENT in run["error_message"]
        bound = await live.ask("PUT", f"/v1/bridge/agents/{AGENT}/binding", sub="root", json={"owner": "ann"})
        assert bound.status == 200, bound.body
        assert (await live.decide(str(waiting), "resume")).status == 200
        await live.until(str(waiting), "completed")
        assert [interval.tool for interval in live.tools.intervals] == ["ok"]


def test_a_kill_in_the_middle_leaves_whole_runs_and_a_repeat_brings_the_rest(v0: V0, database: str, home: Path) -> None:
    many = 120
    for _ in range(many):
        v0.run(spec("ok", "ok"), [*call(0), *call(1, state=None)], index=1)
    with running("import-v0", "--from", v0.url, "--yes", "--batch", "1", home=home, postgres_url=database) as command:
        with psycopg.connect(database, autocommit=True) as connection:
            wait_until(lambda: _runs(connection), within_s=PATIENCE_S)
        command.process.kill()
        command.ended()
    with psycopg.connect(database, autocommit=True) as connection:
        here = _runs(connection)
        assert 0 < here < many
        told = report(v0, database, "--yes")
        assert (told["runs"], told["present"]["runs"]) == ({"paused": many - here}, here)
        assert _runs(connection) == many
        torn = connection.execute(
            "SELECT count(*) FROM workflow_runs r WHERE last_seq <> (SELECT count(*) FROM workflow_run_events e"
            " WHERE e.run_id = r.id) OR 2 <> (SELECT count(*) FROM workflow_run_attempts a WHERE a.run_id = r.id)"
            " OR NOT EXISTS (SELECT FROM workflow_run_specs s WHERE s.run_id = r.id)"
        ).fetchone()
        assert torn == (0,)


def _runs(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT count(*) FROM workflow_runs").fetchone()
    assert row is not None
    return int(row[0])


def test_what_is_no_v0_database_or_not_there_is_one_clear_line(bare_database: str, database: str) -> None:
    none = bring(V0(bare_database), database)
    assert none.exit_code == 1
    assert "is not a v0 database" in none.stderr
    away = bring(V0("postgresql://user:hush@127.0.0.1:1/v0"), database)
    assert away.exit_code == 1
    assert "does not answer" in away.stderr
    assert "hush" not in away.output
