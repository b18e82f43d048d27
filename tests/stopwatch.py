"""How long something took, without the time in which this machine stood still: it may be shared, and stall for seconds.

A thread that wishes to run every few milliseconds tells when nobody ran. What keeps only the event loop busy, or makes
only another process wait, counts as time like any other.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

BEAT_S = 0.01
STALL_S = 0.1
"""A beat that comes later than this was held up by the machine."""


class Stopwatch:
    """``seconds`` since it was entered; ``stalled`` are those that are left out."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = self._last = time.monotonic()
        self._stalled = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="stopwatch", daemon=True)

    def __enter__(self) -> Self:
        self._began = self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def stalled(self) -> float:
        return self._look()[1]

    @property
    def seconds(self) -> float:
        now, stalled = self._look()
        return now - self._began - stalled

    def _look(self) -> tuple[float, float]:
        """(now, stalled); whoever looks first after a stall counts it."""
        with self._lock:
            now = time.monotonic()
            late, self._last = now - self._last, now
            if late > STALL_S:
                self._stalled += late - BEAT_S
            return now, self._stalled

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._look()
