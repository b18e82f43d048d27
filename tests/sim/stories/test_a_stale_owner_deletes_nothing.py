"""Found by seed 457: a host that woke as an old owner deleted the RESULT of a call that it had never heard of.

A turn whose letters lead to nothing commits nothing, so no fence stood before the deletion. Where the Gateway stores
no results, the outcome of a call that was answered became unknown.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.sim.mutations import letters_deleted_unasked
from tests.sim.stories.script import Story, play


@pytest.mark.parametrize(("engine", "status"), [(nullcontext(), "completed"), (letters_deleted_unasked(), "paused")])
def test_a_stale_owner_deletes_nothing(engine: AbstractContextManager[None], status: str) -> None:
    """Told of the whole engine, and of one that does not ask Postgres before it deletes."""
    story = Story(hosts=2, keeps_results=False)
    report = play(story, tell, engine)
    assert [one.split(":")[0] for one in report.statuses] == [status]
    assert bool(report.violations) == (status == "paused"), report.violations


def tell(story: Story) -> None:
    run_id = story.run_of("silent", "silent")

    def at_rest() -> None:
        old = story.owner(run_id)
        old_host, new_host = sorted(story.universe.hosts, key=lambda host: host.name != old)
        old_host.stop(60)

        def taken_over() -> None:
            story.tell_result(run_id, 0)
            story.when(lambda: story.intended(run_id, 1) and not story.letters(run_id), second_intended)

        def second_intended() -> None:
            new_host.stop(0.5)
            story.tell_result(run_id, 1)
            old_host.loop.go_on()

        story.when(lambda: story.owner(run_id) == new_host.name, taken_over)

    story.when(lambda: story.intended(run_id, 0), lambda: story.world.after(0.3, at_rest))
