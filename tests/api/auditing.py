"""The audit as its readers see it, and callers whose roles no token of these tests says."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from daemon.api import gate
from daemon.auth.caller import Caller, Role
from tests.api.harness import Stack, step
from tests.patience import eventually

AUDIT = "/v1/audit"
ROLES: dict[str, frozenset[Role]] = {"root": frozenset({"admin"}), "vera": frozenset({"viewer"})}


def introduce(monkeypatch: pytest.MonkeyPatch) -> None:
    """root is an admin, vera a viewer, others are plain users."""
    real = gate._caller

    def known(caller: Caller) -> Caller:
        return replace(caller, roles=ROLES.get(caller.user_id, caller.roles))

    async def later(found: Any) -> Caller:
        return known(await found)

    def caller(request: web.Request) -> Any:
        found = real(request)
        return later(found) if inspect.isawaitable(found) else known(found)

    monkeypatch.setattr(gate, "_caller", caller)


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
