"""What a flush costs on the disk that Postgres has, by how long the disk was left alone before.

On some machines it is asleep a tenth of a millisecond later, and waking it takes longer than the flush: what a lone
run's step costs there hangs on which side of that moment its other work ends.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

PAGE = b"\0" * 8192
"""As Postgres writes its WAL."""


def flushes(directory: Path, *, pause_s: float, count: int) -> list[float]:
    """The time (ms) of each of so many flushes there. The CPU stays awake in between, as a busy process keeps it."""
    taken: list[float] = []
    with (directory / "flushes").open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, len(PAGE))  # so that no flush is about the file's size
        os.fsync(file.fileno())
        for _ in range(count):
            until = time.perf_counter() + pause_s
            while time.perf_counter() < until:
                pass
            began = time.perf_counter()
            os.pwrite(file.fileno(), PAGE, 0)
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    return taken
