"""Laws that hold whatever is said to a run, in any order: hypothesis tells the stories, ``Story`` checks each turn.

What ``Story`` checks by itself: dense seq, replay rebuilds the state, record agrees with the fold, one verdict an
attempt, one attempt in flight, nothing but tool events after the end, a terminal status for ever, an alarm in the
future whenever something is in flight, ``Invoke`` owed to the intending epoch only, bounded payloads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.machine.commands import (
    Acked,
    CancelAcked,
    Chunk,
    CommandKind,
    Letter,
    Mark,
    NotSent,
    ReqId,
    Result,
    SendUncertain,
    Sent,
)
from daemon.machine.effects import Invoke, deadline
from daemon.machine.hear import LOG_EVENT_BYTES, NOT_PERMITTED, cut_utf8
from daemon.machine.settle import GATEWAY_UNAVAILABLE
from daemon.machine.state import LOG_LIMIT_BYTES, MAX_ATTEMPTS, Limits, make_req_id, new_run
from daemon.machine.wire import preview, read_letter
from tests.machine.scenario import NONCE, RUN_ID, WORKFLOW_ID, Story, spec, step

Act: TypeAlias = Callable[[Story], None]

flags = st.booleans()
steps = st.lists(
    st.builds(
        lambda manual, goes_on, timeout_ms, idempotent: {
            "manual": manual,
            "goes_on": goes_on,
            "timeout_ms": timeout_ms,
            "idempotent": idempotent,
        },
        flags,
        flags,
        st.sampled_from([1, 400, 30_000, 3_600_000]),
        st.sampled_from([None, None, True]),
    ),
    min_size=1,
    max_size=3,
)
limits = st.builds(
    Limits,
    ack_timeout_ms=st.sampled_from([1, 10_000]),
    cancel_grace_ms=st.sampled_from([0, 5_000]),
    patience_ms=st.sampled_from([0, 15_000]),
)
reasons = st.sampled_from([GATEWAY_UNAVAILABLE, NOT_PERMITTED, "agent_offline", "unauthorized"])
results = st.sampled_from([None, 5, "text", {"isError": True}, {"isError": False}, {"content": [{"text": "x"}]}])
codes = st.sampled_from([None, "timeout", "canceled", "tool_call_failed"])
marks = st.none() | st.builds(Mark, st.integers(1, 2), st.integers(0, 5))

right_req_ids = st.builds(
    lambda index, attempt: make_req_id(RUN_ID, NONCE, index, attempt),
    st.integers(0, 2),
    st.sampled_from([0, 0, 0, 1, 2]),
)
req_ids = st.none() | right_req_ids | st.just(ReqId("nobody's"))
"""None stands for the newest attempt's, which is mostly what a letter is about."""
letters: st.SearchStrategy[Callable[[ReqId], Letter]] = st.one_of(
    st.just(lambda req_id: Sent(req_id=req_id)),
    st.builds(
        lambda tries, reason: lambda req_id: NotSent(req_id=req_id, tries=tries, reason=reason, detail="why"),
        st.integers(0, 2),
        reasons,
    ),
    st.just(lambda req_id: SendUncertain(req_id=req_id, reason="reset", detail="why")),
    st.builds(lambda accepted: lambda req_id: Acked(req_id=req_id, accepted=accepted), flags),
    st.builds(
        lambda channel, data, dropped, mark: (
            lambda req_id: Chunk(
                req_id=req_id, channel=channel, data=data, dropped_bytes=dropped, dropped_lines=1, mark=mark
            )
        ),
        st.sampled_from(["stdout", "stderr"]),
        st.sampled_from(["", "line\n", "é" * 3_000, "😀" * 300_000]),
        st.integers(0, 9),
        marks,
    ),
    st.builds(
        lambda ok, canceled, code, result: (
            lambda req_id: Result(
                req_id=req_id, ok=ok, canceled=canceled, error_code=code, error_message=code, result=result
            )
        ),
        flags,
        flags,
        codes,
        results,
    ),
    st.builds(lambda will: lambda req_id: CancelAcked(req_id=req_id, will_cancel=will), flags),
)
commands: st.SearchStrategy[tuple[CommandKind, dict[str, Any]]] = st.tuples(
    st.sampled_from(["start", "approve", "approve", "reject", "resume", "resume", "skip", "mark_done", "cancel"]),
    st.fixed_dictionaries(
        {"confirm": st.sampled_from([None, "run_again", "run_again"])},
        optional={
            "note": st.just("seen"),
            "seen": st.integers(0, 9),
            "step_id": st.sampled_from(["s0", "s1", "nowhere"]),
        },
    ),
)


