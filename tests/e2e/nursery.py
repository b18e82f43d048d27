"""Bears processes quickly: one that has imported everything forks a child for each line it reads.

``python -m tests.e2e.nursery MODULE…`` imports the modules, then reads JSON objects ``{module, arguments, environment,
stderr}``, a line each: ``stderr`` is a FIFO that somebody reads. It answers ``{"born": pid}``, in order, and
``{"ended": pid, "code": exit code}`` whenever a child has ended. ``tests.cluster.harness.Nursery`` speaks with it; to
kill many nodes one must start them, and most of a start is imports.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from typing import Any


def bear(order: dict[str, Any]) -> int:
    """The pid of a new process; the child never returns from here."""
    stderr = os.open(order["stderr"], os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for old, new in ((nothing, 0), (nothing, 1), (stderr, 2)):
            os.dup2(old, new)
        os.environ.clear()
        os.environ.update(order["environment"])
        sys.argv = [order["module"], *order["arguments"]]
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        sys.exit(0)
    os.close(stderr)
    return pid


def tell(**what: int) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def bury(*_: object) -> None:
    """Tell of every child that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        tell(ended=pid, code=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()
    for line in sys.stdin:
        # Nobody is buried between his birth and the word of it.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        tell(born=bear(json.loads(line)))
        signal.signal(signal.SIGCHLD, bury)
        bury()
