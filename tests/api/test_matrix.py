"""The authorisation matrix: what every route answers to every kind of caller. Each status stands in the table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple, get_args

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from daemon.api.app import ROUTES
from daemon.api.contract import Route
from daemon.auth.caller import Role
from daemon.dev.embedded import EmbeddedValkey
from tests.api.asking import ASKED, OWN
from tests.api.conftest import AGENT_SECRET
from tests.api.declared import assert_declared
from tests.api.harness import AGENT, Stack, stack
from tests.api.world import CALLERS, NOBODY, SCOPES, Asked, World
from tests.patience import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("hasty_holds")]

# A row: an operation (its handler, as /openapi.json names it) and the variant of it that tests/api/asking prepares. A
# column: who asks. What they ask about is ann's: her run, workflow, token; or olga's agent, which ann may use.
#
#   none, exp, rev   no token, an expired one of ann's, a revoked service token of hers
#   bob              another user
#   view, use, appr  each was granted just that on olga's agent
#   name, grp        the step's `approvers` name them, the one as a user, the other by a group
#   ann, olga        who owns the run, and who owns the agent
#   r:vi, r:op, r:ap ann, with a token of the role viewer, operator or approver alone;  admn: root, an admin
#   s:vi … s:ad      a service token that speaks for ann, with the one scope viewer, operator, approver or admin
#
# Variants: `*` is about somebody else's things, `+` about more than one has; a run's is who decides on its step.
# A letter after the status is the code: CODES has them.
TABLE = """
                         none exp  rev  bob  view use  appr name grp  ann  olga r:vi r:op r:ap admn s:vi s:op s:ap s:ad