def _turn(
    said: list[tuple[ReqId | None, Callable[[ReqId], Letter]]], asked: list[tuple[CommandKind, dict[str, Any]]]
) -> Act:
    def act(story: Story) -> None:
        newest = story.run.attempt.req_id if story.run.attempt is not None else ReqId("none yet")
        story.turn(
            letters=[letter(newest if req_id is None else req_id) for req_id, letter in said],
            commands=[story.command(kind, **about) for kind, about in asked],
        )

    return act


def _listen(listening: bool) -> Act:
    def act(story: Story) -> None:
        story.listening = listening
        story.turn()

    return act


turns = st.builds(
    _turn,
    st.lists(st.tuples(req_ids, letters), max_size=4),
    st.lists(commands, max_size=2),
)
waits = st.sampled_from([1, 500, 10_000, 120_000]).map(lambda ms: lambda story: story.wait(ms))
acts: st.SearchStrategy[Act] = st.one_of(
    turns, turns, waits, st.just(lambda story: story.takeover()), flags.map(_listen)
)


def story_of(
    shape: list[dict[str, Any]], bounds: Limits, *, listening: bool = True, run_timeout_ms: int | None = None
) -> Story:
    """A story over steps s0, s1, …"""
    workflow = [step(f"s{index}", **about) for index, about in enumerate(shape)]
    return Story(workflow=spec(*workflow, run_timeout_ms=run_timeout_ms), limits=bounds, listening=listening)


@settings(max_examples=150, deadline=None)
@given(steps, limits, flags, st.sampled_from([None, None, 20_000]), st.lists(acts, max_size=25))
def test_no_story_breaks_a_law_and_every_run_becomes_quiet(
    shape: list[dict[str, Any]], bounds: Limits, listening: bool, run_timeout_ms: int | None, tale: list[Act]
) -> None:
    story = story_of(shape, bounds, listening=listening, run_timeout_ms=run_timeout_ms)
    for act in tale:
        act(story)
        check_the_whole(story)
    story.wait(30 * 24 * 3_600_000)
    assert deadline(story.run, story.now) is None
    assert not story.run.in_flight
    assert story.run.status != "running"
    check_the_whole(story)


def check_the_whole(story: Story) -> None:
    """What is seen only in the whole log, not in one turn."""
    run = story.run
    assert sum(state.attempts for state in run.steps) == len(
        {row["req_id"] for row in story.rows("step.progress") if "req_id" in row}
    )
    assert all(state.attempts <= MAX_ATTEMPTS for state in run.steps)
    ended = [row["req_id"] for row in story.rows("tool.result")]
    assert len(ended) == len(set(ended))
    told = [row["req_id"] for row in story.rows("tool.evidence")]
    assert len(told) == len(set(told))
    assert all(attempt.log_bytes <= LOG_LIMIT_BYTES for attempt in (run.attempt, *run.past) if attempt is not None)
    assert all(state.status in ("pending", "canceled") for state in run.steps[run.step_index + 1 :])


@settings(max_examples=150, deadline=None)
@given(steps, limits, st.lists(acts, max_size=25))
def test_a_tool_is_called_once_for_each_proof_that_it_was_not(
    shape: list[dict[str, Any]], bounds: Limits, tale: list[Act]
) -> None:
    """A dispatcher that calls whatever is owed and new to it calls (req_id, tries) once, tries counting the proofs."""
    story = story_of(shape, bounds)
    owed: set[tuple[ReqId, int]] = set()
    for act in (lambda _: None, *tale):
        before = story.run.attempt
        act(story)
        for effect in story.owed:
            if isinstance(effect, Invoke):
                call = (effect.req_id, effect.tries)
                known = before is not None and (before.req_id, before.tries) == call and before.state == "intent"
                assert known or call not in owed
                owed.add(call)
    proofs = story.types.count("tool.unsent")
    assert len(owed) <= proofs + len({req_id for req_id, _ in owed})


