"""Inboxes and doorbells: letters for runs, and the word to their holders that something came.

``append`` is used by ingest (letters) and by the API (bells about commands, which carry nothing), ``read`` and
``delete`` by the host. An inbox has no cursor: letters are read whole and deleted once folded and committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast
from uuid import UUID

from daemon import telemetry
from daemon.fabric.client import Client, script, speaking
from daemon.fabric.keys import Keys
from daemon.fabric.line import Command
from daemon.machine.commands import Entry, Mark, RunId, Urgency

DOORBELL_TTL_S = 3600
INBOX_TTL_S = 7 * 86400
"""After the last letter. Folded letters are deleted long before; those for runs that do not exist must not stay."""
READ_LIMIT = 1000
"""Letters of one inbox read in one turn; the rest comes with the next."""


NO_MARK = Mark(0, 0)


class Post(NamedTuple):
    """One letter on its way: raw envelope (empty: only ring), and where it stands among its ingest's letters."""

    run_id: RunId
    urgency: Urgency
    letter: bytes = b""
    mark: Mark = NO_MARK


class Inbox:
    """All inboxes and this node's doorbell."""

    def __init__(self, client: Client, keys: Keys, *, bound: int) -> None:
        self._line = client.line
        self._doorbell = client.doorbell
        self._keys = keys
        self._bound = bound
        self._append = script("append")
        self._answered: list[bytes] = []
        """Bells of this node that have been told and are still to be deleted."""

    @property
    def read_limit(self) -> int:
        """Letters of one inbox read at once."""
        return READ_LIMIT

    async def append(self, posts: Sequence[Post]) -> None:
        """Append and ring, all in one round trip. Raises FabricUnavailable; a repeat is harmless (marks tell)."""
        if not posts:
            return
        by_run: dict[RunId, list[Post]] = {}
        for post in posts:
            by_run.setdefault(post.run_id, []).append(post)
        keys = [self._keys.ready]
        args: list[Any] = [self._keys.doorbells, DOORBELL_TTL_S, self._bound, INBOX_TTL_S]
        for run_id, its in by_run.items():
            keys += (self._keys.inbox(run_id), self._keys.lease(run_id))
            args += (run_id.hex, len(its))
            for post in its:
                args += (post.urgency, post.letter, post.mark.term, post.mark.number)
        with speaking():
            dropped = await self._line.run(self._append, keys, args)
        if dropped:
            telemetry.chunks_dropped.inc(dropped)

    async def ring(self, *run_ids: RunId) -> None:
        """Tell whoever holds each run, or anybody, to look at its command rows."""
        await self.append(tuple(Post(run_id, "c") for run_id in run_ids))

    async def give_back(self, letters: Sequence[tuple[RunId, Entry]]) -> None:
        """Append letters that a node had in memory for a run that it does not hold any more. Raises as ``append``."""
        await self.append([Post(run_id, "h", raw, mark) for run_id, (_, raw, mark, _) in letters])

    async def read(self, run_ids: Sequence[RunId]) -> dict[RunId, list[Entry]]:
        """The letters of several inboxes, oldest first, in one round trip; runs without letters are left out."""
        runs = {self._keys.inbox(run_id): run_id for run_id in run_ids}
        if not runs:
            return {}
        with speaking():
            (answer,) = await self._line.ask(("XREAD", "COUNT", READ_LIMIT, "STREAMS", *runs, *["0"] * len(runs)))
        return {
            runs[key.decode()]: [
                Entry(entry, letter, Mark(int(term), int(number))) for entry, (_, letter, _, term, _, number) in entries
            ]
            for key, entries in _streams(answer)
        }

    async def delete(self, folded: Mapping[RunId, Sequence[bytes]]) -> None:
        """After a commit, in one round trip: delete exactly the letters folded."""
        if not folded:
            return
        commands: list[Command] = [("XDEL", self._keys.inbox(run_id), *keys) for run_id, keys in folded.items()]
        with speaking():
            await self._line.ask(*commands)

    async def listen(self, node: str, block_ms: int) -> dict[RunId, Urgency]:
        """Wait at this node's doorbell; answers which runs to look at and how urgently (empty after ``block_ms``)."""
        key = self._keys.doorbell(node)
        with speaking():
            commands: list[Command] = [("XREAD", "BLOCK", block_ms, "COUNT", 100, "STREAMS", key, "0")]
            if self._answered:  # by name: a server that lost the stream may count its entries from an earlier hour
                commands.insert(0, ("XDEL", key, *self._answered))
            answer = (await self._doorbell.ask(*commands, within_s=block_ms / 1000))[-1]
        entries = [entry for _, told in _streams(answer) for entry in told]
        self._answered = [entry for entry, _ in entries]
        rung: dict[RunId, Urgency] = {}
        for _, (_, words) in entries:
            for word in words.decode().split():
                run_id, urgency = RunId(UUID(word[:-1])), cast(Urgency, word[-1])
                if _RANK[urgency] > _RANK.get(rung.get(run_id, ""), 0):
                    rung[run_id] = urgency
        return rung


def _streams(answer: Any) -> list[tuple[bytes, list[tuple[bytes, list[bytes]]]]]:
    """What XREAD answers, in RESP2 (a list, or nothing) and in RESP3 (a map): by stream, entries as (id, fields)."""
    if not answer:
        return []
    return answer if isinstance(answer, list) else list(answer.items())


_RANK: Mapping[str, int] = {"s": 1, "h": 2, "c": 3}
