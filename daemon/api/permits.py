"""What callers may not do with the agents of a workflow: told as warnings when it is saved, refused when it is run.

A look at a moment. Before every call the runner looks again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web

from daemon.api.context import CALLER, CONTEXT
from daemon.api.shapes import StepTold, steps_of
from daemon.auth.access import Agent, Policy, ground_of, traits_of
from daemon.auth.caller import Caller
from daemon.errors import Forbidden
from daemon.machine.ground import Barred
from daemon.store.runs import Permit

UNREACHABLE = (
    "Nobody could approve this step: only whoever starts the run is asked, and its terms want others. Name approvers."
)


TOO_FEW = (
    "Nobody could approve this step: too few are left of those whom it names. With forbid_self, neither whoever starts"
    " the run counts, nor who made the service token that you save this with. Name others."
)


class Unauthorized(Forbidden):
    """You may not use an agent of this workflow."""

    code = "agent_unauthorized"

    def __init__(self, agent_id: str, detail: str) -> None:
        self.agent_id = agent_id
        super().__init__(detail)


def permit(caller: Caller) -> Permit:
    """Refuses a run with a step that the caller may not have called: raises Unauthorized for the first of them."""

    def ask(spec: str, agents: Mapping[str, Agent]) -> None:
        for step, barred in _barred(steps_of(spec), agents, caller, ()):
            raise Unauthorized(step.agent_id, f"Step {step.id!r}: {barred.message}")

    return ask


async def warnings(request: web.Request, spec: str) -> list[dict[str, Any]]:
    """What of a spec (JSON text) the caller could not run now. Raises StoreUnavailable."""
    context, caller, steps = request.app[CONTEXT], request[CALLER], steps_of(spec)
    agents = await context.entitlements.of({step.agent_id for step in steps}, caller.subjects)
    policies = await context.entitlements.policies()
    starters = frozenset(f"user:{one}" for one in (caller.user_id, caller.token_maker) if one is not None)
    barred = [(step, *why) for step, why in _barred(steps, agents, caller, policies)]
    alone = [step for step in steps if step.alone and not _asks_others(step, policies)]
    too_few = [step for step in steps if step.too_few(starters)]
    unreachable = [(step, "approval_unreachable", UNREACHABLE) for step in alone]
    unreachable += [(step, "approval_unreachable", TOO_FEW) for step in too_few]
    return [
        {"step_id": step.id, "agent_id": step.agent_id, "code": code, "message": message}
        for step, code, message in barred + unreachable
    ]


def _asks_others(step: StepTold, policies: Iterable[Policy]) -> bool:
    """Whether policy asks the agent's owner and others, whatever the step says."""
    return traits_of(None, step.agent_id, step.tool_name, policies).requires_approval


def _barred(
    steps: Iterable[StepTold], agents: Mapping[str, Agent], caller: Caller, policies: Iterable[Policy]
) -> Iterable[tuple[StepTold, Barred]]:
    """The steps that the caller may not have called, and why; each pair of agent and tool is looked at once."""
    now_ms = time.time_ns() // 1_000_000
    known: dict[tuple[str, str], Barred | None] = {}
    for step in steps:
        call = (step.agent_id, step.tool_name)
        if call not in known:
            known[call] = ground_of(
                agents[step.agent_id],
                step.tool_name,
                user_id=caller.user_id,
                groups=caller.groups,
                admin=caller.admin,
                now_ms=now_ms,
                policies=policies,
            ).barred
        barred = known[call]
        if barred is not None:
            yield step, barred
