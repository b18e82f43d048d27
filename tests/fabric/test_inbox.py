"""Conformance: letters are kept whole and in order until they are folded, and somebody is told, always."""

from __future__ import annotations

import pytest

from daemon import telemetry
from daemon.fabric.inbox import READ_LIMIT, Post
from daemon.machine.commands import Mark, Urgency
from tests.fabric.conftest import LONG_S, NOW_MS, OverRedis, held_by, new_run, offered


def chunk(run_id, number: int = 1) -> Post:
    return Post(run_id, "s", b"chunk %d" % number, Mark(7, number))


def result(run_id, number: int = 9) -> Post:
    return Post(run_id, "h", b"result", Mark(7, number))


def dropped() -> float:
    return telemetry.registry.get_sample_value("runwarden_chunks_dropped_total") or 0.0


async def test_letters_are_read_oldest_first_with_their_marks(fabric: OverRedis) -> None:
    inbox, run_id = fabric.inbox(), new_run()
    await inbox.append([chunk(run_id, 1), chunk(run_id, 2)])
    await inbox.append([result(run_id, 3)])
    letters = (await inbox.read([run_id]))[run_id]
    assert [(entry.raw, entry.mark) for entry in letters] == [
        (b"chunk 1", Mark(7, 1)),
        (b"chunk 2", Mark(7, 2)),
        (b"result", Mark(7, 3)),
    ]


async def test_letters_of_several_runs_in_one_append_keep_the_order_of_each(fabric: OverRedis) -> None:
    inbox, one, other = fabric.inbox(), new_run(), new_run()
    await inbox.append([chunk(one, 1), chunk(other, 2), result(one, 3), result(other, 4), chunk(one, 5)])
    letters = await inbox.read([one, other])
    marks = {run_id: [entry.mark.number for entry in entries] for run_id, entries in letters.items()}
    assert marks == {one: [1, 3, 5], other: [2, 4]}


async def test_any_bytes_are_kept_as_they_came(fabric: OverRedis) -> None:
    inbox, run_id, raw = fabric.inbox(), new_run(), bytes(range(256)) * 300
    await inbox.append([Post(run_id, "h", raw, Mark(2**53, 2**40))])
    (letter,) = (await inbox.read([run_id]))[run_id]
    assert (letter.raw, letter.mark) == (raw, Mark(2**53, 2**40))


async def test_many_inboxes_are_read_at_once_and_the_empty_left_out(fabric: OverRedis) -> None:
    inbox, runs = fabric.inbox(), [new_run() for _ in range(3)]
    await inbox.append([result(runs[0]), result(runs[2])])
    assert set(await inbox.read(runs)) == {runs[0], runs[2]}
    assert await inbox.read([]) == {}


async def test_reading_takes_nothing_away(fabric: OverRedis) -> None:
    inbox, run_id = fabric.inbox(), new_run()
    await inbox.append([result(run_id)])
    assert await inbox.read([run_id]) == await inbox.read([run_id])


async def test_a_read_is_bounded_and_the_rest_comes_next(fabric: OverRedis) -> None:
    inbox, run_id = fabric.inbox(bound=READ_LIMIT + 100), new_run()
    await inbox.append([chunk(run_id, number) for number in range(READ_LIMIT + 5)])
    first = (await inbox.read([run_id]))[run_id]
    assert len(first) == READ_LIMIT
    await inbox.delete({run_id: [entry.key for entry in first]})
    rest = (await inbox.read([run_id]))[run_id]
    assert [entry.raw for entry in rest] == [b"chunk %d" % number for number in range(READ_LIMIT, READ_LIMIT + 5)]


async def test_exactly_the_folded_letters_are_deleted(fabric: OverRedis) -> None:
    """What came while the turn was being committed stays, also if it came between those folded."""
    inbox, run_id, neighbour = fabric.inbox(), new_run(), new_run()
    await inbox.append([*(chunk(run_id, number) for number in range(4)), result(neighbour)])
    letters = (await inbox.read([run_id]))[run_id]
    await inbox.append([result(run_id)])
    await inbox.delete({run_id: [letters[0][0], letters[2][0]]})
    left = await inbox.read([run_id, neighbour])
    assert [entry.raw for entry in left[run_id]] == [b"chunk 1", b"chunk 3", b"result"]
    assert len(left[neighbour]) == 1
    await inbox.delete({run_id: [letters[0][0]]})
    assert len((await inbox.read([run_id]))[run_id]) == 3
    await inbox.delete({})


async def test_an_append_rings_the_holder(fabric: OverRedis) -> None:
    inbox, run_id = fabric.inbox(), new_run()
    await held_by(fabric, "n1", run_id)
    await inbox.append([result(run_id)])
    assert await inbox.listen("n1", NOW_MS) == {run_id: "h"}
    assert await offered(fabric) == []


async def test_a_lease_that_is_not_sealed_yet_is_a_holder_too(fabric: OverRedis) -> None:
    """Between the taking and the claim: who takes a run reads its inbox first, but the bell may come later."""
    inbox, run_id = fabric.inbox(), new_run()
    await fabric.leases().take({run_id: "n1/nonce"})
    await inbox.append([result(run_id)])
    assert await inbox.listen("n1", NOW_MS) == {run_id: "h"}


