"""The agent and the Gateway as processes: a result that no Gateway acknowledged comes once the next one has started."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.dev.processes import free_port
from gateway_client import GatewayClient, GatewayError, Invocation
from tests.chaos.agent import AGENT
from tests.chaos.evidence import read_ledger
from tests.cluster.harness import Process, spawn
from tests.patience import eventually

WITHIN_S = 30.0


class Pair:
    """A Gateway that may be killed and started again, and its agent."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_port()
        self.client = GatewayClient(f"http://127.0.0.1:{self.port}", "")
        self.processes: list[Process] = []

    async def gateway(self) -> Process:
        files = ("--link", str(self.home / "link"), "--results", str(self.home / "results"))
        process = await spawn("gateway", "tests.chaos.gateway", "--port", str(self.port), *files)
        self.processes.append(process)
        await process.ready("gateway ready", within_s=WITHIN_S)
        return process

    async def agent(self) -> None:
        files = ("--link", str(self.home / "link"), "--ledger", str(self.home / "ledger"))
        self.processes.append(await spawn("agent", "tests.chaos.agent", *files))
        await eventually(self.online, within_s=WITHIN_S, what="the agent being there")

    async def online(self) -> bool:
        try:
            return bool(await self.client.tools(AGENT))
        except GatewayError:
            return False

    async def call(self, req_id: str, tool: str, **arguments: float) -> None:
        call = Invocation(
            req_id=req_id, agent_id=AGENT, tool_name=tool, arguments=arguments, timeout_ms=20_000, stream=True
        )
        await self.client.invoke(call, may_send=lambda: True)

        def begun() -> bool:
            return req_id in {executed.req_id for executed in read_ledger(self.home / "ledger")}

        await eventually(begun, what=f"{req_id} being executed")

    async def result(self, req_id: str) -> dict[str, object]:
        async def stored() -> dict[str, object] | None:
            envelope = await self.client.result(req_id)
            return envelope.payload if envelope is not None else None

        found = await eventually(stored, within_s=WITHIN_S, what=f"the result of {req_id}")
        assert found is not None
        return found


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    opened = Pair(tmp_path)
    try:
        await opened.gateway()
        await opened.agent()
        yield opened
    finally:
        await opened.client.aclose()
        for process in opened.processes:
            if process.process.returncode is None:
                await process.kill()
            assert process.reading is not None
            await process.reading


async def test_a_killed_gateway_costs_the_calls_in_flight_but_no_result(pair: Pair) -> None:
    """What the contract saw (§5): calls are cancelled, a stubborn one ends well; both are told after the restart."""
    await pair.call("before", "quick")
    kept = await pair.result("before")
    await pair.call("slow", "slow", seconds=20)
    await pair.call("stubborn", "stubborn", seconds=1)
    await pair.processes[0].kill()
    await pair.gateway()
    await eventually(pair.online, within_s=WITHIN_S, what="the agent being back")
    assert (await pair.result("slow"))["canceled"] is True
    assert (await pair.result("stubborn"))["ok"] is True
    assert await pair.result("before") == kept, "the store outlives the Gateway"
    assert [call.req_id for call in read_ledger(pair.home / "ledger")] == ["before", "slow", "stubborn"]


async def test_sigterm_of_the_gateway_exits_0(pair: Pair) -> None:
    gateway = pair.processes[0]
    gateway.signal(signal.SIGTERM)
    assert await gateway.gone() == 0