@settings(max_examples=150, deadline=None)
@given(steps, st.lists(st.tuples(right_req_ids, letters), max_size=6), st.randoms(use_true_random=False))
def test_hearing_everything_again_in_another_order_changes_nothing_but_logs_and_evidence(
    shape: list[dict[str, Any]], said: list[tuple[ReqId, Callable[[ReqId], Letter]]], chance: Any
) -> None:
    story = story_of([{**about, "manual": False} for about in shape], Limits())
    heard = [letter(req_id) for req_id, letter in said]
    ended = [letter.req_id for letter in heard if isinstance(letter, Result)]
    story.hear(*heard)
    verdicts = {row["req_id"]: row for row in story.rows("tool.result")}
    again = heard[:]
    chance.shuffle(again)
    story.hear(*(letter for letter in again if letter.req_id in verdicts))
    assert {row["req_id"]: row for row in story.rows("tool.result")} == verdicts
    assert verdicts.keys() <= {*ended, *(letter.req_id for letter in heard if isinstance(letter, NotSent | Acked))}


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=3_000), st.integers(0, 3_000))
def test_a_cut_is_the_longest_beginning_that_fits(text: str, size: int) -> None:
    cut = cut_utf8(text, size)
    assert text.startswith(cut)
    assert len(cut.encode()) <= size
    assert cut == text or len(cut.encode()) + len(text[len(cut)].encode()) > size


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=LOG_EVENT_BYTES), flags), max_size=6))
def test_no_log_is_lost_or_mixed_below_the_bound(pieces: list[tuple[str, bool]]) -> None:
    story = Story()
    letters = [
        Chunk(req_id=story.req, channel="stderr" if err else "stdout", data=data, mark=Mark(1, number))
        for number, (data, err) in enumerate(pieces)
    ]
    story.hear(*letters)
    for channel in ("stdout", "stderr"):
        said = "".join(letter.data for letter in letters if letter.channel == channel)
        assert "".join(row["data"] for row in story.rows("tool.log") if row["channel"] == channel) == said


json_values = st.recursive(
    st.none() | flags | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
kinds = st.sampled_from(["INVOKE_ACK", "CHUNK", "RESULT", "CANCEL_ACK", "TOOLS", "x"])


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries({}, optional={"v": json_values, "type": kinds | json_values, "payload": json_values})
    | st.fixed_dictionaries(
        {
            "type": kinds,
            "payload": st.dictionaries(
                st.sampled_from(["ok", "result_json", "error", "data", "channel", "dropped_bytes", "exit_code"]),
                json_values,
            ),
        }
    )
)
def test_any_json_is_a_letter_that_can_be_kept_or_none(envelope: dict[str, Any]) -> None:
    story = Story()
    letter = read_letter(json.dumps({**envelope, "req_id": story.req}).encode())
    if letter is None:
        return
    story.hear(letter)
    for transition in story.transitions:
        assert all("\\u0000" not in row.payload for row in transition.events)
        assert all("\\u0000" not in (row.result or "") for row in transition.attempts)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_letter_or_none(raw: bytes) -> None:
    assert read_letter(raw) is None or b"req_id" in raw


@given(json_values)
def test_any_preview_is_bounded(value: Any) -> None:
    assert len(preview(value) or "") <= 800


@given(st.uuids(), st.binary(min_size=1, max_size=32), st.integers(0, 999), st.integers(0, 99))
def test_a_new_run_owes_nothing(run_id: Any, nonce: bytes, index: int, attempt: int) -> None:
    workflow = Story(started=False).run.spec
    run = new_run(run_id=run_id, workflow_id=WORKFLOW_ID, user_id="ann", nonce=nonce, spec=workflow)
    assert deadline(run, run.last_at) is None
    assert make_req_id(run_id, nonce, index, attempt) != make_req_id(run_id, nonce, index, attempt + 1)
