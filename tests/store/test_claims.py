"""Claims: each raises the epoch and reads back exactly the run that the machine knew; letting go is fenced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias
from uuid import UUID

import pytest
import uuid_utils.compat as uuid7
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from daemon.errors import StoreUnavailable
from daemon.machine.commands import CommandId, Epoch, RunId
from daemon.machine.ground import Ground
from daemon.machine.state import PAST_KEPT, Limits, Run
from daemon.store.claims import Claims
from daemon.store.commands import Commands, NewCommand
from daemon.store.pool import Pool
from tests.machine import test_properties as tales
from tests.machine.grounds import Said
from tests.machine.scenario import Story, acked, canceled, chunk, done, failed, step
from tests.store.conftest import BOB, OWNER, Book

Tale: TypeAlias = Callable[[Story], None]


def as_remembered(story: Story) -> Run:
    """The story's run as memory would have it; a commit without events (a refusal) moves the clock alone."""
    last = max(one.at for one in story.transitions if one.events or one.verdicts)
    return replace(story.run, last_at=max(story.run.last_at, last))


async def test_a_claim_raises_the_epoch_and_names_the_owner(book: Book, claims: Claims) -> None:
    story = await book.open()
    for number in (2, 3):
        ((run, epoch),), _ = await claims.claim({story.run.id: f"node/{number}"})
        assert (run.id, epoch) == (story.run.id, number)
    (row,) = await book.rows("workflow_runs")
    assert (row["epoch"], row["owner"], row["wake_at"]) == (3, "node/3", None)


async def test_a_claim_leaves_out_runs_that_do_not_exist(book: Book, claims: Claims) -> None:
    story, nobody = await book.open(), RunId(uuid7.uuid7())
    claimed, now = await claims.claim({nobody: "x", story.run.id: "y"})
    assert [run.id for run, _ in claimed] == [story.run.id]
    assert now > 0
    assert await claims.claim({nobody: "x"}) == ([], 0)


async def test_many_runs_are_claimed_at_once_each_for_its_own_token(book: Book, claims: Claims) -> None:
    stories = [await book.open(*(step(f"s{n}") for n in range(count))) for count in (1, 2, 3)]
    await book.write(*stories)
    wanted = {story.run.id: f"node/{story.run.id}" for story in stories}
    claimed, _ = await claims.claim(wanted)
    assert {run.id: run for run, _ in claimed} == {story.run.id: story.run for story in stories}
    assert {row["id"]: row["owner"] for row in await book.rows("workflow_runs")} == wanted


async def test_two_claims_at_once_get_different_epochs(book: Book, claims: Claims) -> None:
    story = await book.open()
    answers = await asyncio.gather(*(claims.claim({story.run.id: f"n/{n}"}) for n in range(3)))
    assert sorted(epoch for ((_, epoch),), _ in answers) == [2, 3, 4]


def _approved(story: Story) -> None:
    story.say("approve", by="bob")


def _failed_and_resumed(story: Story) -> None:
    for _ in range(3):
        story.fail()
        story.say("resume")


def _unsent_twice(story: Story) -> None:
    for _ in range(2):
        story.bounce("gateway_unavailable")
        story.wait(5_000)


def _chatty(story: Story) -> None:
    story.hear(acked(story.req), chunk(story.req, "é" * 3_000, number=7, dropped=(5, 1)))


def _timed_out(story: Story) -> None:
    story.hear(acked(story.req))
    story.wait(60_000)


def _canceled_midway(story: Story) -> None:
    story.hear(acked(story.req))
    story.say("cancel", by="eve", reason="why not")


def _more_attempts_than_are_kept(story: Story) -> None:
    for _ in range(PAST_KEPT + 3):
        story.fail()
        story.say("resume")


def _evidence_of_the_past(story: Story) -> None:
    first = story.req
    story.hear(acked(first))
    story.wait(120_000)
    story.say("resume", confirm="run_again")
    story.hear(done(first, {"late": True}))


