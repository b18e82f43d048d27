"""A node's front: the application and the feed behind it, put together over one Postgres and one Redis.

Used by ``node``. A node that is a runner only still answers health and metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from daemon.api.app import make_app
from daemon.api.callers import Callers
from daemon.api.context import Context, Health
from daemon.api.feed import Feed
from daemon.api.reach import Reach
from daemon.api.verdicts import Bell, Verdicts
from daemon.api.watches import Watches
from daemon.config import Settings
from daemon.errors import RunwardenError
from daemon.fabric.bus import Bus
from daemon.fabric.client import Client
from daemon.fabric.inbox import Inbox
from daemon.fabric.keys import Keys
from daemon.fabric.nudge import Nudge
from daemon.store.agents import Agents
from daemon.store.approvals import Approvals
from daemon.store.authority import AuthorityRecords
from daemon.store.commands import Commands
from daemon.store.entitlements import Entitlements
from daemon.store.grants import Grants
from daemon.store.holds import Holds
from daemon.store.log import EventLog
from daemon.store.meant import Meanings
from daemon.store.policies import Policies
from daemon.store.pool import Pool
from daemon.store.runs import Runs
from daemon.store.service_tokens import ServiceTokens
from daemon.store.sight import Sight
from daemon.store.trail import Trail
from daemon.store.workflows import Workflows
from daemon.telemetry import log
from gateway_client import Gateways


class Front:
    """Serves the API on this node; ``ops_only``: health and metrics, nothing else."""

    def __init__(
        self,
        settings: Settings,
        pool: Pool,
        redis: Client,
        keys: Keys,
        health: Health,
        gateways: Gateways,
        *,
        ops_only: bool,
    ) -> None:
        self._heartbeat_s = settings.http.sse_heartbeat_s
        self._ops_only = ops_only
        self._log = EventLog(pool)
        self._bus = Bus(redis, keys, node=settings.runtime.node_name)
        self._feed = Feed(self._bus, bound=settings.http.sse_queue)
        commands = Commands(pool)
        self._bell = Bell(Inbox(redis, keys, bound=settings.fabric.inbox_bound))
        self._verdicts = Verdicts(commands)
        self._callers = Callers(settings.identity, pool)
        if self._callers.issuer is not None and not ops_only:
            health.parts["issuer"] = self._callers.issuer.fault
        self._watches = Watches(self._feed, self._callers, Sight(pool))
        self._agents = Agents(pool)
        self._reach = Reach(gateways, mirrors=bool(settings.gateway.agent_token_secret.get_secret_value()))
        self.app: web.Application = make_app(
            Context(
                settings=settings.http,
                callers=self._callers,
                service_tokens=ServiceTokens(pool),
                workflows=Workflows(pool),
                runs=Runs(pool),
                commands=commands,
                approvals=Approvals(pool),
                meanings=Meanings(pool),
                authority=AuthorityRecords(pool),
                log=self._log,
                bell=self._bell,
                verdicts=self._verdicts,
                feed=self._feed,
                health=health,
                trail=Trail(pool),
                gateway=settings.gateway,
                reach=self._reach,
                agents=self._agents,
                grants=Grants(pool),
                policies=Policies(pool),
                holds=Holds(pool),
                entitlements=Entitlements(pool),
                nudge=Nudge(redis, keys),
            ),
            ops_only=ops_only,
        )

    def parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The long-lived parts by name; each runs until cancelled."""
        if self._ops_only:
            return {}
        return {
            "bus": self._bus.run(self._feed.heard),
            "compare": self._compare(),
            "bell": self._bell.run(),
            "verdicts": self._verdicts.run(),
            **self._callers.parts(),
            "token versions": self._reach.mirror(self._agents),
        }

    def close_streams(self) -> None:
        """End every event stream with a hint to come back; part of a drain."""
        self._feed.close()

    async def _compare(self) -> None:
        """At every heartbeat, see whether a watcher missed something, or may not watch any more."""
        while True:
            await asyncio.sleep(self._heartbeat_s)
            try:
                await self._feed.compare(self._log)
                await self._watches.look()
            except RunwardenError as fault:
                log.warning("watchers could not be compared with the log", fault=str(fault))
