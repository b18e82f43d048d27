"""A person's word counts if it was written down before the approval expired, however late it is decided."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.machine.commands import CommandKind
from tests.machine.scenario import Story, step

EXPIRES_MS = 60_000
LATE_MS = 5_000
"""So long after the expiry somebody looks at the run at last."""


def waiting(**terms: Any) -> tuple[Story, int]:
    """A run that nobody has looked at since its approval expired, and when that was."""
    terms = {"on_expiry": "reject", "approvers": ["user:ann", "user:bob"]} | terms
    story = Story(step("a", manual=True, expires_in_ms=EXPIRES_MS, **terms))
    assert story.run.approval is not None
    expires_at = story.run.approval.expires_at
    assert expires_at is not None
    story.now = expires_at + LATE_MS
    return story, expires_at


def word(story: Story, kind: CommandKind, at: int | None, by: str = "ann", **about: Any) -> Any:
    assert story.run.approval is not None
    digest = {} if kind == "resume" else {"digest": story.run.approval.digest}
    return story.command(kind, by=by, step_id="a", at=at, **digest, **about)


WORDS: list[tuple[CommandKind, dict[str, Any], tuple[str, str | None]]] = [
    ("approve", {}, ("running", None)),
    ("resume", {}, ("running", None)),
    ("reject", {}, ("failed", "approval_rejected")),
    ("edit", {"arguments": '{"n": 2}'}, ("paused", None)),
]


@pytest.mark.parametrize(("kind", "about", "leads_to"), WORDS)
@pytest.mark.parametrize("on_expiry", ["reject", "stay"])
def test_a_word_that_was_said_in_time_counts(
    kind: CommandKind, about: dict[str, Any], leads_to: tuple[str, str | None], on_expiry: str
) -> None:
    story, expires_at = waiting(on_expiry=on_expiry, allow_edit=kind == "edit")
    assert story.turn(commands=[word(story, kind, expires_at - 1, **about)]) == [None]
    assert (story.run.status, story.run.error_code) == leads_to
    assert "step.expired" not in story.types
    if kind == "edit":
        assert story.run.approval is not None
        assert story.run.approval.expires_at == story.now + EXPIRES_MS, "each revision waits so long"


@pytest.mark.parametrize(("kind", "about", "leads_to"), WORDS)
@pytest.mark.parametrize("late_ms", [0, LATE_MS, None])
def test_one_that_was_said_too_late_does_not(
    kind: CommandKind, about: dict[str, Any], leads_to: tuple[str, str | None], late_ms: int | None
) -> None:
    """Nor one of which nobody knows when it was said."""
    story, expires_at = waiting(allow_edit=kind == "edit")
    at = None if late_ms is None else expires_at + late_ms
    (refusal,) = story.turn(commands=[word(story, kind, at, **about)])
    assert refusal is not None
    assert refusal.code == "approval_expired"
    assert (story.run.status, story.run.error_code) == ("failed", "approval_expired")


def test_a_quorum_is_complete_in_time_or_not_at_all() -> None:
    story, expires_at = waiting(quorum=2)
    late = word(story, "approve", expires_at, "bob")
    first, second = story.turn(commands=[word(story, "approve", expires_at - 1), late])
    assert first is None
    assert second is not None
    assert second.code == "approval_expired"
    assert story.run.error_code == "approval_expired"

    story, expires_at = waiting(quorum=2)
    words = [word(story, "approve", expires_at - 1, by) for by in ("ann", "bob")]
    assert story.turn(commands=words) == [None, None]
    assert story.run.status == "running"


def test_once_it_has_expired_it_is_over_whatever_was_said() -> None:
    story, expires_at = waiting()
    said = word(story, "approve", expires_at - 1)
    story.turn()
    (refusal,) = story.turn(commands=[said])
    assert refusal is not None
    assert story.run.error_code == "approval_expired"
