"""How often the API and the claims speak to Postgres: one statement, where one will do. Counted, not timed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import uuid_utils.compat as uuid7
from asyncpg.connection import LoggedQuery

from daemon.auth.caller import Caller, Origin
from daemon.machine.commands import CommandId, Epoch, RunId
from daemon.store.claims import Claims
from daemon.store.commands import Commands
from daemon.store.pool import Pool, open_pool
from daemon.store.runs import Runs
from daemon.store.workflows import Workflows
from tests.machine.scenario import Story, acked, done, step
from tests.store.conftest import ANN, BOB, Book

NONCE = bytes(16)


class Ear:
    """Everything that was said on the one connection of ``pool`` since the last look."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._said: list[str] = []

    def note(self, record: LoggedQuery) -> None:
        if "workflow_run" in record.query:  # not asyncpg's own questions about types, once a connection
            self._said.append(record.query)

    def statements(self) -> int:
        said, self._said = self._said, []
        return len(said)


@pytest.fixture
async def ear(database: str) -> AsyncIterator[Ear]:
    pool = await open_pool(database, size=1, patience_s=5)
    heard = Ear(pool)
    async with pool.acquire() as connection:
        connection.add_query_logger(heard.note)
    yield heard
    await pool.close()


async def _moved(book: Book) -> Story:
    story = await book.open(step("a"), step("b"))
    story.hear(acked(story.req), done(story.req, {"n": 1}))
    await book.write(story)
    return story


async def test_a_run_is_read_in_one_statement_however_much_there_is_of_it(book: Book, ear: Ear) -> None:
    story = await _moved(book)
    view = await Runs(ear.pool).view(story.run.id, by=Caller("ann"))
    assert view is not None
    assert (len(view.steps), len(view.attempts)) == (2, 2)
    assert ear.statements() == 1
    assert await Runs(ear.pool).view(story.run.id, by=Caller("bob")) is None
    assert ear.statements() == 1


async def test_a_run_is_created_of_a_workflow_by_one_look_and_one_statement_and_not_of_another_s(
    ear: Ear, pool: Pool
) -> None:
    workflow, text = uuid7.uuid7(), '{"title": "é", "steps":  []}'
    await Workflows(pool).add(workflow_id=workflow, user_id="ann", title="T", description=None, spec=text, origin=ANN)
    about = {"workflow_id": workflow, "nonce": NONCE, "permit": lambda _spec, _agents: None}
    run_id, start = RunId(uuid7.uuid7()), uuid7.uuid7()
    view = await Runs(ear.pool).create_of(run_id=run_id, caller=Caller("ann"), command_id=start, origin=ANN, **about)
    assert ear.statements() == 1  # and the look at the workflow, which is none at runs
    again = await Runs(pool).view(run_id, by=Caller("ann"))
    assert view is not None
    assert again is not None
    assert (view.head, view.snapshot) == (again.head, again.snapshot)
    assert view.snapshot == text, "equal to the letter, so that runs of one workflow share it in memory"
    ((command,),) = (await Claims(pool).open_commands([run_id])).values()
    assert (command.id, command.kind, command.issued_by) == (start, "start", "ann")

    stranger = RunId(uuid7.uuid7())
    his = {"caller": Caller("bob"), "command_id": uuid7.uuid7(), "origin": BOB}
    assert await Runs(pool).create_of(run_id=stranger, **his, **about) is None
    assert await pool.fetchval("SELECT count(*) FROM workflow_runs") == 1
    assert await pool.fetchval("SELECT count(*) FROM workflow_run_commands") == 1


async def test_a_word_is_said_in_one_statement_and_only_where_it_is_wanted(book: Book, ear: Ear) -> None:
    story = await book.open(step("a", manual=True))
    await book.write(story)
    commands, run_id, number = Commands(ear.pool), story.run.id, CommandId(uuid7.uuid7())

    async def say(command_id: CommandId, user: str, *of: str, sees_pause: bool = True) -> str | None:
        payload, origin = {"step_id": "a"}, Origin(actor=user)
        return await commands.say(
            command_id, "approve", payload, run_id=run_id, by=Caller(user), origin=origin, of=of, sees_pause=sees_pause
        )

    assert await say(CommandId(uuid7.uuid7()), "bob", "paused") is None
    assert await say(CommandId(uuid7.uuid7()), "ann", "running") == "paused"
    assert await say(number, "ann", "paused") == "paused"
    assert ear.statements() == 3
    said = [row for row in await book.rows("workflow_run_commands", run_id) if row["kind"] == "approve"]
    assert [(row["id"], row["seen_seq"], row["issued_by"]) for row in said] == [(number, story.run.paused_seq, "ann")]
    assert await say(CommandId(uuid7.uuid7()), "ann", "paused", sees_pause=False) == "paused"
    seen = [row["seen_seq"] for row in await book.rows("workflow_run_commands", run_id) if row["kind"] == "approve"]
    assert seen == [story.run.paused_seq, None]


@pytest.mark.parametrize("runs", [1, 20])
async def test_a_claim_is_one_statement_for_runs_that_never_moved_and_two_for_others(
    book: Book, ear: Ear, runs: int
) -> None:
    claims = Claims(ear.pool)
    fresh = [Story(step("a"), run_id=RunId(uuid7.uuid7())).run for _ in range(runs)]
    for run in fresh:
        await book.create(run)
    claimed, _ = await claims.claim({run.id: "me" for run in fresh})
    assert len(claimed) == runs
    assert {epoch for _, epoch in claimed} == {Epoch(1)}
    assert ear.statements() == 1

    moved = [await _moved(book) for _ in range(runs)]
    for story in moved:
        await book.forgive(story.run.id)
    claimed, _ = await claims.claim({story.run.id: "me" for story in moved})
    assert {run.id: run for run, _ in claimed} == {story.run.id: story.run for story in moved}
    assert ear.statements() == 2
