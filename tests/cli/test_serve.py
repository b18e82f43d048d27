"""``runwarden serve`` as a process of its own: what keeps it from starting, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.command import SECRET, UNUSED, Command, running


@pytest.fixture
def settings(database: str, redis_url: str, redis_prefix: str) -> dict[str, str]:
    """Settings with which a node starts; its Gateway is absent."""
    return {
        "postgres_url": database,
        "redis_url": redis_url,
        "redis_prefix": redis_prefix,
        "gateway_url": f"http://{UNUSED}",
        "jwt_secret": SECRET,
        "port": "0",
        "start_patience_s": "30",
    }


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder.getsockname()[1]


def refused(command: Command) -> str:
    """The line with which a command refused to start; whatever else it wrote is log, a JSON object a line."""
    assert command.ended() == 1, command.text
    said = [line for line in command.text.splitlines() if not line.startswith("{")]
    assert len(said) == 1, command.text
    assert "hush" not in command.text
    return said[0]


def test_serve_says_in_one_line_what_keeps_it_from_starting(
    home: Path, settings: dict[str, str], bare_database: str, taken_port: int
) -> None:
    """Four nodes at once, for the sake of time: each lacks one thing."""
    lacking = {
        "postgres": {"postgres_url": f"postgresql://user:hush@{UNUSED}/runwarden", "start_patience_s": "0.5"},
        "redis": {"redis_url": f"redis://:hush@{UNUSED}/0", "start_patience_s": "0.5"},
        "migrations": {"postgres_url": bare_database},
        "port": {"port": str(taken_port)},
    }
    with ExitStack() as stack:
        started = {
            lack: stack.enter_context(running("serve", home=home, **settings | change))
            for lack, change in lacking.items()
        }
        said = {lack: refused(command) for lack, command in started.items()}
    assert said["postgres"].startswith(f"Error: Postgres at postgresql://user:****@{UNUSED}/runwarden does not answer")
    assert said["redis"].startswith(f"Error: Redis at redis://:****@{UNUSED}/0 does not answer")
    assert said["migrations"].startswith("Error: The database lacks migrations (0001.")
    assert said["migrations"].endswith("run 'runwarden migrate' first.")
    assert said["port"].startswith(f"Error: Cannot listen on 127.0.0.1:{taken_port}: ")


def test_without_a_gateway_a_node_starts_and_says_so_and_sigterm_ends_it_well(
    home: Path, settings: dict[str, str]
) -> None:
    with running("serve", home=home, **settings) as node:
        log = node.until("node ready")
        ready = next(json.loads(line) for line in log.splitlines() if "node ready" in line)
        with urllib.request.urlopen(f"{ready['url']}/readyz", timeout=60) as answer:
            told = json.load(answer)
        assert told["status"] == "ready"
        assert f"http://{UNUSED}" in told["checks"]["gateway"]
        node.until("127.0.0.1:1")  # the log tells it, too
        assert node.signalled(signal.SIGTERM) == 0
        assert "node stopped" in node.text
        assert "Traceback" not in node.text


def test_sigterm_while_it_still_waits_for_postgres_ends_it_at_once(home: Path, settings: dict[str, str]) -> None:
    patient = settings | {"postgres_url": f"postgresql://{UNUSED}/x", "start_patience_s": "600"}
    with running("serve", home=home, **patient) as node:
        node.until("waiting for Postgres")
        assert node.signalled(signal.SIGTERM) == 0
        assert "Traceback" not in node.text
