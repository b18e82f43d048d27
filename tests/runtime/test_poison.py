"""A letter that a run cannot take is set aside, kept and counted, and the run goes on; only its own defect parks a run.

The defects are put into the reading of letters, since a known one would have been mended.
"""

from __future__ import annotations

import orjson
import pytest

from daemon.fabric.inbox import Inbox, Post
from daemon.machine.commands import Letter, Mark, Result, RunId
from daemon.machine.state import Limits, Run
from daemon.machine.wire import read_letter
from daemon.runtime import actor, ingest
from tests.patience import eventually
from tests.runtime.harness import AGENT, Rig, count, step

RAISING, REFUSED = "a letter that raises", "a letter that Postgres refuses"


def defective(raw: bytes, mark: Mark | None = None) -> Letter | None:
    """Reads letters as ever, but for two."""
    letter = read_letter(raw, mark)
    if RAISING.encode() in raw:
        raise KeyError(RAISING)
    if REFUSED.encode() in raw and letter is not None:
        return Result(req_id=letter.req_id, ok=True, exit_code=2**63)
    return letter


@pytest.fixture(autouse=True)
def defect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "read_letter", defective)


async def letters(rig: Rig, run_id: RunId, *lines: str) -> list[bytes]:
    """Put letters about the call in flight into the run's inbox, all at once; answers them raw."""
    call = (await rig.told(run_id, "tool.status"))[-1]["req_id"]
    raws = [
        orjson.dumps({"v": 1, "type": "CHUNK", "agent_id": AGENT, "req_id": call, "payload": {"data": line}})
        for line in lines
    ]
    marks = [Mark(2**50, number) for number in range(len(raws))]
    await Inbox(rig.redis, rig.keys, bound=1000).append(
        [Post(run_id, "h", raw, mark) for raw, mark in zip(raws, marks, strict=True)]
    )
    return raws


async def kept(rig: Rig, run_id: RunId) -> list[tuple[bytes, str]]:
    rows = await rig.pool.fetch("SELECT letter, bytes, reason FROM workflow_run_poison WHERE run_id = $1", run_id)
    assert all(row["bytes"] == len(row["letter"]) for row in rows)
    return [(row["letter"], row["reason"]) for row in rows]


@pytest.mark.parametrize(("poison", "why"), [(RAISING, "KeyError"), (REFUSED, "value out of int64 range")])
async def test_a_poison_letter_is_set_aside_and_the_run_goes_on(rig: Rig, poison: str, why: str) -> None:
    node = await rig.start()
    run_id, neighbour = [await rig.create(step("a", "gated"), step("b")) for _ in range(2)]
    counted, parked = count("runwarden_poison_letters_total"), count("runwarden_parked_total")
    raws = await letters(rig, run_id, "one\n", poison, "two\n", "three\n")
    await eventually(lambda: _said(rig, run_id, "three"))
    await eventually(lambda: kept(rig, run_id))
    ((letter, reason),) = await kept(rig, run_id)
    assert letter == raws[1]
    assert why in reason
    assert count("runwarden_poison_letters_total") == counted + 1
    rig.tools.gate.set()
    for one in (run_id, neighbour):
        await rig.until(one, "completed")
    said = "".join(event["data"] for event in await rig.events(run_id, "tool.log"))
    assert "one\ntwo\nthree\n" in said, "its companions are not lost, nor told twice"
    assert said.count("two") == 1
    assert count("runwarden_parked_total") == parked
    assert node.healthy
    assert await rig.redis.redis.xlen(rig.keys.inbox(run_id)) == 0
    rig.never_twice(4)


async def _said(rig: Rig, run_id: RunId, word: str) -> bool:
    return any(word in event["data"] for event in await rig.events(run_id, "tool.log"))


