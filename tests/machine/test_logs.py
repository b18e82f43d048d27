"""What a tool says while it runs: aggregated, bounded, counted where lost, never told twice, and before its result."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from daemon.machine.commands import Mark
from daemon.machine.events import LogAppended
from daemon.machine.hear import LOG_EVENT_BYTES, cut_utf8
from daemon.machine.record import LOG_PREVIEW_CHARS
from daemon.machine.state import LOG_LIMIT_BYTES, Limits
from tests.machine.scenario import Story, acked, chunk, done


def told(story: Story) -> str:
    """All log text of a story."""
    return "".join(row["data"] for row in story.rows("tool.log"))


def test_the_chunks_of_a_turn_become_one_event() -> None:
    story = Story()
    story.hear(*(chunk(story.req, f"line {number}\n", number=number) for number in range(3)))
    (log,) = story.rows("tool.log")
    assert (log["channel"], log["data"], log["mark"]) == ("stdout", "line 0\nline 1\nline 2\n", [1, 2])
    assert (log["dropped_bytes"], log["dropped_lines"]) == (0, 0)


def test_channels_are_not_mixed_and_keep_their_order() -> None:
    story = Story()
    story.hear(
        chunk(story.req, "a"), chunk(story.req, "b", channel="stderr"), chunk(story.req, "c"), chunk(story.req, "d")
    )
    assert [(row["channel"], row["data"]) for row in story.rows("tool.log")] == [
        ("stdout", "a"),
        ("stderr", "b"),
        ("stdout", "cd"),
    ]


@pytest.mark.parametrize("letter", ["x", "é", "語", "😀"])
def test_a_log_event_has_at_most_2048_bytes_and_no_broken_character(letter: str) -> None:
    story = Story()
    text = "." + letter * 5_000
    story.hear(chunk(story.req, text))
    pieces = [row["data"] for row in story.rows("tool.log")]
    assert "".join(pieces) == text
    width = len(letter.encode())
    assert all(LOG_EVENT_BYTES - width < len(piece.encode()) <= LOG_EVENT_BYTES for piece in pieces[:-1])


@pytest.mark.parametrize(
    ("size", "kept"), [(0, ""), (1, "a"), (2, "a"), (3, "aé"), (6, "aé"), (7, "aé😀"), (99, "aé😀")]
)
def test_a_cut_falls_between_characters(size: int, kept: str) -> None:
    assert cut_utf8("aé😀", size) == kept


def test_dropped_counters_are_deltas_and_are_summed() -> None:
    story = Story()
    story.hear(chunk(story.req, "a", dropped=(10, 1)), chunk(story.req, "b", dropped=(5, 2)))
    (log,) = story.rows("tool.log")
    assert (log["data"], log["dropped_bytes"], log["dropped_lines"]) == ("ab", 15, 3)


def test_what_was_dropped_is_told_once_when_the_text_fills_several_events() -> None:
    story = Story()
    story.hear(chunk(story.req, "x" * 5_000, dropped=(10, 1)))
    assert [row["dropped_bytes"] for row in story.rows("tool.log")] == [10, 0, 0]


def test_a_chunk_that_comes_again_is_known_by_its_mark() -> None:
    story = Story()
    story.hear(chunk(story.req, "a", number=7), chunk(story.req, "a", number=7))
    story.hear(chunk(story.req, "a", number=7), chunk(story.req, "b", number=8))
    assert told(story) == "ab"


def test_a_new_term_of_the_ingest_counts_from_the_beginning() -> None:
    story = Story()
    story.hear(chunk(story.req, "a", number=900))
    story.hear(replace(chunk(story.req, "b"), mark=Mark(2, 0)))
    assert told(story) == "ab"


def test_a_chunk_without_a_mark_leaves_the_last_mark_known() -> None:
    story = Story()
    story.hear(chunk(story.req, "a", number=7))
    story.hear(chunk(story.req, "b"))
    assert story.hear(chunk(story.req, "a", number=7)) == []


def test_equal_text_without_a_mark_is_not_taken_for_a_repeat() -> None:
    story = Story()
    story.hear(chunk(story.req, "tick\n"), chunk(story.req, "tick\n"))
    assert told(story) == "tick\ntick\n"


def test_an_attempt_keeps_one_mebibyte_of_log_and_counts_the_rest() -> None:
    story = Story()
    block = "é" * 8_191 + "\n"
    for _ in range(70):
        story.hear(chunk(story.req, block))
    logs = story.rows("tool.log")
    kept = len(told(story).encode())
    assert LOG_LIMIT_BYTES - 1 <= kept <= LOG_LIMIT_BYTES
    assert story.attempt.log_bytes == kept
    assert sum(row["dropped_bytes"] for row in logs) == 70 * len(block.encode()) - kept
    assert sum(row["dropped_lines"] for row in logs) == 70 - told(story).count("\n")


def test_a_retry_has_a_log_of_its_own() -> None:
    story = Story()
    story.hear(chunk(story.req, "x" * LOG_LIMIT_BYTES))
    story.fail()
    story.say("resume")
    story.hear(chunk(story.req, "fresh"))
    assert story.rows("tool.log")[-1]["data"] == "fresh"


def test_the_log_comes_before_the_result_of_the_same_turn_whatever_their_order() -> None:
    story = Story()
    events = story.hear(done(story.req), chunk(story.req, "last words"), acked(story.req))
    assert [event.type for event in events][:3] == ["tool.status", "tool.log", "tool.result"]


def test_a_chunk_alone_shows_that_the_tool_runs() -> None:
    story = Story()
    story.hear(chunk(story.req, "running tool: a\n"))
    assert story.attempt.state == "acked"
    assert story.types[-2:] == ["tool.status", "tool.log"]


def test_a_late_chunk_belongs_to_the_attempt_it_names() -> None:
    story = Story()
    earlier = story.req
    story.fail()
    story.say("resume")
    story.hear(chunk(story.req, "second"), chunk(earlier, "first, late"))
    assert [(row["attempt_index"], row["data"]) for row in story.rows("tool.log")] == [
        (1, "second"),
        (0, "first, late"),
    ]
    assert {row.attempt.index: row.log_tail for row in story.transitions[-1].attempts} == {
        1: "second",
        0: "first, late",
    }


def test_a_late_chunk_is_kept_when_the_run_is_over() -> None:
    story = Story()
    story.succeed()
    events = story.hear(chunk(story.req, "overtaken"))
    assert [type(event) for event in events] == [LogAppended]
    assert story.run.status == "completed"


def test_a_call_that_never_left_says_nothing() -> None:
    story = Story()
    story.bounce()
    assert story.hear(chunk(story.req, "impossible"), done(story.req)) == []


def test_the_row_of_an_attempt_gets_only_the_tail_of_a_long_log() -> None:
    story = Story()
    story.hear(chunk(story.req, "x" * 20_000 + "end"))
    (row,) = story.transitions[-1].attempts
    assert row.log_tail == "x" * (LOG_PREVIEW_CHARS - 3) + "end"


def test_logs_move_no_deadline() -> None:
    story = Story()
    story.hear(chunk(story.req, "still here"))
    story.wait(60_000 + Limits().cancel_grace_ms)
    assert story.run.paused_reason == "outcome_unknown"
