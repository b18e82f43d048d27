"""``/openapi.json`` is valid, whole and enough: a client generated from it completes the story of the demo."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from daemon.api.app import ROUTES, document
from tests.api.harness import AGENT, Stack
from tests.patience import PATIENCE_S, eventually

SPEC = {
    "steps": [
        {"id": "a", "name": "A", "tool_config": {"agent_id": AGENT, "tool_name": "ok"}},
        {
            "id": "b",
            "name": "B",
            "approval_policy": "manual",
            "tool_config": {"agent_id": AGENT, "tool_name": "streaming", "arguments": {"lines": 3}},
        },
    ]
}


def test_the_document_is_valid_and_names_every_route() -> None:
    told = json.loads(document())
    validate(told)
    assert told["openapi"].startswith("3.1.")
    named = {(method.upper(), path) for path, item in told["paths"].items() for method in item}
    assert named == {(route.method, route.path) for route in ROUTES}
    operations = [operation for item in told["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        if operation.get("security") == []:
            continue
        assert {"401", "503"} <= operation["responses"].keys()
    of_one = [operation for path, item in told["paths"].items() if "{" in path for operation in item.values()]
    assert all("404" in operation["responses"] for operation in of_one), "an id that none can have is nowhere"


async def test_the_document_and_the_page_are_served_without_a_token_and_from_nowhere_else(live: Stack) -> None:
    async with live.http.get(live.base + "/openapi.json") as answer:
        assert (answer.status, await answer.read()) == (200, document())
    async with live.http.get(live.base + "/docs") as answer:
        page = await answer.text()
        assert (answer.status, answer.content_type) == (200, "text/html")
        assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)


async def test_every_other_route_wants_a_token_before_it_reads_anything(live: Stack) -> None:
    for route in ROUTES:
        path = re.sub(r"\{\w+\}", "01990000-0000-7000-8000-000000000000", route.path)
        async with live.http.request(route.method, live.base + path, data=b"{") as answer:
            assert (answer.status != 401) == route.open, route.name


@pytest.fixture
def client_package(tmp_path: Path) -> Iterator[Path]:
    """Where a generated package is imported from, and forgotten afterwards."""
    sys.path.insert(0, str(tmp_path))
    yield tmp_path / "runwarden_client"
    sys.path.remove(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "runwarden_client"]:
        del sys.modules[name]


async def _generate(place: Path) -> None:
    source, config = place.parent / "openapi.json", place.parent / "config.json"
    source.write_bytes(document())
    config.write_text(json.dumps({"post_hooks": [], "package_name_override": place.name, "literal_enums": True}))
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(source), "--meta", "none"]
    command += ["--output-path", str(place), "--config", str(config), "--fail-on-warning"]
    running = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await running.communicate()
    assert running.returncode == 0, said.decode()


async def test_a_generated_client_completes_the_story(live: Stack, client_package: Path) -> None:
    """Create a workflow, start a run, wait for the pause, approve, and read the end, the list and the history."""
    await _generate(client_package)
    client = importlib.import_module("runwarden_client").AuthenticatedClient(base_url=live.base, token=live.token())
    models = importlib.import_module("runwarden_client.models")

    async def call(module: str, *arguments: Any, **more: Any) -> Any:
        found = importlib.import_module(f"runwarden_client.api.{module}")
        answered = await found.asyncio_detailed(*arguments, client=client, **more)
        assert answered.status_code == 200, answered
        return answered.parsed

    body = models.NewWorkflow.from_dict({"title": "Made by a machine", "spec": SPEC})
    workflow = await call("workflows.workflows_create", body=body, idempotency_key="once")
    run = await call("runs.runs_create", body=models.NewRun(workflow_id=workflow.workflow_id))

    async def until(status: str) -> Any:
        async def there() -> Any:
            found = await call("runs.runs_get", run.run_id)
            return found if found.status == status else None

        return await eventually(there, within_s=PATIENCE_S, what=f"the run being {status}")

    assert (await until("paused")).paused_reason == "awaiting_approval"
    await call("decisions.decisions_approve", run.run_id, body=models.ApproveBody(step_id="b"))
    done = await until("completed")
    assert [step.status for step in done.steps_state.additional_properties.values()] == ["success", "success"]
    (item,) = (await call("runs.runs_listed", status=["completed"], q="machine")).items
    assert (item.run_id, item.title, item.step_count) == (run.run_id, "Made by a machine", 2)
    told = [event.event_type for event in (await call("runs.runs_history", run.run_id)).items]
    assert (told[0], "run.completed" in told) == ("run.created", True)
    await client.get_async_httpx_client().aclose()
