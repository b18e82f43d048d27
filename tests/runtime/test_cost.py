"""The writes of one step, end to end, counted by Postgres: the same in a run of 10 steps and in one of 100."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from daemon.fabric.line import Command, Line
from daemon.store.pool import Pool
from daemon.store.tail import CHECKPOINT_EVERY
from tests.patience import eventually
from tests.runtime.harness import Rig, count, step

TABLES = ("workflow_runs", "workflow_run_steps", "workflow_run_attempts", "workflow_run_pages")
COMMIT = "WITH moved AS ("
APPEND = "FOR KEY SHARE OF r"
NAMES = {
    "INSERT INTO workflow_runs": "created",
    "SET epoch = r.epoch": "claimed",
    COMMIT: "written",
    APPEND: "appended",
    "WITH waiting AS": "woken after a gap in the Gateway's stream",
    "paused_reason = $2 AND wake_at IS NULL": "woken after a hold",
    "NOT a.requires_approval": "woken after a policy",
}
"""Pieces of the statements that may write during a run's life, and what each is."""


@dataclass(frozen=True)
class Writes:
    """Executions of each writing statement, and rows inserted and updated of each table."""

    statements: dict[str, int]
    inserted: dict[str, int]
    updated: dict[str, int]


async def writes_of_a_run(rig: Rig, steps: int) -> Writes:
    """Carry a run of so many steps through a node that has nothing else to do, and that nobody rings meanwhile.

    So nothing is committed for the sake of an ACK or a CHUNK alone: each rides with its RESULT.
    """
    await rig.bind()
    node = await rig.start(log_hold_s=5, stale_after_s=60)
    commits, checkpoints = count("runwarden_commits_total"), count("runwarden_checkpoints_total")
    run_id = await rig.create(*(step(f"s{number}") for number in range(steps)), ring=False)
    await rig.until(run_id, "completed")
    assert count("runwarden_commits_total") - commits == steps + 1
    paused = int(count("runwarden_checkpoints_total") - checkpoints)
    await node.crash()  # its sessions end, and have reported what they did
    await rig.pool.expire_connections()
    rig.never_twice(steps)
    return await eventually(lambda: _complete(rig.pool, steps + 1 + paused))


async def _complete(pool: Pool, commits: int) -> Writes | None:
    """What was written in this database, once everything has been reported."""
    statements: dict[str, int] = {}
    for row in await pool.fetch(
        "SELECT query, calls FROM pg_stat_statements WHERE query ~ 'INSERT|UPDATE|DELETE' AND query !~ 'pg_stat'"
        " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ):
        name = next((name for piece, name in NAMES.items() if piece in row["query"]), row["query"])
        statements[name] = statements.get(name, 0) + row["calls"]
    rows = await pool.fetch(
        "SELECT regexp_replace(relname, '_(\\d{4}_\\d\\d|default)$', '') AS name, sum(n_tup_ins)::int AS inserted,"
        " sum(n_tup_upd)::int AS updated FROM pg_stat_user_tables GROUP BY 1"
    )
    inserted = {row["name"]: row["inserted"] for row in rows if row["name"] in TABLES}
    updated = {row["name"]: row["updated"] for row in rows if row["name"] in TABLES}
    told = statements.get(NAMES[COMMIT], 0) + statements.get(NAMES[APPEND], 0)
    if told < commits or updated["workflow_runs"] < 1 + statements[NAMES[COMMIT]] or not inserted["workflow_runs"]:
        return None
    return Writes(statements, inserted, updated)


@pytest.mark.parametrize("steps", [10, 100])
async def test_a_step_costs_one_commit_and_the_same_rows_in_a_run_of_any_length(rig: Rig, steps: int) -> None:
    writes = await writes_of_a_run(rig, steps)
    assert writes.statements.pop("woken after a hold") == 1  # when it began to know what is held
    woken = writes.statements.pop(NAMES["WITH waiting AS"], 0)  # when this node began to hear
    written, appended = (writes.statements.pop(NAMES[kind], 0) for kind in (COMMIT, APPEND))
    if woken and writes.updated["workflow_runs"] == 1 + written + 1:
        writes.updated["workflow_runs"] -= 1  # it came just before the claim, and made due what was due
    assert writes.statements == {"created": 1, "claimed": 1}
    # One of so many writes the rows: in a stall of the machine more, as the run is not quick then.
    assert written >= 2 + (steps - 1) // CHECKPOINT_EVERY
    assert appended >= 1
    assert writes.inserted == {
        "workflow_runs": 1,
        "workflow_run_steps": steps,
        "workflow_run_attempts": steps,
        # one a commit; a step's: tool.status, tool.log, tool.result, step.completed, step.progress
        "workflow_run_pages": steps + 1,
    }
    assert writes.updated == {
        "workflow_runs": 1 + written,  # the claim, and each commit that writes rows
        "workflow_run_steps": written - 1,  # the one that was running at the one before
        "workflow_run_attempts": written - 1,
        "workflow_run_pages": 0,
    }


@pytest.mark.parametrize("steps", [10, 50])
async def test_a_step_costs_one_exchange_with_redis_and_one_call(
    rig: Rig, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its letters are handed over in memory; what is left is the word to the watchers. Gateway calls: one a step."""
    asked: Counter[str] = Counter()
    real = Line.ask

    async def counted(line: Line, *commands: Command, within_s: float = 0.0) -> list[Any]:
        for name, detail, *_ in commands:
            if (name, detail) != ("XREAD", "BLOCK"):  # the doorbell, asked once a second
                asked[str(name)] += 1
        return await real(line, *commands, within_s=within_s)

    monkeypatch.setattr(Line, "ask", counted)
    await rig.bind()
    node = await rig.start(log_hold_s=5, stale_after_s=60)
    invoked = count("runwarden_gateway_calls_total", verb="invoke", outcome="sent", gateway="default")
    run_id = await rig.create(*(step(f"s{number}") for number in range(steps)), ring=False)
    await rig.until(run_id, "completed")
    await node.crash()
    assert asked == {"PUBLISH": steps + 1}
    assert count("runwarden_gateway_calls_total", verb="invoke", outcome="sent", gateway="default") == invoked + steps
    rig.never_twice(steps)


async def test_many_runs_share_commits(rig: Rig) -> None:
    """Transitions that arrive while a commit is in flight go into the next: far fewer statements than steps."""
    commits, transitions = count("runwarden_commits_total"), count("runwarden_transitions_total")
    runs = [await rig.create(step("a"), step("b"), ring=False) for _ in range(40)]
    await rig.start(log_hold_s=5, stale_after_s=60)  # which finds all of them at once, however long they took to make
    for run_id in runs:
        await rig.until(run_id, "completed")
    late_logs = 80  # a CHUNK that comes after its RESULT is a transition of its own, at most one a call
    assert 40 * 3 <= count("runwarden_transitions_total") - transitions <= 40 * 3 + late_logs
    assert count("runwarden_commits_total") - commits < 40 * 3 / 2
    rig.never_twice(80)
