"""The Gateway and one agent in virtual time, with all the oddities of the contract, and the ledger of what really ran.

``Gateway`` is the server, ``Client`` doubles ``gateway_client.GatewayClient`` for one host. Tools are known by name
(``TOOLS``). The ledger is the tool side's: every write of a call, and every execution.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from daemon.machine.commands import RunId
from daemon.machine.state import run_of
from gateway_client import (
    AgentInfo,
    Envelope,
    Invocation,
    MaybeSent,
    NotSent,
    ResultsUnsupported,
    ToolInfo,
    Unavailable,
)
from tests.sim.authority import AGENT
from tests.sim.faults import Chance, Plan
from tests.sim.loop import World

TOOLS = ("quick", "failing", "reporting", "slow", "silent", "late", "refusing", "stubborn", "repeatable")
"""``reporting`` tells of its failure in its result, ``silent`` never speaks, ``late`` comes to life after everybody
gave up, ``refusing`` cannot read the call, ``stubborn`` does not stop when it is told to, and ``repeatable`` is often
silent but may be called again, as it says of itself."""


@dataclass(slots=True)
class Write:
    """One time that a host wrote a call to the Gateway.

    ``lease_age_s``: since Redis last renewed the sender's lease; ``proven``: the host was told that no agent saw it.
    """

    host: str
    call: Invocation
    at: float
    lease_age_s: float
    proven: bool = False


@dataclass(slots=True)
class Ledger:
    """What happened at the tools' side."""

    writes: dict[str, list[Write]] = field(default_factory=dict)
    executions: list[tuple[float, str]] = field(default_factory=list)
    stored: dict[str, float] = field(default_factory=dict)
    """When the RESULT of a call came to the result store."""
    inquired: dict[str, list[float]] = field(default_factory=dict)
    """When somebody asked the store for the call."""
    renewed: dict[tuple[RunId, str], float] = field(default_factory=dict)
    """When Redis last gave or renewed the lease of a run to a host."""


