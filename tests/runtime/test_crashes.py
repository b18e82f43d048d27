"""What survives a node: claims are fenced, intents are never sent twice, and unsent ones are made again."""

from __future__ import annotations

import time
from dataclasses import dataclass

import asyncpg
import pytest

from daemon.machine.commands import Command, RunId
from daemon.machine.needs import Facts
from daemon.machine.state import Limits, make_req_id
from daemon.runtime.actor import Actor
from daemon.store.authority import AuthorityRecords
from daemon.store.claims import Claims
from daemon.store.commands import Commands
from daemon.store.journal import Lane
from daemon.store.pool import Pool
from gateway_client import GatewayClient, Invocation
from tests.machine.grounds import Said
from tests.patience import eventually
from tests.runtime.harness import Rig, count, step

PATIENT = Limits(ack_timeout_ms=400, cancel_grace_ms=300)
DEAD = "dead.node/nonce"


@dataclass(frozen=True)
class Intended:
    """A call that a node committed to make, and then it was gone."""

    req_id: str
    invocation: Invocation


async def intend(rig: Rig, run_id: RunId, limits: Limits = PATIENT) -> Intended:
    """Be a node: claim the run, commit its first turn, which intends the first call, and be gone before sending it."""
    claims, lane = Claims(rig.pool), Lane(rig.database)
    ((run, epoch),), now = await claims.claim({run_id: DEAD})
    actor = Actor(run=run, epoch=epoch, owner=DEAD, renewed_at=0.0)
    commands: list[Command] = (await claims.open_commands([run_id]))[run_id]
    grounds = Said()
    grounds.version = await AuthorityRecords(rig.pool).version()
    turn = actor.turn([], commands, now, Facts(epoch=epoch, gateway_ready=True, limits=limits, grounds=grounds))
    assert turn.transition is not None
    try:
        assert run_id in (await lane.commit([turn.transition])).committed
    finally:
        await lane.close()
    attempt, config = turn.transition.run.attempt, run.spec.steps[0].tool_config
    assert attempt is not None
    call = Invocation(
        req_id=attempt.req_id,
        agent_id=config.agent_id,
        tool_name=config.tool_name,
        arguments=config.arguments,
        timeout_ms=60_000,
        stream=True,
    )
    return Intended(attempt.req_id, call)


async def test_an_intent_that_was_perhaps_sent_is_inquired_and_never_sent_again(rig: Rig) -> None:
    """The Gateway knows nothing of it: nobody can tell whether the tool ran, so a person must."""
    run_id = await rig.create(step("a"), ring=False)
    await intend(rig, run_id)
    node = await rig.start(limits=PATIENT)
    await rig.until(run_id, "paused", reason="outcome_unknown")
    assert rig.gateway.ledger == []
    node.runner._host._limits = Limits()  # a call that is made is not given up, however busy the machine is
    (result,) = await rig.events(run_id, "tool.result")
    assert (result["outcome"], result["state"]) == ("unknown", "timeout")
    await rig.say(run_id, "resume", confirm="run_again")
    await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_call_that_was_sent_before_the_crash_is_found_by_its_stored_result(rig: Rig) -> None:
    run_id = await rig.create(step("a"), step("b"), ring=False)
    intended = await intend(rig, run_id)
    async with GatewayClient(rig.gateway.url) as client:
        await client.invoke(intended.invocation)
        await eventually(lambda: client.result(intended.req_id))
    await rig.start()
    await rig.until(run_id, "completed")
    rig.never_twice(2)
    assert rig.executions()[intended.req_id] == 1


async def test_a_call_that_still_runs_after_the_crash_is_waited_for(rig: Rig) -> None:
    run_id = await rig.create(step("a", "gated"), step("b"), ring=False)
    intended = await intend(rig, run_id)
    node = await rig.start(limits=Limits(ack_timeout_ms=60_000))
    async with GatewayClient(rig.gateway.url) as client:
        await client.invoke(intended.invocation)
    await rig.told(run_id, "tool.status")
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
    assert node.healthy
    rig.never_twice(2)


async def test_a_crashed_node_s_runs_go_on_at_another_and_no_tool_runs_twice(rig: Rig) -> None:
    first = await rig.start("n1", lease_ttl_s=1)
    runs = [await rig.create(step("a"), step("b", "gated"), step("c")) for _ in range(5)]
    await rig.executing(10)
    await first.crash()
    rig.nodes.remove(first)
    await rig.start("n2", lease_ttl_s=1)
    rig.tools.gate.set()
    for run_id in runs:
        await rig.until(run_id, "completed")
    rig.never_twice(15)


