"""Found by seed 1344: letters stayed in an inbox for ever, because a node that could not claim had kept the lease.

Postgres was out: the node took the lease, failed to claim, and left; it gave its offer back, not its lease. The next
node took the run for held and dropped the offer. Nothing else wakes a run that waits for nobody.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.sim.mutations import leases_kept_after_a_failed_claim
from tests.sim.stories.script import UNREAD, Story, play


@pytest.mark.parametrize(("engine", "whole"), [(nullcontext(), True), (leases_kept_after_a_failed_claim(), False)])
def test_an_offer_is_not_swallowed(engine: AbstractContextManager[None], whole: bool) -> None:
    """Told of the whole engine, and of one that keeps the lease of a run that it could not claim."""
    assert play(Story(hosts=2), tell, engine).violations == (() if whole else UNREAD)


def tell(story: Story) -> None:
    run_id = story.run_of("quick")

    def passive() -> None:
        story.servers.out.add("postgres")
        story.tell_result(run_id, 0)
        story.when(lambda: story.servers.redis.holder(run_id), taken)

    def taken() -> None:
        holder = str(story.servers.redis.holder(run_id)).partition(".")[0]
        next(host for host in story.universe.hosts if host.name == holder).leave()
        story.world.after(1.0, lambda: story.servers.out.discard("postgres"))

    story.when(lambda: story.row(run_id).head.terminal and story.at_rest(run_id), passive)
