"""The whole HTTP surface in one place. Adding an endpoint: one handler, one line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

import orjson
from aiohttp import web

from daemon.api import (
    agent_tokens,
    agents,
    approvals,
    audit,
    bulk,
    decisions,
    docs,
    grants,
    holds,
    ops,
    policies,
    runs,
    service_tokens,
    stream,
    workflows,
)
from daemon.api import answers as told
from daemon.api import answers_of_authority as about
from daemon.api.context import CONTEXT, DOCUMENT, Context
from daemon.api.contract import Answer, Problems, Route, go_on, merged
from daemon.api.gate import EVENTS, gate
from daemon.api.pace import PACE, Pace
from daemon.api.refusals import REFUSALS, Refusals

FLOWS = "/v1/workflows"
FLOW = FLOWS + "/{workflow_id}"
RUNS = "/v1/workflow-runs"
RUN = RUNS + "/{run_id}"

NO_SUCH: Problems = {404: ("not_found",)}
ARCHIVED: Problems = {409: ("workflow_archived",)}
KEYED: Problems = {422: ("idempotency_key_reused",)}
USE: Problems = {403: ("agent_unauthorized",)}
SPEC: Problems = {422: ("invalid_spec",)}
RENEWAL = merged(NO_SUCH, ARCHIVED, SPEC, {412: ("version_conflict",)})
PAUSE: Problems = {409: ("not_paused", "pause_changed", "engine_interrupted", "conflict")}
ANOTHERS: Problems = {403: ("not_your_run",)}
WAITS = merged(
    NO_SUCH,
    KEYED,
    PAUSE,
    {403: ("not_an_approver", "not_your_run")},
    {409: ("not_awaiting_approval", "wrong_step", "digest_mismatch", "digest_required", "approval_expired")},
)
EDITED = merged(
    WAITS,
    {409: ("edit_not_allowed", "arguments_required", "agent_offline", "tool_unknown", "schema_unusable")},
    {422: ("invalid_arguments",), 503: ("gateway_unavailable",)},
)
FAILED = merged(
    NO_SUCH, KEYED, PAUSE, ANOTHERS, {409: ("awaiting_approval", "not_failed", "note_required", "wrong_step")}
)
RESUMED = merged(
    NO_SUCH,
    KEYED,
    PAUSE,
    {403: ("not_an_approver", "not_your_run")},
    {409: ("confirm_required", "attempts_exhausted", "use_approve", "held", "approval_expired")},
)
ENDED = merged(NO_SUCH, KEYED, ANOTHERS, {409: ("engine_interrupted", "conflict")})

A_RUN = {200: Answer(says="The run.", model=told.Run)}
A_FLOW = {200: Answer(says="The workflow.", model=told.Workflow, headers={"ETag": "Its version."})}
SAVED = {200: Answer(says="The workflow.", model=told.SavedWorkflow, headers={"ETag": "Its version."})}
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
    Route("POST", FLOWS, workflows.create, SAVED, merged(KEYED, SPEC), role="operator"),
    Route("GET", FLOW, workflows.get, A_FLOW, NO_SUCH),
    Route("PUT", FLOW, workflows.renew, SAVED, RENEWAL, role="operator"),
    Route("DELETE", FLOW, workflows.archive, A_FLOW, NO_SUCH, role="operator"),
    Route("GET", RUNS, runs.listed, {200: Answer(says="A page.", model=told.RunPage)}),
    Route("POST", RUNS, runs.create, A_RUN, merged(KEYED, NO_SUCH, ARCHIVED, USE), role="operator"),
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
    Route("POST", RUN + "/edit", decisions.edit, DECIDED, EDITED, role="approver"),
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
        {200: Answer(says="A page, or an export.", model=about.AuditPage, media="application/x-ndjson")},
    ),
]

TOKENS = "/v1/service-tokens"
TOKEN = TOKENS + "/{token_id}"
A_TOKEN = {200: Answer(says="The service token, without the token itself.", model=about.ServiceToken)}
MADE = {
    200: Answer(
        says="The service token, shown this once.", model=about.MadeServiceToken, headers={"Cache-Control": "no-store"}
    )
}
NOT_MADE: Problems = {
    403: ("not_by_service_token", "role_required", "scope_exceeds_roles"),
    409: ("too_many_tokens", "token_already_made"),
}
SERVICE_TOKENS = [
    Route(
        "GET",
        TOKENS,
        service_tokens.listed,
        {200: Answer(says="A page.", model=about.ServiceTokenPage)},
        {403: ("role_required",)},
    ),
    Route("POST", TOKENS, service_tokens.create, MADE, merged(KEYED, NOT_MADE)),
    Route("GET", TOKEN, service_tokens.get, A_TOKEN, NO_SUCH),
    Route("DELETE", TOKEN, service_tokens.revoke, A_TOKEN, merged(NO_SUCH, {403: ("not_by_service_token",)})),
]

INBOX = [
    Route(
        "GET",
        "/v1/approvals",
        approvals.listed,
        {200: Answer(says="A page.", model=told.ApprovalPage)},
        role="approver",
    ),
    Route(
        "POST",
        "/v1/approvals/decide",
        approvals.decide,
        {200: Answer(says="An item each.", model=told.Decided)},
        KEYED,
        role="approver",
    ),
]

AGENTS = "/v1/bridge/agents"
AGENT = AGENTS + "/{agent_id}"
GRANT = AGENT + "/grants/{grant_id}"
POLICIES = "/v1/tool-policies"
HOLDS = "/v1/holds"
OWNERS = merged(NO_SUCH, {403: ("not_the_owner",)})
MIRRORED: Problems = {503: ("gateway_redis_unavailable",)}
LIVE = merged(NO_SUCH, {409: ("agent_offline",), 503: ("gateway_unavailable",)})
GRANTED = merged(OWNERS, {409: ("agent_unbound", "agent_taken", "too_many")})
TAKEN = merged(OWNERS, MIRRORED, {409: ("agent_taken",)})
MINTED = merged(MIRRORED, {409: ("agent_taken", "agent_tokens_off", "too_many_agents"), 503: ("gateway_unavailable",)})
A_BINDING = {200: Answer(says="Whose it is now.", model=about.Binding)}
A_GRANT = {200: Answer(says="The grant.", model=about.Grant)}
A_POLICY = {200: Answer(says="The policy.", model=about.Policy)}
A_HOLD = {200: Answer(says="The hold as it stands.", model=about.Hold)}
SAID: Problems = {409: ("policy_exists", "too_many")}

AUTHORITY = [
    Route("GET", AGENTS, agents.listed, {200: Answer(says="A page.", model=about.AgentPage)}),
    Route("GET", AGENT, agents.get, {200: Answer(says="The agent.", model=about.Agent)}, NO_SUCH),
    Route("GET", AGENT + "/tools", agents.tools, {200: Answer(says="Its tools.", model=about.ToolList)}, LIVE),
    Route("PUT", AGENT + "/binding", agents.bind, A_BINDING, TAKEN, role="operator", paced=True),
    Route("DELETE", AGENT + "/binding", agents.unbind, A_BINDING, merged(NO_SUCH, MIRRORED), role="admin"),
    Route("GET", AGENT + "/grants", grants.listed, {200: Answer(says="All.", model=about.GrantList)}, OWNERS),
    Route("POST", AGENT + "/grants", grants.add, A_GRANT, GRANTED, role="operator", paced=True),
    Route("DELETE", GRANT, grants.revoke, A_GRANT, GRANTED, role="operator", paced=True),
    Route(
        "POST",
        "/v1/bridge/agent-token",
        agent_tokens.mint,
        {200: Answer(says="The token.", model=about.AgentToken)},
        MINTED,
        role="operator",
        paced=True,
    ),
    Route("GET", POLICIES, policies.listed, {200: Answer(says="All.", model=about.PolicyList)}, role="admin"),
    Route("POST", POLICIES, policies.add, A_POLICY, SAID, role="admin"),
    Route("PUT", POLICIES + "/{policy_id}", policies.replace, A_POLICY, merged(NO_SUCH, SAID), role="admin"),
    Route("DELETE", POLICIES + "/{policy_id}", policies.delete, A_POLICY, NO_SUCH, role="admin"),
    Route("GET", HOLDS, holds.listed, {200: Answer(says="A page.", model=about.HoldPage)}),
    Route("POST", HOLDS, holds.hold, A_HOLD, OWNERS, role="operator", paced=True),
    Route(
        "POST",
        HOLDS + "/{hold_id}/release",
        holds.release,
        A_HOLD,
        merged(OWNERS, {403: ("held_by_admin",)}),
        role="operator",
        paced=True,
    ),
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
ROUTES = [*API, *INBOX, *SERVICE_TOKENS, *AUTHORITY, *OPS, *DOCS]


@cache
def document() -> bytes:
    """``/openapi.json``."""
    from daemon.api.openapi import describe  # 40 ms of each start, for what few ever ask

    return orjson.dumps(describe(ROUTES))


def make_app(context: Context, *, ops_only: bool = False) -> web.Application:
    """The application over everything it may use; ``ops_only``: what a runner answers."""
    app = web.Application(middlewares=[gate], client_max_size=context.settings.body_limit_bytes)
    app[CONTEXT] = context
    app[PACE] = Pace()
    app[REFUSALS] = Refusals()
    app[DOCUMENT] = cast("Callable[[], bytes]", document)
    app.add_routes([route.bound() for route in (OPS if ops_only else ROUTES)])
    if not ops_only:
        # It is no run's id, although it fits where one stands.
        app.router.add_route("*", RUNS + "/bulk", _not_allowed, expect_handler=go_on)
    return app


async def _not_allowed(request: web.Request) -> web.Response:
    raise web.HTTPMethodNotAllowed(request.method, ("POST",))
