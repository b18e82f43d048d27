"""Conformance: leases of runs, roles of nodes, and beacons. Each is held by one, renewed, given back, or runs out."""

from __future__ import annotations

import asyncio

from daemon.fabric.inbox import Post
from daemon.fabric.lease import CHUNK
from daemon.machine.commands import Epoch
from tests.fabric.conftest import OverRedis, held_by, new_run, offered
from tests.patience import eventually

SHORT_S = 0.05


async def test_a_lease_is_taken_by_one(fabric: OverRedis) -> None:
    run_id, other = new_run(), new_run()
    leases = fabric.leases()
    assert await leases.take({run_id: "n1/a"}) == {run_id}
    assert await fabric.leases().take({run_id: "n2/b", other: "n2/c"}) == {other}
    assert await leases.take({run_id: "n1/a"}) == set()


async def test_of_many_who_try_at_once_one_gets_it(fabric: OverRedis) -> None:
    run_id, leases = new_run(), fabric.leases()
    answers = await asyncio.gather(*(leases.take({run_id: f"n{number}/x"}) for number in range(20)))
    assert sorted(map(len, answers)) == [0] * 19 + [1]


async def test_a_lease_runs_out(fabric: OverRedis) -> None:
    run_id, leases = new_run(), fabric.leases(SHORT_S)
    assert await leases.take({run_id: "n1/a"}) == {run_id}
    await eventually(lambda: leases.missing([run_id]))
    assert await leases.take({run_id: "n2/b"}) == {run_id}


async def test_sealing_writes_the_epoch_if_the_lease_is_still_ours(fabric: OverRedis) -> None:
    mine, lost, gone = new_run(), new_run(), new_run()
    leases = fabric.leases()
    await leases.take({mine: "n1/a", lost: "n2/x"})
    claimed = [(mine, "n1/a", Epoch(4)), (lost, "n1/b", Epoch(5)), (gone, "n1/c", Epoch(6))]
    assert await leases.seal(claimed) == {mine}
    assert await leases.renew([(mine, "n1/a", Epoch(4))]) == {mine: "r"}
    assert await leases.seal([(mine, "n1/a", Epoch(9))]) == set(), "it is sealed already"
    assert await leases.missing([gone]) == [gone]


async def test_a_renewal_keeps_takes_again_or_learns_of_the_loss(fabric: OverRedis) -> None:
    kept, missing, stolen = new_run(), new_run(), new_run()
    held = [await held_by(fabric, "n1", kept), (missing, "n1/nonce", Epoch(1)), (stolen, "n1/nonce", Epoch(1))]
    await held_by(fabric, "n2", stolen)
    leases = fabric.leases()
    assert await leases.renew(held) == {kept: "r", missing: "t", stolen: "l"}
    assert await leases.renew(held) == {kept: "r", missing: "r", stolen: "l"}
    assert await leases.renew([]) == {}


async def test_the_same_owner_under_another_epoch_is_another_holder(fabric: OverRedis) -> None:
    run_id = new_run()
    _, owner, _ = await held_by(fabric, "n1", run_id, epoch=3)
    assert await fabric.leases().renew([(run_id, owner, Epoch(2))]) == {run_id: "l"}
    assert await fabric.leases().release([(run_id, owner, Epoch(2))]) == {run_id: "l"}


async def test_a_renewal_makes_the_lease_last(fabric: OverRedis) -> None:
    run_id = new_run()
    held = await held_by(fabric, "n1", run_id)
    short = fabric.leases(SHORT_S)
    assert await short.renew([held]) == {run_id: "r"}
    await eventually(lambda: short.missing([run_id]))
    assert await fabric.leases().renew([held]) == {run_id: "t"}
    assert await short.missing([run_id]) == []


async def test_a_release_gives_the_lease_back_and_offers_nothing(fabric: OverRedis) -> None:
    run_id = new_run()
    held = await held_by(fabric, "n1", run_id)
    assert await offered(fabric) == []
    assert await fabric.leases().release([held]) == {run_id: "r"}
    assert await fabric.leases().missing([run_id]) == [run_id]
    assert await offered(fabric) == []


async def test_a_release_is_refused_while_letters_wait(fabric: OverRedis) -> None:
    run_id, inbox = new_run(), fabric.inbox()
    held = await held_by(fabric, "n1", run_id)
    await inbox.append([Post(run_id, "s", b"letter")])
    assert await fabric.leases().release([held]) == {run_id: "w"}
    assert await fabric.leases().renew([held]) == {run_id: "r"}
    ((entry, *_),) = (await inbox.read([run_id]))[run_id]
    await inbox.delete({run_id: [entry]})
    assert await fabric.leases().release([held]) == {run_id: "r"}


