"""Whoever was let decide a moment ago is heard, though the host has not read that yet: a person's word is refused by
the rules that stand, as it is taken by them."""

from __future__ import annotations

from contextlib import nullcontext

from tests.sim.authority import USER
from tests.sim.stories.script import Story, play


def test_old_rules_refuse_nobody() -> None:
    story = Story(hosts=1)
    report = play(story, tell, nullcontext())
    (row,) = story.servers.store.runs.values()
    assert [verdict.code for one in row.commands for verdict, _ in one.verdicts] == [None, None]
    assert row.head.status == "completed"
    assert report.violations == ()


def tell(story: Story) -> None:
    """Policy asks the owner for their word; when it does no more, ann, whose run it is, says hers at once."""
    story.enact("quick asks")
    run_id = story.run_of("quick", approval_policy="manual")

    def waits() -> None:
        story.enact("quick asks", back=True, hinted=False)
        story.say(run_id, "approve", USER, step_id="s0")

    story.when(lambda: story.row(run_id).head.paused_reason == "awaiting_approval" and story.polled(), waits)
