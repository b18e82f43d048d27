"""Found by seed 73: a node that left kept the lease of a run that had left it a moment before.

It had stood still, and others had the run meanwhile. When it woke it took the vanished lease again, and asked Postgres
about its claim; a letter came, and rang it, as the lease was its; a commit told it that it was fenced, and it dropped
the run. Then it left, before Postgres had answered, and gave back what it had, without that lease.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.sim.mutations import leases_in_doubt_kept
from tests.sim.stories.script import UNREAD, Story, play


@pytest.mark.parametrize(("engine", "whole"), [(nullcontext(), True), (leases_in_doubt_kept(), False)])
def test_who_leaves_keeps_no_lease(engine: AbstractContextManager[None], whole: bool) -> None:
    """Told of the whole engine, and of one that forgets leases in doubt when it leaves."""
    assert play(Story(hosts=2), tell, engine).violations == (() if whole else UNREAD)


def tell(story: Story) -> None:
    run_id, redis = story.run_of("silent"), story.servers.redis

    def at_rest() -> None:
        old = story.owner(run_id)
        old_host, new_host = sorted(story.universe.hosts, key=lambda host: host.name != old)
        old_host.stop(60)

        def over() -> None:
            story.universe.chance.dealt = lambda what: "slow" if what == "still held" else "well"
            new_host.stop(0.02)  # so that the old owner is the first to take the lease
            old_host.loop.go_on()
            story.when(lambda: redis.holder(run_id), rung)

        def rung() -> None:
            story.tell_result(run_id, 0)
            old_host.leave()

        story.when(lambda: story.owner(run_id) == new_host.name, lambda: story.tell_result(run_id, 0))
        story.when(lambda: story.row(run_id).head.terminal and story.at_rest(run_id), over)

    story.when(lambda: story.intended(run_id, 0), lambda: story.world.after(0.3, at_rest))
