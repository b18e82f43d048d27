"""What may be called, and who must agree: decided from bindings, grants, policies and holds that are passed in.

Pure: no clock, no store. Used by ``runtime/authority`` before every intent, and by ``api`` when workflows are saved,
runs created and agents shown. Times are epoch milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct

from daemon.auth.caller import Caller
from daemon.machine.ground import RISKS, Barred, Ground, Risk, Subject, Traits

Permission = Literal["use", "approve", "view"]
"""``use``: to call its tools in one's runs; ``approve``: to decide where policy asks; both, and ``view``, to see it."""


CERTAIN_S = 1.5
"""So long after a change is on disk, at the latest, no node lets a call go that it forbids: a call leaves only by what
was known to stand less than this ago. Normally it is milliseconds; who holds something is answered when it is sure."""


class Grant(Struct, frozen=True, kw_only=True, gc=False):
    """What somebody was given on an agent; ``tools`` are patterns, ``*`` stands for any text."""

    subject: Subject
    permission: Permission
    tools: tuple[str, ...] = ("*",)
    expires_ms: int | None = None

    def gives(self, permission: Permission, tool: str, now_ms: int) -> bool:
        return (
            self.permission == permission
            and (self.expires_ms is None or now_ms < self.expires_ms)
            and any(matches(pattern, tool) for pattern in self.tools)
        )


class Agent(Struct, frozen=True, kw_only=True, gc=False):
    """An agent: whose it is, and whom they let use it. Without an owner it is the admins'."""

    agent_id: str
    owner: str | None = None
    grants: tuple[Grant, ...] = ()


class Policy(Struct, frozen=True, kw_only=True, gc=False):
    """An admin's word on the tools that match; what is None it does not speak of."""

    agents: str
    tools: str
    risk: Risk | None = None
    writes: bool | None = None
    open_world: bool | None = None
    idempotent: bool | None = None
    requires_approval: bool | None = None
    denied: bool | None = None

    @property
    def specificity(self) -> int:
        """How much it says literally: of two that match, the one that says more is heard."""
        return len(self.agents.replace("*", "")) + len(self.tools.replace("*", ""))

    def fits(self, agent_id: str, tool: str) -> bool:
        return matches(self.agents, agent_id) and matches(self.tools, tool)


class Hold(Struct, frozen=True, kw_only=True, gc=False):
    """An emergency stop that stands."""

    scope: Literal["everything", "agent", "user"]
    target: str
    reason: str
    held_by: str

    def holds(self, agent_id: str, user_id: str) -> bool:
        """Whether it keeps the user's calls from the agent."""
        return self.scope == "everything" or self.target == (agent_id if self.scope == "agent" else user_id)

    @property
    def sentence(self) -> str:
        what = "everything" if self.scope == "everything" else f"{self.scope} {self.target!r}"
        return f"{self.held_by} holds {what}: {self.reason}"


