"""The machine's edge: Gateway envelopes in, payloads and SSE frames out."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import orjson
import pytest

from daemon.machine.commands import Acked, CancelAcked, Chunk, Letter, Mark, ReqId, Result
from daemon.machine.events import AttemptEnded
from daemon.machine.mending import MAX_DEPTH
from daemon.machine.record import Told
from daemon.machine.state import make_req_id, run_of
from daemon.machine.wire import ERROR_CHARS, PREVIEW_CHARS, WORD_CHARS, frames_of, iso, preview, read_letter
from tests.machine.scenario import NONCE, RUN_ID, Story, done

CONTENT = [{"text": "5", "type": "text"}]
FAULT = [{"text": "Error executing tool fail", "type": "text"}]


def envelope(kind: str, payload: object, **more: Any) -> bytes:
    """One event of the Gateway, as it stands on the wire."""
    about = {"v": 1, "type": kind, "agent_id": "agent-1", "req_id": "e1", "ts": 1795359759, "payload": payload, **more}
    return orjson.dumps({key: value for key, value in about.items() if value is not None})


def result(**told: Any) -> Result:
    return Result(req_id=ReqId("e1"), **{"ok": True, **told})


def out(data: str, *dropped: int, channel: str = "stderr") -> Chunk:
    lost = dict(zip(("dropped_bytes", "dropped_lines"), dropped, strict=False))
    return Chunk(req_id=ReqId("e1"), channel=channel, data=data, **lost)


SAMPLES: list[tuple[str, dict[str, Any], Letter]] = [
    ("INVOKE_ACK", {"accepted": True}, Acked(req_id=ReqId("e1"), accepted=True)),
    (
        "INVOKE_ACK",
        {"accepted": False, "reason": "invalid_payload"},
        Acked(req_id=ReqId("e1"), accepted=False, reason="invalid_payload"),
    ),
    ("CHUNK", {"channel": "stderr", "data": "running tool: bridge__echo\n"}, out("running tool: bridge__echo\n")),
    ("CHUNK", {"channel": "stderr", "data": "x\n", "dropped_bytes": 5454, "dropped_lines": 54}, out("x\n", 5454, 54)),
    ("RESULT", {"ok": True, "result_json": {"echo": {"lines": ["a"]}}}, result(result={"echo": {"lines": ["a"]}})),
    (
        "RESULT",
        {"ok": True, "result_json": {"content": CONTENT, "structuredContent": {"result": 5}}},
        result(result={"content": CONTENT, "structuredContent": {"result": 5}}),
    ),
    (
        "RESULT",
        {"ok": True, "result_json": {"content": FAULT, "isError": True}},
        result(result={"content": FAULT, "isError": True}),
    ),
    (
        "RESULT",
        {"ok": False, "error": {"message": "tool not found: nosuch__tool", "code": "tool_call_failed"}},
        result(ok=False, error_code="tool_call_failed", error_message="tool not found: nosuch__tool"),
    ),
    (
        "RESULT",
        {"ok": False, "canceled": True, "error": {"message": "canceled", "code": "canceled"}},
        result(ok=False, canceled=True, error_code="canceled", error_message="canceled"),
    ),
    (
        "RESULT",
        {"ok": False, "error": {"message": "timeout", "code": "timeout"}},
        result(ok=False, error_code="timeout", error_message="timeout"),
    ),
    ("CANCEL_ACK", {"will_cancel": True}, CancelAcked(req_id=ReqId("e1"), will_cancel=True)),
    (
        "CANCEL_ACK",
        {"will_cancel": False, "reason": "unknown_req_id"},
        CancelAcked(req_id=ReqId("e1"), will_cancel=False),
    ),
]


@pytest.mark.parametrize(("kind", "payload", "letter"), SAMPLES)
def test_every_sample_of_the_contract_is_read(kind: str, payload: dict[str, Any], letter: Letter) -> None:
    assert read_letter(envelope(kind, payload)) == letter


@pytest.mark.parametrize(
    "raw",
    [
        b'{"v":1,"type":"DISCONNECT","agent_id":"agent-1","ts":1795360521}',
        envelope("TOOLS", {"tools": [{"name": "a"}]}, req_id=None),
        envelope("INVOKE_FAILED", {"error": "agent_offline"}),
        envelope("CHUNK", {"channel": "stderr", "data": "[server] (info) {}\n"}, req_id=None),
        envelope("PONG", None),
        envelope("result", {"ok": True}),
    ],
)
def test_what_speaks_of_no_call_says_nothing_to_a_run(raw: bytes) -> None:
    assert read_letter(raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"null", b"[]", b'"RESULT"', b"1", b"{", b"\xff\xfe", b"{}", b'{"req_id":"e1"}', b"[" * 5_000, b"NaN"),
        *(envelope("RESULT", {"ok": True}, req_id=value) for value in (7, True, [], {})),
        *(envelope(kind, {}) for kind in ("", "RESULTS")),
        *(envelope(kind, {}) for kind in ("TOOLS", "DISCONNECT")),
        orjson.dumps({"type": ["RESULT"], "req_id": "e1"}),
    ],
)
def test_what_is_malformed_is_no_letter_and_no_exception(raw: bytes) -> None:
    assert read_letter(raw) is None


@pytest.mark.parametrize("payload", [None, [], "x", 7, {}])
def test_a_result_without_a_readable_payload_is_a_failure_not_a_success(payload: object) -> None:
    assert read_letter(envelope("RESULT", payload)) == result(ok=False)


@pytest.mark.parametrize("yes", [1, "true", [True], None])
def test_only_true_is_true(yes: object) -> None:
    assert read_letter(envelope("RESULT", {"ok": yes, "canceled": yes})) == result(ok=False)
    assert read_letter(envelope("INVOKE_ACK", {"accepted": yes})) == Acked(req_id=ReqId("e1"), accepted=False)
    assert read_letter(envelope("CANCEL_ACK", {"will_cancel": yes})) == CancelAcked(
        req_id=ReqId("e1"), will_cancel=False
    )


@pytest.mark.parametrize("count", [-1, 1.5, "3", True, None, 2**60])
def test_a_counter_that_is_none_counts_nothing(count: object) -> None:
    assert read_letter(envelope("CHUNK", {"data": "x", "dropped_bytes": count, "channel": 3})) == out(
        "x", channel="stdout"
    )


@pytest.mark.parametrize(
    ("told", "kept"),
    [(0, 0), (-1, -1), (137, 137), (0xC0000005, 0xC0000005), (2**63, None), ("1", None), (1.0, None), (True, None)],
)
def test_an_exit_code_fits_its_column_or_says_nothing(told: object, kept: int | None) -> None:
    assert read_letter(envelope("RESULT", {"ok": True, "exit_code": told})) == result(exit_code=kept)


def test_the_words_of_an_agent_are_bounded() -> None:
    fault = {"code": "c" * 5_000, "message": "m" * 5_000}
    letter = read_letter(envelope("RESULT", {"ok": False, "error": fault}))
    assert letter == result(ok=False, error_code="c" * WORD_CHARS, error_message="m" * ERROR_CHARS)
    assert read_letter(envelope("CHUNK", {"channel": "o" * 5_000, "data": ""})) == out("", channel="o" * WORD_CHARS)


def test_nul_is_replaced_everywhere_in_what_is_kept() -> None:
    nul = {"a\0b": ["\0", {"c": "\0\0"}], "n": 1}
    raw = envelope("RESULT", {"ok": False, "result_json": nul, "error": {"code": "\0", "message": "x\0y"}})
    clean = {"a\ufffdb": ["\ufffd", {"c": "\ufffd\ufffd"}], "n": 1}
    assert read_letter(raw) == result(ok=False, error_code="\ufffd", error_message="x\ufffdy", result=clean)
    assert read_letter(envelope("CHUNK", {"channel": "stderr", "data": "a\0b"})) == out("a\ufffdb")


@pytest.mark.parametrize("harm", [b"\\ud800", b"\\udc00x", b"\xff", b"\xed\xa0\x80"])
def test_what_is_no_unicode_is_mended_rather_than_lost(harm: bytes) -> None:
    raw = envelope("RESULT", {"ok": True, "result_json": "<here>"}).replace(b"<here>", harm)
    letter = read_letter(raw)
    assert isinstance(letter, Result)
    assert letter.ok
    assert "\ufffd" in letter.result
    assert preview(letter.result)


@pytest.mark.parametrize(("opened", "closed"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_what_is_nested_deeper_than_can_be_written_is_cut(opened: bytes, closed: bytes) -> None:
    deep = opened * 800 + b"1" + closed * 800
    letter = read_letter(envelope("RESULT", {"ok": True, "result_json": "<here>"}).replace(b'"<here>"', deep))
    assert isinstance(letter, Result)
    assert orjson.dumps(letter.result).count(opened[:1]) < MAX_DEPTH
    story = Story()
    story.hear(done(story.req, letter.result))
    assert story.run.status == "completed"


def test_a_wide_result_is_left_as_it_is() -> None:
    wide = [{"row": [number]} for number in range(1_000)]
    assert read_letter(envelope("RESULT", {"ok": True, "result_json": wide})) == result(result=wide)


def test_a_mark_travels_with_chunks() -> None:
    letter = read_letter(envelope("CHUNK", {"channel": "stdout", "data": "x"}), Mark(3, 14))
    assert isinstance(letter, Chunk)
    assert letter.mark == Mark(3, 14)


def test_a_frame_is_what_v0_reads_with_an_id_in_front() -> None:
    body = orjson.dumps({"type": "tool.log", "data": "two\nlines"}).decode()
    raw = frames_of(str(UUID(int=7)), "2027-01-15T08:00:00.000Z", [(12, "tool.log", body)])
    assert raw.endswith(b"\n\n")
    identity, event, data = raw[:-2].split(b"\n")
    assert (identity, event) == (b"id: 12", b"event: tool.log")
    assert orjson.loads(data.removeprefix(b"data: ")) == {
        "type": "run.event",
        "run_id": "00000000-0000-0000-0000-000000000007",
        "seq": 12,
        "event_type": "tool.log",
        "created_at": "2027-01-15T08:00:00.000Z",
        "payload": {"type": "tool.log", "data": "two\nlines"},
    }


def test_a_turn_is_told_as_one_block_of_frames_and_survives_the_bus() -> None:
    story = Story()
    story.wait(1_234)
    story.turn(letters=[done(story.req)], commands=[story.command("cancel")])
    told = story.transitions[-1].told()
    assert (told.first_seq, told.last_seq, told.terminal) == (3, 5, True)
    frames = told.frames.split(b"\n\n")
    assert [block.split(b"\n")[0] for block in frames] == [*(b"id: %d" % seq for seq in range(3, 6)), b""]
    assert all(b'"created_at":"2027-01-15T08:00:01.234Z"' in block for block in frames[:-1])
    assert Told.unpack(told.pack()) == told


def test_a_turn_that_nobody_watches_is_told_as_something_to_read() -> None:
    story = Story()
    story.turn(letters=[done(story.req)])
    told = story.transitions[-1].told(whole=False)
    assert told == Told(story.run.last_seq + 1, story.run.last_seq, True, b"")
    assert Told.unpack(told.pack()) == told


@pytest.mark.parametrize(
    ("at", "text"),
    [(0, "1970-01-01T00:00:00.000Z"), (1, "1970-01-01T00:00:00.001Z"), (1_800_000_000_999, "2027-01-15T08:00:00.999Z")],
)
def test_times_are_iso_8601_in_utc_with_milliseconds(at: int, text: str) -> None:
    assert iso(at) == text


@pytest.mark.parametrize(("value", "text"), [(None, None), (0, "0"), ("", '""'), ({"a": "é"}, '{"a":"é"}'), ([], "[]")])
def test_a_preview_is_the_json_text(value: object, text: str | None) -> None:
    assert preview(value) == text


def test_a_preview_has_at_most_800_characters_and_the_row_the_whole_result() -> None:
    story = Story()
    story.hear(done(story.req, "é" * 5_000))
    (told,) = story.rows("tool.result")
    assert told["result_preview"] == '"' + "é" * (PREVIEW_CHARS - 1)
    (row,) = story.transitions[-1].attempts
    assert orjson.loads(row.result or "") == "é" * 5_000
    assert any(isinstance(event, AttemptEnded) for _, event in story.log)


def test_a_req_id_is_unguessable_routable_and_fit_for_a_path() -> None:
    made = {make_req_id(RUN_ID, NONCE, index, attempt) for index in range(20) for attempt in range(20)}
    assert len(made) == 400
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{44}", req_id) for req_id in made)
    assert {run_of(req_id) for req_id in made} == {RUN_ID}
    assert make_req_id(RUN_ID, b"another", 0, 0) not in made


@pytest.mark.parametrize("text", ["", "x", "é" * 44, "*" * 44, " " * 44, "a" * 43, "a" * 45])
def test_what_is_no_req_id_of_ours_belongs_to_no_run(text: str) -> None:
    assert run_of(text) is None
