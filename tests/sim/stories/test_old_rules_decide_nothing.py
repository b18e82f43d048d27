"""Found in a universe of stolen leases: ann approved by rules that stood no more, and her call left.

Her step waited, as a template asks. Then policy asked for the owner's word; the host had not read that yet, and took
hers. Meanwhile the agent was held, so nothing was intended that would have been fenced; and when hold and policy were
gone, her word stood.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.sim.authority import USER
from tests.sim.forgeries import decided_unfenced
from tests.sim.stories.script import Story, play


@pytest.mark.parametrize(("engine", "whole"), [(nullcontext(), True), (decided_unfenced(), False)])
def test_old_rules_decide_nothing(engine: AbstractContextManager[None], whole: bool) -> None:
    """Told of the whole engine, and of one that fences calls alone."""
    story = Story(hosts=1)
    report = play(story, tell, engine)
    (row,) = story.servers.store.runs.values()
    assert row.head.status == ("paused" if whole else "completed")
    assert [verdict.code for one in row.commands for verdict, _ in one.verdicts] == [
        None,
        "not_an_approver" if whole else None,
    ]
    expected = (
        () if whole else (f"nothing_gated_leaves_unapproved: run 1 step 0 needs 1 approvals: [] might, ['{USER}'] may",)
    )
    assert report.violations == expected


def tell(story: Story) -> None:
    story.enact("the agent is held")
    run_id = story.run_of("quick", approval_policy="manual")

    def waits() -> None:
        story.enact("quick asks", hinted=False)
        story.say(run_id, "approve", USER, step_id="s0")
        story.world.after(0.5, over)

    def over() -> None:
        story.enact("quick asks", back=True)
        story.enact("the agent is held", back=True)

    story.when(lambda: story.row(run_id).head.paused_reason == "awaiting_approval" and story.polled(), waits)
