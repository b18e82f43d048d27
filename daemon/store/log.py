"""The event log, read back: pages of a run's events by seq, as bytes ready for a client. Used by ``api``.

The events of a commit are one row, a page. What older releases wrote, or was brought from v0, is one row an event
(``schema/0022``). A run may have both, in any order. Seqs are dense, so the rows that hold the events wanted are a
range of either key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from daemon.machine.events import RunCanceled, RunCompleted, RunFailed
from daemon.machine.wire import frames_of, iso
from daemon.store.pool import Pool, reading

EVENTS = """
SELECT seq, event_type, payload AS told, (extract(epoch FROM created_at) * 1000)::bigint AS at_ms
FROM workflow_run_single_events WHERE run_id = $1 AND seq BETWEEN $2 AND $3
UNION ALL
SELECT first_seq, NULL, events, (extract(epoch FROM created_at) * 1000)::bigint
FROM workflow_run_pages WHERE run_id = $1 AND first_seq <= $3 AND first_seq >= coalesce(
    (SELECT max(first_seq) FROM workflow_run_pages WHERE run_id = $1 AND first_seq <= $2), $2)
ORDER BY seq
"""
"""The rows of a run ($1) that hold its events from $2 to $3. Without a type it is a page: [[type, payload], …]."""

_decode = msgspec.json.Decoder(list[tuple[str, msgspec.Raw]]).decode

TERMINAL = frozenset({RunCompleted.type, RunFailed.type, RunCanceled.type})

_Told = tuple[int, str, str]
"""Seq, type, and the payload's JSON as it was written."""


@dataclass(frozen=True, slots=True)
class Page:
    """SSE frames of ``count`` events in order, up to ``last_seq``; ``terminal``: the run's end is among them."""

    frames: bytes
    last_seq: int
    count: int
    terminal: bool


class EventLog:
    """A run's events. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(self, run_id: UUID, *, after_seq: int, limit: int) -> Page:
        """The next at most ``limit`` events after ``after_seq``; ``count`` 0 at the end."""
        frames, last_seq, count, terminal, name = [], after_seq, 0, False, str(run_id)
        for at_ms, events in await self._read(run_id, after_seq, limit):
            frames.append(frames_of(name, iso(at_ms), events))
            last_seq, count = events[-1][0], count + len(events)
            terminal = terminal or not TERMINAL.isdisjoint([kind for _, kind, _ in events])
        return Page(b"".join(frames), last_seq, count, terminal)

    async def events(self, run_id: UUID, *, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        """As ``page``: the seq of each event, and the JSON that a stream tells of it."""
        name = str(run_id)
        return [
            (event[0], _data(frames_of(name, iso(at_ms), [event])))
            for at_ms, events in await self._read(run_id, after_seq, limit)
            for event in events
        ]

    async def last_seqs(self, run_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How far each run's log goes, and so whether a watcher missed something."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT id, last_seq FROM workflow_run_heads WHERE id = ANY($1::uuid[])", list(run_ids)
            )
        return {row["id"]: row["last_seq"] for row in rows}

    async def _read(self, run_id: UUID, after_seq: int, limit: int) -> list[tuple[int, list[_Told]]]:
        """The next at most ``limit`` events by the moment (epoch ms) that they have in common."""
        first, last = after_seq + 1, after_seq + limit
        async with reading(self._pool) as connection:
            rows = await connection.fetch(EVENTS, run_id, first, last)
        found: list[tuple[int, list[_Told]]] = []
        for seq, kind, told, at_ms in rows:
            events = _unfolded(seq, told, first, last) if kind is None else [(seq, kind, told)]
            if found and found[-1][0] == at_ms:
                found[-1][1].extend(events)
            elif events:
                found.append((at_ms, events))
        return found


def _unfolded(first_seq: int, page: str, first: int, last: int) -> list[_Told]:
    """The events of a page that are from ``first`` to ``last``."""
    skipped = max(0, first - first_seq)
    events = _decode(page)[skipped : last - first_seq + 1]
    return [(seq, kind, str(body, "utf-8")) for seq, (kind, body) in enumerate(events, first_seq + skipped)]


def _data(told: bytes) -> bytes:
    """The JSON of a frame."""
    return told.partition(b"\ndata: ")[2].rstrip(b"\n")
