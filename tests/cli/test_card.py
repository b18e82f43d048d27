"""What is shown of a call that waits for approval, and what becomes of it while it waits."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from daemon.dev import card
from daemon.dev.plain import Plain
from daemon.dev.screen import Screen
from daemon.dev.story import Story

DIGEST = "sha256:" + "a" * 64
CARD: dict[str, Any] = {
    "revision": 1,
    "digest": DIGEST,
    "agent_id": "laptop",
    "tool_name": "git__reset",
    "arguments": {"repo": "/src", "hard": True},
    "risk": "high",
    "writes": True,
    "open_world": False,
    "requires_approval": False,
    "approvers": [],
    "quorum": 1,
    "votes": [],
    "expires_at": None,
    "instructions": None,
    "edited_by": None,
}
TOOL = {"tool_name": "git__reset", "agent_id": "laptop", "arguments": {"repo": "/src"}}
SPEC = {"steps": [{"id": "a", "name": "Reset", "tool_config": TOOL}]}


def event(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "step_id": "a", "current_step_index": 0, **more}


WAITS = event("step.paused", paused_reason="awaiting_approval", **CARD)


def told(*events: dict[str, Any]) -> list[str]:
    story, written = Story(SPEC), list[str]()
    plain = Plain(story, written.append)
    for one in events:
        plain.tell(story.hear(one))
    return [line.strip() for line in written]


def test_a_card_says_what_would_be_done_and_ends_with_its_digest() -> None:
    assert list(card.lines(CARD)) == [
        "git__reset on laptop   high risk, writes",
        '  repo  "/src"',
        "  hard  true",
        "asked: whoever started the run",
        DIGEST,
    ]


def test_a_card_says_who_must_agree_and_until_when() -> None:
    terms = {"approvers": ["user:bob", "group:ops"], "quorum": 2, "votes": [{"by": "bob"}], "forbid_self": True}
    terms |= {"expires_at": 1_795_700_000_000, "on_expiry": "reject", "edited_by": "eve", "revision": 3}
    assert list(card.lines(CARD | terms))[3:-1] == [
        "asked: user:bob or group:ops; not whoever started the run",
        "1 of 2 have agreed: bob",
        "edited by eve: revision 3",
        "to be decided by 2026-11-26 13:33:20 UTC; then it is rejected",
    ]
    forced = CARD | {"requires_approval": True, "approvers": ["group:ops"]}
    assert "asked: the agent's owner, or whom they let approve; of these group:ops" in card.lines(forced)


def test_no_name_on_a_card_is_another_line_of_it() -> None:
    evil = {"tool_name": "ls\nlow risk\x1b[2J", "arguments": {"a\nb": "c\nd"}, "instructions": "Trust me\nsha256:b"}
    shown = list(card.lines(CARD | evil))
    assert shown[0].startswith("ls low risk[2J on laptop")
    assert not any("\n" in line or "\x1b" in line for line in shown)
    assert shown[2:4] == ["│ Trust me", "│ sha256:b"]


def test_long_arguments_are_shown_as_far_as_an_event_has_them() -> None:
    cut = list(card.lines(CARD | {"arguments": None, "arguments_preview": '{"text":"aaa'}))
    assert cut[1:3] == ['  {"text":"aaa …', "  (cut here: `runwarden run show` has them whole)"]


def test_a_run_that_waits_for_no_approval_has_no_card() -> None:
    run: dict[str, Any] = {"workflow_snapshot": SPEC, "current_step_index": 0, "steps_state": {}}
    assert card.of_run(run | {"status": "paused", "paused_reason": "awaiting_approval"}) is None
    state = {"steps_state": {"a": {"approval": CARD | {"state": "open", "arguments": None}}}}
    waits = run | state | {"status": "paused", "paused_reason": "awaiting_approval"}
    found = card.of_run(waits)
    assert found is not None
    assert found["arguments"] == {"repo": "/src"}
    assert card.of_run(waits | {"paused_reason": "held"}) is None


def test_votes_edits_expiry_and_voided_approvals_are_told() -> None:
    assert told(WAITS, event("step.voted", by="bob", votes=1, quorum=2))[1:] == [
        "waits for approval: high risk, writes",
        DIGEST,
        "bob agrees (1 of 2)",
    ]
    edited = event("step.edited", by="eve", diff=[], **(CARD | {"digest": "sha256:b"}))
    assert told(WAITS, edited)[-3:] == [
        "eve changed its arguments; whoever had agreed must agree anew",
        "waits for approval: high risk, writes",
        "sha256:b",
    ]
    assert told(WAITS, event("step.expired", rejects=True))[-1] == "expired: nobody decided in time"
    stays = told(WAITS, event("step.expired", rejects=False))
    assert stays[-1] == "nobody decided in time: its votes are dropped, and it waits on"
    void = told(WAITS | {"voids": "The risk has risen."})
    assert void[1] == "an earlier approval counts no more: The risk has risen."


def test_what_forbids_a_call_is_told_and_that_it_is_over() -> None:
    held = event("step.paused", paused_reason="held", error_code="held", message="Agent laptop is held: it smokes.")
    resumed = {"type": "run.resumed", "paused_reason": "held", "current_step_index": 0, "by": "release"}
    assert told(held, resumed)[1:] == ["paused: held Agent laptop is held: it smokes.", "released: the run goes on"]
    barred = event("step.paused", paused_reason="agent_unauthorized", message="ann may not use laptop.")
    assert told(barred)[-1] == "paused: agent_unauthorized ann may not use laptop."


def test_an_edit_is_another_pause_and_a_vote_is_not() -> None:
    story = Story(SPEC)
    story.hear(WAITS)
    first = story.pause
    assert first is not None
    assert first.named == {"step_id": "a", "digest": DIGEST}
    story.hear(event("step.voted", by="bob", votes=1, quorum=2))
    assert story.pause is first
    story.hear(event("step.edited", by="eve", diff=[], **(CARD | {"digest": "sha256:b"})))
    assert story.pause is not None
    assert story.pause.named == {"step_id": "a", "digest": "sha256:b"}
    story.hear(event("step.expired", rejects=True))
    assert story.pause is None
    assert story.steps[0].state == "expired"


@pytest.mark.parametrize("kind", ["step.voted", "step.expired"])
def test_a_screen_keeps_what_is_noted(kind: str) -> None:
    console = Console(force_terminal=True, width=90, record=True)
    story = Story(SPEC)
    screen = Screen(story, console)
    for one in (WAITS, event(kind, by="bob", votes=1, quorum=2, rejects=False)):
        screen.tell(story.hear(one))
    assert ("bob agrees (1 of 2)" if kind == "step.voted" else "it waits on") in console.export_text()
