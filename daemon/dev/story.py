"""A run as a person follows it: events in, steps with their state, log lines and progress out. Pure.

``demo`` folds the API's events into a ``Story`` and the tellers (``plain``, ``screen``) show it. Text that came from
tools is made harmless here: no control character of theirs reaches a terminal. Knows the API's JSON, not the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

State = Literal["pending", "waiting", "running", "done", "failed", "rejected", "expired", "skipped"]
Told = Literal["begun", "waits", "decided", "noted", "said", "ended", "nothing"]

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SHARE = re.compile(r"\b(\d{1,9})(?: of |/)([1-9]\d{0,8})\b")
_SERVER_SAYS = re.compile(r"\[[^\]]+\] \(\w+\) (?P<data>\{.*\})")
_SHORT = 60
_MOVES_ON = frozenset({"run.resumed", "run.completed", "run.failed", "run.canceled", "step.progress", "step.approved"})
_MOVES_ON |= {"step.rejected", "step.skipped", "step.completed"}
_TOLD_ALREADY = frozenset({"step_failed"})  # by the verdict on the call
_OWN_NOISE = "running tool: "  # the agent's own first words, which the heading of a step has said already


class News(NamedTuple):
    """What one event means to a person, of which step. ``lines``: the tool's for ``said`` and ``ended``, else ours."""

    told: Told
    step: Step | None = None
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class Step:
    """One step. ``number`` counts from 1; ``share`` is the progress the tool told, as (so many, of so many)."""

    number: int
    id: str
    name: str
    tool: str
    arguments: Mapping[str, Any]
    continues: bool
    state: State = "pending"
    duration_ms: int = 0
    fault: str = ""
    share: tuple[int, int] | None = None
    half_lines: dict[str, str] = field(default_factory=dict)  # channel → text whose line end has not come yet

    @property
    def fault_lines(self) -> list[str]:
        return self.fault.splitlines()


@dataclass(frozen=True, slots=True, eq=False)
class Pause:
    """What the run stands still for; each pause is one of its own."""

    reason: str
    step: Step | None
    card: Mapping[str, Any] | None = None
    """Of an approval: what exactly waits (``card.lines``); None in a log that is older than such cards."""
    message: str = ""

    @property
    def named(self) -> dict[str, str]:
        """What a decision says of it: which step, and the digest of what was shown."""
        about = {} if self.step is None else {"step_id": self.step.id}
        return about if self.card is None else about | {"digest": self.card["digest"]}