async def test_a_letter_that_cannot_be_read_as_it_is_heard_stops_nobody(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ear reads letters for the runs that live beside it; a defect there must not deafen it."""

    def raising(*_: object) -> None:
        raise KeyError(RAISING)

    monkeypatch.setattr(ingest, "letter_of", raising)
    node = await rig.start()
    runs = [await rig.create(step("a"), step("b")) for _ in range(3)]
    for run_id in runs:
        await rig.until(run_id, "completed")
    assert node.healthy
    rig.never_twice(6)


async def test_a_letter_that_comes_again_and_again_is_kept_once(rig: Rig) -> None:
    await rig.start()
    run_id = await rig.create(step("a", "gated"))
    for _ in range(3):
        counted = count("runwarden_poison_letters_total")
        await letters(rig, run_id, RAISING)
        await eventually(lambda counted=counted: count("runwarden_poison_letters_total") == counted + 1)
    assert len(await kept(rig, run_id)) == 1
    rig.tools.gate.set()
    await rig.until(run_id, "completed")


async def test_while_postgres_cannot_keep_it_a_poison_letter_stays_in_the_inbox(
    rig: Rig,
) -> None:
    await rig.start()
    run_id = await rig.create(step("a", "gated"))
    await rig.told(run_id, "tool.status")
    await rig.pool.execute("ALTER TABLE workflow_run_poison RENAME TO elsewhere")
    await letters(rig, run_id, RAISING)
    await rig.say(run_id, "resume")  # a sign that a turn has passed
    await eventually(lambda: rig.redis.redis.xlen(rig.keys.inbox(run_id)))
    await rig.pool.execute("ALTER TABLE elsewhere RENAME TO workflow_run_poison")
    await eventually(lambda: kept(rig, run_id))
    rig.tools.gate.set()
    await rig.until(run_id, "completed")


async def test_a_parked_run_says_why_keeps_its_letters_and_goes_on_when_it_is_resumed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defect is the run's own (its turn raises without any letter), and a newer release has mended it."""
    node = await rig.start()
    run_id = await rig.create(step("a", "gated"), step("b"))
    await rig.told(run_id, "tool.status")
    with monkeypatch.context() as broken:
        broken.setattr(actor, "settle", _raise_unless_parked)
        await letters(rig, run_id, "one\n")
        head = await rig.until(run_id, "paused", reason="engine_interrupted")
    assert (head.error_code, head.error_message) == ("engine_interrupted", "ZeroDivisionError: the run's own defect")
    assert await kept(rig, run_id) == []
    await rig.say(run_id, "resume")
    await eventually(lambda: _said(rig, run_id, "one"))
    rig.tools.gate.set()
    head = await rig.until(run_id, "completed")
    assert (head.error_code, head.error_message) == (None, None)
    assert node.healthy
    rig.never_twice(2)


async def test_a_command_that_cannot_be_read_stops_neither_the_node_nor_its_run(rig: Rig) -> None:
    node = await rig.start()
    run_id = await rig.create(step("a", "gated"), step("b"))
    await rig.told(run_id, "tool.status")
    damaged = await rig.say(run_id, "cancel", ring=False)
    await rig.pool.execute("UPDATE workflow_run_commands SET payload = '[]' WHERE id = $1", damaged)
    await rig.ring(run_id)
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
    assert node.healthy
    rig.never_twice(2)


@pytest.mark.parametrize(("asked", "calls"), [("effects", 3), ("deadline", 4)])
async def test_a_run_of_which_nobody_can_say_what_it_owes_is_given_up_and_stops_no_other(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, asked: str, calls: int
) -> None:
    """Not within its turn, but after its commit or as it rests. A newer release has mended it, and takes it over; of a
    call that was committed and not sent it only knows that it may have left."""
    node = await rig.start(limits=Limits(cancel_grace_ms=300))
    run_id, neighbour = [await rig.create(step("a", "gated"), step("b")) for _ in range(2)]
    for one in (run_id, neighbour):
        await rig.told(one, "tool.status")
    sound, asked_about, given_up = getattr(actor, asked), set[RunId](), count("runwarden_given_up_total")

    def raises(run: Run, *rest: int) -> object:
        if run.id == run_id:
            asked_about.add(run_id)
            raise ZeroDivisionError("the run's own defect")
        return sound(run, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(actor, asked, raises)
        rig.tools.gate.set()
        await rig.until(neighbour, "completed")
        await eventually(lambda: asked_about and node.runner._host._residents.get(run_id) is None)
    assert count("runwarden_given_up_total") == given_up + 1
    assert await rig.redis.redis.delete(rig.keys.lease(run_id)), "nobody gave it back; now it has run out"
    if asked == "effects":
        overdue = "UPDATE workflow_run_attempts SET ack_by_ms = intended_at_ms WHERE run_id = $1 AND state = 'intent'"
        await rig.pool.execute(overdue, run_id)  # as if the time for an acknowledgement were over
        await rig.until(run_id, "paused", reason="outcome_unknown")
    else:
        await rig.until(run_id, "completed")
    assert node.healthy
    rig.never_twice(calls)


_settle = actor.settle


def _raise_unless_parked(run, now, facts):  # type: ignore[no-untyped-def] # stands in for settle, as it is
    if run.status == "paused":
        return _settle(run, now, facts)
    raise ZeroDivisionError("the run's own defect")
