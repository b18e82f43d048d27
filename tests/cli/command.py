"""``runwarden`` as a process of its own, watched while it runs; for the tests of this folder."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02
PATIENCE_S = 60.0  # a test machine may be busy; nothing here waits for this long when it works

UNUSED = "127.0.0.1:1"  # nobody listens on port 1
SECRET = "a secret of at least thirty-two characters"


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's environment without settings of Runwarden or of Python, and then these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNWARDEN_", "PYTHON"))}
    ours = {f"RUNWARDEN_{name.upper()}": value for name, value in settings.items()}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "COLUMNS": "100"} | ours


class Command:
    """One ``runwarden …``: its output so far, its descendants, and how to end it."""

    def __init__(self, process: subprocess.Popen[bytes], output: Callable[[], str]) -> None:
        self.process = process
        self._output = output

    @property
    def text(self) -> str:
        """Everything it has written, to standard output and standard error alike."""
        return self._output()

    def until(self, said: str) -> str:
        """Waits until it has said this; answers all that it said."""
        deadline = time.monotonic() + PATIENCE_S
        while said not in self.text:
            assert self.process.poll() is None, f"it ended before it said {said!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"it never said {said!r}:\n{self.text}"
            time.sleep(POLL_S)
        return self.text

    def ended(self) -> int:
        """Waits for its end; answers the exit code."""
        code = self.process.wait(PATIENCE_S)
        self.text  # noqa: B018 - takes what a terminal still holds
        return code

    def signalled(self, number: signal.Signals) -> int:
        """Sends a signal to this process alone, and waits for its end."""
        self.process.send_signal(number)
        return self.ended()

    def descendants(self) -> list[psutil.Process]:
        """All processes that it began and that still run."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found


@contextmanager
def running(*arguments: str, home: Path, **settings: str) -> Iterator[Command]:
    """A command without a terminal, in ``home``; killed on leaving if the test has not ended it."""
    path = home / f"output-{time.monotonic_ns()}"
    with path.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "daemon", *arguments],
            cwd=home,
            env=clean_environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    with _ending(process):
        yield Command(process, path.read_text)


@contextmanager
def at_a_terminal(*arguments: str, home: Path, **settings: str) -> Iterator[tuple[Command, Callable[[str], None]]]:
    """A command at a terminal of 100 columns and 40 rows, and how to type."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon", *arguments],
        cwd=home,
        env=clean_environment(**settings) | {"TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    heard = bytearray()

    def output() -> str:
        try:
            while data := os.read(ours, 65536):
                heard.extend(data)
        except BlockingIOError:
            pass
        except OSError:
            pass  # Linux tells so that the other side is closed
        return heard.decode(errors="replace")

    try:
        with _ending(process):
            yield Command(process, output), lambda keys: [os.write(ours, keys.encode()), None][1]
    finally:
        os.close(ours)


@contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.wait()


def call(url: str, token: str, body: dict[str, Any] | None = None) -> Any:
    """One call of the API: POST with a body, else GET; the JSON it answers. Raises HTTPError for 4xx and 5xx."""
    headers = {"Authorization": f"Bearer {token}"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        return json.load(answer)
