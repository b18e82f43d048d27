"""Dispatch: carries effects to the Gateway and brings back what that proves. Decides nothing, remembers nothing.

Used by the host through ``ports.Dispatch``. The permit is asked with the connection in hand, immediately before the
bytes are written; what the client can prove to be unsent comes back as ``NotSent``, all else as ``SendUncertain``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar, assert_never

from daemon import telemetry
from daemon.machine.commands import Letter, NotSent, SendUncertain, Sent
from daemon.machine.effects import Cancel, Effect, Inquire, Invoke
from daemon.machine.wire import letter_of
from daemon.runtime.ports import Answer, Permit
from daemon.telemetry import log, trace_headers
from gateway_client import GatewayError, Gateways, Invocation, MaybeSent, ResultsUnsupported
from gateway_client import NotSent as ProvenUnsent

TRIES = 4
"""Of an inquiry or a cancel that finds the Gateway away; the grace or the deadline decides after that."""
PAUSE_S = 0.5

_T = TypeVar("_T")


class GatewayDispatch:
    """The dispatch to all Gateways. To drain it: ``begin_no_more``, ``finish``, and ``cut`` what has not."""

    def __init__(self, gateways: Gateways) -> None:
        self._gateways = gateways
        self._tasks: set[asyncio.Future[Any]] = set()
        """What is under way: a task each, or an invoke's answer alone where it was begun without one."""
        self._questions: set[asyncio.Task[None]] = set()
        """Those of the tasks that the next owner repeats: inquiries and cancels."""
        self._draining = False
        self._posts = 0
        """Invokes written and not answered yet."""
        self._only = next(iter(gateways.clients))
        """The Gateway of calls that are begun at once."""

    def submit(self, effect: Effect, *, permit: Permit, answer: Answer) -> None:
        """Carry the effect out; ``answer`` is called exactly once, at the end.

        An invoke that need not wait for a place or a connection is written here and now; all else has its own task.

        A cancel is answered at once: it has nothing to tell, and an agent that takes nothing any more may hold it open
        for ever. Its run must not stay resident for that.
        """
        if isinstance(effect, Invoke) and self._invoke_at_once(effect, permit, answer):
            return
        if isinstance(effect, Cancel):
            answer(None)
            answer = _to_nobody
        task = asyncio.get_running_loop().create_task(self._carry(effect, permit, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not isinstance(effect, Invoke):
            self._questions.add(task)
            task.add_done_callback(self._questions.discard)

    def begin_no_more(self) -> None:
        """From now on nothing is begun, which a drain says first.

        Inquiries and cancels end at once: the next owner owes them again, and a silent Gateway may hold them.
        """
        self._draining = True
        self._gateways.begin_no_more()
        for question in self._questions:
            question.cancel()

    async def finish(self, patience_s: float) -> int:
        """Let open calls finish; answers how many have not after ``patience_s``."""
        waiting = self._tasks - self._questions
        if waiting:
            _, waiting = await asyncio.wait(waiting, timeout=patience_s)
        return len(waiting)

    def cut(self) -> int:
        """Give up the calls that are still open; answers how many."""
        waiting = self._tasks - self._questions
        for task in waiting:
            task.cancel()
        return len(waiting)

    async def _carry(self, effect: Effect, permit: Permit, answer: Answer) -> None:
        said: Letter | None = None
        try:
            match effect:
                case Invoke():
                    said = await self._invoke(effect, permit)
                case Inquire():
                    said = await self._inquire(effect)
                case Cancel():
                    await self._cancel(effect)
                case _ as never:
                    assert_never(never)
        except Exception:  # noqa: BLE001 - an unforeseen fault proves nothing; the deadline decides
            log.exception("dispatch failed", effect=type(effect).__name__)
        finally:
            answer(said)

    def _invoke_at_once(self, effect: Invoke, permit: Permit, answer: Answer) -> bool:
        """Whether the call needed no task: it was written, or surely never will be."""
        started = time.monotonic()
        call: asyncio.Future[Any] | None = None
        self._count_post(1)

        def over(fault: ProvenUnsent | MaybeSent | None) -> None:
            if call is not None:
                self._tasks.discard(call)
            self._count_post(-1)
            answer(_told(effect, fault, self._only, started))

        try:
            call = self._gateways.invoke_at_once(
                _invocation(effect), may_send=partial(self._may_send, permit), told=over, headers=trace_headers()
            )
        except ProvenUnsent as fault:
            # Not from within the turn that asked: it is answered like everything else, later.
            asyncio.get_running_loop().call_soon(over, fault)
            return True
        except Exception as fault:  # noqa: BLE001 - an unforeseen fault proves nothing; the deadline decides
            self._count_post(-1)
            log.exception("dispatch failed", effect="Invoke", fault=str(fault))
            asyncio.get_running_loop().call_soon(answer, None)
            return True
        if call is None:
            self._count_post(-1)
            return False
        self._tasks.add(call)
        return True

    async def _invoke(self, effect: Invoke, permit: Permit) -> Letter:
        started = time.monotonic()
        fault: ProvenUnsent | MaybeSent | None = None
        gateway = ""
        self._count_post(1)
        try:
            gateway = await self._gateways.invoke(
                _invocation(effect), may_send=partial(self._may_send, permit), headers=trace_headers()
            )
        except (ProvenUnsent, MaybeSent) as known:
            fault = known
        finally:
            self._count_post(-1)
        return _told(effect, fault, gateway, started)

    def _count_post(self, by: int) -> None:
        """Set, not added to: a node that was killed within a process of several never takes its own back."""
        self._posts += by
        telemetry.open_posts.set(self._posts)

    def _may_send(self, permit: Permit) -> bool:
        return not self._draining and permit()

    async def _inquire(self, effect: Inquire) -> Letter | None:
        """What the store says. Nothing where there is no store (501): then the deadline decides, as it does anyway."""
        try:
            envelope = await self._patiently("inquire", lambda: self._gateways.result(effect.req_id))
        except ResultsUnsupported:
            return None
        if envelope is None or envelope.req_id != effect.req_id:
            return None
        return letter_of(envelope.type, effect.req_id, envelope.payload, envelope.raw)

    async def _cancel(self, effect: Cancel) -> None:
        await self._patiently("cancel", lambda: self._gateways.cancel(effect.req_id, effect.agent_id, effect.reason))

    async def _patiently(self, verb: str, call: Callable[[], Awaitable[_T]]) -> _T | None:
        """Both are harmless to repeat. None when the Gateway stays away or has nothing to say."""
        for attempt in range(TRIES):
            try:
                answer = await call()
            except ResultsUnsupported:
                telemetry.calls.labels(verb, "unsupported", "").inc()
                raise
            except GatewayError as fault:
                telemetry.calls.labels(verb, fault.code, fault.gateway).inc()
                if fault.code in ("agent_offline", "unauthorized", "invalid_request") or self._draining:
                    return None
                await asyncio.sleep(PAUSE_S * 2**attempt)
            else:
                telemetry.calls.labels(verb, "answered", "").inc()
                return answer
        return None


def _invocation(effect: Invoke) -> Invocation:
    return Invocation(
        req_id=effect.req_id,
        agent_id=effect.agent_id,
        tool_name=effect.tool_name,
        arguments=effect.arguments,
        timeout_ms=effect.timeout_ms,
        stream=effect.stream,
    )


def _told(effect: Invoke, fault: ProvenUnsent | MaybeSent | None, gateway: str, started: float) -> Letter:
    """What an invoke proved, counted and as a letter; ``gateway`` took it, unless ``fault`` names another."""
    outcome = "sent" if fault is None else fault.code
    telemetry.calls.labels("invoke", outcome, gateway if fault is None else fault.gateway).inc()
    telemetry.call_seconds.labels("invoke").observe(time.monotonic() - started)
    if fault is None:
        return Sent(req_id=effect.req_id)
    if isinstance(fault, ProvenUnsent):
        return NotSent(req_id=effect.req_id, tries=effect.tries, reason=fault.code, detail=str(fault))
    return SendUncertain(req_id=effect.req_id, reason=fault.code, detail=str(fault))


def _to_nobody(letter: Letter | None) -> None:
    """Where an answer goes that was given already."""
