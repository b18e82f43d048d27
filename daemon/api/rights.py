"""Who may decide on a call, asked before anything is told of its run or of what was said. Used by ``decisions``.

By what stands in Postgres at that moment, and by the rule that the run's actor goes by (``who_may_not``). That one
decides, again, by what stands then: here somebody is only turned away at the door, so that neither the run's state nor
the tool's schema answers whoever has no say in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from daemon.api.context import ATTEMPT, CALLER, CONTEXT
from daemon.api.refusals import attempted
from daemon.api.runs import missing_run
from daemon.auth.access import ground_of
from daemon.errors import Forbidden
from daemon.machine.approval import who_may_not
from daemon.machine.commands import CommandKind
from daemon.machine.spec import StepSpec
from daemon.store.meant import About
from daemon.store.runs import RunHead

NOT_AN_APPROVER = "not_an_approver"


@dataclass(frozen=True, slots=True)
class Weighed:
    """The run that a word is about, the agent that its step calls, and why the caller may not decide, if so."""

    head: RunHead
    agent_id: str
    forbids: str | None


async def weigh(request: web.Request, words: Sequence[About]) -> list[Weighed | None]:
    """Of each word in turn; None where the caller sees no such run. Raises StoreUnavailable."""
    context, caller = request.app[CONTEXT], request[CALLER]
    meant = await context.meanings.of(words, by=caller)
    steps = [StepSpec.model_validate(orjson.loads(one.step)) if one is not None else None for one in meant]
    stands = await context.authority.read(sorted({step.tool_config.agent_id for step in steps if step is not None}))
    groups = tuple(sorted(caller.groups))
    found: list[Weighed | None] = []
    for one, step in zip(meant, steps, strict=True):
        if one is None or step is None:
            found.append(None)
            continue
        call, starter = step.tool_config, one.starter
        ground = ground_of(  # whether the run may make the call is not asked here
            stands.agents[call.agent_id],
            call.tool_name,
            user_id=starter.user_id,
            groups=(),
            admin=False,
            now_ms=stands.now_ms,
            policies=stands.policies,
        )
        forbids = who_may_not(step.terms, ground, starter=starter, by=caller.user_id, groups=groups)
        found.append(Weighed(one.head, call.agent_id, forbids))
    return found


async def require_right(request: web.Request, kind: CommandKind, word: About, said: Mapping[str, Any]) -> None:
    """Raises NotFound for whoever may not see the run, Forbidden for whoever may not decide on the step."""
    (weighed,) = await weigh(request, [word])
    if weighed is None:
        raise missing_run()
    if weighed.forbids is not None:
        request[ATTEMPT] = attempted(kind, word.run_id, said, agent_id=weighed.agent_id)
        raise Forbidden(weighed.forbids, code=NOT_AN_APPROVER)
