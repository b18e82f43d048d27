"""What the matrix asks of each route, by its operation's name and, where one is not enough, a variant after a blank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.api.harness import AGENT, step
from tests.api.world import CALLERS, NOBODY, Asked, Prepare, World

NAMED: dict[str, Any] = {"approvers": ["user:ned", "group:deciders"]}
SPEC: dict[str, Any] = {"title": "T", "spec": {"steps": [step("a")]}}


def run(body: Any = None, *, tool: str = "ok", manual: bool = True, **terms: Any) -> Prepare:
    """A run of ann's that waits: for approval, or since its step failed."""

    async def prepare(world: World, caller: str) -> Asked:
        policy = {"approval_policy": "manual"} if manual else {}
        approval = {"approval": terms} if terms else {}
        return Asked({"run_id": await world.paused(tool, **policy, **approval)}, body)

    return prepare


def just(body: Any = None, query: str = "", **parts: str) -> Prepare:
    """Nothing has to be made for it."""

    async def prepare(world: World, caller: str) -> Asked:
        return Asked(parts, body, query)

    return prepare


def workflow(body: Any = None) -> Prepare:
    async def prepare(world: World, caller: str) -> Asked:
        return Asked({"workflow_id": await world.workflow(step("a"))}, body)

    return prepare


def agent(body: Any = None) -> Prepare:
    async def prepare(world: World, caller: str) -> Asked:
        return Asked({"agent_id": await world.agent()}, body)

    return prepare


def policy(body: Any = None) -> Prepare:
    async def prepare(world: World, caller: str) -> Asked:
        return Asked({"policy_id": await world.policy()}, {"tools": world.name("tool"), **body} if body else None)

    return prepare


def token() -> Prepare:
    async def prepare(world: World, caller: str) -> Asked:
        return Asked({"token_id": await world.service_token()})

    return prepare


def hold(by: str) -> Prepare:
    async def prepare(world: World, caller: str) -> Asked:
        return Asked({"hold_id": await world.hold(by)})

    return prepare


async def _of_this_workflow(world: World, caller: str) -> Asked:
    return Asked(body={"workflow_id": world.workflow_id})


async def _of_their_workflow(world: World, caller: str) -> Asked:
    sub = CALLERS[caller][0] if caller in CALLERS else "ann"
    return Asked(body={"workflow_id": await world.stack.workflow(step("a"), sub=sub)})


async def _grant(world: World, caller: str) -> Asked:
    return await world.grant()


async def _held_agent(world: World, caller: str) -> Asked:
    return Asked(body={"scope": "agent", "target": await world.agent(), "reason": "it smokes"})


async def _new_policy(world: World, caller: str) -> Asked:
    return Asked(body={"tools": world.name("tool"), "denied": True})


async def _command(world: World, caller: str) -> Asked:
    return await world.command()


async def _command_of_the_named(world: World, caller: str) -> Asked:
    return await world.command(approval=NAMED)


OWN = {"runs_create theirs"}
"""Rows in which each asks about what is their own."""
APPROVE = {"step_id": "a"}
ASKED: Mapping[str, Prepare] = {
    "workflows_listed": just(),
    "workflows_create": just(SPEC),
    "workflows_get": workflow(),
    "workflows_renew": workflow(SPEC),
    "workflows_archive": workflow(),
    "runs_listed": just(),
    "runs_create": _of_this_workflow,
    "runs_create theirs": _of_their_workflow,
    "bulk_decide": just({"action": "cancel", "filter": {"run_ids": [NOBODY]}}),
    "runs_get": run(),
    "runs_get named": run(**NAMED),
    "runs_get policed": run(tool="streaming", manual=False),
    "decisions_resume": run(),
    "decisions_resume failed": run({}, tool="failing", manual=False),
    "decisions_cancel": run(),
    "decisions_cancel named": run(**NAMED),
    "decisions_approve": run(APPROVE),
    "decisions_approve named": run(APPROVE, **NAMED),
    "decisions_approve policy": run(APPROVE, tool="streaming", manual=False),
    "decisions_approve both": run(APPROVE, tool="streaming", approvers=["user:ned", "user:ada"]),
    "decisions_approve other": run(APPROVE, forbid_self=True, approvers=["user:ned", "user:ann"]),
    "decisions_reject": run(APPROVE),
    "decisions_reject named": run(APPROVE, **NAMED),
    "decisions_reject policy": run(APPROVE, tool="streaming", manual=False),
    "decisions_edit": run(APPROVE | {"arguments": {"n": 1}}, allow_edit=True),
    "decisions_edit named": run(APPROVE | {"arguments": {"n": 1}}, allow_edit=True, **NAMED),
    "decisions_skip": run({"step_id": "a"}, tool="failing", manual=False),
    "decisions_mark_done": run({"step_id": "a", "note": "seen"}, tool="failing", manual=False),
    "decisions_command": _command,
    "decisions_command named": _command_of_the_named,
    "runs_history": run(),
    "runs_history named": run(**NAMED),
    "runs_ticket": run(),
    "runs_ticket named": run(**NAMED),
    "stream_events": run(),
    "stream_events named": run(**NAMED),
    "audit_listed": just(),
    "approvals_listed": just(),
    "approvals_decide": just({"items": [{"run_id": NOBODY, "step_id": "a", "decision": "approve"}]}),
    "service_tokens_listed": just(),
    "service_tokens_listed *": just(query="?all=true"),
    "service_tokens_create": just({"name": "n", "scopes": ["viewer"]}),
    "service_tokens_create *": just({"name": "n", "scopes": ["viewer"], "user_id": "eve"}),
    "service_tokens_create +": just({"name": "n", "scopes": ["admin"]}),
    "service_tokens_get": token(),
    "service_tokens_revoke": token(),
    "agents_listed": just(),
    "agents_get": agent(),
    "agents_tools": just(agent_id=AGENT),
    "agents_bind": agent({"owner": "eve"}),
    "agents_unbind": agent(),
    "grants_listed": agent(),
    "grants_add": agent({"subject": "user:eve", "permission": "use"}),
    "grants_revoke": _grant,
    "agent_tokens_mint new": just({}),
    "agent_tokens_mint taken": just({"agent_id": AGENT}),
    "policies_listed": just(),
    "policies_add": _new_policy,
    "policies_replace": policy({"risk": "low"}),
    "policies_delete": policy(),
    "holds_listed": just(),
    "holds_hold agent": _held_agent,
    "holds_hold user": just({"scope": "user", "target": "zoe", "reason": "on leave"}),
    "holds_hold all": just({"scope": "everything", "reason": "fire"}),
    "holds_release olga's": hold("olga"),
    "holds_release admin's": hold("root"),
    "ops_healthz": just(),
    "ops_readyz": just(),
    "ops_metrics": just(),
    "docs_openapi": just(),
    "docs_page": just(),
}
