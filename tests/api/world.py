"""A world with somebody of every kind in it, and things of theirs to ask about, each made anew when it is wanted.

olga's is the agent; ann, who may use it, has workflows, runs and service tokens; the others are told by ``CALLERS``.
Used by tests of who may do what.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import asyncpg

from daemon.auth.caller import ROLES, Role
from daemon.auth.tokens import mint
from tests.api.harness import AGENT, SECRET, Answer, Stack, step

LASTING = {
    "workflows",
    "workflow_run_approvals",
    "agent_bindings",
    "agent_grants",
    "tool_policies",
    "holds",
    "service_tokens",
}
"""Tables that only people change."""
NOBODY = "01990000-0000-7000-8000-000000000000"
POLICED = "streaming"
"""A tool of which policy requires approval."""
GRANTS = {"vic": "view", "uma": "use", "ada": "approve", "ann": "use"}

CALLERS: dict[str, tuple[str, tuple[Role, ...] | None, tuple[str, ...]]] = {
    "bob": ("bob", None, ()),
    "view": ("vic", None, ()),
    "use": ("uma", None, ()),
    "appr": ("ada", None, ()),
    "name": ("ned", None, ()),
    "grp": ("gil", None, ("deciders",)),
    "ann": ("ann", None, ()),
    "olga": ("olga", None, ()),
    "r:vi": ("ann", ("viewer",), ()),
    "r:op": ("ann", ("operator",), ()),
    "r:ap": ("ann", ("approver",), ()),
    "admn": ("root", ("admin",), ()),
}
"""Column of the matrix → whose token it is, with which roles (None: it names none) and groups."""
SCOPES: dict[str, Role] = {"s:vi": "viewer", "s:op": "operator", "s:ap": "approver", "s:ad": "admin"}
"""Column of the matrix → scope of a service token that speaks for ann."""


class Asked(NamedTuple):
    """What is asked of a route: the parts of its path, its query and its body."""

    parts: Mapping[str, str] = {}
    body: Any = None
    query: str = ""


class World:
    """``books``: its database; ``tokens``: a bearer token of each column of the matrix; None: no token."""

    def __init__(self, stack: Stack, books: asyncpg.Connection) -> None:
        self.stack = stack
        self.books = books
        self.tokens: dict[str, str | None] = {
            "none": None,
            "exp": mint("ann", SECRET, lifetime_s=-60),
            **{
                name: mint(sub, SECRET, lifetime_s=3600, roles=roles, groups=groups)
                for name, (sub, roles, groups) in CALLERS.items()
            },
        }
        self.workflow_id = ""
        self._numbers = count(1)

    async def begin(self) -> World:
        """Bindings, grants, a policy and service tokens, all by the API."""
        for sub, (name, roles, groups) in CALLERS.items():
            if roles is None or sub == "admn":
                self.stack.tokens[name] = mint(name, SECRET, lifetime_s=3600, roles=roles, groups=groups)
        await self._ok("PUT", f"/v1/bridge/agents/{AGENT}/binding", "root", {"owner": "olga"})
        for sub, permission in GRANTS.items():
            body = {"subject": f"user:{sub}", "permission": permission}
            await self._ok("POST", f"/v1/bridge/agents/{AGENT}/grants", "olga", body)
        await self._ok("POST", "/v1/tool-policies", "root", {"tools": POLICED, "requires_approval": True})
        for column, scope in SCOPES.items():
            self.tokens[column] = await self._service_token(scope)
        self.tokens["rev"] = await self._service_token("operator")
        (last,) = await self.books.fetch("SELECT id FROM service_tokens ORDER BY made_at DESC LIMIT 1")
        await self._ok("DELETE", f"/v1/service-tokens/{last['id']}", "ann")
        self.workflow_id = await self.workflow(step("a", approval_policy="manual"))
        return self

    async def _service_token(self, scope: Role) -> str:
        """Of ann's, who had every role for a moment: nobody makes one for her that decides."""
        own = {"Authorization": "Bearer " + mint("ann", SECRET, lifetime_s=60, roles=sorted(ROLES))}
        body = {"name": scope, "scopes": [scope]}
        made = await self.stack.ask("POST", "/v1/service-tokens", headers=own, json=body)
        assert made.status == 200, made.body
        token: str = made.body["token"]
        return token

    async def _ok(self, method: str, path: str, sub: str, body: Any = None) -> Answer:
        answer = await self.stack.ask(method, path, sub=sub, **({} if body is None else {"json": body}))
        assert answer.status == 200, answer.body
        return answer

    # --- things ------------------------------------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        """A name that nothing has."""
        return f"{kind}-{next(self._numbers)}"

    async def workflow(self, *steps: dict[str, Any]) -> str:
        return await self.stack.workflow(*steps, sub="ann")

    async def paused(self, tool: str = "ok", **more: Any) -> str:
        """A run of ann's that is paused."""
        run_id = await self.stack.start(step("a", tool, **more), sub="ann")
        await self.stack.until(run_id, "paused")
        return run_id

    async def agent(self) -> str:
        """An agent as AGENT, which is not connected."""
        agent_id = self.name("box")
        await self.books.fetch(
            "INSERT INTO agent_bindings (agent_id, owner, bound_by) VALUES ($1, 'olga', 't')", agent_id
        )
        await self.books.fetch(
            "INSERT INTO agent_grants (id, agent_id, subject, permission, granted_by)"
            " SELECT gen_random_uuid(), $1, subject, permission, granted_by FROM agent_grants WHERE agent_id = $2",
            agent_id,
            AGENT,
        )
        return agent_id

    async def grant(self) -> Asked:
        agent_id = await self.agent()
        rows = await self.books.fetch("SELECT id FROM agent_grants WHERE agent_id = $1 LIMIT 1", agent_id)
        return Asked({"agent_id": agent_id, "grant_id": str(rows[0]["id"])})

    async def policy(self) -> str:
        body = {"tools": self.name("tool"), "risk": "high"}
        policy_id: str = (await self._ok("POST", "/v1/tool-policies", "root", body)).body["policy_id"]
        return policy_id

    async def hold(self, sub: str) -> str:
        """One of an agent, by its owner or an admin."""
        body = {"scope": "agent", "target": await self.agent(), "reason": "it smokes"}
        hold_id: str = (await self._ok("POST", "/v1/holds", sub, body)).body["hold_id"]
        return hold_id

    async def service_token(self) -> str:
        body = {"name": "one more", "scopes": ["viewer"]}
        token_id: str = (await self._ok("POST", "/v1/service-tokens", "ann", body)).body["token_id"]
        return token_id

    async def release_all(self) -> None:
        await self.books.fetch(
            "UPDATE holds SET released_at = now(), released_by = 'the test' WHERE released_at IS NULL"
        )

    async def command(self, **more: Any) -> Asked:
        """A command of a run of ann's."""
        run_id = await self.paused(approval_policy="manual", **more)
        (row,) = await self.books.fetch("SELECT id FROM workflow_run_commands WHERE run_id = $1", run_id)
        return Asked({"run_id": run_id, "command_id": str(row["id"])})

    async def standing(self, *, everything: bool = False) -> dict[str, str]:
        """A fingerprint of each table but those of the runs' own life; ``everything``: of these too. What is refused,
        as the audit tells it, and the last use of service tokens are never in it."""
        tables = [
            row[0] for row in await self.books.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ]
        rows = "SELECT (to_jsonb(r) - 'last_used_at')::text AS t FROM {} AS r"
        rows += " WHERE to_jsonb(r) ->> 'outcome' IS DISTINCT FROM 'refused'"
        told = "(SELECT md5(string_agg(t, '|' ORDER BY t)) FROM ({}) AS rows) AS {}"
        wanted = [told.format(rows.format(table), table) for table in tables if everything or table in LASTING]
        found = await self.books.fetchrow(f"SELECT {', '.join(wanted)}")
        assert found is not None
        return dict(found)


Prepare: TypeAlias = Callable[[World, str], Awaitable[Asked]]
