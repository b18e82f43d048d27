"""A PgBouncer in transaction mode before a Postgres, as a process: each transaction may find another session."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import psycopg

from daemon.dev.processes import as_account, free_port
from tests.patience import wait_until

READY_S = 30.0
SESSIONS = 3
"""Behind the pooler; the nodes open more, so sessions are really shared."""

INI = """\
[databases]
* = host={host}
[pgbouncer]
pool_mode = transaction
default_pool_size = {sessions}
listen_addr =
listen_port = {port}
unix_socket_dir = {home}
auth_type = trust
auth_file = {home}/users
"""


def program() -> str:
    """PgBouncer's binary, which Debian keeps where not every PATH leads."""
    found = shutil.which("pgbouncer", path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin")))
    assert found, "PgBouncer is not installed, and the store must work behind it: apt-get install pgbouncer"
    return found


@contextmanager
def pooled(url: str) -> Iterator[str]:
    """The URL of a database through a pooler."""
    asked = urlsplit(url)
    (host,) = parse_qs(asked.query)["host"]
    home, port = Path(tempfile.mkdtemp(prefix="rw-pgb-")), free_port()
    (home / "pgbouncer.ini").write_text(INI.format(host=host, sessions=SESSIONS, port=port, home=home))
    (home / "users").write_text('"postgres" ""\n')
    account = pwd.getpwuid(Path(host).stat().st_uid)  # whom the Postgres behind it belongs to; it refuses to be root
    for path in (home, *home.iterdir()):
        shutil.chown(path, account.pw_uid)
    said = home / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [program(), str(home / "pgbouncer.ini")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **as_account(account if os.geteuid() == 0 else None),
        )
    through = asked._replace(query=f"host={quote(str(home))}&port={port}").geturl()
    try:
        wait_until(lambda: process.poll() is not None or _answers(through), within_s=READY_S, what=said.read_text)
        assert process.poll() is None, said.read_text()
        yield through
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)


def _answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=2):
            return True
    except psycopg.OperationalError:
        return False
