"""``runwarden dev``: the panel, the token, the end of everything it started, and the data that stay."""

from __future__ import annotations

import json
import re
import signal
import stat
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from daemon.cli import main
from tests.cli.command import Command, call, running
from tests.patience import eventually

ODD_SERVER = Path(__file__).parents[1] / "dev" / "odd_server.py"
READY = "Ctrl-C ends everything"


def mcp_config(home: Path) -> str:
    """A person's own MCP servers: one that works, one that is not there."""
    servers = {"mine": {"command": sys.executable, "args": [str(ODD_SERVER)]}, "gone": {"command": "no-such-command"}}
    path = home / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    return str(path)


def panel(dev: Command) -> tuple[str, str]:
    """The API's URL and the token, as the panel tells them."""
    told = dev.until(READY)
    url, token = re.search(r"^API +(\S+)", told, re.MULTILINE), re.search(r"^export TOKEN=(\S+)$", told, re.MULTILINE)
    assert url, told
    assert token, told
    return url[1], token[1]


def hello(url: str, token: str) -> dict[str, Any]:
    """Does what the panel's example does, up to the run."""
    call_echo = {"agent_id": "local", "tool_name": "bridge__echo", "arguments": {"lines": ["hello"]}}
    spec = {"steps": [{"id": "hi", "name": "Say hi", "tool_config": call_echo}]}
    workflow = call(f"{url}/v1/workflows", token, {"title": "Hello", "spec": spec})
    run: dict[str, Any] = call(f"{url}/v1/workflow-runs", token, {"workflow_id": workflow["workflow_id"]})
    return run


async def test_dev_serves_ones_own_mcp_servers_ends_all_it_started_and_keeps_the_data(home: Path) -> None:
    options = ("dev", "--port", "0", "--mcp-config", mcp_config(home))
    with running(*options, home=home) as dev:
        url, token = panel(dev)
        assert re.search(r"mine__\w+ +\S", dev.text)
        assert "bridge__echo" in dev.text
        assert "gone offers no tools" in dev.text
        run_id = hello(url, token)["run_id"]

        def completed() -> Any:
            return call(f"{url}/v1/workflow-runs/{run_id}", token)["status"] == "completed"

        await eventually(completed)
        began = dev.descendants()
        assert {"postgres", "valkey-server"} <= {process.name() for process in began}
        assert len([process for process in began if str(ODD_SERVER) in process.cmdline()]) == 1
        assert dev.signalled(signal.SIGINT) == 0
        assert not [process for process in began if alive(process)]
        assert "handed over" in dev.text.rpartition(READY)[2], "the node was not drained"
        assert "Traceback" not in dev.text
    for name in ("jwt-secret", "gateway-token"):
        assert stat.S_IMODE((home / ".data" / name).stat().st_mode) == 0o600

    with running(*options, home=home) as dev:
        url, _ = panel(dev)
        kept = call(f"{url}/v1/workflow-runs/{run_id}", token)  # the token of the first start
        assert kept["status"] == "completed"
        assert dev.signalled(signal.SIGTERM) == 0


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_an_mcp_config_that_is_no_json_is_named_with_what_to_do(home: Path) -> None:
    broken = home / "mcp.json"
    broken.write_text('{"mcpServers": {"git": {"command": "uvx",}}}')
    refused = CliRunner().invoke(main, ["dev", "--data", str(home / "data"), "--mcp-config", str(broken)])
    assert refused.exit_code == 1
    assert f"{broken}:1:" in refused.stderr
    assert 'expected {"mcpServers": {"git": {"command": "uvx"' in refused.stderr
    assert not (home / "data").exists()


def test_an_mcp_config_with_faulty_servers_names_each_of_them(home: Path) -> None:
    faulty = home / "mcp.json"
    faulty.write_text(json.dumps({"mcpServers": {"one": {"args": []}, "two": {"command": "x", "args": "y"}}}))
    refused = CliRunner().invoke(main, ["dev", "--data", str(home / "data"), "--mcp-config", str(faulty)])
    assert refused.exit_code == 1
    assert "server 'one': needs a 'command'" in refused.stderr
    assert "server 'two': 'args' must be a list" in refused.stderr


def put(url: str, token_file: str, body: bytes) -> str:
    """What the panel's curl does; the answer."""
    headers = {"X-Internal-Token": Path(token_file).read_text().strip()}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method="PUT"), timeout=30) as answer:
        said: str = answer.read().decode()
        return said


async def test_dev_begins_in_the_weather_that_was_asked_for_and_tells_how_to_change_it(home: Path) -> None:
    """The run's result is held back; the panel's command clears the sky."""
    options = ("dev", "--port", "0", "--mcp-config", mcp_config(home), "--weather", "late_result")
    with running(*options, home=home) as dev:
        url, token = panel(dev)
        assert re.search(r"^Weather +late_result;", dev.text, re.MULTILINE)
        command = re.search(
            r'^curl -X PUT -H "X-Internal-Token: \$\(cat (\S+)\)" (\S+/dev/weather)', dev.text, re.MULTILINE
        )
        assert command, dev.text
        run_id = hello(url, token)["run_id"]

        def log_of_the_call() -> Any:
            return call(f"{url}/v1/workflow-runs/{run_id}", token)["steps_state"]["hi"]["attempts"][-1:]

        await eventually(lambda: any(attempt["log_preview"] for attempt in log_of_the_call()), what="the tool's word")
        assert call(f"{url}/v1/workflow-runs/{run_id}", token)["status"] == "running"
        assert put(command[2], command[1], b"") == "\n", "fair"
        await eventually(lambda: call(f"{url}/v1/workflow-runs/{run_id}", token)["status"] == "completed")
        assert dev.signalled(signal.SIGINT) == 0


@pytest.mark.parametrize("command", ["dev", "demo"])
def test_an_unknown_weather_is_refused_with_those_that_exist(home: Path, command: str) -> None:
    refused = CliRunner().invoke(main, [command, "--data", str(home / "data"), "--weather", "late_result,hail"])
    assert refused.exit_code == 1
    assert "no such weather: hail; there is lost_result, " in refused.stderr
    assert not (home / "data").exists()