HISTORIES: dict[str, tuple[tuple[dict[str, Any], ...], tuple[Tale, ...]]] = {
    "nothing but the start": ((step(),), ()),
    "waiting for approval": ((step(manual=True),), ()),
    "approved": ((step(manual=True),), (_approved,)),
    "rejected": ((step(manual=True),), (lambda story: story.say("reject", reason="no"),)),  # type: ignore[list-item,return-value] # the refusal does not matter
    "rejected and continued": (
        (step("a", manual=True, goes_on=True), step("b")),
        (lambda story: story.say("reject"),),  # type: ignore[return-value] # as above
    ),
    "chatty": ((step(),), (_chatty,)),
    "failed and resumed": ((step(),), (_failed_and_resumed,)),
    "failed and continued": ((step("a", goes_on=True), step("b")), (Story.fail,)),  # type: ignore[dict-item] # its events do not matter
    "unsent and tried again": ((step(),), (_unsent_twice,)),
    "deadline passed": ((step(),), (_timed_out,)),
    "canceled midway": ((step(),), (_canceled_midway,)),
    "canceled and confirmed": ((step(),), (_canceled_midway, lambda story: story.hear(canceled(story.req)))),  # type: ignore[return-value,dict-item] # as above
    "taken over in flight": ((step(),), (Story.takeover, Story.takeover)),
    "parked": ((step(),), (Story.park,)),
    "more attempts than are kept": ((step(),), (_more_attempts_than_are_kept,)),
    "evidence about a past attempt": ((step(),), (_evidence_of_the_past,)),
    "completed": ((step("a"), step("b")), (Story.succeed, Story.succeed)),  # type: ignore[dict-item] # as above
    "failed": ((step("a"), step("b")), (Story.succeed, lambda story: story.hear(failed(story.req)))),  # type: ignore[dict-item,return-value] # as above
}


@pytest.mark.parametrize("history", HISTORIES)
async def test_a_claimed_run_is_the_run_that_was_committed(book: Book, history: str) -> None:
    steps, tale = HISTORIES[history]
    story = await book.open(*steps)
    for act in tale:
        act(story)
    await book.write(story)
    assert await book.claim(story.run.id) == as_remembered(story)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tales.steps, tales.limits, tales.flags, tales.st.lists(tales.acts, max_size=15))
async def test_whatever_happened_to_a_run_a_claim_reads_it_back(
    book: Book, shape: list[dict[str, Any]], bounds: Limits, listening: bool, tale: list[Tale]
) -> None:
    workflow = [step(f"s{index}", **about) for index, about in enumerate(shape)]
    story = await book.open(*workflow, limits=bounds, listening=listening)
    for act in tale:
        act(story)
    assert not (await book.write(story)).fenced
    assert await book.claim(story.run.id) == as_remembered(story)


async def test_a_run_that_cannot_be_read_back_does_not_stop_its_neighbours(book: Book, claims: Claims) -> None:
    broken, sound = await book.open(), await book.open()
    await book.write(broken, sound)
    await book.pool.execute(
        "UPDATE workflow_run_specs SET snapshot = '{\"steps\": 7}' WHERE run_id = $1", broken.run.id
    )
    claimed, _ = await claims.claim({broken.run.id: "n/1", sound.run.id: "n/2"})
    assert [run for run, _ in claimed] == [sound.run]
    (row,) = await book.rows("workflow_runs", broken.run.id)
    assert row["owner"] is None
    assert row["wake_at"] > await book.pool.fetchval("SELECT clock_timestamp()")


async def test_an_attempt_of_a_step_that_there_is_not_makes_a_run_unreadable(book: Book, claims: Claims) -> None:
    """The machine would raise each time when it is asked what such a run owes, and each node would end over it."""
    damaged, sound = await book.open(), await book.open()
    damaged.hear(acked(damaged.req))
    await book.write(damaged, sound)
    await book.pool.execute("UPDATE workflow_run_attempts SET step_index = 7 WHERE run_id = $1", damaged.run.id)
    claimed, _ = await claims.claim({story.run.id: "node/other" for story in (damaged, sound)})
    assert [run.id for run, _ in claimed] == [sound.run.id]
    assert (await book.rows("workflow_runs", damaged.run.id))[0]["owner"] is None


async def test_letting_go_clears_the_owner_and_stores_when_to_wake(book: Book, claims: Claims) -> None:
    story = await book.open()
    assert await claims.release([(story.run.id, Epoch(1), OWNER, 1_800_000_000_123, 0)]) == {story.run.id}
    (row,) = await book.rows("workflow_runs")
    assert (row["owner"], row["epoch"], row["wake_at"].timestamp()) == (None, 1, 1_800_000_000.123)
    assert await claims.release([]) == set()


