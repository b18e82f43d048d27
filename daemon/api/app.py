"""The whole HTTP surface in one place. Adding an endpoint: one handler, one line here."""

from __future__ import annotations

from aiohttp import web

from daemon.api import bulk, decisions, ops, runs, stream, workflows
from daemon.api.context import CONTEXT, Context
from daemon.api.gate import gate

RUN = "/v1/workflow-runs/{run_id}"

API = [
    web.post("/v1/workflows", workflows.create),
    web.post("/v1/workflow-runs", runs.create),
    web.post("/v1/workflow-runs/bulk", bulk.decide),
    web.get(RUN, runs.get),
    web.post(RUN + "/resume", decisions.resume),
    web.post(RUN + "/cancel", decisions.cancel),
    web.post(RUN + "/approve", decisions.approve),
    web.post(RUN + "/reject", decisions.reject),
    web.post(RUN + "/skip", decisions.skip),
    web.post(RUN + "/mark-done", decisions.mark_done),
    web.get(RUN + "/commands/{command_id}", decisions.command),
    web.get(RUN + "/events", stream.events, allow_head=False),  # HEAD has no body, so no stream either
]

OPS = [
    web.get("/healthz", ops.healthz),
    web.get("/readyz", ops.readyz),
    web.get("/metrics", ops.metrics),
]


def make_app(context: Context, *, ops_only: bool = False) -> web.Application:
    """The application over everything it may use; ``ops_only``: what a runner answers."""
    app = web.Application(middlewares=[gate], client_max_size=context.settings.body_limit_bytes)
    app[CONTEXT] = context
    app.add_routes(OPS if ops_only else [*API, *OPS])
    return app
