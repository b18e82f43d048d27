"""A run that kills whoever carries it is taken over ever more slowly, and never parked for it."""

from __future__ import annotations

import pytest

from daemon.store import claims
from tests.runtime.harness import Rig, step

PAUSE_S = 1.0


async def test_the_next_node_waits_longer_after_every_node_that_died_with_the_run(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "TAKEOVER_PAUSE_S", PAUSE_S)
    run_id, neighbour = await rig.create(step("a"), ring=False), await rig.create(step("a"), ring=False)
    for number in range(4):  # nodes that claimed it and were gone, leaving no beacon and no lease behind
        await rig.pool.execute("UPDATE workflow_runs SET wake_at = NULL WHERE id = $1 AND owner IS NOT NULL", run_id)
        assert (await claims.Claims(rig.pool).claim({run_id: f"dead{number}/nonce"}))[0]
    not_before = (await rig.row(run_id))["wake_at"]
    await rig.start()
    await rig.ring(run_id)  # a bell does not shorten it either
    await rig.until(neighbour, "completed")
    await rig.until(run_id, "completed")
    (created,) = await rig.events(run_id, "run.created")
    assert created["at"] >= not_before.timestamp()
    assert (await rig.row(run_id))["recoveries"] == 0
