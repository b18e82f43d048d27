"""A Postgres that is backed up with ``pg_basebackup`` and restored, as an operator does it: real server, real files."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from daemon.dev import processes
from daemon.dev.embedded import EmbeddedPostgres, postgres_program
from daemon.store.migrate import migrate
from tests.free_agents import free_agents


class Restorable:
    """``server`` runs, migrated; what was committed since ``backup`` is gone after ``restore``."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server
        self._cluster = server.home / "cluster"
        self._copy = server.home / "backup"

    @property
    def url(self) -> str:
        return self.server.url

    def backup(self) -> None:
        """A base backup of the running server, with the WAL that makes it whole."""
        (directory,) = parse_qs(urlsplit(self.url).query)["host"]
        program = [str(postgres_program("pg_basebackup")), "--host", directory, "--username", "postgres"]
        subprocess.run(
            [*program, "--pgdata", str(self._copy), "--wal-method", "stream", "--checkpoint", "fast", "--no-sync"],
            cwd=self.server.home,
            check=True,
            **processes.as_account(processes.account_for(self._cluster)),
        )

    def restore(self) -> None:
        """Stop the server, put the backup in the place of its data, start it again. Same address, older state."""
        self.server.stop()
        shutil.rmtree(self._cluster)
        self._copy.rename(self._cluster)
        self.server.start()


@contextmanager
def restorable(beside: Path) -> Iterator[Restorable]:
    """A migrated server of its own."""
    home = Path(tempfile.mkdtemp(prefix="pg-", dir=beside))
    with EmbeddedPostgres(home) as server:
        migrate(server.url)
        free_agents(server.url)
        yield Restorable(server)
    shutil.rmtree(home)
