"""More engines that are broken on purpose: in what they ask of authority, and in what they take for approved.

Read beside ``mutations``, which lists those that some seed soon meets, with the checker that must notice each; of the
others a story is told (``stories``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace

from daemon.machine import decide_approval, effects, evolve, record, settle
from daemon.machine.approval import Revision
from daemon.machine.commands import Command
from daemon.machine.events import AttemptIntended, StepEdited
from daemon.machine.spec import ApprovalSpec, StepSpec
from daemon.machine.state import Run
from daemon.runtime.authority import Authority
from daemon.runtime.host import Host
from tests.sim.postgres import Postgres


def no_authority_fence() -> AbstractContextManager[Any]:
    """An intent is committed whatever stands by then."""
    return patch.object(Postgres, "authorized", lambda self, batch: True)


def no_second_look() -> AbstractContextManager[Any]:
    """Between the commit and the first byte nobody asks again."""
    return patch.object(Authority, "allows", lambda self, run, invoke: True)


def votes_kept_on_edit() -> AbstractContextManager[Any]:
    """Who agreed to one call agreed to the edited one."""
    asked = evolve._asked

    def kept(run: Run, event: Any, at: int) -> Run:
        after, old = asked(run, event, at), run.revision
        if not isinstance(event, StepEdited) or old is None or after.revision is None:
            return after
        return replace(after, revision=replace(after.revision, votes=old.votes))

    return patch.object(evolve, "_asked", kept)


def digest_not_compared() -> AbstractContextManager[Any]:
    """Whatever they saw, they agree to what waits."""
    asked = decide_approval._asked

    def blind(run: Run, command: Command, *about: Any, **how: Any) -> Any:
        return asked(run, replace(command, digest=None), *about, **how)

    return patch.object(decide_approval, "_asked", blind)


def quorum_ignored() -> AbstractContextManager[Any]:
    """One yes is enough."""

    def terms(step: StepSpec) -> ApprovalSpec:
        return (step.approval or ApprovalSpec()).model_copy(update={"quorum": 1})

    return patch.object(StepSpec, "terms", property(terms))


def anybody_approves() -> AbstractContextManager[Any]:
    """Nobody asks who it is that says yes, then or later."""

    @contextmanager
    def broken() -> Iterator[None]:
        with (
            patch.object(decide_approval, "who_may_not", lambda *about, **more: None),
            patch.object(settle, "stands", lambda *about: None),
        ):
            yield

    return broken()


def approved_for_ever() -> AbstractContextManager[Any]:
    """What was approved once stays so, whoever may no longer approve it."""
    return patch.object(settle, "stands", lambda *about: None)


def another_call_sent() -> AbstractContextManager[Any]:
    """What leaves is what the template says, whatever somebody edited, and nobody looks at the digest again."""

    def as_written(step: StepSpec, revision: Revision | None) -> Any:
        return step.tool_config.arguments

    @contextmanager
    def broken() -> Iterator[None]:
        with (
            patch.object(effects, "arguments_of", as_written),
            patch.object(effects.Invoke, "as_approved", property(lambda self: True)),
        ):
            yield

    return broken()


def nothing_is_gated() -> AbstractContextManager[Any]:
    """Policy may ask for approval as it likes."""
    ground_of = settle._ground

    def easy(run: Run, facts: Any) -> Any:
        ground = ground_of(run, facts)
        return ground and replace(ground, traits=replace(ground.traits, requires_approval=False))

    return patch.object(settle, "_ground", easy)


def held_for_ever() -> AbstractContextManager[Any]:
    """A hold's end wakes nobody."""
    return patch.object(Postgres, "wake_held", lambda self: None)


def decided_unfenced() -> AbstractContextManager[Any]:
    """Only calls need the authority that stands; people decide by what a host read some time ago."""
    return patch.object(record, "GROUNDED", frozenset({AttemptIntended}))


def turns_overlooked() -> AbstractContextManager[Any]:
    """When a hold ends, only those are looked at again that are known to be held, and no turn under way; and whoever
    lets a run go asks nothing."""

    def look_again(self: Host) -> None:
        for actor in self._residents:
            if actor.run.paused_reason == "held":
                self._residents.ring_here(actor, "h")

    @contextmanager
    def broken() -> Iterator[None]:
        with patch.object(Host, "look_again", look_again), let_go_unasked():
            yield

    return broken()


def woken_at_most_once() -> AbstractContextManager[Any]:
    """Whether Postgres heard that the passive runs are to be looked at is nobody's concern."""

    async def once(self: Authority) -> None:
        before, self._woken = self._woken, self._version
        if before < self._version:
            await self._records.wake_held()

    return patch.object(Authority, "_wake_held", once)


def let_go_unasked() -> AbstractContextManager[Any]:
    """Who lets a held run go believes what it read of the hold."""
    release = Postgres.release

    def trusting(self: Postgres, given: Any) -> Any:
        with patch.object(Postgres, "waits_in_vain", lambda self, row: False):
            return release(self, given)

    return patch.object(Postgres, "release", trusting)
