"""What a spec may be: each fault is refused by the JSON pointer of its place; what is left out has its default."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from daemon.errors import Invalid
from daemon.machine.spec import MAX_STEPS, MAX_TIMEOUT_MS, ToolConfig, parse_spec

LEAST: dict[str, Any] = {
    "title": "T",
    "steps": [{"id": "a", "name": "A", "tool_config": {"agent_id": "agent-1", "tool_name": "echo"}}],
}
ABSENT = object()


def changed(path: str, value: object) -> dict[str, Any]:
    """``LEAST`` with one value put at (or, when ABSENT, taken from) a place like ``steps/0/id``."""
    data = copy.deepcopy(LEAST)
    *way, last = path.split("/")
    place: Any = data
    for part in way:
        place = place[int(part) if part.isdigit() else part]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return data


def faults(data: object, at: str = "/spec") -> list[str]:
    """The pointers of all faults of a spec."""
    with pytest.raises(Invalid) as refused:
        parse_spec(data, at=at)
    assert refused.value.problem_code == "invalid_spec"
    assert refused.value.status == 422
    assert all(pointer in refused.value.detail and message for pointer, message in refused.value.faults)
    return [pointer for pointer, _ in refused.value.faults]


def test_what_is_left_out_has_its_default() -> None:
    spec = parse_spec(LEAST)
    (step,) = spec.steps
    assert (spec.description, spec.variables) == (None, {})
    assert (step.type, step.approval_policy, step.on_error) == ("tool_call", "auto", "stop")
    assert not step.manual
    assert not step.continues
    assert step.tool_config == ToolConfig(
        agent_id="agent-1", tool_name="echo", arguments={}, timeout_ms=60_000, stream=True
    )


def test_everything_that_v0_knows_is_accepted() -> None:
    spec = parse_spec(
        {
            "title": "T",
            "description": "",
            "variables": {"x": [1, None]},
            "steps": [
                {
                    "id": "a",
                    "name": "A",
                    "type": "tool_call",
                    "tool_config": {
                        "agent_id": "agent-1",
                        "tool_name": "echo",
                        "arguments": {"deep": [{"er": 1.5}]},
                        "timeout_ms": 1,
                        "stream": False,
                    },
                    "approval_policy": "manual",
                    "on_error": "continue",
                }
            ],
        }
    )
    assert spec.steps[0].manual
    assert spec.steps[0].continues
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_a_spec_is_immutable() -> None:
    spec = parse_spec(LEAST)
    with pytest.raises(ValidationError):
        spec.title = "other"  # type: ignore[misc] # that it cannot be set is what is tested


@pytest.mark.parametrize(
    "path",
    [
        *("title", "steps", "steps/0/id", "steps/0/name", "steps/0/tool_config"),
        *("steps/0/tool_config/agent_id", "steps/0/tool_config/tool_name"),
    ],
)
def test_what_is_required_is_missed_by_its_place(path: str) -> None:
    assert faults(changed(path, ABSENT)) == [f"/spec/{path}"]


@pytest.mark.parametrize("path", ["stepz", "steps/0/aproval_policy", "steps/0/tool_config/timeout"])
def test_an_unknown_field_is_refused_at_every_level(path: str) -> None:
    assert faults(changed(path, "manual")) == [f"/spec/{path}"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("title", value) for value in (None, 1, "", "x" * 256, ["T"])),
        *(("description", value) for value in (1, "x" * 10_001, {})),
        *(("variables", value) for value in (None, [], "x")),
        *(("steps", value) for value in (None, [], {}, "a", 3)),
        *(("steps/0/id", value) for value in (None, 1, "", "x" * 256)),
        *(("steps/0/name", value) for value in (None, 1, "", "x" * 256)),
        *(("steps/0/type", value) for value in (None, "wait", "TOOL_CALL", 1)),
        *(("steps/0/approval_policy", value) for value in (None, "Manual", "", True)),
        *(("steps/0/on_error", value) for value in (None, "retry", "", False)),
        *(("steps/0/tool_config", value) for value in (None, [], "echo")),
        *(("steps/0/tool_config/agent_id", value) for value in (None, 1, "", "x" * 256)),
        *(("steps/0/tool_config/tool_name", value) for value in (None, 1, "", "x" * 256)),
        *(("steps/0/tool_config/arguments", value) for value in (None, [], "x", 1)),
        *(
            ("steps/0/tool_config/timeout_ms", value)
            for value in (None, 0, -1, 1.5, "60000", True, MAX_TIMEOUT_MS + 1, 2**70)
        ),
        *(("steps/0/tool_config/stream", value) for value in (None, 1, "true")),
    ],
)
def test_a_wrong_type_or_a_value_out_of_bounds_is_refused_by_its_place(path: str, value: object) -> None:
    assert faults(changed(path, value)) == [f"/spec/{path}"]


@pytest.mark.parametrize("data", [None, [], "spec", 1, True])
def test_what_is_no_object_is_refused_as_a_whole(data: object) -> None:
    assert faults(data) == ["/spec"]
    assert faults(data, at="") == [""]


def test_a_step_that_is_no_object_is_refused_by_its_index() -> None:
    assert faults({**LEAST, "steps": [LEAST["steps"][0], 7]}) == ["/spec/steps/1"]


def test_duplicate_step_ids_are_refused_where_they_repeat() -> None:
    first, other = LEAST["steps"][0], {**LEAST["steps"][0], "id": "b"}
    assert faults({**LEAST, "steps": [first, other, first, other, first]}) == [
        *("/spec/steps/2/id", "/spec/steps/3/id", "/spec/steps/4/id"),
    ]


def test_a_thousand_steps_are_the_most() -> None:
    steps = [{**LEAST["steps"][0], "id": str(number)} for number in range(MAX_STEPS + 1)]
    assert len(parse_spec({**LEAST, "steps": steps[:-1]}).steps) == MAX_STEPS
    assert faults({**LEAST, "steps": steps}) == ["/spec/steps"]


def test_all_faults_are_told_together_up_to_twenty() -> None:
    assert sorted(faults({"title": "", "steps": [{"id": ""}]})) == [
        *("/spec/steps/0/id", "/spec/steps/0/name", "/spec/steps/0/tool_config", "/spec/title"),
    ]
    assert len(faults({"title": "T", "steps": [{}] * 100})) == 20


def test_a_pointer_escapes_what_json_pointer_escapes() -> None:
    assert faults({**LEAST, "a/b~c": 1}) == ["/spec/a~1b~0c"]


def test_a_pointer_begins_where_the_caller_says() -> None:
    assert faults(changed("title", ""), at="") == ["/title"]
