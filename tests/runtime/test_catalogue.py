"""What tools say of themselves is learned beside the calls, and not believed of an agent that has come anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from daemon.runtime.catalogue import FRESH_S, PACE_S, Catalogue
from gateway_client import ToolInfo, Unavailable
from tests.patience import eventually

READS, WRITES = ToolInfo(name="look", annotations={"readOnlyHint": True}), ToolInfo(name="look")
LEARNED = {("agent-1", "look"): "read_only"}


class Agent:
    """An agent that says which ``tools`` it has once it is ``heard``; None: it cannot be asked."""

    def __init__(self) -> None:
        self.tools: list[ToolInfo] | None = [READS]
        self.heard = asyncio.Event()
        self.asked = 0
        self.now = 0.0

    async def tell(self, agent_id: str) -> list[ToolInfo]:
        self.asked += 1
        tools = self.tools
        await self.heard.wait()
        if tools is None:
            raise Unavailable("silent", "it does not answer")
        return tools


@pytest.fixture
def agent() -> Agent:
    return Agent()


@pytest.fixture
async def catalogue(agent: Agent) -> AsyncIterator[Catalogue]:
    opened = Catalogue(agent.tell, lambda: agent.now)
    yield opened
    await opened.close()


async def test_an_agent_is_asked_when_it_is_called_and_again_when_that_is_old(
    agent: Agent, catalogue: Catalogue
) -> None:
    agent.heard.set()
    catalogue.want("agent-1")
    await eventually(lambda: catalogue.hints == LEARNED)
    catalogue.want("agent-1")
    assert agent.asked == 1
    agent.tools, agent.now = [WRITES], FRESH_S
    catalogue.want("agent-1")
    await eventually(lambda: catalogue.hints == {})
    assert agent.asked == 2


async def test_what_is_known_stays_while_an_agent_is_away_but_not_when_it_has_come_anew(
    agent: Agent, catalogue: Catalogue
) -> None:
    agent.heard.set()
    catalogue.want("agent-1")
    await eventually(lambda: catalogue.hints == LEARNED)
    agent.tools, agent.now = None, FRESH_S
    catalogue.want("agent-1")
    await eventually(lambda: agent.asked == 2 and not catalogue._tasks)
    assert catalogue.hints == LEARNED
    agent.now += PACE_S
    catalogue.returned("agent-1")
    assert catalogue.hints == {}
    await eventually(lambda: agent.asked == 3)


async def test_an_answer_from_before_an_agent_came_anew_is_not_believed(agent: Agent, catalogue: Catalogue) -> None:
    catalogue.want("agent-1")
    await eventually(lambda: agent.asked == 1)
    agent.tools, agent.now = [WRITES], PACE_S
    catalogue.returned("agent-1")
    await eventually(lambda: agent.asked == 2)
    agent.heard.set()
    await eventually(lambda: not catalogue._tasks)
    assert catalogue.hints == {}


async def test_of_an_agent_that_nobody_calls_nothing_is_asked(agent: Agent, catalogue: Catalogue) -> None:
    catalogue.returned("agent-1")
    assert not catalogue._tasks