@pytest.mark.parametrize("node", ["n1", "host-77.a1b2", "weird/name|1"])
async def test_the_holder_is_rung_whatever_its_name(fabric: OverRedis, node: str) -> None:
    run_id = new_run()
    await held_by(fabric, node, run_id)
    await fabric.inbox().ring(run_id)
    assert await fabric.inbox().listen(node, NOW_MS) == {run_id: "c"}


async def test_without_a_holder_the_run_is_offered_once_for_each_append(fabric: OverRedis) -> None:
    inbox, run_id, other = fabric.inbox(), new_run(), new_run()
    assert await offered(fabric) == []
    await inbox.append([chunk(run_id, 1), result(other), chunk(run_id, 2), result(run_id)])
    assert await offered(fabric) == [run_id, other]
    assert len((await inbox.read([run_id]))[run_id]) == 3


async def test_one_append_rings_many_nodes_and_offers_the_rest(fabric: OverRedis) -> None:
    inbox, mine, yours, nobodys = fabric.inbox(), new_run(), new_run(), new_run()
    await held_by(fabric, "n1", mine)
    await held_by(fabric, "n2", yours)
    assert await offered(fabric) == []
    await inbox.append([result(mine), chunk(yours), result(nobodys)])
    assert await inbox.listen("n1", NOW_MS) == {mine: "h"}
    assert await fabric.inbox().listen("n2", NOW_MS) == {yours: "s"}
    assert await offered(fabric) == [nobodys]


@pytest.mark.parametrize(("said", "heard"), [("ss", "s"), ("sh", "h"), ("hs", "h"), ("hc", "c"), ("chs", "c")])
@pytest.mark.parametrize("together", [True, False])
async def test_the_most_urgent_ring_counts(fabric: OverRedis, said: str, heard: Urgency, together: bool) -> None:
    inbox, run_id = fabric.inbox(), new_run()
    await held_by(fabric, "n1", run_id)
    posts = [Post(run_id, urgency, b"letter", Mark(1, 1)) for urgency in said]  # type: ignore[arg-type] # they are
    for batch in [posts] if together else [[post] for post in posts]:
        await inbox.append(batch)
    assert await inbox.listen("n1", NOW_MS) == {run_id: heard}


async def test_a_bell_about_a_command_carries_nothing(fabric: OverRedis) -> None:
    inbox, run_id = fabric.inbox(), new_run()
    await held_by(fabric, "n1", run_id)
    await inbox.ring(run_id)
    assert await inbox.read([run_id]) == {}
    assert await inbox.listen("n1", NOW_MS) == {run_id: "c"}


async def test_a_bell_is_heard_once(fabric: OverRedis) -> None:
    inbox, run_id = fabric.inbox(), new_run()
    await held_by(fabric, "n1", run_id)
    await inbox.ring(run_id)
    assert await inbox.listen("n1", NOW_MS) == {run_id: "c"}
    assert await inbox.listen("n1", NOW_MS) == {}


async def test_bells_that_rang_before_anybody_listened_are_heard(fabric: OverRedis) -> None:
    runs = [new_run() for _ in range(120)]
    for run_id in runs:
        await held_by(fabric, "n1", run_id)
        await fabric.inbox().ring(run_id)
    inbox, heard = fabric.inbox(), set()
    while rung := await inbox.listen("n1", NOW_MS):
        heard |= set(rung)
    assert heard == set(runs)


async def test_past_the_bound_chunks_are_dropped_and_counted_and_a_result_never(fabric: OverRedis) -> None:
    inbox, run_id, neighbour = fabric.inbox(bound=3), new_run(), new_run()
    before = dropped()
    await inbox.append([chunk(run_id, number) for number in range(5)] + [chunk(neighbour)])
    await inbox.append([chunk(run_id, 6), result(run_id), chunk(run_id, 7)])
    letters = await inbox.read([run_id, neighbour])
    assert [entry.raw for entry in letters[run_id]] == [b"chunk 0", b"chunk 1", b"chunk 2", b"result"]
    assert len(letters[neighbour]) == 1
    assert dropped() == before + 4


async def test_all_that_comes_at_once_counts_towards_the_bound(fabric: OverRedis) -> None:
    inbox, run_id = fabric.inbox(bound=3), new_run()
    await inbox.append([chunk(run_id, 1), result(run_id, 2), chunk(run_id, 3), chunk(run_id, 4)])
    letters = await inbox.read([run_id])
    assert [entry.mark.number for entry in letters[run_id]] == [1, 2, 3]


async def test_nothing_to_append_is_nothing_done(fabric: OverRedis) -> None:
    await fabric.inbox().append([])
    assert await fabric.inbox().listen("n1", NOW_MS) == {}


async def test_after_a_flush_bells_are_heard_again(fabric: OverRedis) -> None:
    """Entry numbers may start lower than before on a server that restarted empty."""
    inbox, run_id = fabric.inbox(), new_run()
    await held_by(fabric, "n1", run_id)
    await inbox.ring(run_id)
    assert await inbox.listen("n1", NOW_MS) == {run_id: "c"}
    await fabric.flush()
    await held_by(fabric, "n1", run_id)
    await inbox.ring(run_id)
    assert await inbox.listen("n1", int(LONG_S)) == {run_id: "c"}


async def test_letters_that_nobody_has_come_for_are_seen(fabric: OverRedis) -> None:
    inbox, runs = fabric.inbox(), [new_run() for _ in range(3)]
    assert await fabric.waiting([]) == set()
    assert await fabric.waiting(runs) == set()
    await inbox.append([result(runs[1])])
    assert await fabric.waiting(runs) == {runs[1]}
