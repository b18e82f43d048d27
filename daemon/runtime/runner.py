"""A node's runner: every part of this room, put together over one Postgres, one Redis and the Gateways.

Used by ``node`` when the node's role is ``runner`` or ``both``. ``parts`` are its coroutines, ``drain`` hands over.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from daemon.config import Settings
from daemon.errors import RunwardenError
from daemon.fabric.bus import Publisher
from daemon.fabric.client import Client
from daemon.fabric.generation import Generation
from daemon.fabric.inbox import Inbox
from daemon.fabric.keys import Keys
from daemon.fabric.lease import Leases
from daemon.fabric.nudge import Nudge
from daemon.fabric.ready import Ready
from daemon.fabric.role import Beacon, Role, shining
from daemon.fabric.waiting import waiting
from daemon.machine.state import Limits
from daemon.runtime.authority import Authority
from daemon.runtime.awake import Awake, pays
from daemon.runtime.catalogue import Catalogue
from daemon.runtime.clock import Clock
from daemon.runtime.dispatch import GatewayDispatch
from daemon.runtime.hearing import open_ears
from daemon.runtime.host import Host
from daemon.runtime.looks import Looks
from daemon.runtime.ownership import Ownership
from daemon.runtime.presence import Presence
from daemon.runtime.residents import Residents
from daemon.runtime.sweep import Sweep, node_beacon
from daemon.store.authority import AuthorityRecords
from daemon.store.claims import Claims
from daemon.store.journal import Lane
from daemon.store.passive import PassiveRuns
from daemon.store.poison import Poison
from daemon.store.pool import Pool
from daemon.telemetry import log
from gateway_client import Gateways

QUIET_S = 5.0
"""What a drain gives each of its steps that may have to wait for Postgres or Redis, so that it ends in any weather."""
PROMPT_S = 0.25
"""For how long all runs wait for the open calls of a drain, most of which are answered in a moment."""
AUTHORITY_S = 0.5
"""How soon a node knows of a changed grant, policy or hold that nobody told it of; its commits know at once."""
RETURNED_S = 1.0
"""What an agent that connected anew is given for sending its RESULTs again, before anybody asks about them."""


class Runner:
    """Owns and carries runs on this node."""

    def __init__(
        self, settings: Settings, pool: Pool, redis: Client, keys: Keys, gateways: Gateways, lanes: list[Lane]
    ) -> None:
        runtime, bound = settings.runtime, settings.fabric.inbox_bound
        node, ttl_s = f"{runtime.node_name}.{secrets.token_hex(3)}", runtime.lease_ttl_s
        self._drain_s = runtime.drain_s
        claims, clock = Claims(pool), Clock(time.monotonic)
        inbox = Inbox(redis, keys, bound=bound)
        ready, leases = Ready(redis, keys, node=node), Leases(redis, keys, ttl_s=ttl_s)
        self._residents = residents = Residents(time.monotonic, hold_s=runtime.log_hold_s, bound=bound)
        self._dispatch, self._catalogue = GatewayDispatch(gateways), Catalogue(gateways.tools, time.monotonic)
        self._authority = Authority(
            AuthorityRecords(pool), self._catalogue, clock, period_s=AUTHORITY_S, changed=self._look_again
        )
        self._ownership = Ownership(
            residents=residents,
            clock=clock,
            claims=claims,
            leases=leases,
            inbox=inbox,
            ready=ready,
            node=node,
            lease_ttl_s=ttl_s,
            capacity=runtime.residents,
        )
        self._hearing = open_ears(
            settings,
            node=node,
            redis=redis,
            keys=keys,
            gateways=gateways,
            inbox=inbox,
            residents=residents,
            missed=self.missed,
            unsure=self.unsure,
            returned=self.returned,
        )
        self._host = Host(
            residents=residents,
            clock=clock,
            lanes=lanes,
            claims=claims,
            inbox=inbox,
            publisher=Publisher(redis, keys),
            ownership=self._ownership,
            dispatch=self._dispatch,
            aside=Poison(pool),
            weather=self._hearing,
            tools=self._catalogue,
            authority=self._authority,
            limits=_limits(settings),
            lease_ttl_s=ttl_s,
            linger_s=runtime.linger_s,
            batch=settings.store.journal_batch,
            awake=Awake(time.monotonic, longest_s=pays(runtime.busy_poll_ms / 1000)),
        )
        self._presence = Presence(Beacon(redis, keys, node_beacon(node), node=node, ttl_s=ttl_s), ttl_s=ttl_s)
        self._nudge, wait = Nudge(redis, keys), partial(waiting, redis, keys)
        self._looks = Looks(runs=PassiveRuns(pool), inbox=inbox, ready=ready, waiting=wait, results=gateways.results)
        self._sweep = _sweep(settings, node, redis, keys, claims, self._looks, leases, inbox, ready, self.unsure)

    @property
    def hears(self) -> bool:
        """Whether the events of every Gateway are heard, here or on another node."""
        return not self._hearing.deaf()

    def deaf_to(self, gateway: str) -> bool:
        """Whether nobody hears this Gateway's events."""
        return gateway in self._hearing.deaf()

    def missed(self) -> None:
        """A Gateway's stream had a gap: ask what became of every attempt in flight, here and of passive runs."""
        self._host.ask_again()
        self._sweep.missed()

    def unsure(self) -> None:
        """Another node had the gap or took over, or Redis is another: ask about the attempts in flight here."""
        self._host.ask_again()

    def _look_again(self) -> None:
        self._host.look_again()

    def returned(self, agent_id: str) -> None:
        """An agent connected anew: after a moment for the RESULTs that it sends again, ask about its calls.

        Runs that another node holds ask there if it hears too, or at the next look of their own.
        """
        self._catalogue.returned(agent_id)
        asyncio.get_running_loop().call_later(RETURNED_S, self._ask_about, agent_id)

    def _ask_about(self, agent_id: str) -> None:
        self._host.ask_again(agent_id)
        self._sweep.returned(agent_id)

    def parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The long-lived parts by name; each runs until cancelled."""
        return {
            "host": self._host.run(),
            "authority": self._authority.run(),
            "nudge": self._nudge.run(self._authority.hint),
            "take": self._ownership.take(),
            "listen": self._ownership.listen(),
            "renew": self._ownership.renew(self._host.ask_again_about),
            "leave": self._ownership.leave(),
            "presence": self._presence.run(),
            "sweep": self._sweep.run(),
            "looks": self._looks.run(),
            **self._hearing.parts(),
        }

    async def drain(self) -> None:
        """Leave without harm: begin nothing more, let open calls finish, hand every run over, then the roles.

        A call that its agent leaves open may take all of ``drain_s``: its own run waits for that, and no other. The
        ears go last, so that results are heard as long as calls are open.
        """
        await self._ownership.stop_taking()
        self._host.stop_intending()
        await self._quiet()  # what is being intended now is committed, and denied by the permit
        self._dispatch.begin_no_more()
        prompt_s = min(PROMPT_S, self._drain_s)
        unanswered = await self._dispatch.finish(prompt_s)
        await self._quiet()  # what the calls proved is committed
        cut = 0
        if unanswered:
            await self._hand_over(calling=False, calls_open=unanswered)
            await self._dispatch.finish(self._drain_s - prompt_s)
            cut = self._dispatch.cut()
            await self._quiet()
        await self._hand_over(calls_cut=cut)
        await self._in_time(self._residents.strays.returned(), "some letters did not reach the inboxes of their runs")
        await asyncio.gather(self._presence.leave(), self._sweep.leave(), self._hearing.leave())
        await self._catalogue.close()

    async def _hand_over(self, *, calling: bool = True, **calls: int) -> None:
        """Give them to the others, if Postgres and Redis answer in time; else they are found as a dead node's are."""
        try:
            async with asyncio.timeout(QUIET_S):
                handed = await self._ownership.hand_over(calling=calling)
            log.info("handed over", runs=handed, **calls)
        except (RunwardenError, TimeoutError) as fault:
            why = str(fault) or f"it took longer than {QUIET_S:.0f} s"
            log.warning("runs could not be handed over, their leases will run out", fault=why)

    async def _quiet(self) -> None:
        await self._in_time(
            self._host.quiet(), "some turns did not finish before the hand-over; their next owner repeats them"
        )

    async def _in_time(self, work: Coroutine[Any, Any, None], else_: str) -> None:
        try:
            async with asyncio.timeout(QUIET_S):
                await work
        except TimeoutError:
            log.warning(else_)


def _sweep(
    settings: Settings,
    node: str,
    redis: Client,
    keys: Keys,
    claims: Claims,
    looks: Looks,
    leases: Leases,
    inbox: Inbox,
    ready: Ready,
    unsure: Callable[[], None],
) -> Sweep:
    runtime = settings.runtime
    ttl_s = max(runtime.lease_ttl_s, 3 * runtime.sweep_period_s)
    return Sweep(
        claims=claims,
        looks=looks,
        leases=leases,
        inbox=inbox,
        ready=ready,
        role=Role(redis, keys, "sweep", node=node, ttl_s=ttl_s),
        generation=Generation(redis, keys),
        shining=partial(shining, redis, keys),
        unsure=unsure,
        period_s=runtime.sweep_period_s,
        stale_after_s=runtime.stale_after_s,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        patience_ms=int(settings.runtime.step_patience_s * 1000),
        ack_timeout_ms=int(settings.runtime.ack_timeout_s * 1000),
    )
