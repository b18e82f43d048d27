"""Which commits may be appended to the log alone: the tail's own rules, without Postgres."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import fields, replace

from daemon.machine.record import Transition
from daemon.machine.state import Attempt
from daemon.store.tail import CHANGES_BYTES, QUICK_S, Changes, Tail, decode
from tests.machine.scenario import Story, acked, done, step


def test_a_page_names_every_field_of_an_attempt() -> None:
    """The trigger reads them by these names: a new field needs a migration that knows it."""
    assert [one.name for one in fields(Attempt)] == [
        "step_index",
        "index",
        "req_id",
        "state",
        "epoch",
        "first_intended_at",
        "intended_at",
        "ack_by",
        "deadline_at",
        "acked_at",
        "canceling",
        "cancel_until",
        "retry_at",
        "tries",
        "unsent_reason",
        "unsent_detail",
        "ended_at",
        "answered",
        "log_bytes",
        "risk",
        "mark",
    ]


def tail_and_next() -> tuple[Tail, Transition]:
    story = Story(step("a"), step("b"))
    before = story.transitions[-1]
    story.hear(acked(story.req), done(story.req, {"n": 1}))
    return Tail(before, 0.0), story.transitions[-1]


def test_what_goes_on_at_once_is_appended() -> None:
    tail, one = tail_and_next()
    assert tail.changes(one, QUICK_S) is not None


def test_a_page_says_what_changed_and_nothing_of_what_nobody_said() -> None:
    tail, one = tail_and_next()
    changes = tail.changes(one, 0.0)
    assert changes is not None
    assert decode(changes) == Changes(one.run.step_index, one.steps, one.attempts)
    assert "null" not in changes


@pytest.mark.parametrize("changed", ["epoch", "owner", "expected_seq"])
def test_what_was_made_of_another_state_or_claim_is_not_appended(changed: str) -> None:
    tail, one = tail_and_next()
    other = "thief" if changed == "owner" else getattr(one, changed) + 1
    assert tail.changes(replace(one, **{changed: other}), 0.0) is None


def test_a_run_that_takes_its_time_is_not_appended_to() -> None:
    tail, one = tail_and_next()
    assert tail.changes(one, QUICK_S * 1.01) is None


@pytest.mark.parametrize(
    "changes",
    [{"status": "paused"}, {"status": "completed"}, {"paused_seq": 7}, {"started_at": 7}, {"error_code": "broken"}],
    ids=str,
)
def test_what_changes_more_of_the_run_than_a_page_names_is_not_appended(changes: dict[str, Any]) -> None:
    tail, one = tail_and_next()
    assert tail.changes(replace(one, run=replace(one.run, **changes)), 0.0) is None


@pytest.mark.parametrize(
    "changes",
    [{"exit_code": 2**63}, {"exit_code": -(2**63) - 1}, {"log_tail": "\0"}, {"log_tail": "x" * CHANGES_BYTES}],
    ids=["too large a number", "too small a number", "a NUL", "too much"],
)
def test_what_a_row_might_refuse_or_is_large_is_not_appended(changes: dict[str, Any]) -> None:
    tail, one = tail_and_next()
    bad = replace(one, attempts=(replace(one.attempts[0], **changes), *one.attempts[1:]))
    assert tail.changes(bad, 0.0) is None
