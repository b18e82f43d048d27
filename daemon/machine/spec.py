"""What a workflow is: the shape of a spec, validated once where it enters, immutable afterwards.

Used by the API (validation, OpenAPI) and by the machine (reading). Unknown fields are refused: a misspelt
``approval_policy`` must never mean "auto".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daemon.errors import Invalid
from daemon.faults import MAX_FAULTS, escape, faults_of

MAX_STEPS = 1000
MAX_TIMEOUT_MS = 7 * 24 * 3600 * 1000
MAX_EXACT = 2**53
"""Up to here a 64-bit float holds every integer."""
MAX_RUN_TIMEOUT_MS = 365 * 24 * 3600 * 1000

NAME_CHARS = 255
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS)]


def _unset(value: object) -> bool:
    """What v1 added stands in a stored spec only where somebody said it: v0's clients get what they know."""
    return value is None


class Shape(BaseModel):
    """Base of every part of a spec: strict types, no unknown fields, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ToolConfig(Shape):
    """Which tool, on which agent, with what."""

    agent_id: Name = Field(description="The agent that runs the tool.")
    tool_name: Name = Field(description="The tool, as its agent calls it.")
    arguments: dict[str, Any] = Field(default_factory=dict)
    timeout_ms: int = Field(60_000, ge=1, le=MAX_TIMEOUT_MS, description="The tool's deadline, in milliseconds.")
    stream: bool = True

    @cached_property
    def arguments_json(self) -> str:
        """The arguments as JSON text, as each attempt keeps them."""
        return orjson.dumps(self.arguments).decode()


Approver = Annotated[str, Field(pattern=r"^(user|group):.", max_length=261)]


class ApprovalSpec(Shape):
    """Who must agree before a manual step's call is made, and how."""

    approvers: Annotated[tuple[Approver, ...], Field(max_length=100, strict=False)] = Field(
        (),
        description="`user:<id>` or `group:<name>`: who may decide. None: whoever started the run. Where policy"
        " requires approval, the agent's owner and whom they let approve; then this can only narrow that.",
    )
    quorum: int = Field(1, ge=1, le=20, description="How many different people must approve.")
    forbid_self: bool = Field(False, description="Whoever started the run may not approve.")
    expires_in_ms: int | None = Field(
        None, ge=1_000, le=MAX_RUN_TIMEOUT_MS, description="How long it waits to be decided, in milliseconds."
    )
    on_expiry: Literal["reject", "stay"] = Field(
        "stay", description="Then: `reject` ends the step as expired; `stay` says so, drops all votes and waits on."
    )
    allow_edit: bool = Field(False, description="Whoever may decide may change the arguments first.")
    instructions: Annotated[str, Field(max_length=10_000)] | None = Field(
        None, description="What whoever decides should look at."
    )


ALONE = ApprovalSpec()
"""The terms of a step that names none."""


class StepSpec(Shape):
    """One step: one tool call, perhaps behind a person's approval."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"approval": {"type": "object"}}, "required": ["approval"]},
            "then": {"properties": {"approval_policy": {"const": "manual"}}, "required": ["approval_policy"]},
        }
    )

    id: Name = Field(description="What the step is named by; no other of its workflow has the same.")
    name: Name = Field(description="What people read.")
    type: Literal["tool_call"] = "tool_call"
    tool_config: ToolConfig = Field(description="Which tool, on which agent, with what.")
    approval_policy: Literal["auto", "manual"] = "auto"
    approval: ApprovalSpec | None = Field(
        None,
        exclude_if=_unset,
        description="The terms of a manual step's approval; absent: whoever started it decides.",
    )
    on_error: Literal["stop", "continue"] = "stop"
    idempotent: bool | None = Field(
        None,
        exclude_if=_unset,
        description="Whether the call may simply be made again when nobody knows if it ran. Unset: as the tool's own"
        " annotations say (readOnlyHint, idempotentHint).",
    )

    @property
    def manual(self) -> bool:
        return self.approval_policy == "manual"

    @property
    def terms(self) -> ApprovalSpec:
        return self.approval or ALONE

    @property
    def continues(self) -> bool:
        """Whether the run goes on when this step fails."""
        return self.on_error == "continue"


class WorkflowSpec(Shape):
    """A list of strictly serial steps."""

    title: Name = Field(description="What people call the workflow.")
    description: Annotated[str, Field(max_length=10_000)] | None = None
    variables: dict[str, Any] = Field(default_factory=dict)
    run_timeout_ms: int | None = Field(
        None,
        exclude_if=_unset,
        ge=1,
        le=MAX_RUN_TIMEOUT_MS,
        description="The run's deadline, in milliseconds from its start, time spent waiting for people included.",
    )
    steps: Annotated[tuple[StepSpec, ...], Field(min_length=1, max_length=MAX_STEPS, strict=False)] = Field(
        description="What is done, one after another."
    )


def parse_spec(data: object, *, at: str = "/spec") -> WorkflowSpec:
    """Validate decoded JSON. Raises Invalid with a JSON pointer (below ``at``) for each fault."""
    try:
        spec = WorkflowSpec.model_validate(data)
    except ValidationError as fault:
        raise Invalid(faults=faults_of(fault, WorkflowSpec, at=at), code="invalid_spec") from None
    seen: dict[str, int] = {}
    faults: list[tuple[str, str]] = []
    for index, step in enumerate(spec.steps):
        first = seen.setdefault(step.id, index)
        if first != index:
            faults.append((f"{at}/steps/{index}/id", f"step id {step.id!r} is already used by step {first}"))
        faults += _step_faults(step, f"{at}/steps/{index}")
    if faults:
        raise Invalid(faults=tuple(faults[:MAX_FAULTS]), code="invalid_spec")
    return spec


def _step_faults(step: StepSpec, at: str) -> Iterator[tuple[str, str]]:
    """What a step may not say, though each of its fields may. Stored specs are older than some of this."""
    if step.approval is not None and not step.manual:
        yield f"{at}/approval", "approval has terms, so approval_policy must be 'manual'"
    yield from rounded(step.tool_config.arguments, f"{at}/tool_config/arguments")


def rounded(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """The integers that the Gateway would round (it reads numbers as 64-bit floats): (JSON pointer, why) of each.

    What was approved would not be what is executed.
    """
    match value:
        case bool():
            return
        case int() if abs(value) > MAX_EXACT:
            yield at, f"{value} is beyond ±2^53 and would be rounded on its way to the agent: send it as text"
        case list():
            for index, item in enumerate(value):
                yield from rounded(item, f"{at}/{index}")
        case dict():
            for key, item in value.items():
                yield from rounded(item, f"{at}/{escape(key)}")
        case _:
            return
