"""The event log, read back: pages of a run's events by seq, as bytes ready for a client. Used by ``api``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from daemon.machine.events import RunCanceled, RunCompleted, RunFailed
from daemon.machine.wire import frame, iso
from daemon.store.pool import Pool, reading

_PAGE = """
SELECT seq, event_type, payload, (extract(epoch FROM created_at) * 1000)::bigint AS at_ms
FROM workflow_run_events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
"""


TERMINAL = frozenset({RunCompleted.type, RunFailed.type, RunCanceled.type})


@dataclass(frozen=True, slots=True)
class Page:
    """SSE frames of ``count`` events in order, up to ``last_seq``; ``terminal``: the run's end is among them."""

    frames: bytes
    last_seq: int
    count: int
    terminal: bool


class EventLog:
    """The table ``workflow_run_events``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def page(self, run_id: UUID, *, after_seq: int, limit: int) -> Page:
        """The next at most ``limit`` events after ``after_seq``; ``count`` 0 at the end."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_PAGE, run_id, after_seq, limit)
        name = str(run_id)
        frames = b"".join(frame(name, row["seq"], row["event_type"], iso(row["at_ms"]), row["payload"]) for row in rows)
        terminal = any(row["event_type"] in TERMINAL for row in rows)
        return Page(frames, rows[-1]["seq"] if rows else after_seq, len(rows), terminal)

    async def events(self, run_id: UUID, *, after_seq: int, limit: int) -> list[tuple[int, bytes]]:
        """As ``page``: the seq of each event, and the JSON that a stream tells of it."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_PAGE, run_id, after_seq, limit)
        name = str(run_id)
        return [
            (row["seq"], _data(frame(name, row["seq"], row["event_type"], iso(row["at_ms"]), row["payload"])))
            for row in rows
        ]

    async def last_seqs(self, run_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How far each run's log goes, and so whether a watcher missed something."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT id, last_seq FROM workflow_runs WHERE id = ANY($1::uuid[])", list(run_ids)
            )
        return {row["id"]: row["last_seq"] for row in rows}


def _data(told: bytes) -> bytes:
    """The JSON of a frame."""
    return told.partition(b"\ndata: ")[2].rstrip(b"\n")