class Gateway:
    """One Gateway with one agent."""

    def __init__(self, world: World, plan: Plan, chance: Chance, rng: random.Random) -> None:
        self.ledger = Ledger()
        self.up = True
        self.agent_online = True
        self.streams: list[Stream] = []
        self._results: dict[str, Envelope] = {}
        self._running: dict[str, Callable[[], None]] = {}
        self._world, self._plan, self._chance, self._rng = world, plan, chance, rng

    def write(self, host: str, call: Invocation) -> Write:
        """The bytes leave the host, in this moment."""
        run_id = run_of(call.req_id)
        assert run_id is not None
        now = self._world.now
        write = Write(host, call, now, now - self.ledger.renewed.get((run_id, host), 0.0))
        self.ledger.writes.setdefault(call.req_id, []).append(write)
        return write

    def note_renewal(self, run_id: RunId, owner: str) -> None:
        """Redis gives or renews a lease; ``owner`` begins with the host's name."""
        self.ledger.renewed[run_id, owner.partition(".")[0]] = self._world.now

    def receive(self, write: Write) -> int:
        """The call arrives; answers the HTTP status."""
        if not self.agent_online:
            return 404
        if self._chance.hits(self._plan.event_lost / 10):
            return 502
        self._world.after(self._soon(), lambda: self._arrive(write.call))
        return 202

    def cancel(self, req_id: str) -> int:
        if not self.agent_online:
            return 404
        stop = self._running.get(req_id)
        self._say("CANCEL_ACK", req_id, {"will_cancel": stop is not None})
        if stop is not None:
            stop()
        return 202

    def result(self, req_id: str) -> Envelope | None:
        return self._results.get(req_id)

    def asked(self, req_id: str) -> None:
        """A host is about to ask for a result; whether its question arrives is another matter."""
        self.ledger.inquired.setdefault(req_id, []).append(self._world.now)

    def drop_agent(self, for_s: float) -> None:
        """The agent's connection breaks: its calls end, which it tells when it is back."""
        self.agent_online = False
        running, self._running = list(self._running), {}

        def back() -> None:
            self.agent_online = True
            for req_id in running:
                self._finish(req_id, ok=False, canceled=True, error={"code": "canceled", "message": "canceled"})

        self._world.after(for_s, back)

    def go_down(self, for_s: float) -> None:
        """Nobody reaches the Gateway, and its streams end."""
        self.up = False
        self.break_streams()
        self._world.after(for_s, lambda: setattr(self, "up", True))

    def break_streams(self) -> None:
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.put(Unavailable("connection_lost", "the Gateway went away"))

    def inject(self, kind: str, req_id: str, payload: dict[str, Any]) -> None:
        """What somebody else's websocket may say: an event that no call of ours led to."""
        self._publish(self._envelope(kind, req_id, payload))

    def _arrive(self, call: Invocation) -> None:
        tool = call.tool_name
        if tool == "silent" or (tool == "repeatable" and self._rng.random() < 0.6):
            return
        if tool == "refusing":
            self._say("INVOKE_ACK", call.req_id, {"accepted": False, "reason": "invalid_payload"})
            return
        patience_s = call.timeout_ms / 1000
        if tool == "late":
            self._world.after(self._rng.uniform(0.5, 2.0) * patience_s, lambda: self._execute(call))
        else:
            self._execute(call)

    def _execute(self, call: Invocation) -> None:
        req_id, own_s = call.req_id, call.timeout_ms / 1000 - 5
        self.ledger.executions.append((self._world.now, req_id))
        self._say("INVOKE_ACK", req_id, {"accepted": True})
        self._say("CHUNK", req_id, {"channel": "stderr", "data": f"running tool: {call.tool_name}\n"})
        takes_s = self._rng.uniform(0.7, 1.3) * own_s if call.tool_name in ("slow", "stubborn") else self._soon() * 10
        over = False

        def end(**payload: Any) -> None:
            nonlocal over
            if not over:
                over = True
                self._running.pop(req_id, None)
                self._finish(req_id, **payload)

        def stop() -> None:
            nonlocal over
            if call.tool_name == "stubborn":
                return
            if self._rng.random() < 0.4:
                end(ok=False, canceled=True, error={"code": "canceled", "message": "canceled"})
            over = True
            self._running.pop(req_id, None)

        self._running[req_id] = stop
        self._world.after(takes_s, lambda: None if req_id not in self._running else end(**_verdict(call)))

    def _finish(self, req_id: str, **payload: Any) -> None:
        """The RESULT: stored, published, and perhaps sent again, as an agent does that heard no RESULT_ACK."""
        envelope = self._envelope("RESULT", req_id, payload)
        if self._plan.keeps_results:
            self._results[req_id] = envelope
            self.ledger.stored.setdefault(req_id, self._world.now)
        self._publish(envelope)
        if self._chance.hits(self._plan.event_doubled):
            self._world.after(self._rng.uniform(0, 4), lambda: self._publish(envelope))

    def _say(self, kind: str, req_id: str, payload: dict[str, Any]) -> None:
        self._publish(self._envelope(kind, req_id, payload))

    def _envelope(self, kind: str, req_id: str, payload: dict[str, Any]) -> Envelope:
        body = {
            "v": 1,
            "type": kind,
            "agent_id": AGENT,
            "req_id": req_id,
            "ts": int(self._world.now),
            "payload": payload,
        }
        raw = orjson.dumps(body)
        return Envelope(type=kind, agent_id=AGENT, req_id=req_id, ts=int(self._world.now), payload=payload, raw=raw)

    def _publish(self, envelope: Envelope) -> None:
        """To every subscriber by itself: lost, twice, late (and so out of order), or well."""
        for stream in self.streams:
            if self._chance.hits(self._plan.event_lost):
                continue
            for _ in range(2 if self._chance.hits(self._plan.event_doubled) else 1):
                late_s = self._rng.uniform(0, 2) if self._chance.hits(self._plan.event_late) else self._soon()
                self._world.after(late_s, lambda stream=stream: stream.put(envelope))  # type: ignore[misc] # bound here

    def _soon(self) -> float:
        return self._rng.uniform(0.001, 0.02)


def _verdict(call: Invocation) -> dict[str, Any]:
    match call.tool_name:
        case "failing":
            return {"ok": False, "error": {"code": "tool_call_failed", "message": "it broke"}}
        case "reporting":
            return {"ok": True, "result_json": {"isError": True, "content": [{"type": "text", "text": "no"}]}}
        case _:
            return {"ok": True, "result_json": {"req_id": call.req_id}}


