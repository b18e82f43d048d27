"""What a step costs Postgres: counted by Postgres itself, and the same in a run of ten steps and of a hundred."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from daemon.store.journal import Lane
from daemon.store.pool import Pool, open_pool
from daemon.store.tail import CHECKPOINT_EVERY
from tests.machine.scenario import acked, chunk, done, step
from tests.patience import eventually
from tests.store.conftest import Book

TABLES = ("workflow_runs", "workflow_run_steps", "workflow_run_attempts", "workflow_run_pages", "workflow_run_specs")


@dataclass(frozen=True)
class Cost:
    """Rows inserted and updated, and how many of the updates of the hot row were not heap-only."""

    inserted: dict[str, int]
    updated: dict[str, int]
    not_hot: int
    statements: int


async def cost_of(database: str, pool: Pool, steps: int) -> Cost:
    """Carry one run of so many steps through, a commit a step, and ask Postgres what that was.

    A session reports what it did when it ends, so each part has sessions of its own.
    """
    setup = await open_pool(database, size=2, patience_s=5)
    book = Book(setup, Lane(database, monotonic=lambda: 0.0))  # as quick as can be
    story = await book.open(*(step(f"s{number}") for number in range(steps)))
    await book.write(story)
    await book.lane.close()
    await setup.close()
    before = await eventually(lambda: _once_updated(pool, 2))  # the claim, and the first commit

    for _ in range(steps - 1):
        story.hear(acked(story.req), chunk(story.req, "working\n"), done(story.req, {"n": 1}))
        await book.write(story)
    await book.lane.close()
    return _between(before, await eventually(lambda: _once_updated(pool, 2 + (steps - 1) // CHECKPOINT_EVERY)))


async def _once_updated(pool: Pool, times: int) -> Cost | None:
    """The count, as soon as the hot row is known to have been updated so often."""
    now = await _counted(pool)
    return now if now.updated["workflow_runs"] >= times else None


async def _counted(pool: Pool) -> Cost:
    rows = await pool.fetch(
        "SELECT regexp_replace(relname, '_(\\d{4}_\\d\\d|default)$', '') AS name, sum(n_tup_ins)::int AS inserted,"
        " sum(n_tup_upd)::int AS updated, sum(n_tup_upd - n_tup_hot_upd)::int AS cold"
        " FROM pg_stat_user_tables GROUP BY 1"
    )
    found = {row["name"]: row for row in rows}
    statements = await pool.fetchval(
        "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_statements WHERE query ~ 'INSERT|UPDATE|DELETE'"
        " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return Cost(
        inserted={name: found[name]["inserted"] for name in TABLES},
        updated={name: found[name]["updated"] for name in TABLES},
        not_hot=found["workflow_runs"]["cold"],
        statements=statements,
    )


def _between(before: Cost, after: Cost) -> Cost:
    return Cost(
        inserted={name: after.inserted[name] - before.inserted[name] for name in TABLES},
        updated={name: after.updated[name] - before.updated[name] for name in TABLES},
        not_hot=after.not_hot - before.not_hot,
        statements=after.statements - before.statements,
    )


@pytest.mark.parametrize("steps", [10, 100])
async def test_a_step_costs_one_statement_and_the_same_rows_whatever_the_run_s_length(
    database: str, pool: Pool, steps: int
) -> None:
    cost = await cost_of(database, pool, steps)
    done_steps = steps - 1
    checkpoints = done_steps // CHECKPOINT_EVERY
    assert cost.statements == done_steps
    assert cost.inserted == {
        "workflow_runs": 0,
        "workflow_run_specs": 0,
        "workflow_run_steps": done_steps,  # the next step begins
        "workflow_run_attempts": done_steps,  # and is attempted
        "workflow_run_pages": done_steps,  # of tool.status, tool.log, tool.result, step.completed, step.progress
    }
    assert cost.updated == {
        "workflow_runs": checkpoints,
        "workflow_run_specs": 0,
        "workflow_run_steps": checkpoints,  # the step that was running at the one before
        "workflow_run_attempts": checkpoints,
        "workflow_run_pages": 0,
    }
    assert cost.not_hot == 0, "an update of the hot row touched an index"