async def test_a_release_of_what_is_another_s_changes_nothing(fabric: OverRedis) -> None:
    lost, gone = new_run(), new_run()
    theirs = await held_by(fabric, "n2", lost)
    mine = [(lost, "n1/nonce", Epoch(1)), (gone, "n1/nonce", Epoch(1))]
    for force in (False, True):
        assert await fabric.leases().release(mine, force=force) == {lost: "l", gone: "l"}
    assert await fabric.leases().renew([theirs]) == {lost: "r"}
    assert await offered(fabric) == []


async def test_a_forced_release_offers_the_run_with_its_letters(fabric: OverRedis) -> None:
    run_id, quiet, inbox = new_run(), new_run(), fabric.inbox()
    held = [await held_by(fabric, "n1", run_id), await held_by(fabric, "n1", quiet)]
    await inbox.append([Post(run_id, "h", b"letter")])
    assert await offered(fabric) == []
    assert await fabric.leases().release(held, force=True) == {run_id: "r", quiet: "r"}
    assert await fabric.leases().missing([run_id, quiet]) == [run_id, quiet]
    assert await offered(fabric) == [run_id, quiet]
    assert len((await inbox.read([run_id]))[run_id]) == 1


async def test_more_leases_than_one_script_call_takes_are_answered_in_full(fabric: OverRedis) -> None:
    runs = [new_run() for _ in range(CHUNK + 7)]
    leases, held = fabric.leases(), [(run_id, "n1/x", Epoch(2)) for run_id in runs]
    assert await leases.take(dict.fromkeys(runs, "n1/x")) == set(runs)
    assert await leases.seal(held) == set(runs)
    assert await leases.renew(held) == dict.fromkeys(runs, "r")
    assert await leases.missing(runs) == []
    assert await leases.release(held) == dict.fromkeys(runs, "r")
    assert await leases.missing(runs) == runs
    assert await leases.missing([]) == []


# --- roles and beacons ---------------------------------------------------------------------------------------------


async def test_a_role_is_held_by_one_and_kept(fabric: OverRedis) -> None:
    first, second = fabric.role("n1"), fabric.role("n2")
    assert not await first.taken()
    assert (await first.hold(), await second.hold(), await first.hold()) == (True, False, True)
    assert (first.term > 0, second.term) == (True, 0)
    assert await second.taken()


async def test_a_role_that_is_left_is_free_at_once(fabric: OverRedis) -> None:
    first, second = fabric.role("n1"), fabric.role("n2")
    await first.hold()
    await first.leave()
    assert first.term == 0
    assert await second.hold()
    await first.leave()
    assert await second.hold(), "leaving twice takes nothing from the other"


async def test_a_role_that_is_not_kept_runs_out_and_its_holder_learns_of_it(fabric: OverRedis) -> None:
    first, second = fabric.role("n1", SHORT_S), fabric.role("n2")
    await first.hold()
    await eventually(second.hold)
    assert not await first.hold()
    assert first.term == 0


async def test_terms_grow_and_outlive_a_flush(fabric: OverRedis) -> None:
    """A mark of an earlier term must never look newer than one of a later."""
    first, second = fabric.role("n1"), fabric.role("n2")
    await first.hold()
    before = first.term
    await fabric.flush()

    async def later() -> bool:
        await second.leave()
        return await second.hold() and second.term > before

    await eventually(later)


async def test_a_holder_whose_role_was_flushed_takes_it_again_under_its_term(fabric: OverRedis) -> None:
    role = fabric.role("n1")
    await role.hold()
    before = role.term
    await fabric.flush()
    assert await role.hold()
    assert role.term == before
    assert not await fabric.role("n2").hold()


async def test_a_beacon_shines_until_it_is_doused_or_runs_out(fabric: OverRedis) -> None:
    beacon, short = fabric.beacon("a", "n1"), fabric.beacon("b", "n1", SHORT_S)
    assert not await beacon.seen()
    await beacon.shine()
    await short.shine()
    assert await fabric.shining(["a", "b", "c"]) >= {"a"}
    assert await fabric.beacon("a", "n2").seen()
    await fabric.beacon("a", "n2").douse()
    assert await beacon.seen(), "only who lit it puts it out"
    await beacon.douse()
    assert not await beacon.seen()

    async def dark() -> bool:
        return await fabric.shining(["a", "b"]) == set()

    await eventually(dark)
