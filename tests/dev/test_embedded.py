"""The embedded servers: they start, keep their data, outlive Ctrl-C and a killed owner, and really end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import psycopg
import pytest
import redis.asyncio
from yoyo import get_backend

from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from daemon.dev.processes import free_port
from daemon.errors import SetupError
from tests.patience import wait_until

OWNER = """
import os, sys, time
from pathlib import Path
from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
home = Path(sys.argv[1])
postgres = EmbeddedPostgres(home / "pg", fast=True).start()
valkey = EmbeddedValkey(home / "valkey").start()
print(postgres.pid, valkey.pid, flush=True)
time.sleep(600)
"""
ORDINARY = """
import encodings.idna, os, sys  # all of it before the interpreter's own directory may become unreadable
from pathlib import Path
import psycopg
from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
with EmbeddedPostgres(Path(sys.argv[1]) / "pg", fast=True) as postgres, EmbeddedValkey(None):
    with psycopg.connect(postgres.url) as connection:
        print(connection.execute("SELECT current_user").fetchone()[0])
"""


@pytest.fixture(scope="module")
def pg_dir() -> Iterator[Path]:
    """A data directory that is initialised once for this module, under difficulties.

    A killed initdb left a draft behind, and the path is longer than a Unix socket's may be. It is not below pytest's
    own directory: every pytest session of root closes that to the account that PostgreSQL then runs as.
    """
    home = Path(tempfile.mkdtemp(prefix="runwarden-test-")).resolve() / ("long" * 25)
    home.mkdir()
    (home / "cluster.new").mkdir()
    (home / "cluster.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(home, fast=True) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1
    yield home
    shutil.rmtree(home.parent)


def ask(url: str, statement: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement)
        return found.fetchone()[0] if found.description else None


def owner(home: Path) -> tuple[subprocess.Popen[str], int, int]:
    """Another process that runs both servers over ``home``, and their pids."""
    command = [sys.executable, "-c", OWNER, str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    postgres, valkey = process.stdout.readline().split()
    return process, int(postgres), int(valkey)


async def test_the_postgres_url_works_with_asyncpg_psycopg_and_yoyo(pg_dir: Path) -> None:
    with EmbeddedPostgres(pg_dir, fast=True) as postgres:
        connection = await asyncpg.connect(postgres.url)
        try:
            assert await connection.fetchval("SELECT current_setting('server_encoding')") == "UTF8"
        finally:
            await connection.close()
        assert ask(postgres.url, "SELECT 1") == 1
        backend = get_backend(postgres.url.replace("postgresql:", "postgresql+psycopg:"))
        backend.connection.close()


async def test_the_valkey_url_works_with_redis_and_nothing_may_be_evicted() -> None:
    with EmbeddedValkey() as valkey:
        client = redis.asyncio.from_url(valkey.url)
        try:
            assert await client.ping()
            assert await client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        finally:
            await client.aclose()


def test_postgres_keeps_its_data_and_its_url_between_starts(pg_dir: Path) -> None:
    postgres = EmbeddedPostgres(pg_dir, fast=True)
    with postgres:
        first = postgres.url
        ask(postgres.url, "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
    with postgres:
        assert postgres.url == first
        assert ask(postgres.url, "SELECT answer FROM kept") == 42


async def test_valkey_keeps_its_data_and_its_port_between_starts(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path)
    urls = set()
    for _ in range(2):
        with valkey:
            urls.add(valkey.url)
            client = redis.asyncio.from_url(valkey.url)
            found = await client.set("kept", "42", get=True)
            await client.aclose()
    assert found == b"42"
    assert len(urls) == 1


def test_valkey_without_a_directory_leaves_nothing_behind() -> None:
    with EmbeddedValkey() as valkey:
        home = valkey.home
        assert home.exists()
    assert not home.exists()


def test_fast_postgres_does_not_wait_for_the_disk_and_the_other_does(pg_dir: Path) -> None:
    for fast, setting in ((True, "off"), (False, "on")):
        with EmbeddedPostgres(pg_dir, fast=fast) as postgres:
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                assert ask(postgres.url, f"SHOW {name}") == setting


def test_both_start_in_well_under_a_second_and_a_half(pg_dir: Path) -> None:
    def seconds() -> float:
        begun = time.monotonic()
        with EmbeddedPostgres(pg_dir), EmbeddedValkey():
            return time.monotonic() - begun

    assert any(seconds() < 1.5 for _ in range(5)), "the machine may be busy once, not each time"


def test_stop_ends_what_start_began_and_may_be_called_twice(pg_dir: Path) -> None:
    servers = EmbeddedPostgres(pg_dir, fast=True), EmbeddedValkey()
    for server in servers:
        pid = server.start().pid
        server.stop()
        server.stop()
        assert not psutil.pid_exists(pid)
        with pytest.raises(SetupError, match="is not running"):
            _ = server.pid


def test_ctrl_c_in_the_terminal_does_not_reach_the_servers(pg_dir: Path) -> None:
    with EmbeddedPostgres(pg_dir, fast=True) as postgres, EmbeddedValkey() as valkey:
        for pid in (postgres.pid, valkey.pid):
            assert os.getpgid(pid) == os.getsid(pid) == pid


async def test_servers_left_over_by_a_killed_owner_are_replaced_and_the_data_kept(pg_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "pg").symlink_to(pg_dir)
    process, old_postgres, old_valkey = owner(tmp_path)
    with process:
        ask(EmbeddedPostgres(pg_dir).url, "CREATE TABLE IF NOT EXISTS survived AS SELECT 7 AS seven")
        process.kill()
        process.wait()
    assert psutil.pid_exists(old_postgres)
    assert psutil.pid_exists(old_valkey)
    with EmbeddedPostgres(pg_dir, fast=True) as postgres, EmbeddedValkey(tmp_path / "valkey") as valkey:
        assert ask(postgres.url, "SELECT seven FROM survived") == 7
        client = redis.asyncio.from_url(valkey.url)
        assert await client.ping()
        await client.aclose()
        assert not {old_postgres, old_valkey} & {postgres.pid, valkey.pid}
    wait_until(lambda: not psutil.pid_exists(old_postgres) and not psutil.pid_exists(old_valkey))


def test_a_postgres_that_was_itself_killed_starts_again(pg_dir: Path) -> None:
    postgres = EmbeddedPostgres(pg_dir, fast=True).start()
    os.kill(postgres.pid, signal.SIGKILL)
    postgres.stop()
    with postgres:
        assert ask(postgres.url, "SELECT 1") == 1


def test_valkey_looks_for_another_port_when_its_own_was_taken(tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path)
    with valkey:
        first = valkey.url
    with socket.create_server(("127.0.0.1", int(first.removesuffix("/0").rpartition(":")[2]))), valkey:
        assert valkey.url != first


def test_a_server_s_port_is_none_that_a_passing_connection_could_have_at_its_restart() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    with socket.create_server(("127.0.0.1", 0)) as system:
        assert max(ports) < system.getsockname()[1]


def test_a_pid_file_that_now_means_another_process_harms_nobody(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with bystander:
        (tmp_path / "valkey.pid").write_text(f"{bystander.pid}\n")
        with EmbeddedValkey(tmp_path):
            assert bystander.poll() is None
        bystander.kill()


def test_a_directory_in_use_is_refused_by_name_and_holder(pg_dir: Path, tmp_path: Path) -> None:
    with EmbeddedPostgres(pg_dir, fast=True), pytest.raises(SetupError, match=f"{pg_dir} is in use.*{os.getpid()}"):
        EmbeddedPostgres(pg_dir).start()
    with EmbeddedValkey(tmp_path), pytest.raises(SetupError, match=f"{tmp_path} is in use"):
        EmbeddedValkey(tmp_path).start()


def test_data_of_another_major_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "PG_VERSION").write_text("9\n")
    with pytest.raises(SetupError, match=r"was made by PostgreSQL 9.*remove the directory"):
        EmbeddedPostgres(tmp_path).start()


def test_both_run_for_an_ordinary_user() -> None:
    home = tempfile.mkdtemp(prefix="runwarden-test-")
    nobody = pwd.getpwnam("nobody").pw_uid
    try:
        if os.geteuid() == 0:
            os.chown(home, nobody, -1)
        command = [sys.executable, "-c", ORDINARY, home, str(nobody)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "postgres\n"), done.stderr
    finally:
        shutil.rmtree(home)
