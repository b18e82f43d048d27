"""What v0's frontend sees of the golden stories: its events, its fields, their values and their order, for ever.

New event types and new fields may come; nothing that stands in ``v0/*.json`` may change. Those lists are written by
hand from the words of the v0 contract, the req_ids with openssl (RFC 2104, RFC 4648), never by recording.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.golden.replay import STORIES, frames, play, script

STEP = {"type", "run_id", "step_id"}
TOOL = STEP | {"req_id", "agent_id", "tool_name", "attempt_index"}
V0_FIELDS: dict[str, set[str]] = {
    "step.progress": STEP | {"status", "current_step_index", "attempt_index"},
    "step.paused": STEP | {"paused_reason", "current_step_index"},
    "step.completed": STEP | {"current_step_index"},
    "tool.status": TOOL | {"state"},
    "tool.log": TOOL | {"channel", "data", "dropped_bytes", "dropped_lines"},
    "tool.result": TOOL | {"state", "duration_ms", "ok", "canceled", "exit_code", "error", "result_preview"},
    "run.completed": {"type", "run_id"},
    "run.failed": {"type", "run_id", "error_code", "message"},
}


def v0_view(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The payloads that v0 knows, with the fields that v0 knows."""
    return [
        {field: frame["payload"][field] for field in V0_FIELDS[frame["event_type"]] if field in frame["payload"]}
        for frame in told
        if frame["event_type"] in V0_FIELDS
    ]


@pytest.mark.parametrize("name", STORIES)
def test_v0_sees_what_it_always_saw(name: str) -> None:
    assert v0_view(frames(play(name))) == script(name)["expected"]


@pytest.mark.parametrize("name", STORIES)
def test_the_expected_payloads_have_every_field_of_v0(name: str) -> None:
    for payload in script(name)["expected"]:
        assert payload.keys() == V0_FIELDS[payload["type"]]


@pytest.mark.parametrize("name", STORIES)
def test_every_frame_has_the_shape_of_v0(name: str) -> None:
    for seq, frame in enumerate(frames(play(name)), 1):
        assert list(frame) == ["type", "run_id", "seq", "event_type", "created_at", "payload"]
        assert (frame["type"], frame["run_id"], frame["seq"]) == ("run.event", script(name)["run_id"], seq)
        assert frame["payload"]["type"] == frame["event_type"]
        assert re.fullmatch(r"2027-01-15T08:0\d:\d\d\.\d{3}Z", frame["created_at"])


@pytest.mark.parametrize("name", STORIES)
def test_v0_never_sees_a_status_of_a_step_that_it_does_not_know(name: str) -> None:
    statuses = {frame["payload"]["status"] for frame in frames(play(name)) if frame["event_type"] == "step.progress"}
    assert statuses <= {"running", "failed"}


def test_the_stories_of_the_contract_are_told() -> None:
    assert {"success", "manual", "fail_and_resume", "continue", "cancel", "cancel_running"} <= set(STORIES)
