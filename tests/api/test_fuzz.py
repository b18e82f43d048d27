"""Whatever a client sends as a body, it is never a 5xx, and what is refused says why. Hypothesis looks for the body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.api.bad_requests import deep, one, tool, workflow
from tests.api.harness import Stack, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

TEXT = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["", "\x00", "\ud800", "auto", "manual", "stop", "agent-1"]
)
SCALAR = st.none() | st.booleans() | TEXT | st.integers(-(2**70), 2**70) | st.floats()
ANYTHING = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)


def nearly(shape: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """An object of this shape in which some fields are missing, some are anything, and some are added."""
    right = st.fixed_dictionaries({}, optional={name: value | ANYTHING for name, value in shape.items()})
    return st.builds(lambda fields, more: fields | more, right, st.dictionaries(TEXT, ANYTHING, max_size=1)) | ANYTHING


TOOL = nearly(
    {
        "agent_id": st.just("agent-1"),
        "tool_name": st.just("ok"),
        "arguments": st.dictionaries(TEXT, ANYTHING, max_size=3),
        "timeout_ms": st.integers(),
        "stream": st.booleans(),
    }
)
STEP = nearly(
    {
        "id": TEXT,
        "name": TEXT,
        "type": st.just("tool_call"),
        "tool_config": TOOL | st.just(tool()),
        "approval_policy": st.sampled_from(["auto", "manual"]),
        "on_error": st.sampled_from(["stop", "continue"]),
    }
)
WORKFLOW = nearly(
    {
        "title": TEXT,
        "description": TEXT,
        "spec": nearly({"title": TEXT, "variables": ANYTHING, "steps": st.lists(STEP | st.just(one()), max_size=3)}),
    }
)
ARGUMENTS = st.dictionaries(TEXT, ANYTHING, max_size=4)
GOOD = st.builds(
    lambda name, arguments: workflow(one(name=name, tool_config=tool(arguments=arguments))), TEXT, ARGUMENTS
)
LATIN = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20)
DECISION = nearly({"step_id": st.just("a") | TEXT, "reason": TEXT, "confirm": st.just("run_again")})


def assert_never_5xx(status: int, content_type: str, raw: bytes, *allowed: int) -> None:
    assert status in allowed, (status, raw)
    if status >= 400:
        assert content_type == "application/problem+json"
        problem = json.loads(raw)
        assert problem["code"]
        assert problem["detail"]
        assert "500" not in problem["code"]


async def send(stack: Stack, path: str, raw: bytes) -> tuple[int, str, bytes]:
    async with stack.http.post(stack.base + path, data=raw, headers=stack.headers()) as answer:
        return answer.status, answer.content_type, await answer.read()


@QUICK
@given(WORKFLOW | GOOD)
@example(workflow(one(tool_config=tool(arguments={"a": deep(254)}))))
@example(workflow(one(tool_config=tool(arguments={"a": float("nan")}))))
async def test_no_workflow_is_a_server_error(shared: Stack, body: Any) -> None:
    status, kind, raw = await send(shared, "/v1/workflows", json.dumps(body).encode())
    assert_never_5xx(status, kind, raw, 200, 422)
    if status == 200:
        stored = json.loads(raw)
        run = await shared.post("/v1/workflow-runs", {"workflow_id": stored["workflow_id"]})
        assert run.status == 200
        assert run.body["workflow_snapshot"] == stored["spec"]
        assert (await shared.decide(run.body["run_id"], "cancel")).status == 200


@QUICK
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
async def test_no_bytes_are_a_server_error(shared: Stack, raw: bytes) -> None:
    for path in ("/v1/workflows", "/v1/workflow-runs"):
        assert_never_5xx(*await send(shared, path, raw), 400, 422)


@QUICK
@given(DECISION, st.sampled_from(["approve", "reject", "resume", "cancel"]))
async def test_no_decision_is_a_server_error(shared: Stack, body: Any, verb: str) -> None:
    """On one run: it is paused until the first good decision, and stays what it then became."""
    if "fuzzed" not in shared.tokens:
        shared.tokens["fuzzed"] = await shared.start(step("a", approval_policy="manual"))
    path = f"/v1/workflow-runs/{shared.tokens['fuzzed']}/{verb}"
    assert_never_5xx(*await send(shared, path, json.dumps(body).encode()), 200, 202, 409, 422)


@QUICK
@given(st.text(max_size=40), st.text(max_size=40), LATIN)
async def test_no_place_is_a_server_error(shared: Stack, run: str, after: str, resumed: str) -> None:
    """Run ids, after_seq and Last-Event-ID of any text."""
    more = {"params": {"after_seq": after}, "headers": {"Last-Event-ID": resumed}}
    place = run.replace("/", "").replace(".", "") or "x"
    for url in (f"/v1/workflow-runs/{place}", f"/v1/workflow-runs/{place}/events"):
        answered = await shared.ask("GET", url.encode("utf-8", "replace").decode(), **more)
        assert answered.status in (400, 404), answered
