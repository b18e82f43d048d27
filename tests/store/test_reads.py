"""What the API reads and writes: runs with their steps and attempts, templates, commands, pages of the log."""

from __future__ import annotations

import asyncio
from uuid import UUID

import asyncpg
import orjson
import psycopg
import pytest
import uuid_utils.compat as uuid7

from daemon.auth.caller import Caller
from daemon.errors import SetupError, StoreUnavailable
from daemon.machine.commands import CommandId, RunId
from daemon.store.commands import Commands, NewCommand
from daemon.store.log import EventLog
from daemon.store.pool import Pool, open_pool, warm
from daemon.store.runs import Runs
from daemon.store.workflows import Workflows
from tests.machine.scenario import WORKFLOW_ID, Story, acked, chunk, done, failed, step
from tests.patience import eventually
from tests.store.conftest import ANN, Book


async def test_a_run_is_created_with_its_snapshot_and_its_start_command_or_not_at_all(book: Book) -> None:
    story = Story(step("a"), run_id=RunId(uuid7.uuid7()))
    start = await book.create(story.run)
    (run,) = await book.rows("workflow_runs")
    assert (run["status"], run["epoch"], run["owner"], run["last_seq"]) == ("running", 0, None, 0)
    (command,) = await book.rows("workflow_run_commands")
    assert (command["id"], command["kind"], command["issued_by"], command["verdict"]) == (start, "start", "ann", None)

    another = Story(step("a"), run_id=RunId(uuid7.uuid7())).run
    with pytest.raises(asyncpg.UniqueViolationError):
        await book.runs.create(
            run_id=another.id,
            workflow_id=WORKFLOW_ID,
            user_id="ann",
            nonce=b"n",
            snapshot="{}",
            command_id=start,
            origin=ANN,
        )
    assert len(await book.rows("workflow_runs")) == 1


