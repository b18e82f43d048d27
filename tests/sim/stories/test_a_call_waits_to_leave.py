"""A call was committed, and waits for a connection; its tool is denied meanwhile, and the host hears of that."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.sim.forgeries import no_second_look
from tests.sim.stories.script import Story, play


@pytest.mark.parametrize(("engine", "whole"), [(nullcontext(), True), (no_second_look(), False)])
def test_a_call_waits_to_leave(engine: AbstractContextManager[None], whole: bool) -> None:
    """Told of the whole engine, and of one that does not ask again before the first byte."""
    story = Story(hosts=1)
    story.universe.chance.dealt = lambda what: "slow" if what == "connect" else "well"
    report = play(story, tell, engine)
    assert [one.split(":")[0] for one in report.statuses] == ["paused" if whole else "completed"]
    expected = "no_call_leaves_against_what_its_host_knows: run 1 step 0 left h1, which knew that quick is denied"
    assert report.violations == (() if whole else (expected,))


def tell(story: Story) -> None:
    run_id = story.run_of("quick")
    story.when(lambda: story.intended(run_id, 0), lambda: story.enact("quick is denied"))