def matches(pattern: str, text: str) -> bool:
    """Whether ``pattern``, in which ``*`` stands for any text, fits the whole of ``text``.

    In time linear in both: patterns are other people's, and a regular expression of many stars can take for ever.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == text
    *middle, last = rest
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for piece in middle:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def use_refusal(
    agent: Agent, tool: str, *, user_id: str, groups: Collection[str], admin: bool, now_ms: int
) -> str | None:
    """Why this user may not have the tool called, as a sentence that names the agent; None: they may."""
    if agent.owner is None:
        if admin:
            return None
        return f"Agent {agent.agent_id!r} belongs to nobody, so only an admin may use it: have it bound to its owner."
    if agent.owner == user_id:
        return None
    mine = {f"user:{user_id}", *(f"group:{group}" for group in groups)}
    given = [grant for grant in agent.grants if grant.subject in mine and grant.permission == "use"]
    if any(grant.gives("use", tool, now_ms) for grant in given):
        return None
    ask = f"ask {agent.owner}, whose it is"
    if not given:
        return f"Agent {agent.agent_id!r} was not given to {user_id!r} for use: {ask}."
    if all(grant.expires_ms is not None and now_ms >= grant.expires_ms for grant in given):
        return f"Agent {agent.agent_id!r} was given to {user_id!r} for a time that is over: {ask}."
    return f"Agent {agent.agent_id!r} was given to {user_id!r}, but not its tool {tool!r}: {ask}."


def permissions(agent: Agent, caller: Caller, now_ms: int) -> frozenset[str]:
    """What the caller may do with the agent, on some tool at least: ``owner``, ``use``, ``approve``, ``view``."""
    mine = {
        grant.permission
        for grant in agent.grants
        if grant.subject in caller.subjects and (grant.expires_ms is None or now_ms < grant.expires_ms)
    }
    return frozenset(mine | ({"owner"} if agent.owner == caller.user_id else set()))


def may_view(agent: Agent, caller: Caller, now_ms: int) -> bool:
    """Whether the caller may know that the agent exists."""
    return caller.admin or bool(permissions(agent, caller, now_ms))


def deciders(agent: Agent, tool: str, now_ms: int) -> frozenset[Subject]:
    """Who decides on a tool whose approval policy requires."""
    given = {grant.subject for grant in agent.grants if grant.gives("approve", tool, now_ms)}
    return frozenset(given | ({f"user:{agent.owner}"} if agent.owner is not None else set()))


def traits_of(annotations: Mapping[str, Any] | None, agent_id: str, tool: str, policies: Iterable[Policy]) -> Traits:
    """A tool's traits: as its MCP annotations say, where no policy says otherwise.

    Absent hints mean the worst, as the protocol says: it writes, and to an open world. It is of high risk if it calls
    itself destructive, of low if it only reads, else of medium.
    """
    said = annotations or {}
    fitting = sorted(
        (policy for policy in policies if policy.fits(agent_id, tool)), key=lambda one: one.specificity, reverse=True
    )
    writes = _said(fitting, "writes", worst=True, default=said.get("readOnlyHint") is not True)
    own: Risk = "low" if not writes else "high" if said.get("destructiveHint") is True else "medium"
    return Traits(
        risk=_risk(fitting, own),
        writes=writes,
        open_world=_said(fitting, "open_world", worst=True, default=said.get("openWorldHint") is not False),
        idempotent=_said(fitting, "idempotent", worst=False, default=said.get("idempotentHint") is True or not writes),
        requires_approval=_said(fitting, "requires_approval", worst=True, default=False),
        denied=_said(fitting, "denied", worst=True, default=False),
        repeat=_most_specific(fitting, "idempotent", worst=False),
    )


def _said(fitting: Sequence[Policy], field: str, *, worst: bool, default: bool) -> bool:
    said = _most_specific(fitting, field, worst=worst)
    return default if said is None else said


def _most_specific(fitting: Sequence[Policy], field: str, *, worst: bool) -> bool | None:
    """The word of the most specific policies that speak of it; where those disagree, the worst."""
    heard: set[bool] = set()
    level: int | None = None
    for policy in fitting:
        word: bool | None = getattr(policy, field)
        if word is None:
            continue
        if level is not None and policy.specificity < level:
            break
        level = policy.specificity
        heard.add(word)
    return None if not heard else worst if worst in heard else not worst


def _risk(fitting: Sequence[Policy], own: Risk) -> Risk:
    spoken = [policy for policy in fitting if policy.risk is not None]
    top = [policy.risk for policy in spoken if policy.specificity == spoken[0].specificity]
    return max((risk for risk in top if risk is not None), key=RISKS.__getitem__, default=own)


def ground_of(
    agent: Agent,
    tool: str,
    *,
    user_id: str,
    groups: Collection[str],
    admin: bool,
    now_ms: int,
    policies: Iterable[Policy] = (),
    holds: Iterable[Hold] = (),
    annotations: Mapping[str, Any] | None = None,
    schema_hash: str | None = None,
) -> Ground:
    """All that the machine is told about one call of a run of this user."""
    traits = traits_of(annotations, agent.agent_id, tool, policies)
    refusal = use_refusal(agent, tool, user_id=user_id, groups=groups, admin=admin, now_ms=now_ms)
    barred = None if refusal is None else Barred("agent_unauthorized", refusal)
    if barred is None and traits.denied:
        message = f"Policy denies the tool {tool!r} of agent {agent.agent_id!r}: an admin set it, and may change it."
        barred = Barred("tool_denied", message)
    held = next((hold.sentence for hold in holds if hold.holds(agent.agent_id, user_id)), None)
    return Ground(
        traits=traits,
        barred=barred,
        held=held,
        deciders=deciders(agent, tool, now_ms) if traits.requires_approval else frozenset(),
        schema_hash=schema_hash,
    )


def next_expiry(agent: Agent, now_ms: int) -> int | None:
    """When what was decided about the agent may be otherwise, though nobody changed anything."""
    ends = (grant.expires_ms for grant in agent.grants if grant.expires_ms is not None and grant.expires_ms > now_ms)
    return min(ends, default=None)
