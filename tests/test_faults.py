"""What is wrong with a document is told in our words: the place, what must be there, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from daemon.api.app import ROUTES
from daemon.api.workflows import NewWorkflow
from daemon.config import EVERY_GROUP, load
from daemon.errors import Invalid, SetupError
from daemon.faults import PATTERNS, faults_of, pointer
from daemon.machine.spec import parse_spec
from tests.api.answers import LIBRARY

TOOL: dict[str, Any] = {"agent_id": "agent-1", "tool_name": "echo"}
STEP: dict[str, Any] = {"id": "a", "name": "A", "tool_config": TOOL}


def step(**changes: Any) -> dict[str, Any]:
    return {"title": "T", "steps": [STEP | changes]}


def tool(**changes: Any) -> dict[str, Any]:
    return step(tool_config=TOOL | changes)


def without(name: str) -> dict[str, Any]:
    return {"title": "T", "steps": [{key: value for key, value in STEP.items() if key != name}]}


def manual(**terms: Any) -> dict[str, Any]:
    return step(approval_policy="manual", approval=terms)


TOLD = [
    ([], "", "must be an object, not a list"),
    ({"steps": [STEP]}, "/title", "is required: what people call the workflow"),
    ({"title": "T"}, "/steps", "is required: what is done, one after another"),
    ({"title": "T", "steps": []}, "/steps", "must have at least 1 item"),
    ({"title": "T", "steps": [STEP] * 1001}, "/steps", "may have at most 1000 items; it has 1001"),
    ({"title": "T", "steps": "a"}, "/steps", "must be a list, not 'a'"),
    ({"title": 7, "steps": [STEP]}, "/title", "must be text, not 7: put it in quotes"),
    ({"title": True, "steps": [STEP]}, "/title", "must be text, not true: put it in quotes"),
    ({"title": None, "steps": [STEP]}, "/title", "must be text, not null"),
    ({"title": "", "steps": [STEP]}, "/title", "must not be empty"),
    ({"title": "x" * 256, "steps": [STEP]}, "/title", "may have at most 255 characters; it has 256"),
    ({"title": "T", "steps": [STEP], "steqs": []}, "/steqs", "is not known here: did you mean steps?"),
    (
        {"title": "T", "steps": [STEP], "on": 1},
        "/on",
        "is not known here: leave it out, or use one of title, description, variables, run_timeout_ms, steps",
    ),
    ({"title": "T", "steps": [7]}, "/steps/0", "must be an object, not 7"),
    (
        without("id"),
        "/steps/0/id",
        "is required: what the step is named by; no other of its workflow has the same",
    ),
    (without("tool_config"), "/steps/0/tool_config", "is required: which tool, on which agent, with what"),
    (step(aproval_policy="manual"), "/steps/0/aproval_policy", "is not known here: did you mean approval_policy?"),
    (step(type="script"), "/steps/0/type", "must be 'tool_call', not 'script'"),
    (step(approval_policy="Manual"), "/steps/0/approval_policy", "must be 'auto' or 'manual', not 'Manual'"),
    (step(on_error=["x"]), "/steps/0/on_error", "must be 'stop' or 'continue', not a list"),
    (step(idempotent="yes"), "/steps/0/idempotent", "must be true or false, not 'yes'"),
    (step(idempotent="true"), "/steps/0/idempotent", "must be true or false, not 'true': leave its quotes out"),
    (
        step(tool_config={"tool_name": "echo"}),
        "/steps/0/tool_config/agent_id",
        "is required: the agent that runs the tool",
    ),
    (
        tool(retries=3),
        "/steps/0/tool_config/retries",
        "is not known here: leave it out, or use one of agent_id, tool_name, arguments, timeout_ms, stream",
    ),
    (tool(args={}), "/steps/0/tool_config/args", "is not known here: did you mean arguments?"),
    (tool(arguments=[]), "/steps/0/tool_config/arguments", "must be an object, not a list"),
    (
        tool(timeout_ms="1000"),
        "/steps/0/tool_config/timeout_ms",
        "must be a whole number, not '1000': leave its quotes out",
    ),
    (tool(timeout_ms=0.5), "/steps/0/tool_config/timeout_ms", "must be a whole number, not 0.5"),
    (tool(timeout_ms=0), "/steps/0/tool_config/timeout_ms", "must be at least 1, not 0"),
    (tool(timeout_ms=604_800_001), "/steps/0/tool_config/timeout_ms", "must be at most 604800000, not 604800001"),
    (tool(timeout_ms=10**5000), "/steps/0/tool_config/timeout_ms", "must be at most 604800000, not so large a number"),
    (tool(agent_id="x" * 300), "/steps/0/tool_config/agent_id", "may have at most 255 characters; it has 300"),
    (
        manual(approvers=["ann"]),
        "/steps/0/approval/approvers/0",
        "must be user:<id> or group:<name>",
    ),
    (manual(expires_in_ms=5), "/steps/0/approval/expires_in_ms", "must be at least 1000, not 5"),
    (manual(quorom=2), "/steps/0/approval/quorom", "is not known here: did you mean quorum?"),
    (
        step(approval={}),
        "/steps/0/approval",
        "approval has terms, so approval_policy must be 'manual'",
    ),
]


@pytest.mark.parametrize(("data", "place", "message"), TOLD, ids=[f"{place} {why}"[:60] for _, place, why in TOLD])
def test_each_fault_of_a_spec_is_told_by_its_place_and_what_must_be_there(data: Any, place: str, message: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_spec(data, at="")
    assert refused.value.faults == ((place, message),)


def test_a_field_within_a_body_is_looked_up_in_the_model_that_reads_it() -> None:
    body = {"title": "T", "spec": step(tool_config={"agent": "x", **TOOL})}
    with pytest.raises(ValueError, match="validation error") as refused:
        NewWorkflow.model_validate(body)
    ((place, message),) = faults_of(refused.value, NewWorkflow)  # type: ignore[arg-type] # it is pydantic's, a ValueError
    assert (place, message) == ("/spec/steps/0/tool_config/agent", "is not known here: did you mean agent_id?")


def test_a_pointer_escapes_its_parts() -> None:
    assert pointer(("a/b", 0, "c~d")) == "/a~1b/0/c~0d"


def _patterns(shape: Any) -> Iterator[str]:
    """Every pattern within a JSON schema."""
    if isinstance(shape, dict):
        if isinstance(shape.get("pattern"), str):
            yield shape["pattern"]
        for value in shape.values():
            yield from _patterns(value)
    elif isinstance(shape, list):
        for value in shape:
            yield from _patterns(value)


def _models() -> set[type[BaseModel]]:
    """Every model that reads what people write."""
    return {model for route in ROUTES for model in route.takes.values()} | set(EVERY_GROUP.values())


def test_every_pattern_that_something_is_refused_by_has_words() -> None:
    used = {pattern for model in _models() for pattern in _patterns(model.model_json_schema())}
    assert used == PATTERNS.keys()
    assert all(re.compile(pattern) for pattern in used)


WRONG = [None, True, 7, 0.5, -1, 2**63, "", "no such thing", "x" * 300_000, [], [None], {}, {"x": 1}, [{"x": 1}]]


def test_no_model_of_a_request_speaks_its_library() -> None:
    """Every field of every request, with values of every kind."""
    said: set[str] = set()
    for model in _models() - set(EVERY_GROUP.values()):
        for name, field in model.model_fields.items():
            for value in WRONG:
                try:
                    model.model_validate({field.alias or name: value})
                except ValueError as fault:
                    said |= {message for _, message in faults_of(fault, model)}  # type: ignore[arg-type] # as above
    assert len(said) > 50
    assert [message for message in said if LIBRARY.search(message) or message[0].isupper()] == []


def test_settings_are_refused_in_the_same_words() -> None:
    with pytest.raises(SetupError) as refused:
        load(port="x", sse_clients=0, log_format="xml", postgres_pooled="maybe")
    told = [line for line in str(refused.value).splitlines()[1:] if ": is required" not in line]
    assert told == [
        "  RUNWARDEN_LOG_FORMAT: must be json or text",
        "  RUNWARDEN_PORT: must be a whole number, not 'x'",
        "  RUNWARDEN_POSTGRES_POOLED: must be true or false, not 'maybe'",
        "  RUNWARDEN_SSE_CLIENTS: must be at least 1, not 0",
    ]


def test_what_no_words_are_known_for_is_told_as_it_comes() -> None:
    class Odd(BaseModel):
        number: int = Field(multiple_of=3)

    with pytest.raises(ValueError, match="multiple") as refused:
        Odd.model_validate({"number": 4})
    assert faults_of(refused.value) == (("/number", "Input should be a multiple of 3"),)  # type: ignore[arg-type] # as above
