"""A server that speaks the contract of the API's lists, workflows and idempotency, and misbehaves when told to.

It keeps what the commands sent, so that a test can see each byte of a conversation; a real node cannot be made to lose
an answer at a wish.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

AT = "2026-11-26T08:00:00.000Z"
RUN = {
    "run_id": "01990000-0000-7000-8000-000000000001",
    "workflow_id": "01990000-0000-7000-8000-0000000000aa",
    "title": "Tidy\tup\x1b[2J",
    "status": "paused",
    "paused_reason": "awaiting_approval",
    "current_step_index": 1,
    "steps": 3,
    "error_code": None,
    "created_at": AT,
    "updated_at": AT,
    "finished_at": None,
}


@dataclass(slots=True)
class StandIn:
    """The server's memory and its moods."""

    lose_answers: int = 0
    """So many POSTs are carried out and their connections cut before the answer."""
    verdicts: list[str | None] = field(default_factory=list)
    """What a command's URL answers, in turn; without any, a decision's answer names no URL."""
    queries: list[list[tuple[str, str]]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Workflows by id, and runs by idempotency key."""

    async def runs(self, request: web.Request) -> web.Response:
        self.queries.append(list(request.query.items()))
        return web.json_response({"items": [RUN], "next_cursor": "abc"})

    async def workflows(self, request: web.Request) -> web.Response:
        self.queries.append(list(request.query.items()))
        return web.json_response({"items": list(self.made.values()), "next_cursor": None})

    async def workflow(self, request: web.Request) -> web.Response:
        found = self.made.get(request.match_info["id"])
        return web.json_response(found) if found else _problem(404, "not_found")

    async def put(self, request: web.Request) -> web.Response:
        workflow_id, body = request.match_info["id"], await request.json()
        version = self.made.get(workflow_id, {"version": 0})["version"] + 1
        shape = {"workflow_id": workflow_id, "version": version, "created_at": AT, "updated_at": AT}
        self.made[workflow_id] = {"description": None, "archived_at": None} | body | shape
        return web.json_response(self.made[workflow_id])

    async def start(self, request: web.Request) -> web.Response:
        key = request.headers["Idempotency-Key"]
        self.keys.append(key)
        self.made.setdefault(key, {"run_id": f"run-{len(self.made)}"})
        if self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(self.made[key])

    async def service_token(self, request: web.Request) -> web.Response:
        """As ``start``, but what was made is told once."""
        key = request.headers["Idempotency-Key"]
        self.keys.append(key)
        if key in self.made:
            return _problem(409, "token_already_made")
        self.made[key] = {"token": f"rwt_{len(self.made)}", "token_id": f"token-{len(self.made)}"}
        if self.lose_answers:
            self.lose_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(self.made[key])

    async def approve(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers["Idempotency-Key"])
        where = {"Location": "/v1/commands/1"} if self.verdicts else {}
        return web.json_response(RUN, status=202, headers=where)

    async def command(self, request: web.Request) -> web.Response:
        verdict = self.verdicts.pop(0)
        return web.json_response({"verdict": verdict, "code": "pause_changed", "message": "Somebody was faster."})

    async def run(self, request: web.Request) -> web.Response:
        return web.json_response(RUN)

    def server(self) -> TestServer:
        """Not started yet."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/workflow-runs", self.runs),
                web.post("/v1/workflow-runs", self.start),
                web.get("/v1/workflow-runs/{id}", self.run),
                web.post("/v1/workflow-runs/{id}/approve", self.approve),
                web.get("/v1/commands/1", self.command),
                web.post("/v1/service-tokens", self.service_token),
                web.get("/v1/workflows", self.workflows),
                web.get("/v1/workflows/{id}", self.workflow),
                web.put("/v1/workflows/{id}", self.put),
            ]
        )
        return TestServer(app)


def _problem(status: int, code: str) -> web.Response:
    body = {"code": code, "detail": "There is none."}
    return web.json_response(body, status=status, content_type="application/problem+json")
