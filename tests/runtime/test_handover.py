"""What passes from node to node: runs at a drain, leases between a renewal and a release, the ear for the Gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from daemon.dev.envelope import envelope
from daemon.fabric.inbox import Inbox
from daemon.fabric.lease import Leases
from daemon.fabric.ready import Ready
from daemon.runtime.actor import Actor
from daemon.runtime.clock import Clock
from daemon.runtime.ownership import Ownership
from daemon.runtime.ports import Held
from daemon.runtime.residents import Residents
from daemon.store.claims import Claims
from tests.patience import eventually
from tests.runtime.harness import AGENT, Node, Rig, count, step

LONG_S = 30.0
"""A lease that no test waits for: what goes on earlier was handed over."""


async def test_a_drained_node_hands_its_runs_over_and_the_next_goes_on_at_once(rig: Rig) -> None:
    first = await rig.start("n1", lease_ttl_s=LONG_S, linger_s=LONG_S)
    waiting = [await rig.create(step("a", "gated"), step("b")) for _ in range(8)]
    paused = [await rig.create(step("a", manual=True)) for _ in range(8)]
    await rig.executing(8)
    for run_id in paused:
        await rig.until(run_id, "paused")
    await rig.start("n2", lease_ttl_s=LONG_S)
    begun = time.monotonic()
    await first.drain()
    rig.nodes.remove(first)
    rig.tools.gate.set()
    for run_id in paused:
        await rig.say(run_id, "approve", step_id="a")
    for run_id in (*waiting, *paused):
        await rig.until(run_id, "completed")
    assert time.monotonic() - begun < LONG_S / 3
    rig.never_twice(8 + 8 + 8)


async def test_a_node_that_drains_alone_leaves_its_runs_to_whoever_comes(rig: Rig) -> None:
    """It must not take again what it has just offered."""
    first = await rig.start("n1", lease_ttl_s=LONG_S)
    runs = [await rig.create(step("a", "gated"), step("b")) for _ in range(5)]
    await rig.executing(5)
    await first.drain()
    rig.nodes.remove(first)
    for run_id in runs:
        assert (await rig.row(run_id))["owner"] is None
        assert not await rig.redis.redis.exists(rig.keys.lease(run_id))
    rig.tools.gate.set()
    await rig.start("n2", lease_ttl_s=LONG_S)
    begun = time.monotonic()
    for run_id in runs:
        await rig.until(run_id, "completed")
    assert time.monotonic() - begun < LONG_S / 3
    rig.never_twice(10)


async def test_a_drain_lets_open_calls_finish_and_begins_no_new_ones(rig: Rig) -> None:
    first = await rig.start("n1", lease_ttl_s=LONG_S)
    runs = [await rig.create(step("a", "gated"), step("b"), step("c")) for _ in range(5)]
    await rig.executing(5)
    draining = asyncio.create_task(first.drain())
    rig.tools.gate.set()
    await draining
    rig.nodes.remove(first)
    begun = len(rig.gateway.ledger)
    await rig.start("n2", lease_ttl_s=LONG_S)
    for run_id in runs:
        await rig.until(run_id, "completed")
    assert begun <= 15
    rig.never_twice(15)


class SlowLeases(Leases):
    """The real leases; a renewal waits at the door until it is let through."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig.redis, rig.keys, ttl_s=LONG_S)
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def renew(self, held: Sequence[Held]) -> Mapping[object, str]:  # type: ignore[override] # as the port has it
        self.asked.set()
        await self.go.wait()
        return await super().renew(held)


async def test_a_renewal_under_way_does_not_take_back_a_lease_that_was_just_given_up(rig: Rig) -> None:
    """Such a lease would be nobody's: letters would ring a node where the run no longer lives, until it runs out."""
    run_id = await rig.create(step("a", manual=True), ring=False)
    leases, claims, clock = SlowLeases(rig), Claims(rig.pool), Clock(time.monotonic)
    residents = Residents(time.monotonic, hold_s=0.1)
    ownership = Ownership(
        residents=residents,
        clock=clock,
        claims=claims,
        leases=leases,
        inbox=Inbox(rig.redis, rig.keys, bound=100),
        ready=Ready(rig.redis, rig.keys, node="n1"),
        node="n1",
        lease_ttl_s=0.2,
        capacity=10,
    )
    await leases.take({run_id: "n1/x"})
    ((run, epoch),), _ = await claims.claim({run_id: "n1/x"})
    await leases.seal([(run_id, "n1/x", epoch)])
    actor = Actor(run=run, epoch=epoch, owner="n1/x", renewed_at=time.monotonic())
    residents.add(actor)
    residents.take(1)
    actor.rung = None

    renewing = asyncio.create_task(ownership.renew(lambda _: None))
    leaving = asyncio.create_task(ownership.leave())
    await leases.asked.wait()
    ownership.let_go(actor)
    given_up = asyncio.create_task(eventually(lambda: leases.missing([run_id])))
    await asyncio.wait({given_up}, timeout=0.2)  # a right one waits for the renewal; a wrong one is through by now
    leases.go.set()
    await given_up
    await eventually(lambda: len(residents) == 0)
    leases.asked.clear()
    await leases.asked.wait()  # the renewal that was under way is through
    assert await leases.missing([run_id]) == [run_id]
    for task in (renewing, leaving):
        task.cancel()
    await asyncio.gather(renewing, leaving, return_exceptions=True)


