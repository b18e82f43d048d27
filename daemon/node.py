"""The composition root: opens everything in order, runs it in one TaskGroup, drains, closes in reverse.

Used by ``cli`` and by the end-to-end tests. Nothing else may know every room.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from daemon.api.app import make_app
from daemon.api.context import Context, Health
from daemon.api.feed import Feed
from daemon.config import Settings, mask
from daemon.errors import RunwardenError, SetupError
from daemon.fabric.bus import Bus
from daemon.fabric.client import Client, open_client
from daemon.fabric.inbox import Inbox
from daemon.fabric.keys import Keys
from daemon.fabric.lease import Leases, Singleton
from daemon.fabric.ready import Ready
from daemon.machine.state import Limits
from daemon.runtime.clock import Clock
from daemon.runtime.dispatch import GatewayDispatch
from daemon.runtime.host import Host
from daemon.runtime.ingest import Ingest
from daemon.runtime.ownership import Ownership
from daemon.runtime.residents import Residents
from daemon.runtime.sweep import Sweep
from daemon.store.claims import Claims
from daemon.store.commands import Commands
from daemon.store.journal import Lane
from daemon.store.log import EventLog
from daemon.store.migrate import missing
from daemon.store.pool import Pool, open_pool
from daemon.store.runs import Runs
from daemon.store.workflows import Workflows
from daemon.telemetry import log
from gateway_client import GatewayClient

PROBE_S = 1.0
QUIET_S = 5.0


class Node:
    """One node, opened. ``run`` serves until cancelled; ``drain`` is the one extra verb."""

    def __init__(
        self, settings: Settings, pool: Pool, redis: Client, gateway: GatewayClient, lanes: list[Lane]
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._redis = redis
        runtime, fabric = settings.runtime, settings.fabric
        name = runtime.node_name
        keys = Keys(fabric.redis_prefix)
        self._health = Health()
        self._log = EventLog(pool)
        self._bus = Bus(redis, keys, node=name)
        self._feed = Feed(self._bus, bound=settings.http.sse_queue)
        inbox = Inbox(redis, keys, bound=fabric.inbox_bound)
        ready = Ready(redis, keys, node=name)
        leases = Leases(redis, keys, ttl_s=runtime.lease_ttl_s)
        claims = Claims(pool)
        clock = Clock(time.monotonic)
        residents = Residents(time.monotonic, hold_s=runtime.log_hold_s)
        self._dispatch = GatewayDispatch(gateway)
        self._ownership = Ownership(
            residents=residents,
            clock=clock,
            claims=claims,
            leases=leases,
            inbox=inbox,
            ready=ready,
            node=name,
            lease_ttl_s=runtime.lease_ttl_s,
            capacity=runtime.residents,
        )
        self._ingest = Ingest(
            client=gateway,
            inbox=inbox,
            role=Singleton(redis, keys, "ingest", node=name, ttl_s=runtime.lease_ttl_s),
            ttl_s=runtime.lease_ttl_s,
            retry_s=settings.gateway.gateway_retry_s,
            missed=lambda: self._host.ask_again(),
        )
        self._host = Host(
            residents=residents,
            clock=clock,
            lanes=lanes,
            claims=claims,
            inbox=inbox,
            ownership=self._ownership,
            dispatch=self._dispatch,
            weather=self._ingest,
            limits=Limits(
                patience_ms=int(runtime.step_patience_s * 1000), ack_timeout_ms=int(runtime.ack_timeout_s * 1000)
            ),
            lease_ttl_s=runtime.lease_ttl_s,
            linger_s=runtime.linger_s,
            batch=settings.store.journal_batch,
        )
        self._sweep = Sweep(
            claims=claims,
            leases=leases,
            inbox=inbox,
            ready=ready,
            role=Singleton(redis, keys, "sweep", node=name, ttl_s=max(runtime.lease_ttl_s, 3 * runtime.sweep_period_s)),
            period_s=runtime.sweep_period_s,
            stale_after_s=runtime.stale_after_s,
        )
        self._app = make_app(
            Context(
                settings=settings.http,
                workflows=Workflows(pool),
                runs=Runs(pool),
                commands=Commands(pool),
                log=self._log,
                inbox=inbox,
                feed=self._feed,
                health=self._health,
            )
        )
        self.url = ""
        """Where the API answers, once ``run`` has begun."""

    async def run(self, started: asyncio.Event) -> None:
        """Serve until cancelled; sets ``started`` when the API answers. Raises SetupError when the port is taken."""
        async with AsyncExitStack() as stack:
            self.url = await self._listen(stack)
            async with asyncio.TaskGroup() as group:
                for name, coroutine in {
                    "bus": self._bus.run(self._feed.heard),
                    "host": self._host.run(),
                    "ingest": self._ingest.run(),
                    "take": self._ownership.take(),
                    "listen": self._ownership.listen(),
                    "renew": self._ownership.renew(lambda actor: self._host.ask_again_about(actor)),
                    "leave": self._ownership.leave(),
                    "sweep": self._sweep.run(),
                    "probe": self._probe(),
                    "compare": self._compare(),
                }.items():
                    group.create_task(coroutine, name=name)
                log.info("node ready", url=self.url, node=self._settings.runtime.node_name)
                started.set()

    async def drain(self) -> None:
        """Leave without harm: stop taking, let open calls finish, hand every run over, end the streams.

        Order matters: not ready first, so that no new client comes; the roles last but one, so that results are heard
        while calls are still open.
        """
        self._health.leaving = True
        self._ownership.stop_taking()
        self._host.stop_intending()
        cut = await self._dispatch.drain(self._settings.runtime.drain_s)
        try:
            async with asyncio.timeout(QUIET_S):
                await self._host.quiet()
        except TimeoutError:
            log.warning("some turns did not finish before the hand-over; their owner will repeat them")
        try:
            handed = await self._ownership.hand_over()
            log.info("handed over", runs=handed, calls_cut=cut)
        except RunwardenError as fault:
            log.warning("runs could not be handed over, their leases will run out", fault=str(fault))
        self._feed.close()
        await self._sweep.leave()
        await self._ingest.leave()

    async def _listen(self, stack: AsyncExitStack) -> str:
        runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        http = self._settings.http
        site = web.TCPSite(runner, http.host, http.port, backlog=1024)
        try:
            await site.start()
        except OSError as fault:
            raise SetupError(
                f"Cannot listen on {http.host}:{http.port}: {fault.strerror or fault}. "
                "Stop what uses the port, or set RUNWARDEN_PORT to another."
            ) from None
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def _probe(self) -> None:
        """Keep what ``/readyz`` tells up to date."""
        state: dict[str, str | None] = {"postgres": None, "redis": None}
        self._health.parts["postgres"] = lambda: state["postgres"]
        self._health.parts["redis"] = lambda: state["redis"]
        self._health.parts["gateway"] = self._gateway_fault
        while True:
            state["postgres"] = await _fault_of(self._pool.fetchval("SELECT 1", timeout=PROBE_S * 2))
            state["redis"] = await _fault_of(self._redis.redis.ping())
            await asyncio.sleep(PROBE_S)

    def _gateway_fault(self) -> str | None:
        if self._ingest.subscribed:
            return None
        return f"The event stream of {mask(self._settings.gateway.gateway_url)} is not open; no tool can be called."

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(self._settings.http.sse_heartbeat_s)
            try:
                await self._feed.compare(self._log)
            except RunwardenError as fault:
                log.warning("watchers could not be compared with the log", fault=str(fault))


async def _fault_of(question: object) -> str | None:
    try:
        await question  # type: ignore[misc] # any awaitable
    except Exception as fault:  # noqa: BLE001 - whatever is wrong there is what we tell
        return f"does not answer: {str(fault) or type(fault).__name__}"
    return None


@asynccontextmanager
async def open_node(settings: Settings) -> AsyncIterator[Node]:
    """A node with everything open; closed in reverse on leaving. Raises SetupError when something cannot work."""
    store, fabric, gateway = settings.store, settings.fabric, settings.gateway
    url = store.postgres_url.get_secret_value()
    async with AsyncExitStack() as stack:
        pool = await open_pool(url, size=store.postgres_pool, patience_s=store.start_patience_s)
        stack.push_async_callback(_close_pool, pool)
        unseen = await asyncio.to_thread(missing, url)
        if unseen:
            raise SetupError(f"The database lacks migrations ({', '.join(unseen)}): run 'runwarden migrate' first.")
        redis = await open_client(
            fabric.redis_url.get_secret_value(),
            patience_s=store.start_patience_s,
            allow_eviction=fabric.redis_allow_eviction,
        )
        stack.push_async_callback(redis.close)
        lanes = [Lane(url) for _ in range(store.journal_lanes)]
        for lane in lanes:
            await lane.open()
            stack.push_async_callback(lane.close)
        client = GatewayClient(
            gateway.gateway_url,
            gateway.gateway_token.get_secret_value(),
            max_connections=gateway.gateway_connections,
        )
        stack.push_async_callback(client.aclose)
        yield Node(settings, pool, redis, client, lanes)


async def _close_pool(pool: Pool) -> None:
    try:
        async with asyncio.timeout(QUIET_S):
            await pool.close()
    except TimeoutError:
        pool.terminate()


async def serve(settings: Settings, stop: asyncio.Event, started: asyncio.Event | None = None) -> None:
    """Run a node until ``stop`` is set, then drain it. Raises SetupError when it cannot start."""
    async with open_node(settings) as node:
        up = started or asyncio.Event()
        running = asyncio.create_task(node.run(up), name="node")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            await node.drain()
            running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            log.info("node stopped")
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
