"""A Valkey, its replica and a Sentinel over both, as processes to be killed: what ``redis+sentinel://`` speaks to."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import redis

from daemon.dev.embedded import valkey_program
from daemon.dev.processes import free_port
from tests.patience import wait_until

SERVICE = "runs"
READY_S = 60.0
CONF = f"""\
sentinel monitor {SERVICE} 127.0.0.1 {{primary}} 1
sentinel down-after-milliseconds {SERVICE} 1000
sentinel failover-timeout {SERVICE} 4000
"""


class Watch:
    """``url`` leads to whoever is primary; ``primary`` and ``replica`` are the processes as they began."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.ports = {name: free_port() for name in ("primary", "replica", "sentinel")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.ports['sentinel']}/{SERVICE}"

    def start(self) -> None:
        self._spawn("primary")
        self._spawn("replica", "--replicaof", f"127.0.0.1 {self.ports['primary']}", "--repl-diskless-sync-delay", "0")
        self._until(lambda: self.speak("replica").info("replication")["master_link_status"] == "up")
        (self._home / "sentinel.conf").write_text(CONF.format(primary=self.ports["primary"]))
        self._spawn("sentinel", before=(str(self._home / "sentinel.conf"), "--sentinel"))
        # By itself it decides nothing for thirty seconds once it saw the machine stand still for two.
        self.speak("sentinel").execute_command("SENTINEL DEBUG", "tilt-trigger", 600_000)
        self._until(lambda: self.speak("sentinel").sentinel_master(SERVICE)["num-slaves"] == 1)

    def speak(self, name: str) -> redis.Redis:
        return redis.Redis(port=self.ports[name], socket_timeout=2)

    def kill(self, name: str) -> None:
        """SIGKILL, at once."""
        self.processes[name].kill()
        self.processes[name].wait()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def _spawn(self, name: str, *options: str, before: tuple[str, ...] = ()) -> None:
        command = [str(valkey_program()), *before, "--bind", "127.0.0.1", "--port", str(self.ports[name])]
        if name != "sentinel":
            command += ["--save", "", "--dir", str(self._home)]
        with (self._home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen([*command, *options], cwd=self._home, stdout=log, stderr=log)
        self._until(lambda: self.speak(name).ping())

    def _until(self, holds: Callable[[], object]) -> None:
        def answered() -> object:
            try:
                return holds()
            except (redis.RedisError, OSError):
                return False

        wait_until(answered, within_s=READY_S, what=lambda: [path.read_text() for path in self._home.glob("*.log")])


@contextmanager
def watched() -> Iterator[Watch]:
    """Everything has ended on leaving."""
    with TemporaryDirectory(prefix="rw-sentinel-") as home:
        watch = Watch(Path(home))
        try:
            watch.start()
            yield watch
        finally:
            watch.close()