@pytest.mark.parametrize(
    ("scope", "target", "due"),
    [("everything", "", False), ("agent", "agent-1", False), ("user", "ann", False), ("agent", "agent-2", True)],
)
async def test_a_held_run_that_is_let_go_is_due_unless_something_holds_it(
    book: Book, claims: Claims, scope: str, target: str, due: bool
) -> None:
    story = await book.open(step(), grounds=Said(lambda agent_id, tool_name: Ground(held="somebody holds it")))
    await book.write(story)
    hold = (
        "INSERT INTO holds (id, scope, target, reason, held_by) VALUES (gen_random_uuid(), $1, $2, 'why not', 'olga')"
    )
    await book.pool.execute(hold, scope, target)
    await claims.release([(story.run.id, Epoch(1), OWNER, None, story.run.last_seq)])
    assert await book.due() == ([story.run.id] if due else [])
    (row,) = await book.rows("workflow_runs")
    assert (row["wake_at"] is not None) == due


@pytest.mark.parametrize(("epoch", "owner", "seq"), [(0, OWNER, 0), (2, OWNER, 0), (1, "thief", 0), (1, OWNER, 1)])
async def test_letting_go_is_fenced(book: Book, claims: Claims, epoch: int, owner: str, seq: int) -> None:
    lost, kept = await book.open(), await book.open()
    before = await book.rows("workflow_runs", lost.run.id)
    given = [(lost.run.id, Epoch(epoch), owner, 5, seq), (kept.run.id, Epoch(1), OWNER, None, 0)]
    assert await claims.release(given) == {kept.run.id}
    assert await book.rows("workflow_runs", lost.run.id) == before


async def test_open_commands_are_those_without_a_verdict_oldest_first(
    book: Book, claims: Claims, commands: Commands
) -> None:
    story, quiet = await book.open(), await book.open()
    await book.pool.execute("UPDATE workflow_run_commands SET verdict = 'applied' WHERE run_id = $1", quiet.run.id)
    start = (await book.rows("workflow_run_commands", story.run.id))[0]["id"]
    later = [CommandId(uuid7.uuid7()) for _ in range(3)]
    for number in reversed(later):
        await commands.add(
            NewCommand(
                id=number,
                run_id=story.run.id,
                kind="reject",
                payload={"step_id": "a", "reason": "no\u2028"},
                seen_seq=4,
                origin=BOB,
            )
        )
    found = await claims.open_commands([story.run.id, quiet.run.id])
    assert set(found) == {story.run.id}
    assert [one.id for one in found[story.run.id]] == [start, *later]
    first, *others = found[story.run.id]
    assert (first.kind, first.seen_seq, first.issued_by) == ("start", None, "ann")
    for one in others:
        assert (one.kind, one.seen_seq, one.issued_by, one.step_id) == ("reject", 4, "bob", "a")
        assert (one.reason, one.confirm) == ("no\u2028", None)


async def test_a_command_that_cannot_be_read_stops_no_other(book: Book, claims: Claims) -> None:
    damaged, sound = await book.open(), await book.open()
    await book.pool.execute("UPDATE workflow_run_commands SET payload = '[]' WHERE run_id = $1", damaged.run.id)
    found = await claims.open_commands([damaged.run.id, sound.run.id])
    assert {run_id: len(commands) for run_id, commands in found.items() if commands} == {sound.run.id: 1}


async def test_due_are_the_passive_runs_whose_time_has_come_oldest_first(book: Book, claims: Claims) -> None:
    late, later, future, never, owned = [await book.open() for _ in range(5)]
    for story, wake_at in ((late, 2_000), (later, 1_000), (future, 4_000_000_000_000), (never, None)):
        await claims.release([(story.run.id, Epoch(1), OWNER, wake_at, 0)])
    await book.pool.execute("UPDATE workflow_runs SET wake_at = to_timestamp(1) WHERE id = $1", owned.run.id)
    assert await book.due() == [later.run.id, late.run.id]
    assert await book.due(1) == [later.run.id]


async def test_a_new_run_is_due_at_once(book: Book, claims: Claims) -> None:
    story = Story(run_id=RunId(uuid7.uuid7()))
    await book.create(story.run)
    assert await book.due() == [story.run.id]


