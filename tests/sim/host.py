"""A host of the simulation: the real ``Runner`` on a loop in virtual time, over doubles of the three servers.

``doubled`` replaces, in ``daemon.runtime`` alone, the classes that speak to the world and the sources of time and
chance; host, actor, ownership, dispatch, ingest, sweep and the order in which ``Runner`` builds them are the real ones.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from daemon.config import Settings, load
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.runtime import hearing as hearing_room
from daemon.runtime import runner as runner_room
from daemon.store import journal as journal_room
from gateway_client import Gateways
from tests.sim import authority, fabric, gateway, postgres
from tests.sim.faults import Chance, Far
from tests.sim.line import Connection
from tests.sim.loop import HostLoop, World

SETTINGS: dict[str, Any] = {
    "jwt_secret": "a secret that nothing here needs",
    "postgres_url": "postgresql://in/memory",
    "redis_url": "redis://in-memory",
    "gateway_url": "http://in-memory",
    "node_name": "host",
    "sweep_period_s": 0.5,
    "stale_after_s": 0.5,
    "linger_s": 0.4,
    "log_hold_s": 0.1,
    "busy_poll_ms": 0,  # time stands still there while somebody polls
    "gateway_retry_s": 0.3,
    "drain_s": 2.0,
    "step_patience_s": 3.0,
    "ack_timeout_s": 4.0,
}
DOUBLES: dict[str, Any] = {
    "AuthorityRecords": authority.AuthorityRecords,
    "Claims": postgres.Claims,
    "PassiveRuns": postgres.PassiveRuns,
    "Poison": postgres.Poison,
    "Inbox": fabric.Inbox,
    "Publisher": fabric.Publisher,
    "Leases": fabric.Leases,
    "Ready": fabric.Ready,
    "Role": fabric.Role,
    "Beacon": fabric.Beacon,
    "Generation": fabric.Generation,
    "Nudge": fabric.Nudge,
    "shining": fabric.shining,
    "waiting": fabric.waiting,
}
CHECKPOINT_AFTER_S = 0.02
"""By the lane's clock, which is slower here: soon enough for a run that waits for its tool, and has not left memory."""
KILLED_AFTER_S = 20.0
"""A drain that takes longer is cut short, as by whoever deploys."""


@contextmanager
def doubled(world: World, rng: random.Random) -> Iterator[None]:
    """Inside, ``Runner`` is built over doubles; time and chance of the runtime are the world's."""
    sources = {
        "time": SimpleNamespace(monotonic=world.monotonic),
        "random": SimpleNamespace(uniform=rng.uniform),
        "secrets": SimpleNamespace(
            token_hex=lambda size: rng.randbytes(size).hex(),
            token_urlsafe=lambda size: rng.randbytes(size).hex(),
        ),
    }
    with ExitStack() as stack:
        stack.enter_context(patch.multiple(runner_room, **DOUBLES))
        stack.enter_context(patch.object(journal_room, "CHECKPOINT_AFTER_S", CHECKPOINT_AFTER_S))
        stack.enter_context(patch.multiple(hearing_room, Role=fabric.Role, Beacon=fabric.Beacon))
        for name, module in list(sys.modules.items()):
            if name.startswith(("daemon.runtime.", "gateway_client.directory")):
                for source, stand_in in sources.items():
                    if hasattr(module, source):
                        stack.enter_context(patch.object(module, source, stand_in))
        yield


class Servers:
    """What all hosts share, and which of it is ``out``; ``ttl_s``: how long a lease lasts."""

    def __init__(self, store: postgres.Postgres, redis: fabric.Redis, bridge: gateway.Gateway, *, ttl_s: float) -> None:
        self.store, self.redis, self.gateway, self.ttl_s = store, redis, bridge, ttl_s
        self.out: set[str] = set()


class Host:
    """One process: ``crash`` ends it, ``stop`` halts it, ``leave`` drains it. It never starts again under its name."""

    def __init__(
        self,
        world: World,
        name: str,
        servers: Servers,
        *,
        chance: Chance,
        trace: Callable[[str, str, str], None],
        blame: Callable[[str], None],
        keeps_results: bool,
    ) -> None:
        self.name = name
        self.loop = HostLoop(world, ahead=1000.0)
        self._world = world
        self._trace = trace
        self._blame = blame
        self._leaving = False
        store, redis = self._line(servers, "postgres", chance), self._line(servers, "redis", chance)
        journal = self._line(servers, "postgres", chance, journal=True)
        way = self._line(servers, "gateway", chance)
        client = gateway.Client if keeps_results else gateway.WithoutResults
        self.runner = runner_room.Runner(
            _settings(name, servers.ttl_s),
            Connection(servers.store, store),  # type: ignore[arg-type] # a pool is what the double makes of it
            Connection(servers.redis, redis),  # type: ignore[arg-type] # as above
            None,  # type: ignore[arg-type] # the doubles need no keys
            Gateways({"one": client(servers.gateway, way, name, lambda: self.gone)}),  # type: ignore[dict-item] # all that is used of one
            [postgres.Lane(Connection(servers.store, journal))],
        )
        for part, work in self.runner.parts().items():
            self.loop.create_task(work, name=part).add_done_callback(self._part_ended)

    @property
    def gone(self) -> bool:
        return self.loop.gone

    def crash(self, why: str) -> None:
        """As at SIGKILL: nothing more happens here, ever."""
        if not self.gone:
            self._trace(self.name, "crashes", why)
            self.loop.gone = True

    def stop(self, for_s: float) -> None:
        """As at SIGSTOP, until SIGCONT."""
        if not self.gone:
            self._trace(self.name, "stands still", f"{for_s:.3f}")
            self.loop.stop_still()
            self._world.after(for_s, self.loop.go_on)

    def leave(self) -> None:
        """As at SIGTERM."""
        if not self.gone and not self._leaving:
            self._trace(self.name, "leaves", "")
            self._leaving = True
            self.loop.create_task(self.runner.drain()).add_done_callback(lambda _: self.crash("it has left"))
            self._world.after(KILLED_AFTER_S, lambda: self.crash("it took too long to leave"))

    def _part_ended(self, part: Any) -> None:
        if not self.gone and not part.cancelled() and part.exception() is not None:
            self._blame(f"{self.name}: {part.get_name()} died: {part.exception()!r}")

    def nudged(self) -> None:
        """It hears at once that authority has changed."""
        nudge: Any = self.runner._nudge
        nudge.nudged()

    def _line(self, servers: Servers, server: str, chance: Chance, *, journal: bool = False) -> Far:
        faults: dict[str, Callable[[str], Exception]] = {
            "postgres": ConnectionError if journal else StoreUnavailable,
            "redis": FabricUnavailable,
            "gateway": gateway.fault,
        }
        return Far(
            self._world,
            self,
            server,
            chance=chance,
            stop_s=3 * servers.ttl_s,
            reachable=lambda: server not in servers.out and (server != "gateway" or servers.gateway.up),
            fault=faults[server],
            trace=self._trace,
        )


_loaded: list[Settings] = []


def _settings(name: str, ttl_s: float) -> Settings:
    if not _loaded:
        _loaded.append(load(**SETTINGS))
    settings = _loaded[0]
    runtime = settings.runtime.model_copy(update={"node_name": name, "lease_ttl_s": ttl_s})
    return Settings(**{one: getattr(settings, one) for one in Settings.__slots__} | {"runtime": runtime})
