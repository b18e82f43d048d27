"""A case of somebody's approval over the real API: an agent of olga's that ann may use, runs of hers, words on them.

Each case has an agent of its own, so that many share a node. Asserts nothing by itself but that what is awaited comes.
"""

from __future__ import annotations

import hashlib
import json
from itertools import count
from typing import Any

from tests.api.harness import Answer, Stack, Tools, step
from tests.patience import PATIENCE_S, eventually

_NUMBERS = count(1)
READ_ONLY = {"readOnlyHint": True, "openWorldHint": False}
DESTRUCTIVE = {"readOnlyHint": False, "destructiveHint": True}
COUNTED = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1}},
    "required": ["n"],
    "additionalProperties": False,
}
"""The input schema of ``counted``."""


class Case:
    """olga owns ``agent_id``, ann may use it, ada approve its calls. Tools: as ``Tools``, and counted, reads, wipes."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.agent_id = f"case-{next(_NUMBERS)}"
        self.tools = Tools(self.agent_id)
        self.tools.tool("counted", self.tools._timed(self._counted), input_schema=COUNTED)
        self.tools.tool("reads", self.tools._ok, annotations=READ_ONLY)
        self.tools.tool("wipes", self.tools._ok, annotations=DESTRUCTIVE)
        self.given: list[Any] = []
        """The arguments with which ``counted`` ran."""
        self.grants: dict[tuple[str, str], str] = {}

    async def _counted(self, arguments: Any, emit: Any) -> Any:
        self.given.append(arguments)
        return await self.tools._ok(arguments, emit)

    async def open(self) -> Case:
        await self.stack.gateway.connect(self.tools)
        await self.ok("PUT", f"/v1/bridge/agents/{self.agent_id}/binding", "root", {"owner": "olga"})
        await self.grant("ann", "use")
        await self.grant("ada", "approve")
        return self

    async def ok(self, method: str, path: str, sub: str, body: Any = None) -> Any:
        answer = await self.stack.ask(method, path, sub=sub, **({} if body is None else {"json": body}))
        assert answer.status == 200, answer.body
        return answer.body

    # --- who may do what ---------------------------------------------------------------------------------------------

    async def grant(self, sub: str, permission: str, **more: Any) -> None:
        body = {"subject": f"user:{sub}", "permission": permission, **more}
        made = await self.ok("POST", f"/v1/bridge/agents/{self.agent_id}/grants", "olga", body)
        self.grants[sub, permission] = made["grant_id"]

    async def revoke(self, sub: str, permission: str) -> None:
        grant_id = self.grants.pop((sub, permission))
        await self.ok("DELETE", f"/v1/bridge/agents/{self.agent_id}/grants/{grant_id}", "olga")

    async def policy(self, tools: str = "*", **said: Any) -> str:
        body = {"agents": self.agent_id, "tools": tools, **said}
        policy_id: str = (await self.ok("POST", "/v1/tool-policies", "root", body))["policy_id"]
        return policy_id

    async def hold(self, sub: str = "olga", **of: str) -> str:
        """Of its agent, unless told otherwise."""
        body = {"scope": "agent", "target": self.agent_id, "reason": "it smokes"}
        if of:
            body = {"reason": "it smokes", **of}
        hold_id: str = (await self.ok("POST", "/v1/holds", sub, body))["hold_id"]
        return hold_id

    async def release(self, hold_id: str, sub: str = "olga") -> None:
        await self.ok("POST", f"/v1/holds/{hold_id}/release", sub)

    # --- runs --------------------------------------------------------------------------------------------------------

    def manual(self, tool: str = "counted", step_id: str = "a", *, on_error: str = "stop", **terms: Any) -> Any:
        """A step that waits for approval."""
        more: dict[str, Any] = {"approval": terms} if terms else {}
        return self.auto(tool, step_id, approval_policy="manual", on_error=on_error, **more)

    def auto(self, tool: str = "counted", step_id: str = "a", **more: Any) -> Any:
        arguments = {"arguments": {"n": 1}} if tool == "counted" else {}
        return step(step_id, tool, agent=self.agent_id, **arguments, **more)

    async def run(self, *steps: Any) -> str:
        return await self.stack.start(*steps, sub="ann")

    async def waiting(self, *steps: Any) -> tuple[str, Any]:
        """A run that waits for approval of its first step, and that approval."""
        run_id = await self.run(*(steps or (self.manual(),)))
        run = await self.until(run_id, "paused", "awaiting_approval")
        return run_id, run["steps_state"]["a"]["approval"]

    async def until(self, run_id: str, status: str, reason: str | None = None, *, sub: str = "ann") -> Any:
        """The run, once it is this."""
        seen: Any = None

        async def there() -> Any:
            nonlocal seen
            seen = await self.stack.run(run_id, sub=sub)
            return seen if (seen["status"], seen["paused_reason"]) == (status, reason) else None

        try:
            return await eventually(there, within_s=PATIENCE_S, what=f"{run_id} being {status} {reason}")
        except AssertionError:
            raise AssertionError(f"not {status} {reason}, but {seen}") from None

    async def passive(self, run_id: str) -> None:
        """Wait until no node holds it."""
        query = "SELECT FROM workflow_runs WHERE id = $1 AND owner IS NULL"
        await eventually(lambda: self._found(query, run_id), what="the run being let go")

    async def _found(self, query: str, *arguments: Any) -> bool:
        return bool(await self.stack.sql(query, *arguments))

    async def say(self, run_id: str, verb: str, sub: str, **said: Any) -> Answer:
        return await self.stack.decide(run_id, verb, {"step_id": "a", **said} if verb != "resume" else said, sub=sub)

    async def events(self, run_id: str, kind: str) -> list[Any]:
        """The payloads of one type."""
        items = (await self.ok("GET", f"/v1/workflow-runs/{run_id}/history?limit=1000", "ann"))["items"]
        return [item["payload"] for item in items if item["event_type"] == kind]

    @property
    def ran(self) -> list[str]:
        """The tools of it that ran, in their order."""
        return [interval.tool for interval in self.tools.intervals]


def digest_of(approval: Any, arguments: Any) -> str:
    """SHA-256 over RFC 8785's canonical JSON, which of small integers and plain texts is this."""
    call = {name: approval[name] for name in ("agent_id", "tool_name", "schema_hash", "timeout_ms")}
    text = json.dumps(call | {"arguments": arguments}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def outcome(answer: Answer) -> tuple[int, str | None]:
    """Status, and code of a refusal."""
    return answer.status, answer.body.get("code") if answer.status >= 400 else None
