"""The fabric's classes over ``redis.Redis``, each with the real one's constructor: what the simulation runs on.

One exchange here is one exchange there: where the real class speaks twice, so does its double, and may be cut between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from daemon import telemetry
from daemon.fabric import inbox as inbox_room
from daemon.fabric import ready as ready_room
from daemon.fabric.generation import DOUBT
from daemon.fabric.inbox import Post
from daemon.machine.commands import Entry, RunId, Urgency
from daemon.machine.record import Told
from daemon.runtime.ports import Held, Offer
from tests.sim.line import Connection
from tests.sim.redis import RANK, Redis

To = Connection[Redis]


class Leases:
    """Doubles ``daemon.fabric.lease.Leases``."""

    def __init__(self, client: To, keys: object, *, ttl_s: float) -> None:
        self._line, self._server, self._ttl_ms = client.line, client.server, int(ttl_s * 1000)

    async def take(self, wanted: Mapping[RunId, str]) -> set[RunId]:
        return await self._line.ask("take leases", lambda: self._server.take_leases(wanted, self._ttl_ms))

    async def seal(self, claimed: Sequence[Held]) -> set[RunId]:
        return await self._line.ask("seal leases", lambda: self._server.seal_leases(claimed, self._ttl_ms))

    async def renew(self, held: Sequence[Held]) -> Mapping[RunId, str]:
        if not held:
            return {}
        return await self._line.ask("renew leases", lambda: self._server.renew_leases(held, self._ttl_ms))

    async def release(self, held: Sequence[Held], *, force: bool = False) -> Mapping[RunId, str]:
        if not held:
            return {}
        return await self._line.ask("release leases", lambda: self._server.release_leases(held, force=force))

    async def missing(self, run_ids: Sequence[RunId]) -> list[RunId]:
        return await self._line.ask("missing leases", lambda: [i for i in run_ids if self._server.holder(i) is None])


class Inbox:
    """Doubles ``daemon.fabric.inbox.Inbox``."""

    def __init__(self, client: To, keys: object, *, bound: int) -> None:
        self._line, self._server, self._bound = client.line, client.server, bound

    @property
    def read_limit(self) -> int:
        return inbox_room.READ_LIMIT

    async def append(self, posts: Sequence[Post]) -> None:
        if posts:
            dropped = await self._line.ask("append", lambda: self._server.append(posts, self._bound))
            telemetry.chunks_dropped.inc(dropped)

    async def ring(self, *run_ids: RunId) -> None:
        await self.append(tuple(Post(run_id, "c") for run_id in run_ids))

    async def give_back(self, letters: Sequence[tuple[RunId, Entry]]) -> None:
        await self.append([Post(run_id, "h", raw, mark) for run_id, (_, raw, mark, _) in letters])

    async def read(self, run_ids: Sequence[RunId]) -> dict[RunId, list[Entry]]:
        return await self._line.ask("read inboxes", lambda: self._server.letters(run_ids, self.read_limit))

    async def delete(self, folded: Mapping[RunId, Sequence[bytes]]) -> None:
        if folded:
            await self._line.ask("delete letters", lambda: self._server.delete_letters(folded))

    async def listen(self, node: str, block_ms: int) -> dict[RunId, Urgency]:
        bell, look = f"doorbell {node}", lambda: self._server.rung(node)
        entries = await self._line.wait("listen", look, self._server.bells, bell, block_ms / 1000)
        rung: dict[RunId, Urgency] = {}
        if entries:
            await self._line.ask("unring", lambda: self._server.unring(node, [entry for entry, _ in entries]))
        for _, words in entries:
            for run_id, urgency in words.items():
                if RANK[urgency] > RANK[rung.get(run_id)]:
                    rung[run_id] = urgency
        return rung


class Ready:
    """Doubles ``daemon.fabric.ready.Ready``."""

    def __init__(self, client: To, keys: object, *, node: str) -> None:
        self._line, self._server, self._node = client.line, client.server, node

    async def mark(self, run_ids: Sequence[RunId], *, if_room: bool = False) -> int:
        size = await self._line.ask("backlog", lambda: len(self._server.ready)) if if_room else 0
        chosen = run_ids[: max(0, ready_room.BOUND - size)] if if_room else run_ids
        if chosen:
            await self._line.ask("mark ready", lambda: self._mark(chosen))
        return len(chosen)

    def _mark(self, run_ids: Sequence[RunId]) -> None:
        for run_id in run_ids:
            if not self._server.loses("offer"):
                self._server.offer(run_id)
            else:
                self._server.lost_offers.add(run_id)

    async def backlog(self) -> int:
        return await self._line.ask("backlog", lambda: len(self._server.ready))

    async def take(self, count: int, block_ms: int) -> list[Offer]:
        def look() -> list[Offer] | None:
            return self._server.take_offers(self._node, count) if self._server.group else None

        if not self._server.group:
            await self._line.ask("make group", self._server.make_group)
            return []
        found = await self._line.wait("take offers", look, self._server.bells, "ready", block_ms / 1000)
        return found or []

    async def reclaim(self, idle_ms: int, count: int) -> list[Offer]:
        found = await self._line.ask("reclaim", lambda: self._server.reclaim_offers(self._node, idle_ms, count))
        await self._line.ask("make group", self._server.make_group) if not self._server.group else None
        return found

    async def give_back(self) -> int:
        given = 0
        while taken := await self._line.ask("taken", lambda: self._server.offers_of(self._node, 1000)):
            await self.mark([run_id for _, run_id in taken])
            await self.done([entry for entry, _ in taken])
            given += len(taken)
        return given

    async def done(self, entries: Sequence[bytes]) -> None:
        if entries:
            await self._line.ask("done with offers", lambda: self._server.done(entries))


class Role:
    """Doubles ``daemon.fabric.role.Role``."""

    def __init__(self, client: To, keys: object, name: str, *, node: str, ttl_s: float) -> None:
        self._line, self._server = client.line, client.server
        self._key, self._node, self._ttl_ms = f"role:{name}", node, int(ttl_s * 1000)
        self.term = 0

    async def hold(self) -> bool:
        server, mine = self._server, (self._key, self._node, self._ttl_ms)
        if self.term:
            if await self._line.ask("keep role", lambda: server.renew(*mine)) == "l":
                self.term = 0
            return bool(self.term)
        if not await self._line.ask("take role", lambda: server.set(*mine, if_free=True)):
            return False
        self.term = await self._line.ask("time", server.now_ms)
        return True

    async def taken(self) -> bool:
        return await self._line.ask("role taken", lambda: self._server.get(self._key) is not None)

    async def leave(self) -> None:
        if self.term:
            self.term = 0
            await self._line.ask("leave role", lambda: self._server.delete(self._key, self._node))


async def shining(client: To, keys: object, names: Sequence[str]) -> set[str]:
    """Doubles ``daemon.fabric.role.shining``."""
    server = client.server
    return await client.line.ask("shining", lambda: {name for name in names if server.get(_beacon(name)) is not None})


def _beacon(name: str) -> str:
    return f"beacon:{name}"


class Beacon:
    """Doubles ``daemon.fabric.role.Beacon``."""

    def __init__(self, client: To, keys: object, name: str, *, node: str, ttl_s: float) -> None:
        self._line, self._server = client.line, client.server
        self._key, self._node, self._ttl_ms = _beacon(name), node, int(ttl_s * 1000)
        self._word = node
        self._times = 0

    def begin_anew(self) -> None:
        self._times += 1
        self._word = f"{self._node} {self._times}"

    async def shine(self) -> None:
        await self._line.ask("shine", lambda: self._server.set(self._key, self._word, self._ttl_ms))

    async def douse(self) -> None:
        await self._line.ask("douse", lambda: self._server.delete(self._key, self._word))

    async def seen(self) -> bool:
        return await self.word() is not None

    async def word(self) -> bytes | None:
        word = await self._line.ask("beacon", lambda: self._server.get(self._key))
        return None if word is None else word.encode()


class Nudge:
    """Doubles ``daemon.fabric.nudge.Nudge``: whoever plays says by ``nudged`` which hosts hear of a change at once."""

    def __init__(self, connection: To, keys: object) -> None:
        self.nudged: Callable[[], None] = lambda: None

    async def run(self, heard: Callable[[], None]) -> None:
        self.nudged = heard
        await asyncio.Event().wait()


class Generation:
    """Doubles ``daemon.fabric.generation.Generation``."""

    def __init__(self, client: To, keys: object) -> None:
        self._line, self._redis = client.line, client.server
        self._server = b""
        self._last_met = b""

    async def moved(self) -> bool:
        before, self._last_met = self._last_met, self._redis.run_id
        return before not in (b"", self._last_met)

    async def changed(self) -> bool:
        self._server, known = await self._line.ask("generation", lambda: (self._redis.run_id, self._redis.generation))
        if known is None:
            await self._line.ask("doubt", lambda: self._set(DOUBT, there=False))
        return known != self._server

    async def seen(self) -> None:
        await self._line.ask("seen", lambda: self._set(self._server, there=True))

    def _set(self, value: bytes, *, there: bool) -> None:
        if (self._redis.generation is not None) == there:
            self._redis.generation = value


async def waiting(client: To, keys: object, run_ids: Sequence[RunId]) -> set[RunId]:
    """Doubles ``daemon.fabric.waiting.waiting``."""
    return await client.line.ask("waiting", lambda: {i for i in run_ids if client.server.inboxes.get(i)})


class Publisher:
    """Doubles ``daemon.fabric.bus.Publisher``."""

    def __init__(self, client: To, keys: object) -> None:
        self._line, self._server = client.line, client.server

    async def publish(self, said: Sequence[tuple[RunId, Told]]) -> list[int]:
        return await self._line.ask("publish", lambda: self._server.publish(said))


class Bus:
    """Doubles ``daemon.fabric.bus.Bus``."""

    def __init__(self, client: To, keys: object, *, node: str) -> None:
        self._server = client.server
        self._wanted: dict[UUID, Callable[[Told], None]] = {}
        self._heard: asyncio.Queue[tuple[UUID, Told | None]] = asyncio.Queue()
        self._up = False

    async def watch(self, run_ids: Sequence[UUID]) -> None:
        for run_id in run_ids:
            self._wanted.setdefault(run_id, lambda told, run_id=run_id: self._heard.put_nowait((run_id, told)))  # type: ignore[misc] # its default is the run
            if self._up:
                self._subscribe(run_id)

    async def unwatch(self, run_id: UUID) -> None:
        hear = self._wanted.pop(run_id, None)
        if self._up and hear is not None:
            self._server.subscribers[run_id].remove(hear)

    async def run(self, heard: Callable[[UUID, Told | None], None]) -> None:
        self._up = True
        for run_id in self._wanted:
            self._subscribe(run_id)
        while True:
            heard(*await self._heard.get())

    def _subscribe(self, run_id: UUID) -> None:
        """Redis confirms every SUBSCRIBE, also a repeated one, and keeps one subscription."""
        hears = self._server.subscribers.setdefault(run_id, [])
        if self._wanted[run_id] not in hears:
            hears.append(self._wanted[run_id])
        self._heard.put_nowait((run_id, None))
