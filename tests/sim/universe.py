"""A universe: hosts, people, an agent, and a seed from which everything else follows, to the last exchange.

``play(seed)`` runs it: trouble for a while, then fair weather until it is quiet, then the checkers. Used by the tests
here, and by ``python -m tests.sim`` for many seeds.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from daemon.machine.commands import RunId
from tests.sim import checkers
from tests.sim.authority import AGENT, MEASURES, OWNER, USER
from tests.sim.fabric import Redis
from tests.sim.faults import Chance, Plan, draw
from tests.sim.gateway import TOOLS, Gateway
from tests.sim.host import Host, Servers, doubled
from tests.sim.loop import World
from tests.sim.people import Person
from tests.sim.postgres import Postgres

START_MS = 1_800_000_000_000
APPROVERS = ((), ("group:reviewers",), (f"user:{USER}", "group:leads"), (f"user:{OWNER}", "user:bob", "user:cyd"))
PEACE_S = 90.0
"""After the trouble, every universe must be quiet within this."""
LOOK_S = 0.5
QUIET_LOOKS = 4
"""So many looks in a row find it quiet."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a universe. ``trace``: (virtual s, who, what, how) of every exchange and stroke of fate."""

    seed: int
    plan: Plan
    violations: tuple[str, ...]
    trace: tuple[tuple[float, str, str, str], ...]
    statuses: tuple[str, ...]
    took_s: float
    """Virtual seconds from the end of the trouble until it was quiet."""

    @property
    def fingerprint(self) -> str:
        """The same for the same seed, in any process."""
        return hashlib.sha256(repr((self.trace, self.statuses, self.violations)).encode()).hexdigest()