async def test_the_view_of_a_run_has_its_steps_attempts_and_snapshot(book: Book) -> None:
    story = await book.open(step("a"), step("b", manual=True), step("c"))
    story.hear(acked(story.req), chunk(story.req, "no luck\n"), failed(story.req, "broken", "why"))
    story.say("resume")
    story.hear(acked(story.req), done(story.req, {"answer": 42}))
    story.say("approve", by="ann")
    await book.write(story)

    view = await book.runs.view(story.run.id, by=Caller("ann"))
    assert view is not None
    assert (view.head.status, view.head.current_step_index, view.head.last_seq) == ("running", 1, story.run.last_seq)
    assert orjson.loads(view.snapshot) == story.run.spec.model_dump(mode="json")
    assert [(one.step_id, one.status, one.approved_by) for one in view.steps] == [
        ("a", "success", None),
        ("b", "running", "ann"),
    ]
    assert [one.step_index for one in view.attempts] == [0, 0, 1]
    first, second, third = (orjson.loads(one.told) for one in view.attempts)
    assert (first["state"], first["ok"], first["error"], first["log_preview"]) == (
        *("failed", False, {"code": "broken", "message": "why"}),
        "no luck\n",
    )
    assert (second["attempt_index"], second["state"], second["ok"]) == (1, "done", True)
    assert (second["result_json"], second["end_ts"]) == ({"answer": 42}, story.now // 1000)
    assert (third["attempt_index"], third["state"], third["req_id"]) == (0, "intent", story.req)
    assert (third["ok"], third["end_ts"], third["result_json"], third["result_preview"]) == (None,) * 4


async def test_the_head_tells_a_pause_and_an_end(book: Book) -> None:
    story = await book.open(step("a", manual=True))
    await book.write(story)
    head = await book.runs.head(story.run.id, by=Caller("ann"))
    assert head is not None
    assert (head.status, head.paused_reason, head.paused_seq, head.terminal) == (
        *("paused", "awaiting_approval", story.run.paused_seq),
        False,
    )
    story.say("reject", reason="no")
    await book.write(story)
    head = await book.runs.head(story.run.id, by=Caller("ann"))
    assert head is not None
    assert (head.status, head.error_code, head.terminal) == ("failed", "approval_rejected", True)


async def test_the_run_of_another_user_is_none(book: Book) -> None:
    story = await book.open(user="ann")
    for user, wanted in (("ann", True), ("bob", False), ("", False), ("ANN", False)):
        assert (await book.runs.head(story.run.id, by=Caller(user)) is not None) is wanted
        assert (await book.runs.view(story.run.id, by=Caller(user)) is not None) is wanted
    assert await book.runs.view(uuid7.uuid7(), by=Caller("ann")) is None


async def test_a_view_is_of_one_moment(book: Book, other: asyncpg.Connection[asyncpg.Record]) -> None:
    """What is committed while a view is under way is seen whole or not at all."""
    story = await book.open(step("a"), step("b"))
    await book.write(story)
    async with other.transaction():
        await other.execute("LOCK TABLE workflow_run_attempts IN ACCESS EXCLUSIVE MODE")
        looking = asyncio.create_task(book.runs.view(story.run.id, by=Caller("ann")))
        await eventually(lambda: _blocked(book.pool))
        await other.execute("UPDATE workflow_runs SET last_seq = 99")
        await other.execute("UPDATE workflow_run_attempts SET state = 'done'")
    view = await looking
    assert view is not None
    before, after = (story.run.last_seq, "intent"), (99, "done")
    assert (view.head.last_seq, orjson.loads(view.attempts[0].told)["state"]) in (before, after)


async def _blocked(pool: Pool) -> bool:
    return bool(
        await pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


async def test_a_template_is_read_as_it_was_stored_and_by_its_user_only(pool: Pool) -> None:
    workflows, number = Workflows(pool), uuid7.uuid7()
    text = '{"title":  "é\\u0041", "steps":[]}'
    stored = await workflows.add(workflow_id=number, user_id="ann", title="T", description=None, spec=text, origin=ANN)
    assert stored.spec == text
    assert await workflows.get(number, user_id="ann") == stored
    assert await workflows.get(number, user_id="bob") is None
    assert await workflows.get(uuid7.uuid7(), user_id="ann") is None


async def test_a_command_is_read_with_its_verdict_and_by_its_run_only(book: Book, commands: Commands) -> None:
    story = await book.open()
    number = CommandId(uuid7.uuid7())
    await commands.add(NewCommand(id=number, run_id=story.run.id, kind="cancel", payload={}, seen_seq=None, origin=ANN))
    row = await commands.get(number, run_id=story.run.id)
    assert row is not None
    assert (row.kind, row.verdict, row.applied_seq) == ("cancel", None, None)
    assert await commands.get(number, run_id=uuid7.uuid7()) is None
    assert await commands.get(uuid7.uuid7(), run_id=story.run.id) is None


async def test_a_command_for_a_run_that_does_not_exist_is_refused_by_the_database(commands: Commands) -> None:
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await commands.add(
            NewCommand(
                id=CommandId(uuid7.uuid7()),
                run_id=RunId(UUID(int=1)),
                kind="cancel",
                payload={},
                seen_seq=None,
                origin=ANN,
            )
        )


async def test_the_log_is_read_in_pages_that_are_what_was_told(book: Book) -> None:
    story = await book.open(step("a"), step("b"))
    story.succeed({"text": "é"})
    await book.write(story)
    log, told = EventLog(book.pool), b"".join(one.told().frames for one in story.transitions)
    frames, after = b"", 0
    while (page := await log.page(story.run.id, after_seq=after, limit=2)).count:
        assert page.last_seq == after + page.count
        frames, after = frames + page.frames, page.last_seq
    assert frames == told
    assert after == story.run.last_seq
    assert await log.last_seqs([story.run.id, uuid7.uuid7()]) == {story.run.id: story.run.last_seq}


async def test_every_read_says_that_the_store_is_away(pool: Pool) -> None:
    await pool.close()
    with pytest.raises(StoreUnavailable):
        await Runs(pool).head(uuid7.uuid7(), by=Caller("ann"))
    with pytest.raises(StoreUnavailable):
        await EventLog(pool).page(uuid7.uuid7(), after_seq=0, limit=1)


async def test_a_database_whose_claims_would_not_see_what_they_waited_for_is_refused(
    admin: psycopg.Connection, database: str
) -> None:
    """Such a claim would find the run as it was before the append that it waited for, and send its calls again."""
    name = database.split("/")[3].split("?")[0]
    admin.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    with pytest.raises(SetupError, match="begin as repeatable read; Runwarden needs read committed"):
        await open_pool(database, size=2, patience_s=5)


async def test_a_postgres_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(SetupError) as told:
        await open_pool("postgresql://rw:geheim@127.0.0.1:1/x", size=2, patience_s=0)
    assert "rw:****@127.0.0.1:1/x" in str(told.value)
    assert "geheim" not in str(told.value)


async def test_a_postgres_that_refuses_is_named_at_once(database: str) -> None:
    with pytest.raises(SetupError, match="does not exist"):
        await open_pool(database.replace("/test_", "/nowhere_"), size=2, patience_s=30)


async def test_half_of_a_pool_is_opened_before_somebody_waits_for_it(database: str) -> None:
    pool = await open_pool(database, size=6, patience_s=5)
    assert (pool.get_size(), pool.get_idle_size()) == (1, 1)
    await warm(pool, "SELECT $1::int", 7)
    assert (pool.get_size(), pool.get_idle_size()) == (3, 3)
    asked = await pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'SELECT $1::int'"
    )
    assert asked == 3 - 1, "each but the one that asks now"
    await pool.close()
    await warm(pool, "SELECT $1::int", 7)  # whoever needs a connection then will say so
