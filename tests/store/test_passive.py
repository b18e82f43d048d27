"""Passive runs: what is read of them is what the machine would say of the whole run; only their sleep is written."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.machine.commands import Epoch, RunId
from daemon.store.passive import Due
from tests.machine.scenario import acked, passive, spec, step
from tests.store.conftest import OWNER, Book
from tests.store.test_claims import HISTORIES, Tale


async def _let_go(book: Book, run_id: RunId, wake_at: int = 1_000) -> None:
    run = await book.claim(run_id)
    row = (await book.rows("workflow_runs", run_id))[0]
    await book.claims.release([(run_id, Epoch(row["epoch"]), OWNER, wake_at, run.last_seq)])


async def _read(book: Book, run_id: RunId) -> Due:
    (found,) = [one for one in await book.passive.due(10) if one.run_id == run_id]
    return found


@pytest.mark.parametrize("name", HISTORIES)
async def test_what_is_read_is_what_the_run_waits_for(book: Book, name: str) -> None:
    steps, tale = HISTORIES[name]
    story = await book.open(workflow=spec(*steps, run_timeout_ms=10**9))
    await _tell(book, story, tale)
    await _let_go(book, story.run.id)
    found = await _read(book, story.run.id)
    assert found.passive == passive(story.run)


async def _tell(book: Book, story: Any, tale: tuple[Tale, ...]) -> None:
    for act in tale:
        act(story)
        await book.write(story)
    await book.write(story)


async def test_a_run_without_a_limit_never_ends_by_itself(book: Book) -> None:
    story = await book.open(step())
    story.hear(acked(story.req))
    await book.write(story)
    await _let_go(book, story.run.id)
    found = (await _read(book, story.run.id)).passive
    assert found is not None
    assert found.ends_at is None


async def test_a_limit_that_cannot_be_read_is_left_to_whoever_claims_the_run(book: Book) -> None:
    story = await book.open(step())
    story.hear(acked(story.req))
    await book.write(story)
    await _let_go(book, story.run.id)
    await book.pool.execute("""UPDATE workflow_run_specs SET snapshot = '{"run_timeout_ms": "soon"}'""")
    assert (await _read(book, story.run.id)).passive is None


async def test_runs_that_are_looked_at_already_are_left_out(book: Book) -> None:
    stories = [await book.open() for _ in range(3)]
    for number, story in enumerate(stories):
        await _let_go(book, story.run.id, 1_000 + number)
    first, second, third = [story.run.id for story in stories]
    assert [one.run_id for one in await book.passive.due(1, {first})] == [second]
    assert [one.run_id for one in await book.passive.due(10, {first, third})] == [second]


async def test_a_run_sleeps_on_until_it_is_woken(book: Book) -> None:
    story = await book.open()
    await _let_go(book, story.run.id)
    found = await _read(book, story.run.id)
    assert await book.passive.sleep_on([(found, found.now + 3_600_000)]) == {story.run.id}
    assert await book.due() == []
    await book.claims.wake_waiting()
    found = await _read(book, story.run.id)
    assert await book.passive.sleep_on([(found, None)]) == {story.run.id}
    await book.claims.wake_waiting()
    assert await book.due() == []


async def test_who_was_claimed_woken_or_let_go_anew_since_is_left_alone(book: Book) -> None:
    held, woken, anew = [await book.open() for _ in range(3)]
    for story in (held, woken, anew):
        await _let_go(book, story.run.id)
    found = await book.passive.due(10)
    await book.claim(held.run.id)
    await book.pool.execute("UPDATE workflow_runs SET wake_at = to_timestamp(2) WHERE id = $1", woken.run.id)
    await _let_go(book, anew.run.id)
    before = await book.rows("workflow_runs")
    assert await book.passive.sleep_on([(one, one.now + 3_600_000) for one in found]) == set()
    assert await book.rows("workflow_runs") == before


async def test_waking_reaches_a_run_that_is_due_already(book: Book) -> None:
    """Somebody may just be looking at it, with a question older than what was missed."""
    story = await book.open()
    await _let_go(book, story.run.id)
    found = await _read(book, story.run.id)
    await book.claims.wake_waiting()
    assert await book.passive.sleep_on([(found, found.now + 3_600_000)]) == set()
    assert await book.due() == [story.run.id]
