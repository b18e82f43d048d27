"""Bears nodes quickly: a process that has imported everything and forks a ``runwarden serve`` for each line it reads.

``python -m tests.e2e.nursery`` reads one JSON object of environment variables a line and answers the pid of the node,
which writes its log to standard error. Only ``test_many_kills`` uses it; to kill twenty nodes one must start them.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys

import daemon.node  # noqa: F401 - so that its children need not import it again
from daemon.cli import main


def bear(environment: dict[str, str]) -> int:
    """The pid of a new node; the child never returns from here."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.update(environment)
        main(["serve"])
    return pid


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the killed
    gc.freeze()
    for line in sys.stdin:
        sys.stdout.write(f"{bear(json.loads(line))}\n")
        sys.stdout.flush()
