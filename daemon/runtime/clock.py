"""Postgres time, carried between exchanges on this machine's monotonic clock. One a node; never goes back."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """``observe`` what Postgres said; ``now`` advances from there. Epoch milliseconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.monotonic = monotonic
        self._offset_ms: float | None = None

    def observe(self, postgres_ms: int) -> None:
        """Postgres' time as it was a moment ago. Only forward steps of our reckoning are taken."""
        offset = postgres_ms - self.monotonic() * 1000
        if self._offset_ms is None or offset > self._offset_ms:
            self._offset_ms = offset

    def now(self) -> int:
        """Epoch ms of Postgres time. Raises RuntimeError before the first observation: no run is claimed by then."""
        return int(self.monotonic() * 1000 + self._known())

    def at(self, when_ms: int) -> float:
        """The monotonic moment (s) at which ``now`` has come to a Postgres time (epoch ms)."""
        return (when_ms + 1 - self._known()) / 1000

    def _known(self) -> float:
        if self._offset_ms is None:
            raise RuntimeError("no time from Postgres yet")
        return self._offset_ms
