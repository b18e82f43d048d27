"""What handlers reach for: the stores, the bell, the feed and the settings, put into the application once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from daemon.api.callers import Callers
from daemon.api.feed import Feed
from daemon.api.reach import Reach
from daemon.api.verdicts import Bell, Verdicts
from daemon.auth.caller import Caller, Origin
from daemon.config import Gateway, Http
from daemon.fabric.nudge import Nudge
from daemon.store.agents import Agents
from daemon.store.approvals import Approvals
from daemon.store.audit import Deed
from daemon.store.authority import AuthorityRecords
from daemon.store.commands import Commands
from daemon.store.entitlements import Entitlements
from daemon.store.grants import Grants
from daemon.store.holds import Holds
from daemon.store.log import EventLog
from daemon.store.meant import Meanings
from daemon.store.policies import Policies
from daemon.store.runs import Runs
from daemon.store.service_tokens import ServiceTokens
from daemon.store.trail import Trail
from daemon.store.workflows import Workflows


@dataclass(slots=True)
class Health:
    """What ``/readyz`` tells: each named part answers None when well, else a sentence. ``leaving`` once draining."""

    parts: dict[str, Callable[[], str | None]] = field(default_factory=dict)
    leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything a handler may use."""

    settings: Http
    callers: Callers
    service_tokens: ServiceTokens
    workflows: Workflows
    runs: Runs
    commands: Commands
    approvals: Approvals
    meanings: Meanings
    authority: AuthorityRecords
    log: EventLog
    bell: Bell
    verdicts: Verdicts
    feed: Feed
    health: Health
    trail: Trail
    gateway: Gateway
    reach: Reach
    agents: Agents
    grants: Grants
    policies: Policies
    holds: Holds
    entitlements: Entitlements
    nudge: Nudge

    async def authority_changed(self) -> None:
        """Who may do what has changed, and is committed: a hint for the runners, which find it out anyway."""
        await self.nudge.give()


CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)
CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
ORIGIN: web.RequestKey[Origin] = web.RequestKey("origin", Origin)
OPERATION: web.RequestKey[str] = web.RequestKey("operation", str)
"""The name of its route."""
ATTEMPT: web.RequestKey[Deed] = web.RequestKey("attempt", Deed)
"""What was attempted in the audit's words, where a handler knows better than the path: the gate writes it if the
request is refused, with 403 or otherwise, so a handler that sets it writes no line of its own."""
DOCUMENT: web.AppKey[Callable[[], bytes]] = web.AppKey("document")