async def test_a_fenced_host_drops_the_run_and_sends_nothing_more(rig: Rig) -> None:
    await rig.start(lease_ttl_s=20)
    run_id = await rig.create(step("a", "gated"), step("b"))
    await rig.told(run_id, "tool.status")
    fenced = count("runwarden_fenced_total")
    await Claims(rig.pool).claim({run_id: "thief/nonce"})
    before = await rig.events(run_id)
    rig.tools.gate.set()
    await eventually(lambda: count("runwarden_fenced_total") == fenced + 1)
    await eventually(lambda: count("runwarden_resident_runs") == 0)
    assert await rig.events(run_id) == before
    rig.never_twice(1)

    # the thief is gone too, and its claim is found: nobody shines for it, and the old lease runs out
    await rig.redis.redis.delete(rig.keys.lease(run_id))
    await rig.until(run_id, "completed")
    rig.never_twice(2)


async def test_a_host_whose_lease_was_stolen_drops_the_run_at_its_next_renewal(rig: Rig) -> None:
    await rig.start(lease_ttl_s=0.6)
    run_id = await rig.create(step("a", "gated"), step("b"))
    await rig.told(run_id, "tool.status")
    lost = count("runwarden_leases_lost_total")
    await rig.redis.redis.set(rig.keys.lease(run_id), "thief/nonce|7", px=60_000)
    await eventually(lambda: count("runwarden_leases_lost_total") == lost + 1)
    assert count("runwarden_resident_runs") == 0
    await rig.redis.redis.delete(rig.keys.lease(run_id))  # and the thief is gone
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
    rig.never_twice(2)


async def _commit_waits(pool: Pool) -> bool:
    return bool(
        await pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'runwarden journal' AND wait_event_type = 'Lock'"
        )
    )


async def test_with_a_stale_lease_nothing_is_sent_and_the_unsent_attempt_is_made_again(rig: Rig) -> None:
    """Postgres is slow with the commit of the intent, and meanwhile Redis with the renewal of the lease."""
    ttl_s = 3.0
    await rig.start(lease_ttl_s=ttl_s)
    run_id = await rig.create(step("a"), step("b", manual=True))  # having called once, it lingers as it waits
    await rig.until(run_id, "paused")
    refused = count("runwarden_gateway_calls_total", verb="invoke", outcome="not_permitted", gateway="default")
    session = await asyncpg.connect(rig.database)
    try:
        async with session.transaction():
            await session.execute("SELECT FROM workflow_runs WHERE id = $1 FOR NO KEY UPDATE", run_id)
            await rig.say(run_id, "approve", step_id="b")
            await eventually(lambda: _commit_waits(rig.pool))
            await rig.redis.redis.execute_command("CLIENT", "PAUSE", int(ttl_s * 900), "ALL")
            stale_at = time.monotonic() + ttl_s / 2
            await eventually(lambda: time.monotonic() > stale_at)
        await eventually(
            lambda: (
                count("runwarden_gateway_calls_total", verb="invoke", outcome="not_permitted", gateway="default")
                == refused + 1
            )
        )
        rig.never_twice(1)
    finally:
        await session.close()
    await rig.until(run_id, "completed")
    unsent = await rig.events(run_id, "tool.unsent")
    assert unsent[0]["reason"] == "not_permitted"
    intents = [event for event in await rig.events(run_id, "step.progress") if "req_id" in event][1:]
    assert 2 <= len(intents) <= 1 + len(unsent), "while the lease is not fresh it need not be intended to be refused"
    tried = {(event["req_id"], event["attempt_index"]) for event in intents}
    assert tried == {(unsent[0]["req_id"], 0)}, "the same attempt, not another"
    rig.never_twice(2)


# --- a run whose own turn fails --------------------------------------------------------------------------------------


async def corrupt(rig: Rig) -> RunId:
    """A run in flight whose step says that it never began: the next turn would make a second attempt beside it."""
    run_id = await rig.create(step("a"), ring=False)
    await intend(rig, run_id)
    await rig.pool.execute("UPDATE workflow_run_steps SET status = 'pending' WHERE run_id = $1", run_id)
    return run_id


