"""Redis in memory: the server. Each method is one script, pipeline or command of ``daemon/fabric``, done in one moment.

``fabric`` holds the classes that double the fabric's over it; together they pass ``tests/fabric``'s conformance suite.
Keys run out when somebody looks at them late. ``loses`` is asked about each hint (a bell, an offer that no letter
comes with) before it is kept; leases can be stolen and everything forgotten, as ``universe`` wishes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from uuid import UUID

from daemon.fabric.inbox import Post
from daemon.machine.commands import Entry, RunId, Urgency
from daemon.machine.record import Told
from daemon.runtime.ports import Held, Offer
from tests.sim.line import Bells

RANK: Mapping[str | None, int] = {None: 0, "s": 1, "h": 2, "c": 3}


class Redis:
    """The server. ``now_ms``: its clock, epoch ms; whatever has a TTL goes by it."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.bells = Bells()
        self.loses: Callable[[str], bool] = lambda hint: False
        self.lost_offers: set[RunId] = set()
        """Runs that were marked ready in vain."""
        self.run_id = b"server-1"
        self.appended: dict[bytes, tuple[RunId, bytes]] = {}
        """Every letter that ever came into an inbox and was not forgotten, by its entry."""
        self.on_renewal: Callable[[RunId, str], None] = lambda run_id, owner: None
        """Told whenever an owner takes or renews a lease."""
        self.inboxes: dict[RunId, dict[bytes, Entry]] = {}
        self.subscribers: dict[UUID, list[Callable[[Told], None]]] = {}
        self._entries = 0
        self.flush()

    def flush(self) -> None:
        """Forget everything, as a server does that restarts empty."""
        for letters in self.inboxes.values():
            for entry in letters:
                del self.appended[entry]
        self._values: dict[str, tuple[str, int]] = {}
        self.inboxes = {}
        self._doorbells: dict[str, dict[bytes, dict[RunId, Urgency]]] = {}
        self.ready: dict[bytes, RunId] = {}
        self.taken: dict[bytes, tuple[str, int]] = {}
        self._group: bytes | None = None
        self.generation: bytes | None = None

    # --- values with a TTL: leases, roles, beacons

    def get(self, key: str) -> str | None:
        value, until = self._values.get(key, ("", 0))
        return value if until > self.now_ms() else None

    def set(self, key: str, value: str, ttl_ms: int, *, if_free: bool = False) -> bool:
        if if_free and self.get(key) is not None:
            return False
        self._values[key] = (value, self.now_ms() + ttl_ms)
        return True

    def delete(self, key: str, value: str) -> None:
        """If it holds this value."""
        if self.get(key) == value:
            del self._values[key]

    def renew(self, key: str, value: str, ttl_ms: int) -> str:
        holder = self.get(key)
        if holder is not None and holder != value:
            return "l"
        self.set(key, value, ttl_ms)
        return "t" if holder is None else "r"

    def holder(self, run_id: RunId) -> str | None:
        return self.get(_lease(run_id))

    def take_leases(self, wanted: Mapping[RunId, str], ttl_ms: int) -> set[RunId]:
        taken = {i for i, owner in wanted.items() if self.set(_lease(i), f"{owner}|0", ttl_ms, if_free=True)}
        self._note((run_id, wanted[run_id]) for run_id in taken)
        return taken

    def seal_leases(self, claimed: Sequence[Held], ttl_ms: int) -> set[RunId]:
        ours = [one for one in claimed if self.holder(one[0]) == f"{one[1]}|0"]
        for run_id, owner, epoch in ours:
            self.set(_lease(run_id), f"{owner}|{epoch}", ttl_ms)
        self._note((run_id, owner) for run_id, owner, _ in ours)
        return {run_id for run_id, _, _ in ours}

    def renew_leases(self, held: Sequence[Held], ttl_ms: int) -> dict[RunId, str]:
        found = {run_id: self.renew(_lease(run_id), f"{owner}|{epoch}", ttl_ms) for run_id, owner, epoch in held}
        self._note((run_id, owner) for run_id, owner, _ in held if found[run_id] != "l")
        return found

    def release_leases(self, held: Sequence[Held], *, force: bool) -> dict[RunId, str]:
        return {run_id: self._release(run_id, f"{owner}|{epoch}", force) for run_id, owner, epoch in held}

    def _release(self, run_id: RunId, value: str, force: bool) -> str:
        if self.holder(run_id) != value:
            return "l"
        if self.inboxes.get(run_id) and not force:
            return "w"
        self.delete(_lease(run_id), value)
        if force:
            self.offer(run_id)
        return "r"

    def steal(self, run_id: RunId) -> None:
        """The lease is gone before its time, and somebody else may take it."""
        self._values.pop(_lease(run_id), None)
        self.offer(run_id)

    def _note(self, leases: Iterable[tuple[RunId, str]]) -> None:
        for run_id, owner in leases:
            self.on_renewal(run_id, owner)

    # --- letters and bells

    def append(self, posts: Sequence[Post], bound: int) -> int:
        """Append, find the holder, ring it or offer the run; answers how many letters were dropped."""
        bells: dict[str, dict[RunId, Urgency]] = {}
        offered: dict[RunId, bool] = {}
        dropped = 0
        for post in posts:
            letters = self.inboxes.setdefault(post.run_id, {})
            if post.letter and post.urgency == "s" and len(letters) >= bound:
                dropped += 1
                continue
            if post.letter:
                entry = self._entry()
                letters[entry] = Entry(entry, post.letter, post.mark)
                self.appended[entry] = (post.run_id, post.letter)
            holder = self.holder(post.run_id)
            if holder is None:
                offered[post.run_id] = offered.get(post.run_id, False) or bool(post.letter)
                continue
            words = bells.setdefault(holder.rpartition("/")[0], {})
            if RANK[post.urgency] > RANK[words.get(post.run_id)]:
                words[post.run_id] = post.urgency
        for run_id, with_letter in offered.items():
            if with_letter or not self.loses("offer"):  # a letter and its offer are one script: kept or lost together
                self.offer(run_id)
        for node, words in bells.items():
            if not self.loses("bell"):
                self._doorbells.setdefault(node, {})[self._entry()] = words
                self.bells.ring(f"doorbell {node}")
        return dropped

    def letters(self, run_ids: Sequence[RunId], limit: int) -> dict[RunId, list[Entry]]:
        return {run_id: list(self.inboxes[run_id].values())[:limit] for run_id in run_ids if self.inboxes.get(run_id)}

    def delete_letters(self, folded: Mapping[RunId, Sequence[bytes]]) -> None:
        for run_id, entries in folded.items():
            for entry in entries:
                self.inboxes.get(run_id, {}).pop(entry, None)

    def publish(self, said: Sequence[tuple[RunId, Told]]) -> list[int]:
        for run_id, told in said:
            for hear in self.subscribers.get(run_id, ()):
                hear(told)
        return [len(self.subscribers.get(run_id, ())) for run_id, _ in said]

    def rung(self, node: str) -> list[tuple[bytes, dict[RunId, Urgency]]]:
        return list(self._doorbells.get(node, {}).items())[:100]

    def unring(self, node: str, entries: Sequence[bytes]) -> None:
        for entry in entries:
            self._doorbells.get(node, {}).pop(entry, None)

    # --- offers

    @property
    def group(self) -> bool:
        """Whether the nodes' group exists; a read without it fails and makes it."""
        return self._group is not None

    def make_group(self) -> None:
        self._group = b"" if self._group is None else self._group

    def offer(self, run_id: RunId) -> None:
        self.ready[self._entry()] = run_id
        self.bells.ring("ready")

    def take_offers(self, node: str, count: int) -> list[Offer]:
        assert self._group is not None
        fresh = [(entry, run_id) for entry, run_id in self.ready.items() if entry > self._group][:count]
        for entry, _ in fresh:
            self.taken[entry] = (node, self.now_ms())
            self._group = entry
        return fresh

    def reclaim_offers(self, node: str, idle_ms: int, count: int) -> list[Offer]:
        old = [entry for entry, (_, at) in self.taken.items() if at + idle_ms <= self.now_ms()][:count]
        for entry in old:
            if entry in self.ready:
                self.taken[entry] = (node, self.now_ms())
            else:
                del self.taken[entry]
        return [(entry, self.ready[entry]) for entry in old if entry in self.ready]

    def offers_of(self, node: str, count: int) -> list[Offer]:
        mine = [entry for entry, (holder, _) in self.taken.items() if holder == node and entry in self.ready]
        return [(entry, self.ready[entry]) for entry in mine[:count]]

    def done(self, entries: Sequence[bytes]) -> None:
        for entry in entries:
            self.ready.pop(entry, None)
            self.taken.pop(entry, None)

    def _entry(self) -> bytes:
        self._entries += 1
        return b"%012d" % self._entries


def _lease(run_id: RunId) -> str:
    return f"lease:{run_id.hex}"