class Stream:
    """Doubles ``gateway_client.EventStream``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._came: asyncio.Queue[Envelope | Unavailable] = asyncio.Queue()

    def put(self, what: Envelope | Unavailable) -> None:
        if not self._client.host_is_gone():
            self._came.put_nowait(what)

    async def __aenter__(self) -> Self:
        await self._client.line.ask("subscribe", lambda: self._client.gateway.streams.append(self))
        return self

    async def __aexit__(self, *about: object) -> None:
        if self in self._client.gateway.streams:
            self._client.gateway.streams.remove(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Envelope]:
        batch = [await self._came.get()]
        while not self._came.empty():
            batch.append(self._came.get_nowait())
        for one in batch:
            if isinstance(one, Unavailable):
                raise one
        return batch  # type: ignore[return-value] # nothing else is left


class Client:
    """Doubles ``gateway_client.GatewayClient``, for one host."""

    def __init__(self, gateway: Gateway, line: Any, host: str, host_is_gone: Callable[[], bool]) -> None:
        self.gateway = gateway
        self.line = line
        self.host_is_gone = host_is_gone
        self._host = host
        self._idle = False

    async def invoke(
        self,
        call: Invocation,
        *,
        may_send: Callable[[], bool] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        await self.line.ask("connect", lambda: None)
        if may_send is not None and not may_send():
            raise NotSent("not_permitted")
        if self.host_is_gone():
            await self.line.ask("nothing", lambda: None)
        self._idle = True
        fault = await self._answered(self.gateway.write(self._host, call))
        if fault is not None:
            raise fault

    def invoke_at_once(
        self,
        call: Invocation,
        *,
        may_send: Callable[[], bool],
        told: Callable[[NotSent | MaybeSent | None], None],
        headers: Mapping[str, str] | None = None,
    ) -> asyncio.Future[Any] | None:
        """Every second time there is an idle connection."""
        self._idle = not self._idle
        if self._idle or self.host_is_gone():
            return None
        if not may_send():
            raise NotSent("not_permitted")
        answer = asyncio.get_running_loop().create_task(self._answered(self.gateway.write(self._host, call)))
        answer.add_done_callback(lambda _: None if answer.cancelled() else told(answer.result()))
        return answer

    async def _answered(self, write: Write) -> NotSent | MaybeSent | None:
        try:
            status = await self.line.ask("invoke", lambda: self.gateway.receive(write))
        except MaybeSent as fault:
            return fault
        if status == 404:
            write.proven = True
            return NotSent("agent_offline")
        return None if status == 202 else MaybeSent("send_failed")

    def begin_no_more(self) -> None:
        """Nothing waits for a place here."""

    async def agents(self) -> list[AgentInfo]:
        found = AgentInfo(agent_id=AGENT, status="online", last_seen_at=0, connected_at=0)
        told: list[AgentInfo] = await self.line.ask("agents", lambda: [found] if self.gateway.agent_online else [])
        return told

    async def cancel(self, req_id: str, agent_id: str, reason: str = "") -> None:
        if await self.line.ask("cancel", lambda: self.gateway.cancel(req_id)) == 404:
            raise NotSent("agent_offline")

    async def result(self, req_id: str) -> Envelope | None:
        self.gateway.asked(req_id)
        envelope: Envelope | None = await self.line.ask("result", lambda: self.gateway.result(req_id))
        return envelope

    async def glance(self, req_id: str) -> Envelope | None:
        return await self.result(req_id)

    async def tools(self, agent_id: str) -> list[ToolInfo]:
        hinted = {tool: {"idempotentHint": tool == "repeatable"} for tool in TOOLS}
        found = [ToolInfo(name=name, annotations=hints) for name, hints in hinted.items()]
        told: list[ToolInfo] = await self.line.ask("tools", lambda: found)
        return told

    def events(self, **filters: Any) -> Stream:
        return Stream(self)


def fault(what: str) -> Exception:
    """What the real client raises when the answer to ``what`` is lost."""
    match what:
        case "connect" | "subscribe":
            return NotSent("gateway_unavailable")
        case "invoke" | "cancel":
            return MaybeSent("connection_lost")
        case _:
            return Unavailable("connection_lost")


class WithoutResults(Client):
    """The same where the Gateway stores no results."""

    async def result(self, req_id: str) -> Envelope | None:
        await self.line.ask("result", lambda: None)
        raise ResultsUnsupported("results_unsupported")
