"""What goes wrong: a ``Plan`` drawn from the seed, and ``Far``, the line on which it strikes at any await.

Each plan has only some kinds of trouble, and those in its own measure, so that seeds differ in kind and not in luck
alone. An exchange may be lost on its way there or back, be slow, or be the last thing that its host does or does for a
while; what was on its way then may still arrive.
"""

from __future__ import annotations

import random
from asyncio import Future
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from tests.sim.line import Bells
from tests.sim.loop import HostLoop, World

_T = TypeVar("_T")

Fate = Literal["well", "slow", "lost", "unanswered", "stop", "crash before", "crash during", "crash after"]
SLOW_S = 2.0
GIVE_UP_S = 0.4
"""After this a host takes an exchange for lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of what. Chances are per exchange, event or hint; counts are for the whole of ``trouble_s``."""

    hosts: int = 2
    runs: int = 4
    people: int = 2
    trouble_s: float = 12.0
    ttl_s: float = 2.0
    """Of leases. A short one is lost sooner; under a long one more runs out before anybody takes over."""
    keeps_results: bool = True
    finishes: bool = True
    """Whether somebody clears every pause after the trouble."""
    crash: float = 0.0
    stop: float = 0.0
    lose: float = 0.0
    slow: float = 0.0
    hint: float = 0.0
    event_lost: float = 0.0
    event_doubled: float = 0.0
    event_late: float = 0.0
    odd_tools: float = 0.3
    thefts: int = 0
    outages: int = 0
    jumps: int = 0
    drains: int = 0
    agent_drops: int = 0
    forgets: int = 0
    edicts: int = 0
    """How often somebody changes who may do what, and a while later changes it back."""
    terms: float = 0.0
    """How many of the manual steps have terms of their own."""
    lone: float = 0.0
    """How many of the runs are long and take quick steps, so that most of their commits are appended."""


def draw(rng: random.Random) -> Plan:
    """The plan of a seed."""

    def some(most: float) -> float:
        return rng.uniform(0.1, 1.0) * most if rng.random() < 0.5 else 0.0

    lone = some(1.0)
    return Plan(
        hosts=rng.choice((1, 2, 2, 3)),
        runs=2 if lone else rng.randint(3, 5),
        people=rng.choice((1, 2)),
        trouble_s=rng.uniform(6, 12),
        ttl_s=rng.choice((2.0, 2.0, 8.0)),
        keeps_results=rng.random() < 0.7,
        finishes=rng.random() < 0.5,
        crash=some(0.008),
        stop=some(0.008),
        lose=some(0.05),
        slow=some(0.01),
        hint=some(0.5),
        event_lost=some(0.2),
        event_doubled=some(0.3),
        event_late=some(0.3),
        odd_tools=rng.random(),
        thefts=int(some(60 if lone else 5)),
        outages=int(some(4)),
        jumps=int(some(4)),
        drains=int(some(3)),
        agent_drops=int(some(3)),
        forgets=int(some(2.5)),
        edicts=int(some(12)),
        terms=some(1.0),
        lone=lone,
    )


class Chance:
    """Deals each exchange its fate, as long as there is ``trouble``."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self._rng = rng
        self._plan = plan
        self.trouble = True
        self.dealt: Callable[[str], Fate] | None = None
        """A story may deal by itself: what is asked → its fate."""

    def hits(self, chance: float) -> bool:
        return self.trouble and chance > 0 and self._rng.random() < chance

    def fate(self, what: str) -> Fate:
        if self.dealt is not None:
            return self.dealt(what)
        if not self.trouble:
            return "well"
        plan, drawn = self._plan, self._rng.random()
        for share, fates in (
            (plan.crash, ("crash before", "crash during", "crash after")),
            (plan.stop, ("stop",)),
            (plan.lose, ("lost", "unanswered")),
            (plan.slow, ("slow",)),
        ):
            if drawn < share:
                return self._rng.choice(fates)  # type: ignore[return-value] # they are
            drawn -= share
        return "well"

    def way_s(self) -> float:
        return self._rng.uniform(0.0002, 0.004)

    def pause_s(self, most: float) -> float:
        return self._rng.uniform(0.05, most)


class Sufferer(Protocol):
    """What a line knows of its host."""

    name: str
    loop: HostLoop

    def crash(self, why: str) -> None: ...

    def stop(self, for_s: float) -> None: ...


class Far:
    """A host's line to one server, ``world`` between them. ``fault`` makes what the real client would raise."""

    def __init__(
        self,
        world: World,
        host: Sufferer,
        server: str,
        *,
        chance: Chance,
        stop_s: float,
        reachable: Callable[[], bool],
        fault: Callable[[str], Exception],
        trace: Callable[[str, str, str], None],
    ) -> None:
        self._world = world
        self._host = host
        self._server = server
        self._chance = chance
        self._stop_s = stop_s
        self._reachable = reachable
        self._fault = fault
        self._trace = trace

    @property
    def whose(self) -> str:
        return self._host.name

    async def ask(self, what: str, do: Callable[[], _T]) -> _T:
        answer: _T = await self._exchange(what, lambda reply, waiting: reply(do()))
        return answer

    async def wait(self, what: str, look: Callable[[], _T], bells: Bells, bell: str, block_s: float) -> _T:
        def serve(reply: Callable[[_T], None], waiting: Callable[[], bool]) -> None:
            until = self._world.now + block_s

            def again() -> None:
                if not waiting():
                    return
                if (found := look()) or self._world.now >= until:
                    reply(found)
                else:
                    bells.wait(bell, lambda: self._world.after(0, again))

            again()
            self._world.at(until, again)

        found: _T = await self._exchange(what, serve)
        return found

    def _exchange(self, what: str, serve: Callable[[Callable[[Any], None], Callable[[], bool]], None]) -> Future[Any]:
        loop, host = self._host.loop, self._host
        answer: Future[Any] = loop.create_future()
        if loop.gone:  # what a dead host still does within this very moment reaches nobody
            return answer
        fate = self._chance.fate(what) if self._reachable() else "lost"
        self._trace(host.name, f"{self._server}: {what}", fate)
        if fate == "crash before":
            host.crash(what)
            return answer
        if fate == "lost":
            self._world.after(GIVE_UP_S * self._chance.way_s() * 250, lambda: self._fail(answer, what))
            return answer
        if fate == "stop":
            host.stop(self._chance.pause_s(self._stop_s))
        elif fate == "crash during":
            host.crash(what)
        replied = False

        def reply(value: Any) -> None:
            nonlocal replied
            replied = True
            if fate == "unanswered":
                self._world.after(GIVE_UP_S, lambda: self._fail(answer, what))
            else:
                self._world.after(self._chance.way_s(), lambda: self._deliver(answer, value, fate, what))

        way_s = self._chance.pause_s(SLOW_S) if fate == "slow" else self._chance.way_s()
        self._world.after(way_s, lambda: serve(reply, lambda: not replied and not answer.done() and not loop.gone))
        return answer

    def _deliver(self, answer: Future[Any], value: Any, fate: Fate, what: str) -> None:
        if fate == "crash after":
            self._host.crash(what)
        elif not answer.done() and not self._host.loop.gone:
            answer.set_result(value)

    def _fail(self, answer: Future[Any], what: str) -> None:
        if not answer.done() and not self._host.loop.gone:
            answer.set_exception(self._fault(what))