class Universe:
    """One world and everything in it, made from the seed."""

    def __init__(self, seed: int, plan: Plan | None = None) -> None:
        self.seed = seed
        self.plan = plan or draw(self._rng("plan"))
        self.world = World()
        self.chance = Chance(self.plan, self._rng("fate"))
        self.trace: list[tuple[float, str, str, str]] = []
        self.violations: list[str] = []
        self.postgres_off_ms = self.redis_off_ms = 0
        store, redis = (
            Postgres(lambda: self._clock(self.postgres_off_ms)),
            Redis(lambda: self._clock(self.redis_off_ms)),
        )
        gateway = Gateway(self.world, self.plan, self.chance, self._rng("agent"))
        redis.loses, redis.on_renewal = self._loses_hint, gateway.note_renewal
        store.moment = lambda: self.world.now
        self.servers = Servers(store, redis, gateway, ttl_s=self.plan.ttl_s)
        self.hosts: list[Host] = []
        self._lots = self._rng("lots")
        self._quiet = 0

    def play(self) -> Report:
        """From the beginning to the verdict."""
        with doubled(self.world, self._rng("ids")), _listening(self.violations):
            try:
                self._begin()
                self.world.run(self.plan.trouble_s)
                self._make_peace()
                quiet = self.world.run(self.plan.trouble_s + PEACE_S, enough=lambda: self._quiet >= QUIET_LOOKS)
                took_s = self.world.now - self.plan.trouble_s
                if not quiet:
                    self.violations += [f"not quiet: {one}" for one in checkers.unrest(self.servers)]
                self.violations += checkers.judge(self.servers)
                return self._report(took_s)
            finally:
                for host in self.hosts:
                    host.loop.bury()

    def start_host(self) -> Host:
        host = Host(
            self.world,
            f"h{len(self.hosts) + 1}",
            self.servers,
            chance=self.chance,
            trace=self.note,
            blame=self.violations.append,
            keeps_results=self.plan.keeps_results,
        )
        self.note(host.name, "starts", "")
        self.hosts.append(host)
        return host

    def note(self, who: str, what: str, how: str) -> None:
        self.trace.append((self.world.now, who, what, how))

    def create_run(self, *steps: dict[str, Any]) -> RunId:
        """A run of these steps, as the API makes it; its bell may be lost."""
        number = len(self.servers.store.runs) + 1
        run_id, nonce = RunId(UUID(int=number << 64 | self._lots.getrandbits(64))), self._lots.randbytes(16)
        snapshot = checkers.snapshot(steps)
        command_id = UUID(int=self._lots.getrandbits(128))
        self.servers.store.create(
            run_id=run_id, workflow_id=UUID(int=1), user_id=USER, nonce=nonce, snapshot=snapshot, command_id=command_id
        )
        self.note(USER, f"creates run {number}", "")
        return run_id

    def _begin(self) -> None:
        lots, at = self._lots, self.world.at
        for _ in range(self.plan.hosts):
            at(lots.uniform(0, 0.5), self.start_host)
        for _ in range(self.plan.runs):
            at(lots.uniform(0.3, self.plan.trouble_s * 0.7), lambda: self.create_run(*self._steps()))
        for number in range(self.plan.people):
            person = Person(self.world, self.servers, self.chance, self._rng(f"person {number + 1}"))
            at(lots.uniform(0.5, 1.5), person.work)
        for count, stroke in (
            (self.plan.thefts, self._steal),
            (self.plan.outages, self._outage),
            (self.plan.jumps, self._jump),
            (self.plan.drains, self._drain),
            (self.plan.agent_drops, lambda: self.servers.gateway.drop_agent(lots.uniform(0.05, 3))),
            (self.plan.forgets, self._forget),
            (self.plan.edicts, self._edict),
        ):
            for _ in range(count):
                at(lots.uniform(0.5, self.plan.trouble_s), stroke)
        at(1.0, self._replace_the_dead)

    def _steps(self) -> list[dict[str, Any]]:
        lots = self._lots
        lone = self.plan.lone > 0 and lots.random() < self.plan.lone
        odd, gated = (share / 8 if lone else share for share in (self.plan.odd_tools, 0.3))
        return [
            {
                "id": f"s{number}",
                "name": f"Step {number}",
                "on_error": "continue" if lots.random() < 0.3 else "stop",
                "tool_config": {
                    "agent_id": AGENT,
                    "tool_name": lots.choice(TOOLS[1:]) if lots.random() < odd else TOOLS[0],
                    "arguments": {"n": number},
                    "timeout_ms": lots.choice((800, 2500, 8000)),
                },
            }
            | self._gate(gated)
            for number in range(lots.randint(8, 12) if lone else lots.randint(1, 4))
        ]

    def _gate(self, share: float) -> dict[str, Any]:
        """Whether a step waits for approval, as such a share of them does, and on which terms."""
        lots = self._lots
        if lots.random() >= share:
            return {"approval_policy": "auto"}
        if lots.random() >= self.plan.terms:
            return {"approval_policy": "manual"}
        terms = {
            "approvers": lots.choice(APPROVERS),
            "quorum": lots.choice((1, 2)),
            "forbid_self": lots.random() < 0.3,
            "allow_edit": lots.random() < 0.7,
            "expires_in_ms": lots.choice((None, 1000, 1000, 4000)),
            "on_expiry": lots.choice(("reject", "stay")),
        }
        return {"approval_policy": "manual", "approval": terms}

    def _make_peace(self) -> None:
        """No more faults: servers answer, hosts go on, somebody is there to drive the runs."""
        self.note("the world", "makes peace", "")
        self.chance.trouble = False
        self.servers.out.clear()
        self.servers.store.authority.take(*MEASURES, at=self.world.now, back=True)
        for host in self.hosts:
            host.loop.go_on()
        if all(host.gone for host in self.hosts):
            self.start_host()
        if self.plan.finishes:
            Person(self.world, self.servers, self.chance, self._rng("patient")).clear()
        self._look()

    def _look(self) -> None:
        self._quiet = 0 if checkers.unrest(self.servers) else self._quiet + 1
        self.world.after(LOOK_S, self._look)

    def _replace_the_dead(self) -> None:
        if sum(not host.gone for host in self.hosts) < self.plan.hosts and self._lots.random() < 0.5:
            self.start_host()
        self.world.after(1.0, self._replace_the_dead)

    def _steal(self) -> None:
        held = [run_id for run_id in self.servers.store.runs if self.servers.redis.holder(run_id) is not None]
        if held:
            self.note("the world", "steals a lease", "")
            self.servers.redis.steal(self._lots.choice(held))

    def _outage(self) -> None:
        server, for_s = self._lots.choice(("postgres", "redis", "gateway")), self._lots.uniform(0.1, 4)
        self.note("the world", f"{server} is out", f"{for_s:.3f}")
        if server == "gateway":
            self.servers.gateway.go_down(for_s)
            return
        self.servers.out.add(server)
        self.world.after(for_s, lambda: self.servers.out.discard(server))

    def _jump(self) -> None:
        lots = self._lots
        whose, by_s = lots.choice(("postgres", "redis", "host")), lots.uniform(-4, 4)
        self.note("the world", f"the clock of {whose} jumps", f"{by_s:.3f}")
        if whose == "postgres":
            self.postgres_off_ms += int(by_s * 1000)
        elif whose == "redis":
            self.redis_off_ms += int(by_s * 1000)
        elif self.hosts:
            lots.choice(self.hosts).loop.jump(abs(by_s))

    def _drain(self) -> None:
        alive = [host for host in self.hosts if not host.gone]
        if alive:
            self._lots.choice(alive).leave()

    def _forget(self) -> None:
        self.note("the world", "Redis forgets everything", "")
        self.servers.redis.flush()

    def _edict(self) -> None:
        """Somebody changes who may do what, and mostly changes it back soon."""
        name, for_s = self._lots.choice(list(MEASURES)), self._lots.uniform(0.1, 4)

        def over() -> None:
            self.enact(name, back=True)
            self.hint(0.5)

        if self.chance.trouble:
            self.enact(name)
            self.hint(0.5)
            self.world.after(for_s, over)

    def enact(self, name: str, *, back: bool = False) -> None:
        """Take a measure, or take it back; as nobody tells the hosts, each finds out for itself."""
        self.note(OWNER, name, "is over" if back else "")
        self.servers.store.authority.take(name, at=self.world.now, back=back)

    def hint(self, chance: float = 1.0) -> None:
        """Tell the hosts that somebody changed something, each with that chance."""
        for host in self.hosts:
            if not host.gone and (chance >= 1 or self._lots.random() < chance):
                host.nudged()

    def _loses_hint(self, hint: str) -> bool:
        lost = self.chance.hits(self.plan.hint)
        if lost:
            self.note("redis", f"{hint} is lost", "")
        return lost

    def _clock(self, off_ms: int) -> int:
        return START_MS + int(self.world.now * 1000) + off_ms

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")

    def _report(self, took_s: float) -> Report:
        statuses = tuple(f"{row.head.status}:{row.head.last_seq}" for row in self.servers.store.runs.values())
        return Report(self.seed, self.plan, tuple(self.violations), tuple(self.trace), statuses, took_s)


class _listening(logging.Handler):  # noqa: N801 - a context manager
    """Errors that the daemon logs are violations: in no weather should a turn fail or a run be parked."""

    def __init__(self, violations: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._violations = violations
        self._logger = logging.getLogger("runwarden")

    def __enter__(self) -> None:
        self._before = self._logger.level, self._logger.propagate
        self._logger.addHandler(self)
        self._logger.setLevel(logging.ERROR)
        self._logger.propagate = False

    def __exit__(self, *about: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._before[0])
        self._logger.propagate = self._before[1]

    def emit(self, record: logging.LogRecord) -> None:
        fault = record.exc_info[1] if record.exc_info else getattr(record, "fields", {})
        self._violations.append(f"logged as an error: {record.getMessage()}: {fault!r}")


def play(seed: int, plan: Plan | None = None, *, change: Callable[[Universe], None] = lambda universe: None) -> Report:
    """Make the universe of this seed, ``change`` it for a story, and play it."""
    universe = Universe(seed, plan)
    change(universe)
    return universe.play()