async def test_a_run_whose_turn_raises_is_parked_after_a_bound_and_its_neighbours_go_on(rig: Rig) -> None:
    broken = await corrupt(rig)
    parked = count("runwarden_parked_total")
    await rig.start()
    neighbours = [await rig.create(step("a"), step("b")) for _ in range(5)]
    for run_id in neighbours:
        await rig.until(run_id, "completed")
    await rig.until(broken, "paused", reason="engine_interrupted")
    assert count("runwarden_parked_total") == parked + 1
    (event,) = await rig.events(broken, "step.paused")
    assert "IllegalMove" in event["message"]
    rig.never_twice(10)


async def test_a_parked_run_can_be_canceled(rig: Rig) -> None:
    broken = await corrupt(rig)
    await rig.start(limits=PATIENT)
    await rig.until(broken, "paused", reason="engine_interrupted")
    await rig.say(broken, "cancel")
    await rig.until(broken, "canceled")
    assert rig.gateway.ledger == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE workflow_run_specs SET snapshot = '{}' WHERE run_id = $1",
        "UPDATE workflow_run_steps SET step_index = 7 WHERE run_id = $1",
        "DELETE FROM workflow_run_specs WHERE run_id = $1",
    ],
)
async def test_a_run_that_cannot_be_read_does_not_stop_the_node(rig: Rig, damage: str) -> None:
    broken = await rig.create(step("a"), ring=False)
    await intend(rig, broken)
    await rig.pool.execute(damage, broken)
    node = await rig.start()
    sound = await rig.create(step("a"), step("b"))
    await rig.until(sound, "completed")
    row = await rig.passive(broken)
    assert row["status"] == "running"
    assert row["wake_at"] is not None
    assert node.healthy


async def taken_req_id(rig: Rig, run_id: RunId) -> None:
    """Let another run hold the req_id that this one's first attempt must have: Postgres will refuse it for ever."""
    neighbour = await rig.create(step("a"), ring=False)
    intended = await intend(rig, neighbour, Limits(ack_timeout_ms=60_000))
    nonce = (await rig.row(run_id))["nonce"]
    taken = make_req_id(run_id, nonce, 0, 0)
    await rig.pool.execute("UPDATE workflow_run_attempts SET req_id = $2 WHERE req_id = $1", intended.req_id, taken)


async def test_a_run_whose_commit_postgres_refuses_is_parked_and_its_neighbours_go_on(rig: Rig) -> None:
    broken, poisoned = await rig.create(step("a"), ring=False), count("runwarden_poisoned_total")
    await taken_req_id(rig, broken)
    node = await rig.start()
    sound = await rig.create(step("a"), step("b"))
    await rig.until(sound, "completed")
    await rig.until(broken, "paused", reason="engine_interrupted")
    assert count("runwarden_poisoned_total") > poisoned
    assert node.healthy


async def test_a_run_that_was_parked_before_it_began_goes_on_when_it_is_resumed(rig: Rig) -> None:
    """Its start command stood in the turn that Postgres refused; its log begins with its creation nevertheless."""
    run_id = await rig.create(step("a"), ring=False)
    await taken_req_id(rig, run_id)
    await rig.start()
    await rig.until(run_id, "paused", reason="engine_interrupted")

    async def started() -> bool:
        kinds = "SELECT count(*) FROM workflow_run_commands WHERE run_id = $1 AND verdict IS NULL"
        return await rig.pool.fetchval(kinds, run_id) == 0

    await eventually(started, what="a verdict on its start")
    req_id = make_req_id(run_id, (await rig.row(run_id))["nonce"], 0, 0)
    await rig.pool.execute("UPDATE workflow_run_attempts SET req_id = 'elsewhere' WHERE req_id = $1", req_id)
    await rig.say(run_id, "resume")
    await rig.until(run_id, "completed")
    assert (await rig.events(run_id))[0]["type"] == "run.created"


async def test_a_command_that_a_standing_run_cannot_take_is_refused_with_the_reason(rig: Rig) -> None:
    """Left open it would come again with each sweep, for ever."""
    run_id = await rig.create(step("a", manual=True), ring=False)
    await taken_req_id(rig, run_id)
    await rig.start()
    await rig.until(run_id, "paused")
    command_id = await rig.say(run_id, "approve", step_id="a")

    async def decided() -> bool:
        row = await Commands(rig.pool).get(command_id, run_id=run_id)
        return row is not None and (row.verdict, row.code) == ("refused", "engine_interrupted")

    await eventually(decided)
    assert (await rig.head(run_id)).paused_reason == "awaiting_approval"
    assert rig.gateway.ledger == []
