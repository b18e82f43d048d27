"""The whole HTTP surface in one place. Adding an endpoint: one handler, one line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import orjson
from aiohttp import web

from daemon.api import answers as told
from daemon.api import audit, bulk, decisions, docs, ops, runs, service_tokens, stream, workflows
from daemon.api.context import CONTEXT, DOCUMENT, Context
from daemon.api.contract import Answer, Problems, Route, merged
from daemon.api.gate import EVENTS, gate
from daemon.api.openapi import describe
from daemon.api.refusals import REFUSALS, Refusals

FLOWS = "/v1/workflows"
FLOW = FLOWS + "/{workflow_id}"
RUNS = "/v1/workflow-runs"
RUN = RUNS + "/{run_id}"

NO_SUCH: Problems = {404: ("not_found",)}
ARCHIVED: Problems = {409: ("workflow_archived",)}
KEYED: Problems = {422: ("idempotency_key_reused",)}
SPEC: Problems = {422: ("invalid_spec",)}
RENEWAL = merged(NO_SUCH, ARCHIVED, SPEC, {412: ("version_conflict",)})
PAUSE: Problems = {409: ("not_paused", "pause_changed", "engine_interrupted", "conflict")}
WAITS = merged(NO_SUCH, KEYED, PAUSE, {409: ("not_awaiting_approval", "wrong_step")})
FAILED = merged(NO_SUCH, KEYED, PAUSE, {409: ("awaiting_approval", "not_failed", "note_required", "wrong_step")})
RESUMED = merged(NO_SUCH, KEYED, PAUSE, {409: ("confirm_required", "attempts_exhausted")})
ENDED = merged(NO_SUCH, KEYED, {409: ("engine_interrupted", "conflict")})

A_RUN = {200: Answer(says="The run.", model=told.Run)}
A_FLOW = {200: Answer(says="The workflow.", model=told.Workflow, headers={"ETag": "Its version."})}
DECIDED = A_RUN | {
    202: Answer(says="Not decided yet.", model=told.Run, headers={"Location": "The command: what becomes of it."})
}
STREAM = {
    200: Answer(says="Replay, `replay.done`, then live.", media="text/event-stream"),
    204: Answer(says="It was seen to its end."),
}
READY = {
    200: Answer(says="Fit to serve.", model=told.Readiness),
    503: Answer(says="Not fit, and why.", model=told.Readiness),
}

API = [
    Route("GET", FLOWS, workflows.listed, {200: Answer(says="A page.", model=told.WorkflowPage)}),
    Route("POST", FLOWS, workflows.create, A_FLOW, merged(KEYED, SPEC), role="operator"),
    Route("GET", FLOW, workflows.get, A_FLOW, NO_SUCH),
    Route("PUT", FLOW, workflows.renew, A_FLOW, RENEWAL, role="operator"),
    Route("DELETE", FLOW, workflows.archive, A_FLOW, NO_SUCH, role="operator"),
    Route("GET", RUNS, runs.listed, {200: Answer(says="A page.", model=told.RunPage)}),
    Route("POST", RUNS, runs.create, A_RUN, merged(KEYED, NO_SUCH, ARCHIVED), role="operator"),
    Route(
        "POST",
        RUNS + "/bulk",
        bulk.decide,
        {200: Answer(says="An item each.", model=told.Bulk)},
        KEYED,
        role="operator",
    ),
    Route("GET", RUN, runs.get, A_RUN, NO_SUCH),
    Route("POST", RUN + "/resume", decisions.resume, DECIDED, RESUMED, role="operator"),
    Route("POST", RUN + "/cancel", decisions.cancel, DECIDED, ENDED, role="operator"),
    Route("POST", RUN + "/approve", decisions.approve, DECIDED, WAITS, role="approver"),
    Route("POST", RUN + "/reject", decisions.reject, DECIDED, WAITS, role="approver"),
    Route("POST", RUN + "/skip", decisions.skip, DECIDED, FAILED, role="operator"),
    Route("POST", RUN + "/mark-done", decisions.mark_done, DECIDED, FAILED, role="operator"),
    Route(
        "GET",
        RUN + "/commands/{command_id}",
        decisions.command,
        {200: Answer(says="The command.", model=told.Command)},
        NO_SUCH,
    ),
    Route("GET", RUN + "/history", runs.history, {200: Answer(says="A page.", model=told.EventPage)}, NO_SUCH),
    Route("POST", RUN + "/events-ticket", runs.ticket, {200: Answer(says="A ticket.", model=told.Ticket)}, NO_SUCH),
    Route("GET", EVENTS, stream.events, STREAM, merged(NO_SUCH, {503: ("too_many_streams",)})),
]

API += [
    Route(
        "GET",
        "/v1/audit",
        audit.listed,
        {200: Answer(says="A page, or an export.", model=told.AuditPage, media="application/x-ndjson")},
    ),
]

TOKENS = "/v1/service-tokens"
TOKEN = TOKENS + "/{token_id}"
A_TOKEN = {200: Answer(says="The service token, without the token itself.", model=told.ServiceToken)}
MADE = {
    200: Answer(
        says="The service token, shown this once.", model=told.MadeServiceToken, headers={"Cache-Control": "no-store"}
    )
}
NOT_MADE: Problems = {
    403: ("not_by_service_token", "role_required", "scope_exceeds_roles"),
    409: ("too_many_tokens",),
}
SERVICE_TOKENS = [
    Route(
        "GET",
        TOKENS,
        service_tokens.listed,
        {200: Answer(says="A page.", model=told.ServiceTokenPage)},
        {403: ("role_required",)},
    ),
    Route("POST", TOKENS, service_tokens.create, MADE, NOT_MADE),
    Route("GET", TOKEN, service_tokens.get, A_TOKEN, NO_SUCH),
    Route("DELETE", TOKEN, service_tokens.revoke, A_TOKEN, merged(NO_SUCH, {403: ("not_by_service_token",)})),
]

OPS = [
    Route("GET", "/healthz", ops.healthz, {200: Answer(says="Alive.", model=told.Health)}, open=True),
    Route("GET", "/readyz", ops.readyz, READY, open=True),
    Route("GET", "/metrics", ops.metrics, {200: Answer(says="Prometheus' text.", media="text/plain")}, open=True),
]

DOCS = [
    Route("GET", "/openapi.json", docs.openapi, {200: Answer(says="This.", media="application/json")}, open=True),
    Route("GET", "/docs", docs.page, {200: Answer(says="This, to read.", media="text/html")}, open=True),
]
ROUTES = [*API, *SERVICE_TOKENS, *OPS, *DOCS]


@cache
def document() -> bytes:
    """``/openapi.json``."""
    return orjson.dumps(describe(ROUTES))


def make_app(context: Context, *, ops_only: bool = False) -> web.Application:
    """The application over everything it may use; ``ops_only``: what a runner answers."""
    app = web.Application(middlewares=[gate], client_max_size=context.settings.body_limit_bytes)
    app[CONTEXT] = context
    app[REFUSALS] = Refusals()
    app[DOCUMENT] = cast("Callable[[], bytes]", document)
    app.add_routes([route.bound() for route in (OPS if ops_only else ROUTES)])
    if not ops_only:
        app.router.add_route("*", RUNS + "/bulk", _not_allowed)  # it is no run's id, although it fits where one stands
    return app


async def _not_allowed(request: web.Request) -> web.Response:
    raise web.HTTPMethodNotAllowed(request.method, ("POST",))
