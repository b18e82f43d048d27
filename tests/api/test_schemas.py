"""Arguments by schemas that agents may have written to do harm: what cannot be validated soon is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest

from daemon.api import schemas
from daemon.errors import Conflict


def bomb(levels: int) -> dict[str, Any]:
    """Each definition asks the next one twice."""
    named = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**named, f"a{levels}": {"type": "object"}}, "$ref": "#/$defs/a0"}


async def test_faults_are_told_with_their_places() -> None:
    schema = {
        "type": "object",
        "properties": {"a/b": {"type": "array", "items": {"type": "integer"}}},
        "required": ["c"],
    }
    faults = await schemas.faults_of_arguments(schema, {"a/b": [1, "x"]})
    assert {path for path, _ in faults} == {"/arguments", "/arguments/a~1b/1"}
    assert await schemas.faults_of_arguments(bomb(3), {}) == []
    slow = {"properties": {"a": {"pattern": "^((a+)+)+$"}}}
    assert await schemas.faults_of_arguments(slow, {"a": "a" * 60 + "!"}) != []


@pytest.mark.parametrize(
    "schema",
    [
        bomb(60),
        {"$ref": "http://127.0.0.1:9/elsewhere"},
        {"type": "nonsense"},
        {"$ref": "file:///etc/passwd"},
    ],
    ids=["doubling", "elsewhere", "no schema", "a file"],
)
async def test_a_schema_that_cannot_be_used_is_said_to_be_so_and_soon(schema: dict[str, Any]) -> None:
    began = time.monotonic()
    with pytest.raises(Conflict) as refused:
        await schemas.faults_of_arguments(schema, {"a": "a" * 60 + "!"})
    assert refused.value.problem_code == "schema_unusable"
    assert time.monotonic() - began < 2 * schemas.DEADLINE_S