workflows_listed         401  401  401  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
workflows_create         401  401  401  200  200  200  200  200  200  200  200  403r 200  403r 200  403r 200  403r 200
workflows_get            401  401  401  404  404  404  404  404  404  200  404  200  200  200  404  200  200  200  200
workflows_renew          401  401  401  404  404  404  404  404  404  200  404  403r 200  403r 404  403r 200  403r 200
workflows_archive        401  401  401  404  404  404  404  404  404  200  404  403r 200  403r 404  403r 200  403r 200
runs_listed              401  401  401  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
runs_create              401  401  401  404  404  404  404  404  404  200  404  403r 200  403r 404  403r 200  403r 200
runs_create theirs       401  401  401  403u 403u 200  403u 403u 403u 200  200  403r 200  403r 403u 403r 200  403r 200
bulk_decide              401  401  401  200  200  200  200  200  200  200  200  403r 200  403r 200  403r 200  403r 200
runs_get                 401  401  401  404  404  404  404  404  404  200  404  200  200  200  200  200  200  200  200
runs_get named           401  401  401  404  404  404  404  200  200  200  404  200  200  200  200  200  200  200  200
runs_get policed         401  401  401  404  404  404  200  404  404  200  200  200  200  200  200  200  200  200  200
decisions_resume         401  401  401  404  404  404  404  404  404  200  404  403r 403r 403r 403a 403r 403r 403r 200
decisions_resume failed  401  401  401  404  404  404  404  404  404  200  404  403r 200  403r 200  403r 200  403r 200
decisions_cancel         401  401  401  404  404  404  404  404  404  200  404  403r 200  403r 200  403r 200  403r 200
decisions_cancel named   401  401  401  404  404  404  404  403o 403o 200  404  403r 200  403r 200  403r 200  403r 200
decisions_approve        401  401  401  404  404  404  404  404  404  200  404  403r 403r 200  403a 403r 403r 200  200
decisions_approve named  401  401  401  404  404  404  404  200  200  403a 404  403r 403r 403a 403a 403r 403r 403a 403a
decisions_approve policy 401  401  401  404  404  404  200  404  404  403a 200  403r 403r 403a 403a 403r 403r 403a 403a
decisions_approve both   401  401  401  404  404  404  200  404  404  403a 404  403r 403r 403a 403a 403r 403r 403a 403a
decisions_approve other  401  401  401  404  404  404  404  200  404  403a 404  403r 403r 403a 403a 403r 403r 403a 403a
decisions_reject         401  401  401  404  404  404  404  404  404  200  404  403r 403r 200  403a 403r 403r 200  200
decisions_reject named   401  401  401  404  404  404  404  200  200  403a 404  403r 403r 403a 403a 403r 403r 403a 403a
decisions_reject policy  401  401  401  404  404  404  200  404  404  403a 200  403r 403r 403a 403a 403r 403r 403a 403a
decisions_edit           401  401  401  404  404  404  404  404  404  200  404  403r 403r 200  403a 403r 403r 200  200
decisions_edit named     401  401  401  404  404  404  404  200  200  403a 404  403r 403r 403a 403a 403r 403r 403a 403a
decisions_skip           401  401  401  404  404  404  404  404  404  200  404  403r 200  403r 200  403r 200  403r 200
decisions_mark_done      401  401  401  404  404  404  404  404  404  200  404  403r 200  403r 200  403r 200  403r 200
decisions_command        401  401  401  404  404  404  404  404  404  200  404  200  200  200  200  200  200  200  200
decisions_command named  401  401  401  404  404  404  404  200  200  200  404  200  200  200  200  200  200  200  200
runs_history             401  401  401  404  404  404  404  404  404  200  404  200  200  200  200  200  200  200  200
runs_history named       401  401  401  404  404  404  404  200  200  200  404  200  200  200  200  200  200  200  200
runs_ticket              401  401  401  404  404  404  404  404  404  200  404  200  200  200  200  200  200  200  200
runs_ticket named        401  401  401  404  404  404  404  200  200  200  404  200  200  200  200  200  200  200  200
stream_events            401  401  401  404  404  404  404  404  404  200  404  200  200  200  200  200  200  200  200
stream_events named      401  401  401  404  404  404  404  200  200  200  404  200  200  200  200  200  200  200  200
audit_listed             401  401  401  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
approvals_listed         401  401  401  200  200  200  200  200  200  200  200  403r 403r 200  200  403r 403r 200  200
approvals_decide         401  401  401  200  200  200  200  200  200  200  200  403r 403r 200  200  403r 403r 200  200
service_tokens_listed    401  401  401  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
service_tokens_listed *  401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403r 403r 403r 200
service_tokens_create    401  401  401  200  200  200  200  200  200  200  200  200  200  200  200  403m 403m 403m 403m
service_tokens_create *  401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403m 403m 403m 403m
service_tokens_create +  401  401  401  403x 403x 403x 403x 403x 403x 403x 403x 403x 403x 403x 200  403m 403m 403m 403m
service_tokens_get       401  401  401  404  404  404  404  404  404  200  404  200  200  200  200  200  200  200  200
service_tokens_revoke    401  401  401  404  404  404  404  404  404  200  404  200  200  200  200  403m 403m 403m 403m
agents_listed            401  401  401  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
agents_get               401  401  401  404  200  200  200  404  404  200  200  200  200  200  200  200  200  200  200
agents_tools             401  401  401  404  200  200  200  404  404  200  200  200  200  200  200  200  200  200  200
agents_bind              401  401  401  404  403w 403w 403w 404  404  403w 200  403r 403w 403r 200  403r 403w 403r 200
agents_unbind            401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403r 403r 403r 200
grants_listed            401  401  401  404  403w 403w 403w 404  404  403w 200  403w 403w 403w 200  403w 403w 403w 200
grants_add               401  401  401  404  403w 403w 403w 404  404  403w 200  403r 403w 403r 200  403r 403w 403r 200
grants_revoke            401  401  401  404  403w 403w 403w 404  404  403w 200  403r 403w 403r 200  403r 403w 403r 200
agent_tokens_mint new    401  401  401  200  200  200  200  200  200  200  200  403r 200  403r 200  403r 200  403r 200
agent_tokens_mint taken  401  401  401  409t 409t 409t 409t 409t 409t 409t 200  403r 409t 403r 409t 403r 409t 403r 409t
policies_listed          401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403r 403r 403r 200
policies_add             401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403r 403r 403r 200
policies_replace         401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403r 403r 403r 200
policies_delete          401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403r 403r 403r 200
holds_listed             401  401  401  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
holds_hold agent         401  401  401  404  403w 403w 403w 404  404  403w 200  403r 403w 403r 200  403r 403w 403r 200
holds_hold user          401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403r 403r 403r 200
holds_hold all           401  401  401  403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 403r 200  403r 403r 403r 200
holds_release olga's     401  401  401  404  403w 403w 403w 404  404  403w 200  403r 403w 403r 200  403r 403w 403r 200
holds_release admin's    401  401  401  404  403w 403w 403w 404  404  403w 403h 403r 403w 403r 200  403r 403w 403r 200
ops_healthz              200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
ops_readyz               200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
ops_metrics              200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
docs_openapi             200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
docs_page                200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200  200
"""
CODES = {
    "a": "not_an_approver",
    "h": "held_by_admin",
    "m": "not_by_service_token",
    "o": "not_your_run",
    "r": "role_required",
    "t": "agent_taken",
    "u": "agent_unauthorized",
    "w": "not_the_owner",
    "x": "scope_exceeds_roles",
}
COLUMNS, *_LINES = TABLE.strip("\n").splitlines()
CALLER_OF = dict(enumerate(COLUMNS.split()))
LABEL = 25
ROWS = {line[:LABEL].strip(): line[LABEL:].split() for line in _LINES}
BY_NAME = {route.name: route for route in ROUTES}


class Told(NamedTuple):
    """An answer: its status, and its code where somebody is refused or in the way."""

    status: int
    code: str | None = None


def expected(cell: str) -> Told:
    return Told(int(cell[:3]), CODES[cell[3:]] if cell[3:] else None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(strict_module_database: str, valkey: EmbeddedValkey) -> AsyncIterator[World]:
    async with stack(strict_module_database, valkey.url, "matrix", agent_token_secret=AGENT_SECRET) as opened:
        books = await asyncpg.connect(strict_module_database)
        yield await World(opened, books).begin()
        await books.close()


async def answered(world: World, route: Route, caller: str, asked: Asked) -> Told:
    path = route.path.format_map(asked.parts) + asked.query
    token = world.tokens[caller]
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = {} if asked.body is None else {"json": asked.body}
    timeout = aiohttp.ClientTimeout(total=20)
    async with world.stack.http.request(
        route.method, world.stack.base + path, headers=headers, timeout=timeout, **body
    ) as answer:
        if answer.content_type == "text/event-stream":
            return Told(answer.status)
        raw = await answer.read()
        assert_declared(route.method, path, answer.status, answer.content_type, raw)
        return Told(answer.status, json.loads(raw)["code"] if answer.status in (403, 409) else None)


@pytest.mark.parametrize("row", ROWS)
async def test_each_caller_is_answered_as_the_table_says(world: World, row: str) -> None:
    """All who are refused ask about one thing, which stands afterwards as before; whoever changes it asks about one of
    their own."""
    route, prepare = BY_NAME[row.partition(" ")[0]], ASKED[row]
    wanted = {CALLER_OF[column]: expected(cell) for column, cell in enumerate(ROWS[row])}
    assert len(wanted) == len(CALLER_OF)
    asked = {caller: await prepare(world, caller) for caller in wanted if row in OWN}
    shared = await prepare(world, "ann")
    before = await world.standing()
    refused = [caller for caller, told in wanted.items() if told.status >= 400]
    found = {caller: await answered(world, route, caller, asked.get(caller, shared)) for caller in refused}
    assert await world.standing() == before
    for caller in wanted.keys() - found.keys():
        if route.method != "GET" and caller not in asked:
            asked[caller] = await prepare(world, caller)
        found[caller] = await answered(world, route, caller, asked.get(caller, shared))
        if row.startswith("holds_hold"):
            await world.release_all()
    assert found == wanted


UNSEEN = [row for row, cells in ROWS.items() if "404" in cells]
NOWHERE = {"agent_id": "no-such-agent", "target": "no-such-agent"}


def elsewhere(said: Mapping[str, Any]) -> dict[str, Any]:
    """The same about things that there are not."""
    gone = {name: NOWHERE.get(name, NOBODY) for name in said if name.endswith("_id") and name != "step_id"}
    return {**said, **gone, **{name: NOWHERE[name] for name in said.keys() & {"target"}}}


@pytest.mark.parametrize("row", UNSEEN)
async def test_what_one_does_not_see_is_answered_as_what_there_is_not(world: World, row: str) -> None:
    """To the letter: neither the words nor the headers tell somebody who guesses ids that there is such a thing."""
    route = BY_NAME[row.partition(" ")[0]]
    there = await ASKED[row](world, "ann")
    gone = Asked(elsewhere(there.parts), elsewhere(there.body) if isinstance(there.body, dict) else None, there.query)
    assert gone != there
    for column, cell in enumerate(ROWS[row]):
        if cell == "404":
            told = await asked_of(world, route, CALLER_OF[column], there)
            assert told == await asked_of(world, route, CALLER_OF[column], gone), CALLER_OF[column]


async def test_nor_does_a_batch_or_a_list_tell_of_it(world: World) -> None:
    run_id = await world.paused(approval_policy="manual")
    hidden: dict[str, list[bytes]] = {}
    word = {"step_id": "a", "decision": "approve"}
    for about in (run_id, NOBODY):
        asked = {
            "approvals_decide": Asked(body={"items": [word | {"run_id": about}]}),
            "bulk_decide": Asked(body={"action": "cancel", "filter": {"run_ids": [about]}}),
            "audit_listed": Asked(query=f"?run_id={about}"),
        }
        told = [await asked_of(world, BY_NAME[name], "bob", one) for name, one in asked.items()]
        hidden[about] = [body.replace(about.encode(), b"?") for _, _, body in told]
    assert hidden[run_id] == hidden[NOBODY]
    assert b"not_found" in hidden[run_id][0]


async def asked_of(world: World, route: Route, caller: str, asked: Asked) -> tuple[int, dict[str, str], bytes]:
    """All of an answer, but when it was given."""
    headers = {"Authorization": f"Bearer {world.tokens[caller]}"}
    url = world.stack.base + route.path.format_map(asked.parts) + asked.query
    body = {} if asked.body is None else {"json": asked.body}
    async with world.stack.http.request(route.method, url, headers=headers, **body) as answer:
        told = {name: value for name, value in answer.headers.items() if name != "Date"}
        return answer.status, told, await answer.read()


async def test_every_route_has_a_row_and_every_caller_a_column() -> None:
    assert len(BY_NAME) == len(ROUTES)
    assert {row.partition(" ")[0] for row in ROWS} == BY_NAME.keys()
    assert ROWS.keys() == ASKED.keys()
    assert list(CALLER_OF.values()) == ["none", "exp", "rev", *CALLERS, *SCOPES]
    assert set(SCOPES.values()) == set(get_args(Role))
    assert {roles for _, roles, _ in CALLERS.values()} == {None, *((role,) for role in get_args(Role))}


async def test_open_routes_are_those_that_tell_nothing_of_anybody() -> None:
    names = {"ops_healthz", "ops_readyz", "ops_metrics", "docs_openapi", "docs_page"}
    assert {route.name for route in ROUTES if route.open} == names
    assert {row for row, cells in ROWS.items() if cells[:3] != ["401"] * 3} == names


# --- GET and HEAD -----------------------------------------------------------------------------------------------------

OVERRIDES = ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override")


async def _passive(stack: Stack) -> bool:
    (row,) = await stack.sql(
        "SELECT count(*) FROM workflow_runs WHERE status IN ('running', 'paused') AND owner IS NOT NULL"
        " OR wake_at IS NOT NULL"
    )
    return bool(row[0] == 0)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("caller", ["ann", "admn", "s:ad"])
async def test_no_get_and_no_head_changes_or_decides_anything(world: World, method: str, caller: str) -> None:
    """On every path there is, with the bodies and headers of whoever would like it to. The audit tells who was
    refused; of nothing does it tell that it was done."""
    stack = world.stack
    command, grant = await world.command(), await world.grant()
    revision = (await stack.run(command.parts["run_id"]))["steps_state"]["a"]["approval"]
    parts = {
        **command.parts,
        **grant.parts,
        "agent_id": AGENT,
        "workflow_id": world.workflow_id,
        "token_id": await world.service_token(),
        "policy_id": await world.policy(),
        "hold_id": await world.hold("olga"),
    }
    said = {"step_id": "a", "digest": revision["digest"], "decision": "approve", "owner": "eve", "scope": "everything"}
    await eventually(lambda: _passive(stack), what="every run being let go")
    before = await world.standing(everything=True)
    for path in sorted({route.path for route in ROUTES}):
        headers = {"Authorization": f"Bearer {world.tokens[caller]}", **dict.fromkeys(OVERRIDES, "POST")}
        for query in ("", "?_method=POST", "?step_id=a&decision=approve"):
            url = stack.base + path.format_map(parts) + query
            async with stack.http.request(method, url, headers=headers, json=said) as answer:
                assert answer.status in (200, 403, 404, 405, 422), (path, answer.status)
    assert await world.standing(everything=True) == before
    assert (await stack.run(command.parts["run_id"]))["paused_reason"] == "awaiting_approval"


async def test_there_is_no_other_method_on_any_path(world: World) -> None:
    """What the table has is what the application has: nothing was added beside ROUTES."""
    node = world.stack.node
    assert node is not None
    served = {
        (route.method, route.resource.canonical)
        for route in node._front.app.router.routes()
        if route.resource is not None
    }
    heads = {("HEAD", route.path) for route in ROUTES if route.method == "GET" and route.name != "stream_events"}
    declared = {(route.method, route.path) for route in ROUTES}
    assert served == declared | heads | {("*", "/v1/workflow-runs/bulk")}
