"""Engines that are broken on purpose, each in one decision, to prove that the checkers see it.

``MUTATIONS``: by name, how to break the real code (or the double whose promise it is), which checker must notice, and
a plan under which it soon will. A mutation is a context manager; outside it everything is whole again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from msgspec.structs import replace as changed

from daemon.errors import StoreUnavailable
from daemon.machine import decide, decide_approval, decision
from daemon.machine.commands import Epoch
from daemon.machine.effects import Effect, effects
from daemon.machine.state import Run
from daemon.runtime import actor as actor_room
from daemon.runtime.actor import Actor
from daemon.runtime.afterwards import Afterwards
from daemon.runtime.host import Host
from daemon.runtime.ownership import Ownership
from daemon.runtime.sender import Sender
from daemon.runtime.sweep import Sweep
from tests.sim import forgeries
from tests.sim.faults import Plan
from tests.sim.postgres import Postgres
from tests.sim.redis import Redis
from tests.sim.rows import RunRow

Mutation = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """A mutation, the checker (or the words) that must notice it, and under what trouble."""

    break_it: Mutation
    noticed_by: tuple[str, ...]
    plan: Plan


CRASHES = Plan(crash=0.012, keeps_results=True, odd_tools=0.2)
STOPS = Plan(stop=0.02, odd_tools=0.0)
THEFTS = Plan(thefts=60, lone=1.0, hosts=3, runs=3, odd_tools=0.0)
EDICTS = Plan(edicts=20, people=3, terms=0.8, odd_tools=0.1, runs=6)


def no_fence() -> AbstractContextManager[Any]:
    """A commit is written, or appended, whoever owns the run by now."""
    anybody = {name: lambda self, one, before: one.run_id in self.runs for name in ("passes", "follows")}
    return patch.multiple(Postgres, **anybody)


def rows_stay_behind() -> AbstractContextManager[Any]:
    """Who claims a run finds its rows as the last checkpoint left them, and not what was appended since."""
    return patch.object(RunRow, "checkpoint", lambda self: setattr(self, "tail", []))


def no_freshness_check() -> AbstractContextManager[Any]:
    """A call is written however old the lease."""

    def permit(self: Sender, actor: Actor, effect: Effect) -> bool:
        return self.intending and self._residents.get(actor.id) is actor

    return patch.object(Sender, "_permit", permit)


def letters_deleted_first() -> AbstractContextManager[Any]:
    """Letters are deleted before what they led to is committed."""
    commit = Host._commit

    async def deleting(self: Host, lane: Any, queue: Any) -> None:
        class Hasty:
            async def commit(_, batch: Sequence[Any]) -> Any:  # noqa: N805 - self is the host here
                ids = {one.run_id for one in batch}
                read = await self._inbox.read(list(ids))
                await self._inbox.delete({run_id: [entry[0] for entry in letters] for run_id, letters in read.items()})
                return await lane.commit(batch)

        await commit(self, Hasty(), queue)  # type: ignore[arg-type] # a lane is what commits

    return patch.object(Host, "_commit", deleting)


def effects_remembered() -> AbstractContextManager[Any]:
    """What is owed is noted when it comes up, and not read off the state that the next owner finds."""
    owed = Actor.owed

    def remembered(self: Actor, *now: Any) -> list[Effect]:
        before = self.run.attempt is None or self.run.attempt.epoch == self.epoch
        return owed(self, *now) if before else []

    return patch.object(Actor, "owed", remembered)


def no_sweep() -> AbstractContextManager[Any]:
    """Nobody repairs what signals missed."""

    async def once(self: Sweep) -> None:
        pass

    return patch.object(Sweep, "once", once)


def sent_again_after_a_crash() -> AbstractContextManager[Any]:
    """An intent that another owner left is carried out by whoever finds it."""

    def mine(run: Run, epoch: Epoch, *now: Any) -> tuple[Effect, ...]:
        attempt = run.attempt
        if attempt is not None and attempt.canceling is None:
            epoch = attempt.epoch
        return effects(run, epoch, *now)

    return patch.object(actor_room, "effects", mine)


def decided_without_the_seen_seq() -> AbstractContextManager[Any]:
    """Whatever its author saw, a command is decided on the pause of the moment."""
    check = decision.not_at_that_pause

    @contextmanager
    def broken() -> Iterator[None]:
        with (
            patch.object(decide, "not_at_that_pause", careless),
            patch.object(decide_approval, "not_at_that_pause", careless),
        ):
            yield

    def careless(run: Run, command: Any) -> Any:
        return check(run, changed(command, seen_seq=run.paused_seq))

    return broken()


def letters_deleted_unasked() -> AbstractContextManager[Any]:
    """Letters that mean nothing to an owner are deleted without asking whether it still is the owner."""

    async def ours(self: Afterwards, turns: Sequence[Any]) -> list[Any]:
        return list(turns)

    return patch.object(Afterwards, "_still_ours", ours)


def leases_kept_after_a_failed_claim() -> AbstractContextManager[Any]:
    """Who could not claim a run keeps its lease until that runs out."""

    async def kept(self: Ownership, mine: Any) -> None:
        raise StoreUnavailable("as it was: the offers stay taken")

    return patch.object(Ownership, "_offer_again", kept)


def nobody_called_after_a_fallen_lease() -> AbstractContextManager[Any]:
    """Giving up a lease that has run out meanwhile is taken for an offer to the others, which it is not."""
    release = Redis._release

    def polite(self: Redis, run_id: Any, value: str, force: bool) -> str:
        return "r" if force and self.holder(run_id) is None else release(self, run_id, value, force)

    return patch.object(Redis, "_release", polite)


def leases_in_doubt_kept() -> AbstractContextManager[Any]:
    """A node that leaves gives back the leases of its runs, and no lease of a run that has left it meanwhile."""
    hand_over = Ownership.hand_over

    async def forgetful(self: Ownership, *, calling: bool = True) -> int:
        self._doubted = {}
        return await hand_over(self, calling=calling)

    return patch.object(Ownership, "hand_over", forgetful)


MUTATIONS: dict[str, Case] = {
    "no fence": Case(no_fence, ("replay_rebuilds", "two events", "seq_is_dense", "for ever"), THEFTS),
    "rows stay behind": Case(rows_stay_behind, ("last_seq", "nothing_is_sent_twice", "two events"), CRASHES),
    "no freshness check before the write": Case(
        no_freshness_check, ("nothing_leaves_under_a_stale_lease",), replace(STOPS, slow=0.05)
    ),
    "delete letters before commit": Case(
        letters_deleted_first,
        ("no_result_is_lost",),
        replace(CRASHES, keeps_results=False, crash=0.03, hosts=3, runs=8),
    ),
    "remember effects instead of deriving": Case(
        effects_remembered, ("no_result_goes_unasked",), replace(CRASHES, event_lost=0.3)
    ),
    "no sweep": Case(no_sweep, ("not quiet",), CRASHES),
    "re-send after a crash": Case(
        sent_again_after_a_crash, ("nothing_is_sent_twice",), replace(CRASHES, odd_tools=0.8)
    ),
    "decide without the seen seq": Case(
        decided_without_the_seen_seq, ("commands_get_one_verdict",), Plan(people=2, odd_tools=0.7, runs=3)
    ),
    "commit without the authority's fence": Case(
        forgeries.no_authority_fence, ("no_call_is_intended_against_the_rules",), EDICTS
    ),
    "keep votes on an edit": Case(forgeries.votes_kept_on_edit, ("a_revision_is_decided_once",), EDICTS),
    "approve without comparing digests": Case(forgeries.digest_not_compared, ("a_revision_is_decided_once",), EDICTS),
    "ignore the quorum": Case(forgeries.quorum_ignored, ("nothing_gated_leaves_unapproved",), EDICTS),
    "let anybody approve": Case(forgeries.anybody_approves, ("nothing_gated_leaves_unapproved",), EDICTS),
    "approved once, for ever": Case(forgeries.approved_for_ever, ("nothing_gated_leaves_unapproved",), EDICTS),
    "send what was not approved": Case(forgeries.another_call_sent, ("nothing_gated_leaves_unapproved",), EDICTS),
    "gate nothing by policy": Case(forgeries.nothing_is_gated, ("no_call_is_intended_against_the_rules",), EDICTS),
    "wake nobody after a hold": Case(forgeries.held_for_ever, ("is held by nothing",), EDICTS),
}