class Story:
    """Folds events. ``outcome`` is None while the run goes on; a pause for more than an approval is an end here."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.steps = [
            Step(
                number=number,
                id=step["id"],
                name=clean(step["name"]),
                tool=clean(step["tool_config"]["tool_name"]),
                arguments=step["tool_config"].get("arguments") or {},
                continues=step.get("on_error") == "continue",
            )
            for number, step in enumerate(spec["steps"], 1)
        ]
        self.outcome: Literal["completed", "failed", "canceled", "paused"] | None = None
        self.why = ""
        self.pause: Pause | None = None
        """The pause that stands, if one does."""
        self._by_id = {step.id: step for step in self.steps}

    def hear(self, payload: Mapping[str, Any]) -> News:
        """One event's payload, as the API's stream carries it."""
        kind = payload["type"]
        if kind in _MOVES_ON or payload.get("settles"):
            self.pause = None
            self.outcome = None if self.outcome == "paused" else self.outcome
        elif kind in ("step.paused", "step.edited"):
            self.pause = self._stands(payload)
        elif kind == "step.expired" and payload["rejects"]:
            self.pause = None
        if kind.startswith("run."):
            return self._run(kind, payload)
        step = self._by_id.get(payload.get("step_id", ""))
        return News("nothing") if step is None else self._step(step, kind, payload)

    def _stands(self, payload: Mapping[str, Any]) -> Pause:
        """The pause that an event leads to; an edit leads to another one, since it is another call that waits."""
        reason = clean(payload.get("paused_reason", "awaiting_approval"))
        card = payload if "digest" in payload else None
        step = self._by_id.get(payload.get("step_id", ""))
        return Pause(reason, step, card, clean(payload.get("message") or ""))

    def count(self, state: State) -> int:
        """How many steps are in a state."""
        return sum(step.state == state for step in self.steps)

    def _run(self, kind: str, payload: Mapping[str, Any]) -> News:
        match kind:
            case "run.completed":
                self.outcome = "completed"
            case "run.failed":
                self.outcome, self.why = "failed", clean(f"{payload['error_code']}: {payload['message']}")
            case "run.canceled":
                self.outcome, self.why = "canceled", clean(payload.get("reason") or "")
            case "run.resumed" if payload.get("paused_reason") == "held":
                return News("noted", self.steps[payload["current_step_index"]], ("released: the run goes on",))
        return News("nothing")

    def _step(self, step: Step, kind: str, payload: Mapping[str, Any]) -> News:
        match kind, payload:
            case "step.progress", {"status": "running"}:
                step.state, step.share, step.fault = "running", None, ""
                return News("begun", step)
            case "step.paused", {"paused_reason": "awaiting_approval"}:
                step.state = "waiting"
                void = clean(payload.get("voids") or "")
                return News("waits", step, (f"an earlier approval counts no more: {void}",) if void else ())
            case "step.paused", {"paused_reason": reason}:
                self.outcome, self.why = "paused", clean(f"{reason} {payload.get('message') or ''}".strip())
                if reason not in _TOLD_ALREADY:
                    return News("noted", step, (f"paused: {self.why}",))
            case (("step.voted" | "step.edited" | "step.expired"), _):
                return self._asked(step, kind, payload)
            case "step.approved", _:
                return News("decided", step)
            case "step.rejected", _:
                step.state = "rejected"
                return News("decided", step)
            case "step.skipped", _:
                step.state = "skipped"
                return News("decided", step)
            case "step.completed", {"marked": True}:
                step.state = "done"
                return News("decided", step)
            case "tool.log", _:
                return News("said", step, tuple(self._lines(step, payload)))
            case "tool.result", _:
                return self._verdict(step, payload)
        return News("nothing", step)

    def _asked(self, step: Step, kind: str, payload: Mapping[str, Any]) -> News:
        """What becomes of a call that waits for approval, short of a yes or a no."""
        if kind == "step.expired":
            if payload["rejects"]:
                step.state = "expired"
                return News("decided", step)
            return News("noted", step, ("nobody decided in time: its votes are dropped, and it waits on",))
        by = clean(payload["by"])
        if kind == "step.edited":
            return News("waits", step, (f"{by} changed its arguments; whoever had agreed must agree anew",))
        return News("noted", step, (f"{by} agrees ({payload['votes']} of {payload['quorum']})",))

    def _verdict(self, step: Step, payload: Mapping[str, Any]) -> News:
        rest = tuple(_readable(text) for text in step.half_lines.values() if text)
        step.half_lines.clear()
        step.state = "done" if payload["ok"] else "failed"
        step.duration_ms = payload.get("duration_ms") or 0
        if step.share is not None and payload["ok"]:
            step.share = (step.share[1], step.share[1])
        error = payload.get("error") or {}
        step.fault = clean(error.get("message") or error.get("code") or "") if not payload["ok"] else ""
        return News("ended", step, rest)

    def _lines(self, step: Step, payload: Mapping[str, Any]) -> list[str]:
        """The lines that this piece of log completes, and the progress they tell."""
        channel = payload["channel"]
        *whole, rest = (step.half_lines.get(channel, "") + payload["data"]).split("\n")
        step.half_lines[channel] = rest
        for line in whole:
            if channel == "stdout" and (share := _SHARE.search(line)):
                step.share = (int(share[1]), max(int(share[1]), int(share[2])))
        if payload["dropped_lines"]:
            whole.append(f"… {payload['dropped_lines']} lines were dropped on the way")
        return [_readable(line) for line in whole if line.strip() and not line.startswith(_OWN_NOISE)]


def tells_share(line: str) -> bool:
    """Whether a line says little more than how far the tool has come: ``read 1a2b3c4 (3 of 20)``."""
    return _SHARE.search(line) is not None and len(line) < _SHORT


def clean(text: str) -> str:
    """The text without control characters (but line ends and tabs) and without marks that turn the writing around."""
    return _CONTROL.sub("", text)


def _readable(line: str) -> str:
    """A line as people like it: what a server logged as an object becomes ``key value · key value``."""
    said = _SERVER_SAYS.fullmatch(line.strip())
    if said is not None:
        try:
            facts = json.loads(said["data"])
        except ValueError:
            facts = {}
        if facts:
            line = " · ".join(f"{key} {value}" for key, value in facts.items())
    return clean(line.rstrip()).expandtabs(4)


def duration(ms: float) -> str:
    """A duration as people say it."""
    return f"{ms / 1000:.1f} s" if ms < 60_000 else f"{ms / 60_000:.1f} min"


def hints(tool: Mapping[str, Any]) -> str:
    """What a tool's annotations say of it, in words: the hints of MCP's ``ToolAnnotations``, told ones only."""
    said = tool.get("annotations") or {}
    words = []
    if said.get("readOnlyHint"):
        words.append("read-only")
    elif "destructiveHint" in said:
        words.append("destructive" if said["destructiveHint"] else "additive")
    if said.get("idempotentHint"):
        words.append("idempotent")
    if said.get("openWorldHint"):
        words.append("open world")
    return ", ".join(words) or "no hints"