# --- the ear for the Gateway -----------------------------------------------------------------------------------------


async def _two(rig: Rig) -> tuple[Node, Node]:
    """Two nodes, the first of which hears the Gateway, and the second too, as its standby."""
    first = await rig.start("n1", lease_ttl_s=1)
    second = await rig.start("n2", lease_ttl_s=1)
    await eventually(lambda: len(rig.gateway._subscribers) == 2)
    return first, second


async def test_when_the_node_that_hears_crashes_another_hears_and_no_result_is_lost(rig: Rig) -> None:
    first, second = await _two(rig)
    runs = [await rig.create(step("a", "gated"), step("b")) for _ in range(6)]
    await rig.executing(6)
    await first.crash()
    rig.nodes.remove(first)
    rig.tools.gate.set()  # the RESULTs come while the role still belongs to the dead
    for run_id in runs:
        await rig.until(run_id, "completed")
    assert second.runner.hears
    rig.never_twice(12)


async def test_a_result_from_after_the_hearing_nodes_death_and_before_the_standby_came_is_inquired(rig: Rig) -> None:
    """The standby's memory begins when it began to hear; the run is passive, so no new owner asks what became of it."""
    first = await rig.start("n1", lease_ttl_s=LONG_S, linger_s=0.05)
    run_id = await rig.create(step("a", "gated"))
    await rig.told(run_id, "tool.status")
    await rig.passive(run_id)
    await first.crash()
    rig.nodes.remove(first)
    rig.tools.gate.set()
    await eventually(lambda: rig.tools.running == 0)
    second = await rig.start("n2", hears=False, linger_s=0.05)
    ear = second.runner._hearing.ears["default"]
    await eventually(lambda: (ear._part, ear._open) == ("standby", True), what="a standby that hears")
    await rig.redis.redis.delete(rig.keys.role("ingest:default"), rig.keys.role("sweep"))  # the dead one's time is over
    await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_when_the_node_that_hears_drains_another_hears_and_no_result_is_lost(rig: Rig) -> None:
    first, second = await _two(rig)
    runs = [await rig.create(step("a", "gated"), step("b")) for _ in range(6)]
    await rig.executing(6)
    draining = asyncio.create_task(first.drain())
    rig.tools.gate.set()
    await draining
    rig.nodes.remove(first)
    for run_id in runs:
        await rig.until(run_id, "completed")
    assert second.runner.hears
    rig.never_twice(12)


async def test_without_an_ear_nothing_is_intended_for_long_and_everything_goes_on_when_there_is_one(rig: Rig) -> None:
    """A call whose RESULT nobody could hear is not made; it is no failure of the step either, within its patience."""
    url, port = rig.gateway.url, int(rig.gateway.url.rsplit(":", 1)[1])
    await rig.gateway.stop()
    await rig.start(hears=False)
    run_id = await rig.create(step("a"))
    (unsent, *_) = await rig.told(run_id, "tool.unsent")
    assert unsent["reason"] == "gateway_unavailable"
    assert await rig.gateway.start(port=port) == url
    await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_after_a_gap_in_the_stream_the_missed_result_is_inquired(rig: Rig) -> None:
    await rig.start()
    run_id = await rig.create(step("a", "gated"))
    await rig.told(run_id, "tool.status")
    with rig.gateway.weather.during("lost_result"):
        rig.tools.gate.set()
        await eventually(lambda: rig.tools.running == 0)
        opened = count("runwarden_gateway_calls_total", verb="inquire", outcome="answered", gateway="")
        for request in rig.gateway._subscribers.values():
            assert request.transport is not None
            request.transport.abort()
        await eventually(
            lambda: count("runwarden_gateway_calls_total", verb="inquire", outcome="answered", gateway="") > opened
        )
        await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_results_for_runs_that_are_not_ours_do_no_harm(rig: Rig) -> None:
    await rig.start()
    dropped, strange = count("runwarden_ingest_dropped_total"), count("runwarden_strange_letters_total")
    run_id = await rig.create(step("a", "gated"))
    (status,) = await rig.told(run_id, "tool.status")
    forged = status["req_id"][:-1] + ("A" if status["req_id"][-1] != "A" else "B")
    for req_id in ("", "nobody's", "é" * 44, "_" * 44, forged):
        rig.gateway.publish(envelope("RESULT", AGENT, req_id, {"ok": True}))
    await eventually(lambda: count("runwarden_strange_letters_total") == strange + 1)
    assert count("runwarden_ingest_dropped_total") >= dropped + 3
    assert (await rig.head(run_id)).status == "running"
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
