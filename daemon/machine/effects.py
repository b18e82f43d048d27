"""What a run owes the world, and when to look at it again. Both are read off the state, never stored.

``Invoke`` is owed to the epoch that intended it, and only while nothing came back: to any later epoch the same state
owes ``Inquire``, because nobody knows whether the call left. The caller remembers what it asked for under its claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from daemon.machine.commands import Epoch, ReqId
from daemon.machine.state import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoke:
    """Call the tool. Sent at most once for each ``(req_id, tries)``, ever."""

    req_id: ReqId
    tries: int
    """How often this attempt was proven unsent before; a ``NotSent`` repeats it."""
    agent_id: str
    tool_name: str
    arguments: Mapping[str, Any]
    timeout_ms: int
    """For the agent, a little later than our own deadline: ours decides, the agent's is the backstop."""
    stream: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquire:
    """Ask the Gateway's result store what became of the call."""

    req_id: ReqId


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Ask the agent to stop the call."""

    req_id: ReqId
    agent_id: str
    reason: str


Effect: TypeAlias = Invoke | Inquire | Cancel

AGENT_BACKSTOP_MS = 5_000


def effects(run: Run, epoch: Epoch) -> tuple[Effect, ...]:
    """Everything owed by the holder of ``epoch``; repeating what was asked already is the caller's to avoid."""
    attempt = run.attempt
    if attempt is None or not attempt.in_flight:
        return ()
    config = run.spec.steps[attempt.step_index].tool_config
    if attempt.canceling is not None:
        cancel = Cancel(req_id=attempt.req_id, agent_id=config.agent_id, reason=attempt.canceling)
        return (Inquire(req_id=attempt.req_id), cancel)
    if attempt.epoch != epoch:
        return (Inquire(req_id=attempt.req_id),)
    if attempt.state == "intent":
        invoke = Invoke(
            req_id=attempt.req_id,
            tries=attempt.tries,
            agent_id=config.agent_id,
            tool_name=config.tool_name,
            arguments=config.arguments,
            timeout_ms=config.timeout_ms + AGENT_BACKSTOP_MS,
            stream=config.stream,
        )
        return (invoke,)
    return ()


def deadline(run: Run) -> int | None:
    """When (epoch ms) ``settle`` may have something new to say though nobody spoke; None: never."""
    attempt = run.attempt
    if attempt is None or attempt.ended_at is not None:
        return None
    if attempt.state == "unsent":
        return attempt.retry_at if run.status == "running" else None
    if attempt.canceling is not None:
        return attempt.cancel_until
    if attempt.state == "acked":
        return attempt.deadline_at
    return min(attempt.ack_by, attempt.deadline_at)
