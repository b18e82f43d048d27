"""Edited arguments against their tool's own input schema, which the agent is asked for at that moment.

It is validated in a process of its own (``schema_check``), a few at a time, each with a deadline.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import orjson
from aiohttp import web

from daemon.api.context import CONTEXT
from daemon.api.shapes import StepTold, steps_of
from daemon.errors import Conflict
from daemon.faults import escape
from daemon.store.runs import RunView

DEADLINE_S = 5.0
_AT_ONCE = asyncio.Semaphore(2)


async def schema_faults(
    request: web.Request, view: RunView, step_id: str, arguments: dict[str, Any]
) -> list[tuple[str, str]]:
    """What the tool's schema finds wrong: (JSON pointer into the body, why) of each.

    Raises Conflict where the agent is offline, has no such tool, or has a schema that cannot be used; WorldError when
    no Gateway says. Where nothing can be edited there are no faults: the word is refused for that.
    """
    step = _editable(view, step_id)
    if step is None:
        return []
    offered = await request.app[CONTEXT].reach.tools(step.agent_id)
    tool = next((one for one in offered if one.name == step.tool_name), None)
    if tool is None:
        raise Conflict(f"Agent {step.agent_id!r} offers no tool {step.tool_name!r} now.", code="tool_unknown")
    return await faults_of_arguments(tool.input_schema, arguments)


def _editable(view: RunView, step_id: str) -> StepTold | None:
    """The step, if its call waits for approval just now and may be edited."""
    head, steps = view.head, steps_of(view.snapshot)
    if head.paused_reason != "awaiting_approval" or head.current_step_index >= len(steps):
        return None
    step = steps[head.current_step_index]
    return step if step.id == step_id and step.editable else None


async def faults_of_arguments(schema: dict[str, Any], arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """As ``schema_faults``, by a schema at hand."""
    async with _AT_ONCE:
        told = await _checked(orjson.dumps([schema, arguments]))
    if isinstance(told, dict):
        raise Conflict(f"The tool's input schema cannot be used: {told['unusable']}", code="schema_unusable")
    return [("/arguments" + "".join(f"/{escape(part)}" for part in path), message) for path, message in told]


async def _checked(question: bytes) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "daemon.api.schema_check",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            answer, _ = await process.communicate(question)
    except TimeoutError:
        answer = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return orjson.loads(answer) if answer else {"unusable": "it takes too long to validate by"}
