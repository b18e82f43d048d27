"""The room under test, and ``Book``: stories told by the machine and written down by the store.

A ``Story`` (tests/machine) knows what a run should be; the book creates the same run in Postgres, claims it as the
story's owner, and commits what the story recorded. So no test here invents a transition that the machine would not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import resources
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import pytest
import uuid_utils.compat as uuid7

from daemon.auth.caller import Origin
from daemon.machine.commands import CommandId, Epoch, RunId
from daemon.machine.record import Outcomes, Transition
from daemon.machine.state import Run
from daemon.store.claims import Claims
from daemon.store.commands import Commands
from daemon.store.journal import Lane
from daemon.store.passive import PassiveRuns
from daemon.store.pool import Pool
from daemon.store.runs import Runs
from tests.machine.scenario import NONCE, WORKFLOW_ID, Story

ANN, BOB = Origin(actor="ann"), Origin(actor="bob")
OWNER = "me"
"""The owner in every transition of a Story."""
TABLES = (
    "workflow_runs",
    "workflow_run_steps",
    "workflow_run_attempts",
    "workflow_run_events",
    "workflow_run_commands",
)


class Book:
    """Runs in Postgres and their stories."""

    def __init__(self, pool: Pool, lane: Lane) -> None:
        self.pool = pool
        self.lane = lane
        self.runs = Runs(pool)
        self.claims = Claims(pool)
        self.passive = PassiveRuns(pool)
        self._written: dict[RunId, int] = {}
        self._epochs: dict[RunId, Epoch] = {}

    async def open(self, *steps: dict[str, Any], user: str = "ann", **about: Any) -> Story:
        """A run that exists and is claimed, with the machine's first turn told and not yet written."""
        run_id = RunId(uuid7.uuid7())
        story = Story(*steps, run_id=run_id, user=user, **about)
        await self.create(story.run)
        self._written[run_id] = 0
        await self.claim(run_id)
        return story

    async def create(self, run: Run) -> CommandId:
        """The rows that the API writes for a new run; answers the id of the start command."""
        start = CommandId(uuid7.uuid7())
        await self.runs.create(
            run_id=run.id,
            workflow_id=WORKFLOW_ID,
            user_id=run.user_id,
            nonce=NONCE,
            snapshot=run.spec.model_dump_json(),
            command_id=start,
            origin=Origin(actor=run.user_id),
        )
        return start

    async def due(self, limit: int = 10) -> list[RunId]:
        """The runs that are due, in order."""
        return [one.run_id for one in await self.passive.due(limit)]

    async def forgive(self, run_id: RunId) -> None:
        """Let the next takeover come at once, however many there were."""
        await self.pool.execute("UPDATE workflow_runs SET wake_at = NULL WHERE id = $1 AND owner IS NOT NULL", run_id)

    async def claim(self, run_id: RunId, owner: str = OWNER) -> Run:
        """Claim the run for ``owner``, however often it was taken over; answers it as it was read back."""
        await self.forgive(run_id)
        claimed, _ = await self.claims.claim({run_id: owner})
        ((run, epoch),) = claimed
        self._epochs[run_id] = epoch
        return run

    def told(self, story: Story) -> list[Transition]:
        """The story's transitions since the last call that leave anything; they count as written."""
        told = story.transitions[self._written[story.run.id] :]
        self._written[story.run.id] = len(story.transitions)
        return [one for one in told if one.events or one.verdicts]

    async def write(self, *stories: Story) -> Outcomes:
        """Commit what these stories told, in batches of one transition of each; answers the last batch's outcomes."""
        outcomes = Outcomes()
        queues = [self.told(story) for story in stories]
        while any(queues):
            batch = [queue.pop(0) for queue in queues if queue]
            for one in batch:
                while self._epochs[one.run_id] < one.epoch:
                    await self.claim(one.run_id)
            outcomes = await self.lane.commit(batch)
        return outcomes

    async def rows(self, table: str, run_id: UUID | None = None) -> list[dict[str, Any]]:
        """All rows of a table (of a run), as dictionaries, when what the log has is written to them."""
        await self.lane.checkpoint()
        key = "id" if table == "workflow_runs" else "run_id"
        found = await self.pool.fetch(
            f"SELECT * FROM {table} WHERE $1::uuid IS NULL OR {key} = $1 ORDER BY 1, 2", run_id
        )
        return [dict(row) for row in found]

    async def everything(self) -> dict[str, list[dict[str, Any]]]:
        """All rows of all tables that a commit may touch."""
        return {table: await self.rows(table) for table in TABLES}

    async def seqs(self, run_id: RunId) -> list[int]:
        """The seq of every event of a run, in order."""
        found = await self.pool.fetch("SELECT seq FROM workflow_run_events WHERE run_id = $1 ORDER BY seq", run_id)
        return [row["seq"] for row in found]


def move_schema(url: str, migration: str, *, back: bool = False) -> None:
    """Apply one migration or its rollback by itself, in one transaction; yoyo does not hear of it."""
    script = resources.files("schema") / f"{migration}{'.rollback' if back else ''}.sql"
    with psycopg.connect(url) as connection:
        connection.execute(script.read_text())


@pytest.fixture
async def lane(database: str) -> AsyncIterator[Lane]:
    """One journal lane, connected."""
    opened = Lane(database)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def book(pool: Pool, lane: Lane) -> Book:
    return Book(pool, lane)


@pytest.fixture
def claims(pool: Pool) -> Claims:
    return Claims(pool)


@pytest.fixture
def commands(pool: Pool) -> Commands:
    return Commands(pool)


@pytest.fixture
async def other(database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A session beside the store's, to lock rows and to look."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()
