"""Two nodes and two Gateways: each ear has its own holder and standby, and all of them are handed over."""

from __future__ import annotations

import dataclasses

from tests.api.harness import serving, step
from tests.cluster.harness import runner_of
from tests.gateways.world import World
from tests.patience import eventually


async def test_a_node_that_leaves_hands_every_ear_over_and_a_call_under_way_is_heard_by_the_other(
    shared: World,
) -> None:
    assert shared.settings is not None
    runtime = shared.settings.runtime.model_copy(update={"node_name": "node-2"})
    async with serving(dataclasses.replace(shared.settings, runtime=runtime)) as second:
        assert second._runner is not None
        theirs = second._runner._hearing.ears
        await eventually(lambda: all(ear._part == "standby" for ear in theirs.values()), what="three standbys")
        await eventually(lambda: all(ear._open for ear in theirs.values()), what="three open ears")
        run_id = await shared.live.start(step("one", "slow"), step("two", agent="agent-2"))
        await shared.begun("agent-1", "slow")
        runner = runner_of(shared.live)
        await runner.drain()
        await eventually(lambda: all(ear._part == "holder" for ear in theirs.values()), what="three holders")
        shared.agents["agent-1"].release.set()
        await shared.live.until(run_id, "completed")
        shared.never_twice()
    assert set(theirs) == {"a", "b", "*"}
