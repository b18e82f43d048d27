"""The fenced commit: whole or not at all, for each run by itself, whoever else stands in the batch."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from daemon.machine.commands import Epoch
from daemon.machine.record import Transition, VerdictRow, verdict
from daemon.store import journal
from daemon.store.commands import Commands, NewCommand
from daemon.store.commit import COMMIT
from daemon.store.journal import Lane
from tests.machine.scenario import acked, chunk, done, failed, step
from tests.store.conftest import ANN, Book

FOREIGN: dict[str, dict[str, Any]] = {
    "an old epoch": {"epoch": Epoch(0)},
    "another owner of an old epoch": {"epoch": Epoch(0), "owner": "thief"},
    "a seq that was": {"expected_seq": 1},
}
"""What a fenced owner says. What an owner says who knows more than Postgres stands in ``tests/loss``."""


async def test_a_commit_writes_run_steps_attempts_events_and_verdicts(book: Book) -> None:
    story = await book.open(step("a"), step("b"))
    await book.write(story)
    story.hear(acked(story.req), chunk(story.req, "working\n"), done(story.req, {"n": 2}))
    outcomes = await book.write(story)

    assert set(outcomes.committed) == {story.run.id}
    (run,) = await book.rows("workflow_runs")
    assert (run["status"], run["current_step_index"], run["last_seq"]) == ("running", 1, story.run.last_seq)
    assert run["last_activity_at"].timestamp() * 1000 == story.now
    assert [row["status"] for row in await book.rows("workflow_run_steps")] == ["success", "running"]
    first, second = await book.rows("workflow_run_attempts")
    assert (first["state"], first["result"], first["log_tail"], first["arguments"]) == (
        *("done", '{"n":2}', "working\n"),
        '{"n":1}',
    )
    assert (second["state"], second["epoch"], second["req_id"]) == ("intent", 1, story.req)
    events = await book.rows("workflow_run_events")
    assert [row["event_type"] for row in events] == story.types
    assert [orjson.loads(row["payload"]) for row in events] == story.rows()
    assert {row["created_at"].timestamp() * 1000 for row in events} == {story.now}


async def test_a_commit_gives_each_command_its_verdict_once(book: Book, commands: Commands) -> None:
    story = await book.open(step(manual=True))
    await book.write(story)
    sent = [story.command("approve"), story.command("approve")]
    for one in sent:
        await commands.add(
            NewCommand(id=one.id, run_id=story.run.id, kind="approve", payload={}, seen_seq=one.seen_seq, origin=ANN)
        )
    story.turn(commands=sent)
    await book.write(story)
    first, second = [await commands.get(one.id, run_id=story.run.id) for one in sent]
    assert first is not None
    assert second is not None
    assert (first.verdict, first.applied_seq, first.code) == ("applied", story.run.last_seq, None)
    assert (second.verdict, second.applied_seq, second.code) == ("refused", None, "not_paused")

    again = replace(story.transitions[-1], events=(), steps=(), attempts=(), expected_seq=story.run.last_seq)
    await book.lane.commit([replace(again, verdicts=(VerdictRow(sent[0].id, False, "late", "late"),))])
    assert await commands.get(sent[0].id, run_id=story.run.id) == first


@pytest.mark.parametrize("foreign", FOREIGN)
async def test_what_does_not_pass_the_fence_writes_nothing_anywhere(book: Book, foreign: str) -> None:
    story = await book.open(step("a"), step("b"))
    await book.write(story)
    story.hear(acked(story.req), done(story.req))
    (mine,) = book.told(story)
    start = (await book.rows("workflow_run_commands"))[0]["id"]
    before = await book.everything()

    stranger = replace(mine, **FOREIGN[foreign], verdicts=(verdict(start, None),))
    outcomes = await book.lane.commit([stranger])

    assert outcomes.fenced == {story.run.id}
    assert not outcomes.committed
    assert await book.everything() == before


async def test_a_run_that_does_not_exist_is_fenced(book: Book) -> None:
    story = await book.open()
    await book.pool.execute(
        "DELETE FROM workflow_run_commands; DELETE FROM workflow_run_specs; DELETE FROM workflow_runs"
    )
    assert (await book.write(story)).fenced == {story.run.id}


async def test_of_two_runs_in_a_batch_the_fenced_one_does_not_stop_the_other(book: Book) -> None:
    lost, kept = await book.open(step("a")), await book.open(step("a"))
    await book.claim(lost.run.id, "thief")
    await book.pool.execute("UPDATE workflow_runs SET owner = 'thief'")
    await book.pool.execute("UPDATE workflow_runs SET owner = 'me' WHERE id = $1", kept.run.id)

    outcomes = await book.lane.commit([*book.told(lost), *book.told(kept)])

    assert outcomes.fenced == {lost.run.id}
    assert set(outcomes.committed) == {kept.run.id}
    assert await book.seqs(lost.run.id) == []
    assert await book.seqs(kept.run.id) == [1, 2]
    assert {row["run_id"] for row in await book.rows("workflow_run_attempts")} == {kept.run.id}


async def test_a_batch_of_many_runs_is_one_statement(book: Book) -> None:
    stories = [await book.open(step("a"), step("b", manual=True)) for _ in range(40)]
    batch = [one for story in stories for one in book.told(story)]
    outcomes = await book.lane.commit(batch)
    assert set(outcomes.committed) == {story.run.id for story in stories}
    assert await _commits(book) == 1


@pytest.mark.parametrize("runs", [10, 30])
async def test_a_commit_finds_its_runs_by_index_though_the_table_is_small(book: Book, lane: Lane, runs: int) -> None:
    for _ in range(runs):
        await book.open(step())
    await book.pool.execute("ANALYZE workflow_runs")  # now Postgres knows that reading it whole is cheapest
    connection = await lane._connected()
    rows = await connection.fetch("EXPLAIN (GENERIC_PLAN) " + COMMIT, [], [], [], [], None)
    plan = "\n".join([row[0] for row in rows])
    assert "Index Cond: (id = " in plan, plan
    assert [way for way in ("Seq Scan on workflow_runs", "Merge Join", "Hash Join") if way in plan] == [], plan
    assert await connection.fetchval("SHOW jit") == "off", "compiling takes longer than any commit"


@pytest.mark.parametrize(("kept_s", "asked"), [(0.0, 2), (3600.0, 0)])
async def test_a_plan_does_not_stay_for_ever(
    book: Book, monkeypatch: pytest.MonkeyPatch, kept_s: float, asked: int
) -> None:
    """One made for five runs may read the whole index each time; of 5,000 that took 24 instead of 6 ms a batch."""
    monkeypatch.setattr(journal, "PLANS_KEPT_S", kept_s)
    one, other = await book.open(step("a"), step("b")), await book.open(step("a"), step("b"))
    said: list[str] = []
    (await book.lane._connected()).add_query_logger(lambda record: said.append(record.query))
    for story in (one, other):
        await book.write(story)
    assert said.count("DISCARD PLANS") == asked


async def test_a_commit_answers_postgres_time(book: Book) -> None:
    story = await book.open()
    before = await book.pool.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000")
    outcomes = await book.write(story)
    after = await book.pool.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000")
    assert before - 1 <= outcomes.committed[story.run.id] <= after + 1


def _req_id_of_another(mine: Transition, another: Transition) -> Transition:
    row = mine.attempts[0]
    return replace(
        mine, attempts=(replace(row, attempt=replace(row.attempt, req_id=another.attempts[0].attempt.req_id)),)
    )


def _number_too_large(mine: Transition, _: Transition) -> Transition:
    return replace(mine, attempts=(replace(mine.attempts[0], exit_code=2**63),))


def _time_out_of_range(mine: Transition, _: Transition) -> Transition:
    return replace(mine, at=2**62)


def _nul_in_a_text(mine: Transition, _: Transition) -> Transition:
    return replace(mine, attempts=(replace(mine.attempts[0], log_tail="a\0b"),))


def _lone_surrogate(mine: Transition, _: Transition) -> Transition:
    return replace(mine, attempts=(replace(mine.attempts[0], log_tail="\ud800"),))


def _no_json(mine: Transition, _: Transition) -> Transition:
    return replace(mine, events=(replace(mine.events[0], payload=b"{"), *mine.events[1:]))


def _no_such_status(mine: Transition, _: Transition) -> Transition:
    return replace(mine, run=replace(mine.run, status="dreaming"))  # type: ignore[arg-type] # that is the point


POISONS = [
    *(_req_id_of_another, _number_too_large, _time_out_of_range, _nul_in_a_text),
    *(_lone_surrogate, _no_json, _no_such_status),
]


@pytest.mark.parametrize("spoil", POISONS)
async def test_what_postgres_refuses_is_split_out_and_its_neighbours_commit(book: Book, spoil: Any) -> None:
    stories = [await book.open() for _ in range(6)]
    batch = [one for story in stories for one in book.told(story)]
    culprit = stories[3].run.id
    batch[3] = spoil(batch[3], batch[0])

    outcomes = await book.lane.commit(batch)

    assert set(outcomes.poisoned) == {culprit}
    assert outcomes.poisoned[culprit]
    assert set(outcomes.committed) == {story.run.id for story in stories} - {culprit}
    assert not outcomes.fenced
    for story in stories:
        assert await book.seqs(story.run.id) == ([] if story.run.id == culprit else [1, 2])


async def test_two_culprits_in_one_batch_are_both_found(book: Book) -> None:
    stories = [await book.open() for _ in range(5)]
    batch = [one for story in stories for one in book.told(story)]
    batch[0], batch[4] = _no_json(batch[0], batch[1]), _number_too_large(batch[4], batch[1])
    outcomes = await book.lane.commit(batch)
    assert set(outcomes.poisoned) == {stories[0].run.id, stories[4].run.id}
    assert set(outcomes.committed) == {story.run.id for story in stories[1:4]}


async def test_an_attempt_keeps_what_a_later_commit_does_not_mention(book: Book) -> None:
    """Arguments, error, exit code and result are told once; the log's tail grows and stays bounded."""
    story = await book.open(step("a", goes_on=True), step("b"))
    await book.write(story)
    first = story.req
    story.hear(acked(first), chunk(first, "x" * 7_990, number=1))
    story.hear(chunk(first, "yyyyy" * 4, number=2))
    story.hear(failed(first, "broken", "why"))
    story.hear(chunk(first, "last", number=3))
    await book.write(story)
    row = (await book.rows("workflow_run_attempts"))[0]
    assert (row["arguments"], row["error"]) == ('{"n":1}', '{"code":"broken","message":"why"}')
    assert len(row["log_tail"]) == 8_000
    assert row["log_tail"].endswith("y" * 20 + "last")


async def test_an_empty_batch_is_no_statement(book: Book, lane: Lane) -> None:
    outcomes = await lane.commit([])
    assert (outcomes.committed, outcomes.fenced, outcomes.poisoned) == ({}, set(), {})
    assert await _commits(book) == 0


async def _commits(book: Book) -> int:
    """Executions of the grouped commit in this test's database, as Postgres counted them."""
    return int(
        await book.pool.fetchval(
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE '%WITH moved AS (%'"
            " AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    )
