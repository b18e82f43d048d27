"""A flood of TOOLS: the work is bounded by the second, and of no agent the newest word is lost. All in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from daemon.runtime.catalogue import AGENTS_KEPT, FETCHES, PACE_S, ROUND, ROUND_S, Catalogue
from daemon.runtime.returns import EVERY_S, MOST, Returns
from gateway_client import ToolInfo
from tests.patience import let_pass
from tests.sim.loop import HostLoop, World


class Agents:
    """Agents that each have one tool, another with every connection, and a Gateway that tells it in ``takes_s``."""

    def __init__(self, takes_s: float = 0.02) -> None:
        self.takes_s = takes_s
        self.connections: Counter[str] = Counter()
        self.asked: list[tuple[float, str]] = []
        self.at_once = self.most_at_once = 0

    async def tell(self, agent_id: str) -> list[ToolInfo]:
        self.asked.append((asyncio.get_running_loop().time(), agent_id))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            told = [ToolInfo(name=f"tool-{self.connections[agent_id]}", annotations={"readOnlyHint": True})]
            await let_pass(self.takes_s)
            return told
        finally:
            self.at_once -= 1

    def connect(self, catalogue: Catalogue, agent_id: str) -> None:
        """The agent connects anew and tells its tools."""
        self.connections[agent_id] += 1
        catalogue.returned(agent_id)

    def hint(self, agent_id: str) -> tuple[str, str]:
        """The key of what it has now."""
        return agent_id, f"tool-{self.connections[agent_id]}"


@pytest.fixture
def world() -> Iterator[World]:
    return World()


def play(world: World, story: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> None:
    """The whole story, in virtual time."""
    loop = HostLoop(world)
    try:
        task = loop.create_task(story())
        world.run(seconds, enough=task.done)
        assert task.done(), "it takes longer than that"
        task.result()
    finally:
        loop.bury()


@asynccontextmanager
async def open_catalogue(agents: Agents, *known: str) -> AsyncIterator[Catalogue]:
    """A catalogue that knows these agents for a while."""
    catalogue = Catalogue(agents.tell, asyncio.get_running_loop().time)
    await catalogue.learn(known)
    await let_pass(PACE_S)
    agents.asked.clear()
    agents.most_at_once = 0
    yield catalogue
    await catalogue.close()


def test_one_agent_that_keeps_coming_is_asked_once_in_a_while_and_once_more_at_the_end(world: World) -> None:
    async def story() -> None:
        agents = Agents()
        async with open_catalogue(agents, "a") as catalogue:
            for _ in range(10_000):
                agents.connect(catalogue, "a")
                assert not catalogue.hints  # what it had before is believed no longer, however busy we are
                await let_pass(0.001)
            changes, asked = catalogue.changes, len(agents.asked)
            await let_pass(5)
            assert asked <= 10 / PACE_S + 1
            assert changes <= 3  # whoever keeps what they made of it does not make it anew for each
            assert list(catalogue.hints) == [agents.hint("a")]
            assert catalogue.fresh("a")
            assert len(agents.asked) <= asked + 2

    play(world, story, 60)


def test_a_return_that_is_the_only_one_is_asked_about_at_once(world: World) -> None:
    async def story() -> None:
        agents = Agents()
        async with open_catalogue(agents, "a") as catalogue:
            agents.connect(catalogue, "a")
            await let_pass(2 * agents.takes_s)
            assert list(catalogue.hints) == [agents.hint("a")]

    play(world, story, 60)


def test_a_flood_over_all_agents_is_asked_at_our_pace_and_ends_with_the_newest_of_each(world: World) -> None:
    names = [f"agent-{number}" for number in range(AGENTS_KEPT)]

    async def story() -> None:
        agents, rng = Agents(), random.Random(7)
        async with open_catalogue(agents, *names) as catalogue:
            begun = asyncio.get_running_loop().time()
            for name in rng.choices(names, k=20_000):
                agents.connect(catalogue, name)
                if rng.random() < 0.1:
                    await let_pass(0.001)
            flooded = asyncio.get_running_loop().time() - begun
            assert len(agents.asked) <= ROUND * (flooded / ROUND_S + 1)
            touched = set(agents.connections)
            await let_pass(len(touched) / ROUND * ROUND_S + 2)
            assert all(agents.hint(name) in catalogue.hints for name in touched)
            assert agents.most_at_once <= FETCHES
            seconds = Counter(int(at) for at, _ in agents.asked)
            assert max(seconds.values()) <= ROUND * (1 / ROUND_S + 1)

    play(world, story, 600)


def test_who_is_called_finds_a_place_while_others_flood(world: World) -> None:
    names = [f"agent-{number}" for number in range(100)]

    async def story() -> None:
        agents = Agents(takes_s=1.5)  # so that the places are all that there is
        async with open_catalogue(agents, *names) as catalogue:
            for name in names:
                agents.connect(catalogue, name)
            await let_pass(0.01)
            for number in range(FETCHES - ROUND):
                catalogue.want(f"called-{number}")
            await let_pass(2)
            assert {(f"called-{number}", "tool-0") for number in range(FETCHES - ROUND)} <= catalogue.hints.keys()

    play(world, story, 60)


def test_a_run_that_must_know_waits_for_the_pace_and_no_longer(world: World) -> None:
    async def story() -> None:
        agents = Agents()
        async with open_catalogue(agents, "a") as catalogue:
            loop = asyncio.get_running_loop()
            for _ in range(5):
                begun = loop.time()
                agents.connect(catalogue, "a")
                await catalogue.learn(["a"])
                assert agents.hint("a") in catalogue.hints
                assert loop.time() - begun <= PACE_S + 2 * agents.takes_s
            assert len(agents.asked) <= 5

    play(world, story, 60)


@pytest.mark.parametrize("names", [1, 300])
def test_calls_in_flight_are_asked_about_once_a_second_and_after_the_last_return(world: World, names: int) -> None:
    asked: list[frozenset[str] | None] = []

    async def story() -> None:
        returns = Returns(asked.append)
        task = asyncio.get_running_loop().create_task(returns.run())
        for number in range(10_000):
            returns.note(f"agent-{number % names}")
            await let_pass(0.001)
        flooded = len(asked)
        assert flooded <= 10 / EVERY_S + 1
        returns.note("the last")
        await let_pass(2 * EVERY_S)
        assert "the last" in frozenset().union(*(agents or () for agents in asked[flooded:]))
        assert len(asked) <= flooded + 1
        task.cancel()

    play(world, story, 60)


def test_more_names_than_can_be_kept_mean_every_agent(world: World) -> None:
    asked: list[frozenset[str] | None] = []

    async def story() -> None:
        returns = Returns(asked.append)
        returns.note("x" * 256)
        for number in range(MOST + 1):
            returns.note(f"agent-{number}")
        returns.note("the last")
        task = asyncio.get_running_loop().create_task(returns.run())
        await let_pass(EVERY_S)
        assert asked == [None]
        task.cancel()

    play(world, story, 60)
