"""An agent whose tools are Python functions that a test registers.

Tests call this. It never starts a process and adds nothing to what the functions do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from daemon.dev.agent import Emit, LocalAgent, ToolFailure
from daemon.dev.envelope import Json

ToolFunction = Callable[[Json | None, Emit], Awaitable[Json]]


class ScriptedAgent(LocalAgent):
    """``agent.tool("slow", fn, annotations={...})``; ``fn(arguments, emit)`` returns a result_json or raises.

    ``arguments`` is None when the caller sent none or ``{}``, as on the wire. Whatever ``fn`` raises becomes RESULT
    ``ok:false`` with its message; for a tool that fails by itself return ``text_result("why", is_error=True)``.
    """

    def __init__(self, agent_id: str) -> None:
        super().__init__(agent_id)
        self._functions: dict[str, tuple[ToolFunction, Json]] = {}

    def tool(
        self,
        name: str,
        function: ToolFunction,
        *,
        annotations: Json | None = None,
        description: str = "",
        input_schema: Json | None = None,
    ) -> None:
        """Registers a tool (or replaces one of the same name); the Gateway reads the list when the agent connects."""
        listed: Json = {
            "name": name,
            "description": description,
            "input_schema": input_schema or {"type": "object"},
            "meta": {"server": "script", "original_tool": name},
        }
        if annotations is not None:
            listed["annotations"] = annotations
        self._functions[name] = (function, listed)

    def _own_tools(self) -> list[Json]:
        return [listed for _, listed in self._functions.values()]

    async def _call(self, tool_name: str, arguments: Json | None, emit: Emit) -> Json:
        if tool_name not in self._functions:
            raise ToolFailure(f"tool not found: {tool_name}")
        function, _ = self._functions[tool_name]
        return await function(arguments, emit)


def text_result(text: str, *, is_error: bool = False) -> Json:
    """A result_json in the shape of an MCP tool result."""
    result: Json = {"content": [{"text": text, "type": "text"}]}
    if is_error:
        result["isError"] = True
    return result
