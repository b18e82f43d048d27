"""dbg"""

import time

import pytest

from tests.patience import eventually
from tests.runtime.harness import *


@pytest.mark.parametrize("n", range(12))
async def test_x(rig, n):
    await rig.start(linger_s=0.05)
    runs = [await rig.create(*(step(f"s{number}") for number in range(6))) for _ in range(10)]
    fl = []
    for done in range(1, 5):
        await eventually(lambda done=done: len(rig.gateway.ledger) >= 12 * done)
        await rig.redis.redis.flushall()
        fl.append(time.time())
    t = time.time()
    try:
        await eventually(lambda: rig.pool.fetchval("select not exists(select from workflow_runs where status='running')"), within_s=3)
    except AssertionError: pass
    for run_id in runs:
        r=await rig.row(run_id)
        if r["status"]=="running":
            print("ROW", {k:str(r[k]) for k in ("epoch","owner","wake_at","last_seq")}, "lease", await rig.redis.redis.get(rig.keys.lease(run_id)), "inbox", await rig.redis.redis.xlen(rig.keys.inbox(run_id)))
            res=rig.nodes[0].runner._ownership._residents; a=res.get(run_id)
            print("ACTOR", a and (a.busy,a.rung,a.open_effects,a.local,a.asked,a.run.attempt))
            print("DUE", res._due.get(run_id), time.monotonic(), "rung", run_id in res._rung, count("runwarden_sweep_marks_total", why="orphaned"), await rig.redis.redis.xinfo_groups(rig.keys.ready))
        await rig.until(run_id, "completed", within_s=20)
        if time.time() - t > 3:
            print("FLUSHES", [round(x % 100, 3) for x in fl])
            for e in await rig.events(run_id):
                print(round(e["at"] % 100, 3), e["type"], e.get("epoch"), e.get("req_id", "")[-6:], e.get("reason"))
            assert 0
