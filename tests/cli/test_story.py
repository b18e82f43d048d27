"""What a person is told of a run: lines, progress, verdicts; and that no tool can write to the terminal behind us."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from daemon.dev.plain import Plain
from daemon.dev.screen import Screen
from daemon.dev.story import Story, clean, hints

SPEC = {
    "steps": [
        {
            "id": step_id,
            "name": f"Step {step_id}",
            "tool_config": {"tool_name": f"tool__{step_id}", "arguments": {}},
            "on_error": on_error,
        }
        for step_id, on_error in (("a", "stop"), ("b", "continue"))
    ]
}


def event(kind: str, step_id: str = "a", **more: Any) -> dict[str, Any]:
    return {"type": kind, "step_id": step_id, **more}


def log(data: str, channel: str = "stdout") -> dict[str, Any]:
    return event("tool.log", channel=channel, data=data, dropped_bytes=0, dropped_lines=0)


def verdict(step_id: str = "a", *, ok: bool, message: str = "") -> dict[str, Any]:
    error = None if ok else {"code": "tool_error", "message": message}
    return event("tool.result", step_id, ok=ok, duration_ms=1234, error=error)


BEGUN = event("step.progress", status="running")


def test_lines_are_told_when_they_are_complete_and_the_rest_with_the_verdict() -> None:
    story = Story(SPEC)
    story.hear(BEGUN)
    assert story.hear(log("read a (1 of 4)\nread b (2")).lines == ("read a (1 of 4)",)
    assert story.steps[0].share == (1, 4)
    assert story.hear(log("to stderr\n", "stderr")).lines == ("to stderr",)
    assert story.hear(log(" of 4)\nlast")).lines == ("read b (2 of 4)",)
    assert story.hear(verdict(ok=True)).lines == ("last",)
    assert story.steps[0].share == (4, 4)


def test_what_a_server_logged_as_an_object_becomes_readable() -> None:
    said = Story(SPEC).hear(log('[bench] (info) {"commit":"abc","added":3}\n[bench] (info) {oops\n', "stderr"))
    assert said.lines == ("commit abc · added 3", "[bench] (info) {oops")


def test_no_control_character_of_a_tool_reaches_the_terminal() -> None:
    assert Story(SPEC).hear(log("\x1b[2Jboo\x07\u202e\x9b31m\r\n")).lines == ("[2Jboo31m",)
    assert clean("a\x00b\nc") == "ab\nc"


def test_lost_lines_are_told() -> None:
    lossy = log("x\n") | {"dropped_lines": 7}
    assert Story(SPEC).hear(lossy).lines == ("x", "… 7 lines were dropped on the way")


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        ({"type": "run.completed"}, "completed"),
        ({"type": "run.failed", "error_code": "x", "message": "y"}, "failed"),
        ({"type": "run.canceled", "reason": None}, "canceled"),
        (event("step.paused", paused_reason="step_failed"), "paused"),
        (event("step.paused", paused_reason="awaiting_approval"), None),
    ],
)
def test_a_run_is_over_when_nothing_more_will_happen_by_itself(last: dict[str, Any], outcome: str | None) -> None:
    story = Story(SPEC)
    story.hear(last)
    assert story.outcome == outcome


def test_plain_text_tells_a_failure_that_the_run_survives() -> None:
    written: list[str] = []
    story = Story(SPEC)
    teller = Plain(story, written.append)
    for payload in (BEGUN, verdict(ok=True), BEGUN | {"step_id": "b"}, verdict("b", ok=False, message="bad\nworse")):
        teller.tell(story.hear(payload))
    assert written == [
        "\n1/2  Step a  (tool__a)",
        "     done in 1.2 s",
        "\n2/2  Step b  (tool__b)",
        "     failed after 1.2 s, and the run goes on (on_error: continue)",
        "     ! bad",
        "     ! worse",
    ]


async def test_the_screen_shows_what_runs_and_keeps_what_is_over() -> None:
    console = Console(record=True, width=80, height=20, force_terminal=True, file=io.StringIO())
    story = Story(SPEC)
    async with Screen(story, console) as screen:
        for payload in (BEGUN, log('[b] (info) {"x":1}\n', "stderr"), log("read (1 of 2)\n")):
            screen.tell(story.hear(payload))
        live = console.export_text(clear=False)
        assert "x 1" in live
        assert "1 of 2" in live
        screen.tell(story.hear(verdict(ok=False, message="[red]not markup[/red]")))
    assert "[red]not markup[/red]" in console.export_text()


def test_hints_say_what_annotations_say_and_no_more() -> None:
    assert hints({}) == "no hints"
    assert hints({"annotations": {"readOnlyHint": True, "destructiveHint": True}}) == "read-only"
    assert hints({"annotations": {"destructiveHint": False, "idempotentHint": True}}) == "additive, idempotent"
    assert hints({"annotations": {"destructiveHint": True, "openWorldHint": True}}) == "destructive, open world"


def test_a_pause_stands_until_somebody_moves_the_run_on() -> None:
    story = Story(SPEC)
    for event_ in (BEGUN, verdict(ok=False, message="no"), event("step.paused", paused_reason="step_failed")):
        story.hear(event_)
    first = story.pause
    assert first is not None
    assert (first.reason, first.step, story.outcome) == ("step_failed", story.steps[0], "paused")
    story.hear(event("run.resumed", paused_reason="step_failed"))
    assert (story.pause, story.outcome) == (None, None)
    story.hear(BEGUN)
    story.hear(event("step.paused", paused_reason="step_failed"))
    assert story.pause is not first
    news = story.hear(event("step.skipped"))
    assert (news.told, story.steps[0].state, story.pause) == ("decided", "skipped", None)


def test_a_step_that_a_person_marked_done_is_told_so() -> None:
    story, told = Story(SPEC), list[str]()
    plain = Plain(story, told.append)
    plain.tell(story.hear(event("step.completed", marked=True)))
    assert told[-1] == "     marked done"
