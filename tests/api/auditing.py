"""The audit as its readers see it."""

from __future__ import annotations

import json
from typing import Any

from tests.api.harness import Stack, step
from tests.patience import eventually

AUDIT = "/v1/audit"


async def lines(stack: Stack, query: str = "", *, sub: str = "root") -> list[dict[str, Any]]:
    """A page of the audit, oldest first."""
    found = await stack.ask("GET", AUDIT + query, sub=sub)
    assert found.status == 200, found.body
    items: list[dict[str, Any]] = found.body["items"]
    return items[::-1]


async def exported(stack: Stack, query: str = "", *, sub: str = "root") -> list[dict[str, Any]]:
    """All of the audit, newest first."""
    answer = await stack.ask("GET", AUDIT + query, sub=sub, headers={"Accept": "application/x-ndjson"})
    assert answer.status == 200, answer.body
    return [json.loads(line) for line in answer.body.splitlines()]


async def paused(stack: Stack, *, sub: str = "ann") -> str:
    run_id = await stack.start(step("a", approval_policy="manual"), sub=sub)
    await eventually(lambda: _is_paused(stack, run_id, sub), what="the pause")
    return run_id


async def _is_paused(stack: Stack, run_id: str, sub: str) -> bool:
    return bool((await stack.run(run_id, sub=sub))["status"] == "paused")
