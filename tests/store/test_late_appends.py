"""An append whose client is gone, and that Postgres carries out only when the run has gone on: it changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from daemon.machine.record import Transition
from daemon.store.commit import APPEND, CHECKPOINT, appending
from tests.machine.scenario import Story, done
from tests.store.conftest import Book
from tests.store.test_tail import Clock, appended, book, clock, moving, rows

__all__ = ["book", "clock"]

Meanwhile = Callable[[Book, Clock, Story, list[Transition]], Awaitable[None]]


async def repeated(book: Book, clock: Clock, story: Story, commits: list[Transition]) -> None:
    await appended(book, commits[0])


async def gone_on(book: Book, clock: Clock, story: Story, commits: list[Transition]) -> None:
    await appended(book, *commits)


async def written(book: Book, clock: Clock, story: Story, commits: list[Transition]) -> None:
    for one in commits:
        clock.now += 10.0
        await book.lane.commit([one])


async def checkpointed(book: Book, clock: Clock, story: Story, commits: list[Transition]) -> None:
    await gone_on(book, clock, story, commits)
    assert await book.lane.checkpoint()


async def let_go(book: Book, clock: Clock, story: Story, commits: list[Transition]) -> None:
    before = commits[0].expected_seq
    assert await book.claims.release([(story.run.id, story.epoch, "me", None, before)]) == {story.run.id}


async def claimed(book: Book, clock: Clock, story: Story, commits: list[Transition]) -> None:
    await book.claim(story.run.id, "thief")


async def let_go_and_claimed(book: Book, clock: Clock, story: Story, commits: list[Transition]) -> None:
    await let_go(book, clock, story, commits)
    await book.claim(story.run.id)  # by the same name, as if it could be


MEANWHILE: list[Meanwhile] = [repeated, gone_on, written, checkpointed, let_go, claimed, let_go_and_claimed]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
async def test_an_append_that_comes_late_changes_nothing(
    book: Book, clock: Clock, other: asyncpg.Connection[asyncpg.Record], meanwhile: Meanwhile
) -> None:
    story, commits = await moving(book, 4)
    tail = book.lane._tail
    assert tail is not None
    changes = tail.changes(commits[0], 0.0)
    assert changes is not None
    late = appending(commits[0], changes, tail.page)
    await meanwhile(book, clock, story, commits)
    before, seqs = await rows(book.pool, story.run.id), await book.seqs(story.run.id)
    try:
        assert await other.fetchval(APPEND, *late) is None
    except asyncpg.UniqueViolationError:
        assert await book.pool.fetchval(
            "SELECT count(*) FROM workflow_run_pages WHERE first_seq = $1", commits[0].events[0].seq
        )
    assert await rows(book.pool, story.run.id) == before
    assert await book.seqs(story.run.id) == seqs


@pytest.mark.parametrize("then", [gone_on, checkpointed, let_go, claimed])
async def test_a_checkpoint_that_comes_late_leaves_the_rows_at_a_place_of_the_log(
    book: Book, clock: Clock, other: asyncpg.Connection[asyncpg.Record], then: Meanwhile
) -> None:
    """It writes what the log has by then, if they are where it was to begin; and who owns the run goes on."""
    story, commits = await moving(book, 4)
    one = commits.pop(0)
    await appended(book, one)
    late = (one.run_id, one.epoch, one.owner, one.expected_seq)
    await then(book, clock, story, commits)
    await other.fetchval(CHECKPOINT, *late)
    head = await book.pool.fetchrow("SELECT last_seq, written_seq FROM workflow_run_heads")
    assert head is not None
    assert head["written_seq"] == head["last_seq"], "whoever came between has written them, or this has"
    story.hear(done(story.req))
    outcomes = await book.write(story)
    assert (outcomes.fenced if then in (let_go, claimed) else set(outcomes.committed)) == {story.run.id}


@pytest.mark.parametrize("stale", ["epoch", "owner"])
async def test_only_who_owns_a_run_lets_its_rows_follow(book: Book, stale: str) -> None:
    story, commits = await moving(book)
    await appended(book, *commits)
    before, one = await rows(book.pool, story.run.id), commits[0]
    epoch, owner = (one.epoch - 1, one.owner) if stale == "epoch" else (one.epoch, "thief")
    assert await book.pool.fetchval(CHECKPOINT, one.run_id, epoch, owner, one.expected_seq) is None
    assert await rows(book.pool, story.run.id) == before
    assert await book.pool.fetchval(CHECKPOINT, one.run_id, one.epoch, one.owner, one.expected_seq)