async def test_owned_are_the_runs_with_an_owner_page_by_page(book: Book, claims: Claims) -> None:
    stories = [await book.open() for _ in range(5)]
    await claims.release([(stories[2].run.id, Epoch(1), OWNER, None, 0)])
    ids = [story.run.id for story in stories if story is not stories[2]]
    first = await claims.owned(UUID(int=0), 3)
    assert first == ids[:3]
    assert await claims.owned(first[-1], 3) == ids[3:]
    assert await claims.owned(ids[-1], 3) == []


async def test_commanded_are_runs_whose_command_has_waited_longest_waiting_first(book: Book, claims: Claims) -> None:
    fresh, old, older = [await book.open() for _ in range(3)]
    for story, seconds in ((old, 60), (older, 90)):
        await book.pool.execute(
            "UPDATE workflow_run_commands SET created_at = now() - make_interval(secs => $2) WHERE run_id = $1",
            story.run.id,
            float(seconds),
        )
    assert await claims.commanded(30.0, 10) == [older.run.id, old.run.id]
    assert await claims.commanded(30.0, 1) == [older.run.id]
    assert set(await claims.commanded(0.0, 10)) == {fresh.run.id, old.run.id, older.run.id}
    await book.write(older)
    await book.pool.execute("UPDATE workflow_run_commands SET verdict = 'applied' WHERE run_id = $1", older.run.id)
    assert await claims.commanded(30.0, 10) == [old.run.id]


async def test_without_postgres_a_claim_says_that_the_store_is_away(pool: Pool) -> None:
    claims = Claims(pool)
    await pool.close()
    with pytest.raises(StoreUnavailable):
        await claims.claim({RunId(uuid7.uuid7()): "n/1"})


async def takeovers(book: Book, claims: Claims, run_id: RunId, times: int) -> list[float]:
    """Take a run from owners who died before they got anywhere; answers how long the next must wait after each (s)."""
    pauses = []
    for number in range(times):
        await book.pool.execute("UPDATE workflow_runs SET wake_at = NULL WHERE id = $1", run_id)
        claimed, _ = await claims.claim({run_id: f"dead/{number}"})
        assert claimed
        pauses.append(
            await book.pool.fetchval(
                "SELECT coalesce(extract(epoch FROM wake_at - clock_timestamp()), 0)::float FROM workflow_runs"
                " WHERE id = $1",
                run_id,
            )
        )
    return pauses


async def test_takeovers_without_progress_delay_the_next_one_more_and_more_within_a_bound(
    book: Book, claims: Claims
) -> None:
    """A run that kills whoever carries it must not fell one node after the other."""
    story = await book.open()
    pauses = await takeovers(book, claims, story.run.id, 10)
    assert pauses == pytest.approx([0, 0, 4, 8, 16, 32, 60, 60, 60, 60], abs=1)
    (row,) = await book.rows("workflow_runs")
    assert (row["recoveries"], row["status"]) == (10, "running"), "never parked for it"


async def test_before_its_time_nobody_takes_such_a_run_and_nobody_is_told_to(book: Book, claims: Claims) -> None:
    story = await book.open()
    await takeovers(book, claims, story.run.id, 3)
    (before,) = await book.rows("workflow_runs")
    assert (await claims.claim({story.run.id: "next/1"}))[0] == []
    assert await book.rows("workflow_runs") == [before]
    assert await claims.owned_by(["dead"], 10) == []
    await book.pool.execute("UPDATE workflow_runs SET wake_at = clock_timestamp()")
    assert await claims.owned_by(["dead"], 10) == [story.run.id]
    assert [run.id for run, _ in (await claims.claim({story.run.id: "next/1"}))[0]] == [story.run.id]


@pytest.mark.parametrize("progress", ["a commit", "a release"])
async def test_progress_forgets_the_takeovers(book: Book, claims: Claims, progress: str) -> None:
    story = await book.open()
    await takeovers(book, claims, story.run.id, 4)
    (row,) = await book.rows("workflow_runs")
    if progress == "a commit":
        mine = [replace(one, epoch=row["epoch"], owner=row["owner"]) for one in book.told(story)]
        assert (await book.lane.commit(mine)).committed
    else:
        assert await claims.release([(story.run.id, row["epoch"], row["owner"], None, 0)])
    (row,) = await book.rows("workflow_runs")
    assert (row["recoveries"], row["wake_at"]) == (0, None)
