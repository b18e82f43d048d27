"""The standby's memory: the last seconds of a Gateway's ACKs and RESULTs, so that a takeover of ingest loses none.

Used by ``ingest`` alone. Bounded in time, number and bytes; the oldest goes first. It keeps the text alone, which is
read again when it is recalled: an agent can write JSON that takes twenty times its length once it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from gateway_client import Envelope

KEPT_S = 30.0
KEPT_ENVELOPES = 20_000
KEPT_BYTES = 64 * 1024 * 1024


class Memory:
    """What a listener that appends nothing has heard lately."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._kept: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def keep(self, envelopes: Iterable[Envelope]) -> None:
        """Remember these, forget what is too old or too much."""
        now = self._monotonic()
        for envelope in envelopes:
            self._kept.append((now, envelope.raw))
            self._bytes += len(envelope.raw)
        while self._kept and self._too_much(now):
            _, oldest = self._kept.popleft()
            self._bytes -= len(oldest)

    def recall(self) -> list[Envelope]:
        """Everything of the last seconds, oldest first; forgets it."""
        since = self._monotonic() - KEPT_S
        kept = [Envelope.parse(raw) for at, raw in self._kept if at >= since]
        self._kept.clear()
        self._bytes = 0
        return [envelope for envelope in kept if envelope is not None]

    def _too_much(self, now: float) -> bool:
        return self._kept[0][0] < now - KEPT_S or len(self._kept) > KEPT_ENVELOPES or self._bytes > KEPT_BYTES
