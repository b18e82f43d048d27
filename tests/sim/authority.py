"""Who may do what, in the simulation's Postgres: each version of the rules, when it stood, and whom it was told.

``Rules`` say by themselves what they forbid and who decides; the checkers ask them, and share nothing of that with the
daemon but the patterns. ``MEASURES`` are what owners and admins do while runs go on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from daemon.auth.access import Agent, Grant, Hold, Policy
from daemon.machine.spec import ApprovalSpec, StepSpec
from daemon.store.authority import Said
from tests.sim.line import Connection

if TYPE_CHECKING:
    from tests.sim.postgres import Postgres

AGENT = "agent-1"
USER = "ann"
OWNER = "olga"
TOKENS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    USER: ((),),
    OWNER: ((),),
    "bob": (("reviewers",),),
    "cyd": (("reviewers",), ("leads",), ("leads", "reviewers")),
    "eve": ((), ("makers",)),
}
"""Everybody there is, and the groups that their tokens name."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Bindings, grants, policies and holds of one version."""

    grants: tuple[Grant, ...]
    policies: tuple[Policy, ...] = ()
    holds: tuple[Hold, ...] = ()

    def agent(self, agent_id: str) -> Agent:
        """One that nobody bound has no owner."""
        return (
            Agent(agent_id=agent_id, owner=OWNER, grants=self.grants) if agent_id == AGENT else Agent(agent_id=agent_id)
        )

    def forbid(self, user: str, tool: str) -> Iterator[str]:
        """Why this user's calls of the tool may not be made."""
        if user != OWNER and f"user:{user}" not in self._given("use"):
            yield f"{user} was not given the agent"
        if any(policy.denied for policy in self._about(tool)):
            yield f"{tool} is denied"
        if self.holding(user):
            yield "it is held"

    def holding(self, user: str) -> bool:
        """Whether a hold keeps this user's calls."""
        return any(hold.scope == "everything" or hold.target in (AGENT, user) for hold in self.holds)

    def gates(self, step: StepSpec) -> bool:
        """Whether somebody must approve this step's call."""
        return step.approval_policy == "manual" or self._asks(step.tool_config.tool_name)

    def may_decide(self, step: StepSpec, by: str, groups: Collection[str], *, user: str) -> bool:
        """Whether this person may decide on the step of a run of ``user``."""
        mine, terms = {f"user:{by}", *(f"group:{group}" for group in groups)}, step.approval or ApprovalSpec()
        forced = self._asks(step.tool_config.tool_name)
        if (terms.forbid_self and by == user) or (forced and not mine & {f"user:{OWNER}", *self._given("approve")}):
            return False
        return bool(mine & set(terms.approvers)) if terms.approvers else forced or by == user

    def _given(self, permission: str) -> list[str]:
        return [grant.subject for grant in self.grants if grant.permission == permission]

    def _asks(self, tool: str) -> bool:
        return any(policy.requires_approval for policy in self._about(tool))

    def _about(self, tool: str) -> list[Policy]:
        return [policy for policy in self.policies if policy.tools in ("*", tool)]


EASY = Rules(
    (
        Grant(subject=f"user:{USER}", permission="use"),
        Grant(subject="group:reviewers", permission="approve"),
        Grant(subject="group:leads", permission="approve"),
    )
)
"""What stands as long as nobody does anything."""

Measure = Callable[[Rules], Rules]


def _hold(scope: Literal["everything", "agent", "user"], target: str = "") -> Measure:
    hold = Hold(scope=scope, target=target, reason="who knows", held_by=OWNER)
    return lambda rules: replace(rules, holds=(*rules.holds, hold))


def _revoke(subject: str) -> Measure:
    return lambda rules: replace(rules, grants=tuple(one for one in rules.grants if one.subject != subject))


def _policy(tools: str, **says: bool | Literal["high"]) -> Measure:
    policy = Policy(agents="*", tools=tools, **says)  # type: ignore[arg-type] # each is a field of it
    return lambda rules: replace(rules, policies=(*rules.policies, policy))


MEASURES: Mapping[str, Measure] = {
    "everything is held": _hold("everything"),
    "the agent is held": _hold("agent", AGENT),
    "ann is held": _hold("user", USER),
    "ann is given nothing": _revoke(f"user:{USER}"),
    "reviewers decide nothing": _revoke("group:reviewers"),
    "leads decide nothing": _revoke("group:leads"),
    "all tools ask": _policy("*", requires_approval=True),
    "quick asks": _policy("quick", requires_approval=True),
    "quick is denied": _policy("quick", denied=True),
    "risk is high": _policy("*", risk="high"),
}


@dataclass(slots=True)
class Authority:
    """The tables of authority and their history; versions count from 1."""

    versions: list[Rules] = field(default_factory=lambda: [EASY])
    since: list[float] = field(default_factory=lambda: [0.0])
    told: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """What each host read, and when its answer came."""
    taken: set[str] = field(default_factory=set)
    """The measures in force."""

    @property
    def version(self) -> int:
        return len(self.versions)

    @property
    def rules(self) -> Rules:
        """Those that stand."""
        return self.versions[-1]

    def of(self, version: int) -> Rules:
        return self.versions[version - 1]

    def standing(self, moment: float) -> Rules:
        """The rules that stood at that moment."""
        return self.versions[bisect_right(self.since, moment) - 1]

    def known_to(self, host: str, moment: float) -> int:
        """The newest version that the host had read before this moment; 0: none."""
        return max((version for at, version in self.told.get(host, ()) if at < moment), default=0)

    def take(self, *measures: str, at: float, back: bool = False) -> None:
        """Take these measures, or take them ``back``: a new version, if that changes anything."""
        taken = self.taken - set(measures) if back else self.taken | set(measures)
        if taken == self.taken:
            return
        self.taken, rules = taken, EASY
        for name, measure in MEASURES.items():
            rules = measure(rules) if name in taken else rules
        self.versions.append(rules)
        self.since.append(at)

    def said(self, agents: Sequence[str], now_ms: int) -> Said:
        rules = self.rules
        return Said(
            version=self.version,
            now_ms=now_ms,
            agents={agent_id: rules.agent(agent_id) for agent_id in agents},
            policies=rules.policies,
            holds=rules.holds,
        )


class AuthorityRecords:
    """Doubles ``daemon.store.authority.AuthorityRecords``."""

    def __init__(self, connection: Connection[Postgres]) -> None:
        self._line, self._server = connection.line, connection.server

    async def read(self, agents: Sequence[str]) -> Said:
        server = self._server
        said = await self._line.ask("read authority", lambda: server.authority.said(agents, server.now_ms()))
        server.authority.told.setdefault(self._line.whose, []).append((server.moment(), said.version))
        return said

    async def version(self) -> int:
        return await self._line.ask("authority version", lambda: self._server.authority.version)

    async def wake_held(self) -> None:
        await self._line.ask("wake held", self._server.wake_held)

    async def wake_asked(self) -> None:
        await self._line.ask("wake asked", self._server.wake_asked)
