"""The scripts of the runs: what each calls, what its person does at each pause, and how it must end. Pure.

What the storm adds is the same for all: a step that failed though its tool did not (nobody was there to be called) is
tried again by its person; of a call whose outcome nobody knows some say that it shall run again, others skip it or mark
it as done, and the rest leave it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from tests.api.harness import step
from tests.chaos.agent import AGENT

Do = Literal["approve", "reject", "resume", "cancel", "leave"]
Unknown = Literal["resume", "skip", "mark-done", "leave"]
"""What a person does about an outcome that nobody knows."""
Move = tuple[str, dict[str, Any]]
"""A verb of the API and its body."""
End = tuple[str, str | None]
"""A status and its reason."""

QUICK_MS = 8_000
SLOW_MS = 12_000
OVERLONG_MS = 700
REPEATABLE = frozenset({"lookup", "upsert"})
"""Tools declared read-only or idempotent: the engine may call them again by itself."""
UNKNOWN: End = ("paused", "outcome_unknown")
COMPLETED: End = ("completed", None)
CANCELED: End = ("canceled", "user_cancel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """``at_approval`` and ``at_failure``: by step. ``cancels_at``: the step at whose first attempt the person cancels.

    ``ends``: how the run may end, besides a pause as ``outcome_unknown`` that its person leaves.
    """

    name: str
    steps: tuple[dict[str, Any], ...]
    ends: frozenset[End] = frozenset({COMPLETED})
    at_approval: Mapping[str, Do] = field(default_factory=lambda: MappingProxyType({}))
    at_failure: Mapping[str, Do] = field(default_factory=lambda: MappingProxyType({}))
    cancels_at: str | None = None

    def move(self, run: Mapping[str, Any], *, at_unknown: Unknown) -> Move | None:
        """What its person does now, having read the run; None: nothing."""
        if run["status"] in ("completed", "failed", "canceled"):
            return None
        if self.cancels_at is not None and run["steps_state"][self.cancels_at]["attempts"]:
            return ("cancel", {"reason": "changed my mind"})
        if run["status"] != "paused":
            return None
        step_id = self.steps[run["current_step_index"]]["id"]
        match run["paused_reason"]:
            case "awaiting_approval":
                return _move(self.at_approval[step_id], step_id)
            case "step_failed":
                return _move(self.at_failure.get(step_id, "resume"), step_id)
            case "outcome_unknown":
                return _at_unknown(at_unknown, step_id)
        return None

    def rests(self, run: Mapping[str, Any], *, at_unknown: Unknown) -> bool:
        """Whether nothing is left to do or to wait for: the run has ended, or its person leaves it as it is."""
        if run["status"] == "running":
            return False
        return self.move(run, at_unknown=at_unknown) is None

    def accepts(self, end: End, *, at_unknown: Unknown) -> bool:
        """Whether a run of this script may end so. Who skips what is unknown never comes to see whether it fails."""
        if end in self.ends or (end == UNKNOWN and at_unknown == "leave"):
            return True
        return end == COMPLETED and at_unknown in ("skip", "mark-done") and "leave" in self.at_failure.values()


def _move(do: Do, step_id: str) -> Move | None:
    if do == "leave":
        return None
    return (do, {"step_id": step_id} if do in ("approve", "reject") else {})


def _at_unknown(do: Unknown, step_id: str) -> Move | None:
    match do:
        case "resume":
            return (do, {"confirm": "run_again"})
        case "skip":
            return (do, {"step_id": step_id})
        case "mark-done":
            return (do, {"step_id": step_id, "note": "I looked: it is done"})
    return None


def _step(step_id: str, tool: str, *, seconds: float | None = None, **more: Any) -> dict[str, Any]:
    arguments = {} if seconds is None else {"seconds": seconds}
    more = {"arguments": arguments, "timeout_ms": QUICK_MS if seconds is None else SLOW_MS} | more
    return step(step_id, tool, agent=AGENT, **more)


def _quick(*names: str) -> tuple[dict[str, Any], ...]:
    return tuple(_step(name, "quick") for name in names)


SCRIPTS: tuple[Script, ...] = (
    Script(name="quick steps", steps=_quick(*"abcdefghij")),
    Script(
        name="approved",
        steps=(*_quick("a"), _step("b", "quick", approval_policy="manual"), *_quick("c", "d")),
        at_approval={"b": "approve"},
    ),
    Script(
        name="approved in v0's manner",
        steps=(*_quick("a"), _step("b", "adding", seconds=1.0, approval_policy="manual"), *_quick("c")),
        at_approval={"b": "resume"},
    ),
    Script(
        name="rejected",
        steps=(*_quick("a", "b"), _step("c", "quick", approval_policy="manual")),
        at_approval={"c": "reject"},
        ends=frozenset({("failed", None)}),
    ),
    Script(
        name="rejected and gone on",
        steps=(_step("a", "quick", approval_policy="manual", on_error="continue"), *_quick("b", "c")),
        at_approval={"a": "reject"},
    ),
    Script(name="slow", steps=tuple(_step(name, "slow", seconds=2.5) for name in ("a", "b", "c"))),
    Script(name="stubborn", steps=(_step("a", "stubborn", seconds=2.5), _step("b", "slow", seconds=2.5))),
    Script(
        name="canceled while a tool runs",
        steps=(*_quick("a"), _step("b", "slow", seconds=3.0), _step("c", "quick", approval_policy="manual")),
        at_approval={"c": "cancel"},
        cancels_at="b",
        ends=frozenset({CANCELED}),
    ),
    Script(
        name="canceled while a stubborn tool runs",
        steps=(_step("a", "stubborn", seconds=3.0), _step("b", "quick", approval_policy="manual")),
        at_approval={"b": "cancel"},
        cancels_at="a",
        ends=frozenset({CANCELED}),
    ),
    Script(
        name="canceled while it waits",
        steps=(*_quick("a"), _step("b", "quick", approval_policy="manual")),
        at_approval={"b": "cancel"},
        ends=frozenset({CANCELED}),
    ),
    Script(
        name="failing",
        steps=(*_quick("a"), _step("b", "failing"), *_quick("c")),
        at_failure={"b": "leave"},
        ends=frozenset({("paused", "step_failed")}),
    ),
    Script(name="failing and gone on", steps=(_step("a", "failing", on_error="continue"), *_quick("b", "c"))),
    Script(name="failing once", steps=(*_quick("a"), _step("b", "failing_once"), *_quick("c", "d"))),
    Script(
        name="overlong",
        steps=(_step("a", "slow", seconds=5.0, timeout_ms=OVERLONG_MS), *_quick("b")),
        at_failure={"a": "leave"},
        ends=frozenset({("paused", "step_failed")}),
    ),
    Script(name="read-only", steps=tuple(_step(name, "lookup", seconds=1.0) for name in ("a", "b", "c", "d"))),
    Script(
        name="declared idempotent",
        steps=tuple(_step(name, "upsert", seconds=1.0, idempotent=True) for name in ("a", "b", "c", "d")),
    ),
    Script(
        name="chatty",
        steps=(_step("a", "chatty", arguments={"lines": 400, "pace_s": 0.005}, timeout_ms=SLOW_MS), *_quick("b")),
    ),
)
