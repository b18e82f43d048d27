"""``runwarden dev``: the stack in the foreground until it is told to end, and the panel that says it is ready.

Called by ``cli`` only. What is to be copied stands on lines of its own, without a frame, and last, near the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from daemon.dev.agent import ECHO
from daemon.dev.example import demo_mcp_servers, demo_repository
from daemon.dev.mcp_agent import load_mcp_config
from daemon.dev.stack import DevStack
from daemon.dev.story import clean, hints

WIDTH = 100
_SED = r"""sed 's/.*"{0}":"\([^"]*\)".*/\1/'"""


async def keep_running(data: Path, *, mcp_config: Path | None, port: int | None, weather: Sequence[str] = ()) -> None:
    """Runs until cancelled. ``mcp_config`` None means the demo's MCP servers. Raises SetupError as ``DevStack``."""
    if mcp_config is not None:
        servers = load_mcp_config(mcp_config)
    else:
        servers = demo_mcp_servers(demo_repository(Path.cwd(), data), data / "out")
    async with DevStack(data, servers, port=port, weather=weather) as stack:
        click.echo("\n".join(panel(stack)))
        await stack.ended()


def panel(stack: DevStack) -> Iterator[str]:
    """The lines that tell how to use a stack."""
    yield click.style("─" * WIDTH, dim=True)
    yield f"{_label('Agent')}{stack.agent_id}, {len(stack.tools)} tools; data in {stack.data}"
    widest = max(len(tool["name"]) for tool in stack.tools)
    for tool in stack.tools:
        yield f"  {clean(tool['name']):<{widest}}  {click.style(hints(tool), dim=True)}"
    for name in stack.silent:
        warning = f"{name} offers no tools; see the warning above and {stack.data / 'mcp'}"
        yield f"  {click.style(warning, fg='yellow')}"
    yield f"{_label('API')}{stack.api_url}   (also /readyz, /metrics)"
    yield f"{_label('Weather')} {', '.join(stack.weather) or 'fair'}; other weather for the Gateway (docs/weather.md):"
    token = stack.data / "gateway-token"
    yield f'curl -X PUT -H "X-Internal-Token: $(cat {token})" {stack.gateway_url}/dev/weather -d late_result'
    yield f"{_label('Token')}user dev, valid for 30 days"
    yield f"export TOKEN={stack.token}"
    yield _label("Try it").rstrip()
    yield from example(stack)
    yield f"{click.style('─' * WIDTH, dim=True)}\nCtrl-C ends everything; the data stay."


def example(stack: DevStack) -> Iterator[str]:
    """Shell lines that store a workflow, run it and follow it; for a shell that has TOKEN."""
    call = {"agent_id": stack.agent_id, "tool_name": ECHO, "arguments": {"lines": ["hello", "world"], "sleep_ms": 500}}
    spec = {"steps": [{"id": "hi", "name": "Say hi", "tool_config": call}]}
    workflow = json.dumps({"title": "Hello", "spec": spec}, separators=(",", ":"))
    yield f'api() {{ curl -sSN -H "Authorization: Bearer $TOKEN" {stack.api_url}/v1/"$@"; }}'
    yield f"workflow=$(api workflows -d '{workflow}' | {_SED.format('workflow_id')})"
    yield f"run=$(api workflow-runs -d '{{\"workflow_id\":\"'$workflow'\"}}' | {_SED.format('run_id')})"
    yield "api workflow-runs/$run/events"


def _label(text: str) -> str:
    return click.style(f"{text:<7}", bold=True)
