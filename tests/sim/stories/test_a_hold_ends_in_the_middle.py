"""A hold ends while a turn that went by it is under way; while Postgres is away; and before a host that let go of its
run has heard of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.sim.forgeries import let_go_unasked, turns_overlooked, woken_at_most_once
from tests.sim.stories.script import Story

FOR_EVER = ("not quiet: run 1 is held by nothing",)


@pytest.mark.parametrize(("engine", "whole"), [(nullcontext(), True), (turns_overlooked(), False)])
def test_a_hold_ends_while_its_pause_is_being_committed(engine: AbstractContextManager[None], whole: bool) -> None:
    """The pause stands in Postgres and the host has not heard so when it reads that the hold is over."""
    story = Story(hosts=1)
    story.deal("commit", "unanswered")
    story.enact("everything is held")

    def tell() -> None:
        run_id = story.run_of("quick")
        held = lambda: story.row(run_id).head.paused_reason == "held"  # noqa: E731 - a sentence
        story.when(held, lambda: story.enact("everything is held", back=True))

    story.world.at(1.5, tell)
    with engine:
        report = story.universe.play()
    assert report.violations == (() if whole else FOR_EVER)


@pytest.mark.parametrize(("engine", "whole"), [(nullcontext(), True), (woken_at_most_once(), False)])
def test_a_hold_ends_while_postgres_is_away(engine: AbstractContextManager[None], whole: bool) -> None:
    """The host reads the new rules, and its word to the passive runs is lost."""
    story = Story(hosts=1)
    story.enact("everything is held")

    def tell() -> None:
        run_id = story.run_of("quick")

        def over() -> None:
            story.deal("wake held", "lost")
            story.enact("everything is held", back=True)

        held = lambda: story.row(run_id).head.paused_reason == "held" and story.at_rest(run_id)  # noqa: E731 - a sentence
        story.when(held, over)

    story.world.at(1.5, tell)
    with engine:
        report = story.universe.play()
    assert report.violations == (() if whole else FOR_EVER)


@pytest.mark.parametrize(("engine", "whole"), [(nullcontext(), True), (let_go_unasked(), False)])
def test_a_hold_ends_unheard_by_who_lets_its_run_go(engine: AbstractContextManager[None], whole: bool) -> None:
    """The others woke whom they found, and this run had an owner; that one lets it go and is gone for ever."""
    story = Story(hosts=2)
    story.universe._replace_the_dead = lambda: None  # type: ignore[method-assign] # one that starts would look itself
    story.enact("everything is held")

    def tell() -> None:
        run_id = story.run_of("quick")

        def over() -> None:
            owner = story.owner(run_id)
            old, new = sorted(story.universe.hosts, key=lambda host: host.name != owner)
            deaf = lambda what: story.world.host is old.loop and what == "authority version"  # noqa: E731 - a sentence
            story.universe.chance.dealt = lambda what: "lost" if deaf(what) else "well"
            story.universe.enact("everything is held", back=True)
            new.nudged()
            story.when(lambda: story.owner(run_id) != owner, lambda: old.crash("it has let the run go"))

        story.when(lambda: story.row(run_id).head.paused_reason == "held" and story.owner(run_id), over)

    story.world.at(1.5, tell)
    with engine:
        report = story.universe.play()
    assert report.violations == (() if whole else FOR_EVER)
