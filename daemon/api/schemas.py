"""Edited arguments against their tool's own input schema, which the agent is asked for at that moment.

A schema is an agent's word, so it may not reach out: references to elsewhere are refused, and its patterns are run by
an engine that backtracks only so far.
"""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from aiohttp import web

from daemon.api.context import CONTEXT
from daemon.api.shapes import steps_of
from daemon.errors import Conflict
from daemon.machine.spec import MAX_FAULTS, escape
from daemon.store.runs import RunView

BACKTRACKS = 100_000


async def schema_faults(
    request: web.Request, view: RunView, step_id: str, arguments: dict[str, Any]
) -> list[tuple[str, str]]:
    """What the tool's schema finds wrong: (JSON pointer into the body, why) of each.

    Raises Conflict where the agent is offline, has no such tool, or has a schema that cannot be used; WorldError when
    no Gateway says. A step that the run does not have has no faults: it is refused for its name.
    """
    step = next((one for one in steps_of(view.snapshot) if one.id == step_id), None)
    if step is None:
        return []
    offered = await request.app[CONTEXT].reach.tools(step.agent_id)
    tool = next((one for one in offered if one.name == step.tool_name), None)
    if tool is None:
        raise Conflict(f"Agent {step.agent_id!r} offers no tool {step.tool_name!r} now.", code="tool_unknown")
    return faults_of_arguments(tool.input_schema, arguments)


def faults_of_arguments(schema: dict[str, Any], arguments: dict[str, Any]) -> list[tuple[str, str]]:
    """As ``schema_faults``, by a schema at hand."""
    try:
        options = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)
        validator = jsonschema_rs.validator_for(schema, offline=True, pattern_options=options)
        faults = list(zip(validator.iter_errors(arguments), range(MAX_FAULTS), strict=False))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as fault:
        raise Conflict(f"The tool's input schema cannot be used: {fault}", code="schema_unusable") from None
    return [
        ("/arguments" + "".join(f"/{escape(part)}" for part in fault.instance_path), fault.message)
        for fault, _ in faults
    ]
