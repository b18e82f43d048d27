"""The permit, asked with the connection in hand: no call leaves that is not what was approved, or is forbidden now.

A real ``Sender`` over a real book of authority, with a dispatch that only keeps the permits it was given; the runs are
forged as no engine would leave them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from daemon.auth.access import Agent, Hold, Policy
from daemon.machine.ground import Ground
from daemon.machine.spec import parse_spec
from daemon.machine.state import Run
from daemon.runtime.actor import Actor
from daemon.runtime.authority import Authority
from daemon.runtime.catalogue import Catalogue
from daemon.runtime.residents import Residents
from daemon.runtime.sender import Sender
from daemon.store.authority import Said
from tests.machine.grounds import Said as Grounds
from tests.machine.scenario import START, Story, step

OWNED = Agent(agent_id="agent-1", owner="ann")


class Still:
    """A clock that stands."""

    def now(self) -> int:
        return START

    def monotonic(self) -> float:
        return 100.0


class Records:
    """What stands in the tables of authority, as the test says."""

    def __init__(self) -> None:
        self.said = Said(version=1, now_ms=START, agents={"agent-1": OWNED}, policies=(), holds=())

    async def read(self, agents: Any) -> Said:
        return self.said

    async def version(self) -> int:
        return self.said.version

    async def wake_held(self) -> None:
        """Nobody sleeps."""

    async def wake_asked(self) -> None:
        """Nobody sleeps."""


class Kept:
    """A dispatch that sends nothing and keeps the permits."""

    def __init__(self) -> None:
        self.permits: list[Callable[[], bool]] = []

    def submit(self, effect: Any, *, permit: Callable[[], bool], answer: Any) -> None:
        self.permits.append(permit)


class Hand:
    """A node's hand, and what it goes by."""

    def __init__(self, run: Run, epoch: Any) -> None:
        clock: Any = Still()
        self.records = Records()
        catalogue = Catalogue(self._no_tools, clock.monotonic)
        self.authority = Authority(self.records, catalogue, clock, period_s=1, changed=lambda: None)
        residents = Residents(clock.monotonic, hold_s=0)
        self.actor = Actor(run=run, epoch=epoch, owner="me", renewed_at=100.0)
        residents.add(self.actor)
        self.dispatch: Any = Kept()
        self.sender = Sender(residents, clock, self.dispatch, catalogue, self.authority, fresh_s=1)

    async def _no_tools(self, agent_id: str) -> list[Any]:
        return []

    async def learned(self) -> Hand:
        await self.authority.learn([self.actor.run])
        return self

    @property
    def permits(self) -> bool:
        """Whether the one call that is owed may leave this moment."""
        self.dispatch.permits.clear()
        self.actor.asked.clear()
        self.sender.send_owed(self.actor)
        (permit,) = self.dispatch.permits
        return bool(permit())


def approved(*, manual: bool = True) -> Story:
    """ann's run, whose call was approved (where it is manual) and is owed."""
    story = Story(step(manual=manual), grounds=Grounds(lambda agent_id, tool_name: Ground(schema_hash="a")))
    if manual:
        assert story.say("approve") is None
    return story


async def hand(story: Story, forged: Run | None = None) -> Hand:
    return await Hand(forged or story.run, story.epoch).learned()


@pytest.mark.parametrize("manual", [True, False])
async def test_a_call_that_was_approved_or_need_not_be_leaves(manual: bool) -> None:
    assert (await hand(approved(manual=manual))).permits


def _other_spec(run: Run, **changes: Any) -> Run:
    told = run.spec.model_dump()
    told["steps"][0]["tool_config"] |= changes
    return replace(run, spec=parse_spec(told))


def _revision(run: Run, **changes: Any) -> Run:
    assert run.revision is not None
    return replace(run, revision=replace(run.revision, **changes))


FORGED: dict[str, Callable[[Run], Run]] = {
    "other arguments in the spec": lambda run: _other_spec(run, arguments={"n": 2}),
    "another tool": lambda run: _other_spec(run, tool_name="demo__b"),
    "another deadline": lambda run: _other_spec(run, timeout_ms=1),
    "arguments edited since": lambda run: _revision(run, edited='{"n": 2}'),
    "another schema": lambda run: _revision(run, schema_hash="b"),
    "another digest": lambda run: _revision(run, digest="sha256:" + "0" * 64),
    "a revision that is open": lambda run: _revision(run, state="open"),
    "a revision that was rejected": lambda run: _revision(run, state="rejected"),
    "a revision of another step": lambda run: _revision(run, step_index=7),
    "no revision": lambda run: replace(run, revision=None),
}


@pytest.mark.parametrize("what", FORGED)
async def test_a_call_that_is_not_what_was_approved_does_not_leave(what: str) -> None:
    story = approved()
    assert not (await hand(story, FORGED[what](story.run))).permits


FORBIDDEN: dict[str, dict[str, Any]] = {
    "the agent is another's": {"agents": {"agent-1": Agent(agent_id="agent-1", owner="bob")}},
    "the agent is nobody's": {"agents": {"agent-1": Agent(agent_id="agent-1")}},
    "policy denies it": {"policies": (Policy(agents="*", tools="demo__a", denied=True),)},
    "it is held": {"holds": (Hold(scope="everything", target="", reason="fire", held_by="root"),)},
    "its user is held": {"holds": (Hold(scope="user", target="ann", reason="fire", held_by="root"),)},
}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_a_call_that_is_forbidden_since_its_intent_does_not_leave(what: str) -> None:
    ready = await hand(approved())
    ready.records.said = Said(**{"version": 2, "now_ms": START, "policies": (), "holds": ()} | _with_agent(what))
    ready.authority.outdated()
    assert not ready.permits, "while it is not known what stands now, nothing leaves"
    await ready.learned()
    assert not ready.permits


async def test_a_call_that_policy_has_come_to_ask_approval_for_does_not_leave() -> None:
    ready = await hand(approved(manual=False))
    policies = (Policy(agents="*", tools="*", requires_approval=True),)
    ready.records.said = Said(version=2, now_ms=START, agents={"agent-1": OWNED}, policies=policies, holds=())
    ready.authority.outdated()
    await ready.learned()
    assert not ready.permits


def _with_agent(what: str) -> dict[str, Any]:
    return {"agents": {"agent-1": OWNED}} | FORBIDDEN[what]
