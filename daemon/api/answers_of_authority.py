"""What the API answers about authority, as models: agents, grants, policies, holds, service tokens and the audit."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from daemon.auth.caller import Role


class AuditLine(BaseModel):
    """Who did or decided what, when and from where; or was refused it."""

    id: int
    at: datetime
    actor: str
    roles: list[str]
    via: str | None = Field(description="The service token that spoke for them, as `token:<id>`.")
    address: str | None
    client: str | None = Field(description="The `User-Agent`.")
    action: str = Field(
        description="What was done, such as `run.approve` or `workflow.created`; of a request that was refused with"
        " 403, the name of its operation here."
    )
    outcome: Literal["applied", "refused"]
    code: str | None
    run_id: UUID | None
    owner: str | None = Field(description="Whose thing it is about, if that is you or you are an admin.")
    step_id: str | None
    agent_id: str | None
    target: str | None = Field(description="What else it is about: the id of a workflow, grant, policy or token.")
    digest: str | None
    comment: str | None
    detail: dict[str, Any]


class AuditPage(BaseModel):
    """Lines of the audit, newest first; ``next_cursor`` is null on the last page."""

    items: list[AuditLine]
    next_cursor: str | None


class Agent(BaseModel):
    """An agent that you may see. ``owner`` is null for one that belongs to nobody: only admins use it."""

    agent_id: str
    owner: str | None
    bound_at: datetime | None
    may: list[Literal["approve", "owner", "use", "view"]] = Field(description="What is yours to do; of some tools.")
    online: Literal["online", "offline", "unknown"] = Field(description="Unknown while a Gateway does not answer.")
    last_seen_at: datetime | None = Field(description="The last that a Gateway heard of it, heartbeats not counted.")
    held: bool = Field(description="No call goes to it: it, or everything, is held.")
    held_reason: str | None


class AgentPage(BaseModel):
    """Agents by id; ``next_cursor`` is null on the last page."""

    items: list[Agent]
    next_cursor: str | None


class Tool(BaseModel):
    """A tool of an agent. The traits follow from its annotations and, over them, from tool policies."""

    name: str
    description: str
    input_schema: dict[str, Any]
    annotations: dict[str, bool] = Field(description="MCP's hints, as far as the tool gives any.")
    risk: Literal["low", "medium", "high"]
    writes: bool
    open_world: bool
    idempotent: bool
    requires_approval: bool
    denied: bool
    may_use: bool
    refusal: str | None = Field(description="Why you may not use it.")


class ToolList(BaseModel):
    """What an agent offers now."""

    agent_id: str
    tools: list[Tool]


class AgentToken(BaseModel):
    """What an agent shows the Gateway, until ``expires_at`` or the next reset."""

    agent_id: str
    token: str
    expires_at: datetime
    version: int
    reset: bool


class Binding(BaseModel):
    """Whose an agent is now, and what was done for it."""

    agent_id: str
    owner: str | None
    outcome: Literal["bound", "transferred", "unbound", "unchanged"]


class Grant(BaseModel):
    """What somebody may do with an agent; ``tools`` are patterns over names of tools."""

    grant_id: UUID
    agent_id: str
    subject: str
    permission: Literal["use", "approve", "view"]
    tools: list[str]
    expires_at: datetime | None
    granted_by: str
    granted_at: datetime


class GrantList(BaseModel):
    """Every grant of an agent, oldest first."""

    items: list[Grant]


class Policy(BaseModel):
    """What is said about the tools that fit; null says nothing."""

    policy_id: UUID
    agents: str
    tools: str
    risk: Literal["low", "medium", "high"] | None
    writes: bool | None
    open_world: bool | None
    idempotent: bool | None
    requires_approval: bool | None
    denied: bool | None
    note: str | None
    set_by: str
    set_at: datetime


class PolicyList(BaseModel):
    """Every policy."""

    items: list[Policy]


class Hold(BaseModel):
    """No call leaves for what is held. ``by_admin``: only an admin releases it."""

    hold_id: UUID
    scope: Literal["everything", "agent", "user"]
    target: str | None
    reason: str
    held_by: str
    held_at: datetime
    by_admin: bool
    released_by: str | None
    released_at: datetime | None


class HoldPage(BaseModel):
    """Holds, newest first; ``next_cursor`` is null on the last page."""

    items: list[Hold]
    next_cursor: str | None


class ServiceToken(BaseModel):
    """A token for automation, without the token itself. It speaks for ``user_id``, with the scopes for roles."""

    token_id: UUID
    user_id: str
    name: str
    scopes: list[Role]
    groups: list[str] = Field(description="Its maker's, as they were then.")
    made_by: str
    made_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")
    revoked_at: datetime | None
    revoked_by: str | None


class MadeServiceToken(ServiceToken):
    """A service token just made: ``token`` is shown here and never again."""

    token: str


class ServiceTokenPage(BaseModel):
    """Service tokens, newest first; ``next_cursor`` is null on the last page."""

    items: list[ServiceToken]
    next_cursor: str | None
