"""Nodes and loops without the second that importing takes: for ``test_bench`` only, never for a measurement.

``python -m tests.bench.nursery`` has imported everything; for each line (JSON: module, argv, environment, log) it forks
a process that goes on as ``python -m MODULE ARGV`` would, and answers its pid.
"""

from __future__ import annotations

import gc
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
import psutil

POLL_S = 0.005


class Born:
    """A process of the nursery: what of ``subprocess.Popen`` a ``Stack`` uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)

    def poll(self) -> int | None:
        return None if self._process.is_running() else 0

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(POLL_S)
        return 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> None:
        self.wait()


class Nursery:
    """Bears processes. ``close`` ends it; what it bore must have been ended before."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.bench.nursery"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def bear(self, module: str, argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Born:
        """``python -m module argv``, its standard error in ``log``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        told = {"module": module, "argv": list(argv), "environment": dict(environment), "log": str(log)}
        self._process.stdin.write(orjson.dumps(told) + b"\n")
        self._process.stdin.flush()
        return Born(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def _become(module: str, argv: list[str], environment: dict[str, str], log: str) -> None:
    """In the child: never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *argv]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    os._exit(0)


if __name__ == "__main__":
    import daemon.node  # noqa: F401 - so that the children need not import it again

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    gc.freeze()
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            _become(**orjson.loads(line))
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
