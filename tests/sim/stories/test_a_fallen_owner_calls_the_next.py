"""Found in a universe of stops: an old owner that woke took its lease back, for a moment, before it asked Postgres.

In that moment another node took the run for held and dropped the offer that a letter had made. The old owner stood
still again until the lease had run out, so giving it up called nobody, and nobody was left who knew of the letter.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.sim.mutations import nobody_called_after_a_fallen_lease
from tests.sim.stories.script import UNREAD, Story, play


@pytest.mark.parametrize(("engine", "whole"), [(nullcontext(), True), (nobody_called_after_a_fallen_lease(), False)])
def test_a_fallen_owner_calls_the_next(engine: AbstractContextManager[None], whole: bool) -> None:
    """Told of the whole engine, and of one that calls nobody when the lease is gone."""
    assert play(Story(hosts=2), tell, engine).violations == (() if whole else UNREAD)


def tell(story: Story) -> None:
    run_id, redis = story.run_of("silent"), story.servers.redis

    def at_rest() -> None:
        old = story.owner(run_id)
        old_host, new_host = sorted(story.universe.hosts, key=lambda host: host.name != old)
        old_host.stop(60)

        def over() -> None:
            new_host.stop(0.02)  # so that the old owner is the first to take the lease, and the other finds it held
            story.tell_result(run_id, 0)
            old_host.loop.go_on()
            story.when(lambda: redis.holder(run_id), lambda: old_host.stop(5.0))

        story.when(lambda: story.owner(run_id) == new_host.name, lambda: story.tell_result(run_id, 0))
        story.when(lambda: story.row(run_id).head.terminal and story.at_rest(run_id), over)

    story.when(lambda: story.intended(run_id, 0), lambda: story.world.after(0.3, at_rest))
