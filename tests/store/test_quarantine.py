"""Runs whose database is older than they are: parked once, told in their log, and fenced against whoever knew more."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import uuid_utils.compat as uuid7
from msgspec.structs import replace

from daemon.machine.commands import Epoch, RunId
from daemon.machine.record import Known
from daemon.store import quarantine
from daemon.store.journal import Lane
from tests.machine.scenario import Story, acked, done, step
from tests.store.conftest import OWNER, Book

AHEAD: dict[str, dict[str, Any]] = {
    "a later epoch": {"epoch": Epoch(7)},
    "the same epoch under another name": {"owner": "another"},
    "a seq to come": {"expected_seq": 9},
}
"""What an owner says who knows more than Postgres does."""


async def row(book: Book, story: Story) -> dict[str, Any]:
    (found,) = await book.rows("workflow_runs", story.run.id)
    return found


async def log(book: Book, story: Story) -> list[dict[str, Any]]:
    rows = await book.rows("workflow_run_events", story.run.id)
    assert [one["seq"] for one in rows] == list(range(1, len(rows) + 1))
    return [orjson.loads(one["payload"]) for one in rows]


@pytest.mark.parametrize("ahead", AHEAD)
async def test_a_commit_that_finds_the_database_behind_parks_the_run(book: Book, ahead: str) -> None:
    story, neighbour = await book.open(step("a"), step("b")), await book.open()
    await book.write(story)
    story.hear(acked(story.req), done(story.req))
    (mine,), (theirs,) = book.told(story), book.told(neighbour)
    before = (await row(book, story))["last_seq"]

    outcomes = await book.lane.commit([replace(mine, **AHEAD[ahead]), theirs])

    assert outcomes.fenced == {story.run.id}
    assert set(outcomes.committed) == {neighbour.run.id}
    found = await row(book, story)
    assert (found["status"], found["paused_reason"], found["error_code"]) == (
        *("paused", "engine_interrupted"),
        "commits_lost",
    )
    assert (found["owner"], found["last_seq"], found["paused_seq"]) == (None, before + 1, before + 1)
    assert found["epoch"] > max(1, replace(mine, **AHEAD[ahead]).epoch), "neither state may write any more"
    told = (await log(book, story))[-1]
    assert (told["type"], told["paused_reason"], told["error_code"]) == (
        *("step.paused", "engine_interrupted"),
        "commits_lost",
    )
    assert (await row(book, neighbour))["status"] == "running"


async def test_a_run_is_parked_once_however_many_find_it_behind(book: Book) -> None:
    story = await book.open()
    await book.write(story)
    known = Known(story.run.id, Epoch(1), OWNER, 9)
    assert await book.claims.park_lost([known]) == {story.run.id}
    length = len(await log(book, story))
    assert await book.claims.park_lost([known._replace(last_seq=0, epoch=Epoch(2))]) == set()
    assert await book.claims.park_lost([Known(story.run.id, Epoch(1), OWNER, story.run.last_seq)]) == set()
    assert len(await log(book, story)) == length


async def test_what_an_owner_knew_and_another_carried_on_is_the_ordinary_fence(book: Book) -> None:
    story = await book.open()
    await book.write(story)
    known = Known(story.run.id, Epoch(1), OWNER, story.run.last_seq)
    assert await book.claims.park_lost([known]) == set()
    await book.claim(story.run.id, "another")
    assert await book.claims.park_lost([known]) == set()
    await book.claims.release([(story.run.id, Epoch(2), "another", None, story.run.last_seq)])
    assert await book.claims.park_lost([known]) == set()
    assert (await row(book, story))["status"] == "running"


async def test_letting_go_of_what_the_database_has_forgotten_moves_nothing(book: Book) -> None:
    """Else the run would be passive in a state that it has left behind, and nobody would know."""
    story = await book.open()
    await book.write(story)
    assert await book.claims.release([(story.run.id, Epoch(1), OWNER, None, story.run.last_seq + 3)]) == set()
    assert (await row(book, story))["owner"] == OWNER


async def test_a_run_that_postgres_has_lost_altogether_is_fenced(book: Book) -> None:
    story = await book.open()
    told = book.told(story)
    for table in ("workflow_run_commands", "workflow_run_specs", "workflow_runs"):
        await book.pool.execute(f"DELETE FROM {table}")
    assert (await book.lane.commit(told)).fenced == {story.run.id}


async def every_kind(book: Book) -> dict[str, Story]:
    """A run of each kind, at rest or held."""
    stories = {
        "fresh": Story(run_id=RunId(uuid7.uuid7())),
        "in flight": await book.open(step("a"), step("b")),
        "awaiting": await book.open(step("a", manual=True)),
        "over": await book.open(step("a")),
    }
    stories["over"].hear(acked(stories["over"].req), done(stories["over"].req))
    await book.create(stories["fresh"].run)
    await book.write(*(story for name, story in stories.items() if name != "fresh"))
    return stories


async def test_quarantine_parks_every_unfinished_run_and_only_those(book: Book, database: str) -> None:
    stories = await every_kind(book)
    counted = await quarantine.quarantine(database, really=False)
    expected = {("running", None): 2, ("paused", "awaiting_approval"): 1}
    assert counted.runs == expected
    assert (await row(book, stories["awaiting"]))["paused_reason"] == "awaiting_approval", "counting changes nothing"

    done_ = await quarantine.quarantine(database, really=True)
    assert (done_.runs, done_.unreadable) == (expected, 0)
    for name in ("fresh", "in flight", "awaiting"):
        found = await row(book, stories[name])
        assert (found["status"], found["paused_reason"], found["owner"]) == ("paused", "engine_interrupted", None)
        told = await log(book, stories[name])
        assert (told[0]["type"], told[-1]["type"]) == ("run.created", "step.paused")
        assert found["last_seq"] == len(told)
    assert (await row(book, stories["over"]))["status"] == "completed"
    (started,) = await book.rows("workflow_run_commands", stories["fresh"].run.id)
    assert started["verdict"] == "applied", "else it would be begun by its command"

    again = await quarantine.quarantine(database, really=True)
    assert not again.runs, "a repeat parks nothing more"


async def test_an_owner_that_lives_on_is_fenced_by_the_quarantine(book: Book, lane: Lane, database: str) -> None:
    story = await book.open(step("a"), step("b"))
    await book.write(story)
    story.hear(acked(story.req), done(story.req))
    late = book.told(story)
    await quarantine.quarantine(database, really=True)
    before = await log(book, story)
    assert (await lane.commit(late)).fenced == {story.run.id}
    assert await log(book, story) == before


async def test_a_quarantined_attempt_in_flight_wakes_at_its_deadline_so_that_it_is_asked_about(
    book: Book, database: str
) -> None:
    story = await book.open(step("a"))
    await book.write(story)
    await quarantine.quarantine(database, really=True)
    assert (await row(book, story))["wake_at"] is not None
    (claimed, epoch), *_ = (await book.claims.claim({story.run.id: "next"}))[0]
    assert claimed.attempt is not None
    assert claimed.attempt.in_flight
    assert claimed.attempt.epoch < epoch, "so it is inquired, never sent"


async def test_quarantine_of_many_goes_on_past_one_batch(
    book: Book, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "BATCH", 3)
    stories = [await book.open() for _ in range(8)]
    await book.write(*stories)
    damaged = stories[4].run.id
    await book.pool.execute("UPDATE workflow_run_specs SET snapshot = '{}' WHERE run_id = $1", damaged)
    census = await quarantine.quarantine(database, really=True)
    assert (census.runs.total(), census.unreadable) == (7, 1)
    assert [one["id"] for one in await book.rows("workflow_runs") if one["status"] == "running"] == [damaged]


async def test_a_run_that_cannot_be_parked_stops_no_other(book: Book, database: str) -> None:
    """Its start command says what no handler ever wrote; the run is told of, and its neighbour is parked."""
    odd, good = await book.open(started=False), await book.open(started=False)
    await book.pool.execute("UPDATE workflow_run_commands SET payload = '[]' WHERE run_id = $1", odd.run.id)
    census = await quarantine.quarantine(database, really=True)
    assert (census.runs.total(), census.unreadable) == (1, 1)
    statuses = {row["id"]: (row["status"], row["owner"]) for row in await book.rows("workflow_runs")}
    assert statuses == {odd.run.id: ("running", None), good.run.id: ("paused", None)}
