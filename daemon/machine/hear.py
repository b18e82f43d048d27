"""``hear``: what the letters of one turn mean. Order among them is not trusted: a RESULT may overtake its CHUNKs, an
INVOKE_ACK may come before the 202.

What proves what (nothing else does):

* not sent: connection refused, 404 agent_offline, 400, 401, our own hook said no;
* timeout: our deadline passed and the agent confirmed (CANCEL_ACK will_cancel, or RESULT timeout or canceled);
* done or failed: the first RESULT, and of one turn rather than a CANCEL_ACK or a RESULT that says canceled; ``ok`` with
  ``isError`` is a failure;
* everything else is unknown, a ``canceled`` that nobody asked for included.

One verdict an attempt; what comes after it without having been answered is evidence, a repeat is nothing. Only a run
that stands still for an unknown outcome goes on by a RESULT that comes late: it settles what nobody had decided yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from daemon.machine.commands import Acked, CancelAcked, Chunk, Letter, Mark, NotSent, ReqId, Result, SendUncertain, Sent
from daemon.machine.events import (
    AttemptEnded,
    AttemptRunning,
    AttemptSent,
    AttemptSettled,
    AttemptUnsent,
    Event,
    EvidenceFound,
    LogAppended,
)
from daemon.machine.evolve import Happened, carry
from daemon.machine.settle import GATEWAY_UNAVAILABLE, NOT_PERMITTED, retry_time
from daemon.machine.state import LOG_LIMIT_BYTES, WITH_THE_RUN, Attempt, Limits, Run, utf8_size

LOG_EVENT_BYTES = 2048
"""Most bytes of one ``tool.log``."""
MESSAGE_CHARS = 500

PASSING = frozenset({GATEWAY_UNAVAILABLE, "agent_busy"})
"""Proofs of unsent that may be otherwise in a moment: worth the step's patience."""

_NO_VERDICT = (Chunk, Sent, SendUncertain)
"""Letters that prove nothing by themselves; most letters are such."""


def hear(run: Run, letters: Sequence[Letter], now: int, limits: Limits) -> tuple[Run, list[Happened], int]:
    """The run after the letters, what happened, and how many letters named an attempt this run does not know."""
    happened: list[Happened] = []
    if not letters:
        return run, happened, 0
    strangers = _strangers(run, letters)
    run = carry(run, _signs_of_life(run, letters), now, happened)
    run = carry(run, _logs(run, letters), now, happened)
    return _verdicts(run, letters, now, limits, happened), happened, strangers


def _strangers(run: Run, letters: Iterable[Letter]) -> int:
    known = run.attempt.req_id if run.attempt is not None else None
    return sum(1 for letter in letters if letter.req_id != known and run.find(letter.req_id) is None)


def _signs_of_life(run: Run, letters: Iterable[Letter]) -> Iterator[Event]:
    """At most one event an attempt: it runs (acknowledged, or it said something), else it was sent."""
    running: dict[ReqId, bool] = {}
    for letter in letters:
        alive = isinstance(letter, (Chunk, Result)) or (isinstance(letter, Acked) and letter.accepted)
        if alive or isinstance(letter, Sent):
            running[letter.req_id] = running.get(letter.req_id, False) or alive
    for req_id, alive in running.items():
        attempt = run.find(req_id)
        if attempt is None or not attempt.in_flight or attempt.state == "acked":
            continue
        if alive:
            yield AttemptRunning(req_id=req_id)
        elif attempt.state == "intent":
            yield AttemptSent(req_id=req_id)


def _logs(run: Run, letters: Iterable[Letter]) -> Iterator[Event]:
    """Chunks, merged by attempt and channel while neighbours, then cut to the size of a ``tool.log``."""
    fresh: dict[ReqId, Mark | None] = {}
    room: dict[ReqId, int] = {}
    merged: list[tuple[ReqId, str, list[Chunk]]] = []
    for letter in letters:
        if not isinstance(letter, Chunk):
            continue
        attempt = run.find(letter.req_id)
        if attempt is None or attempt.state == "unsent":
            continue
        last = fresh.get(letter.req_id, attempt.mark)
        if _repeated(letter.mark, last):
            continue
        fresh[letter.req_id] = letter.mark or last
        room.setdefault(letter.req_id, LOG_LIMIT_BYTES - attempt.log_bytes)
        if merged and merged[-1][:2] == (letter.req_id, letter.channel):
            merged[-1][2].append(letter)
        else:
            merged.append((letter.req_id, letter.channel, [letter]))
    for req_id, channel, chunks in merged:
        yield from _log_events(req_id, channel, chunks, room)


def _repeated(mark: Mark | None, last: Mark | None) -> bool:
    return mark is not None and last is not None and (mark.term, mark.number) <= (last.term, last.number)


def _log_events(req_id: ReqId, channel: str, chunks: Sequence[Chunk], room: dict[ReqId, int]) -> Iterator[Event]:
    data = chunks[0].data if len(chunks) == 1 else "".join([chunk.data for chunk in chunks])
    kept = cut_utf8(data, max(0, room[req_id]))
    room[req_id] -= utf8_size(kept)
    overflow = data[len(kept) :]
    dropped_bytes = sum([chunk.dropped_bytes for chunk in chunks]) + utf8_size(overflow)
    dropped_lines = sum([chunk.dropped_lines for chunk in chunks]) + overflow.count("\n")
    mark = chunks[-1].mark
    while True:
        piece = cut_utf8(kept[:LOG_EVENT_BYTES], LOG_EVENT_BYTES)
        kept = kept[len(piece) :]
        yield LogAppended(
            req_id=req_id,
            channel=channel,
            data=piece,
            dropped_bytes=dropped_bytes,
            dropped_lines=dropped_lines,
            mark=mark,
        )
        dropped_bytes = dropped_lines = 0
        if not kept:
            return


def cut_utf8(text: str, size: int) -> str:
    """The longest beginning of ``text`` that takes at most ``size`` bytes as UTF-8."""
    return text if utf8_size(text) <= size else text.encode()[:size].decode(errors="ignore")


def _verdicts(run: Run, letters: Iterable[Letter], now: int, limits: Limits, happened: list[Happened]) -> Run:
    """For each attempt at most one verdict, and after it at most one piece of evidence, be it in the same turn."""
    speaking = [letter for letter in letters if not isinstance(letter, _NO_VERDICT)]
    if len(speaking) > 1:
        speaking.sort(key=_doubt)
    for letter in speaking:
        attempt = run.find(letter.req_id)
        event = _verdict(run, attempt, letter, now, limits) if attempt is not None else None
        if event is not None:
            run = carry(run, (event,), now, happened)
    return run


def _doubt(letter: Letter) -> int:
    """What of several letters is believed first: what a call did, then that it was stopped, then that it will be."""
    if isinstance(letter, CancelAcked):
        return 2
    return int(isinstance(letter, Result) and _says_canceled(letter))


def _verdict(run: Run, attempt: Attempt, letter: Letter, now: int, limits: Limits) -> Event | None:
    match letter:
        case Result() if attempt.in_flight:
            return _judge(attempt, letter)
        case NotSent() if attempt.state == "intent" and attempt.tries == letter.tries:
            retry_at = _again_at(attempt, letter.reason, now, limits)
            return AttemptUnsent(req_id=attempt.req_id, reason=letter.reason, detail=letter.detail, retry_at=retry_at)
        case Acked(accepted=False) if attempt.in_flight:
            return AttemptEnded(
                req_id=attempt.req_id,
                outcome="failed",
                answered=True,
                error_code=letter.reason or "not_accepted",
                error_message="The agent could not read the call and did not run it.",
            )
        case CancelAcked(will_cancel=True) if attempt.in_flight and attempt.canceling is not None:
            return _stopped(attempt)
        case Result() if attempt.ended_at is not None and attempt.state != "unsent":
            return _late(run, attempt, letter)
        case _:
            return None


def _late(run: Run, attempt: Attempt, letter: Result) -> Event | None:
    """A RESULT after the verdict: it settles, it is evidence, or it repeats what was said."""
    judged = _judge(attempt, letter)
    if attempt is run.unsettled and judged.outcome != "unknown":
        return AttemptSettled(
            req_id=attempt.req_id,
            outcome=judged.outcome,
            error_code=judged.error_code,
            error_message=judged.error_message,
            exit_code=judged.exit_code,
            result=judged.result,
        )
    if attempt.answered:
        return None
    return EvidenceFound(
        req_id=attempt.req_id,
        ok=letter.ok and not _is_error(letter.result),
        canceled=letter.canceled,
        error_code=letter.error_code,
        error_message=letter.error_message,
        result=letter.result,
    )


def _again_at(attempt: Attempt, reason: str, now: int, limits: Limits) -> int | None:
    """When a call that was surely not sent may be intended again; None: this is the step's verdict."""
    if attempt.canceling is not None:
        return None
    if reason == NOT_PERMITTED:
        return now + limits.backoff_ms
    return retry_time(attempt, now, limits) if reason in PASSING else None


def _stopped(attempt: Attempt) -> AttemptEnded:
    if attempt.canceling in WITH_THE_RUN:
        return AttemptEnded(
            req_id=attempt.req_id,
            outcome="canceled",
            answered=False,
            error_code="canceled",
            error_message="The agent stopped the call.",
        )
    message = "The deadline passed and the agent stopped the call."
    if attempt.canceling == "ack_timeout":
        message = "No acknowledgement of the call was heard, and the agent stopped it."
    return AttemptEnded(
        req_id=attempt.req_id,
        outcome="timeout",
        answered=False,
        error_code="timeout",
        error_message=message,
    )


def _judge(attempt: Attempt, letter: Result) -> AttemptEnded:
    """The verdict that a first RESULT gives."""
    code, message = letter.error_code, letter.error_message
    if _says_canceled(letter):
        if attempt.canceling is None:
            message = (
                "The agent canceled the call although nobody asked it to; the tool may have done part of its work."
            )
            return _ended(attempt, letter, "unknown", "canceled_by_agent", message)
        stopped = _stopped(attempt)  # the RESULT may come before the CANCEL_ACK, and must not tell another story
        return _ended(attempt, letter, stopped.outcome, stopped.error_code, stopped.error_message)
    if code == "timeout":
        return _ended(attempt, letter, "timeout", code, message)
    if letter.ok and not _is_error(letter.result):
        return _ended(attempt, letter, "done", None, None)
    if letter.ok:
        return _ended(attempt, letter, "failed", "tool_error", _error_text(letter.result))
    return _ended(attempt, letter, "failed", code or "tool_failed", message or "The tool failed and said nothing more.")


def _ended(attempt: Attempt, letter: Result, outcome: Any, code: str | None, message: str | None) -> AttemptEnded:
    return AttemptEnded(
        req_id=attempt.req_id,
        outcome=outcome,
        answered=True,
        error_code=code,
        error_message=message,
        exit_code=letter.exit_code,
        result=letter.result,
    )


def _says_canceled(letter: Result) -> bool:
    return letter.canceled or letter.error_code == "canceled"


def _is_error(result: Any) -> bool:
    return isinstance(result, dict) and result.get("isError") is True


def _error_text(result: Any) -> str:
    """The first text of an MCP result that reports an error."""
    content = result.get("content")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            return text[:MESSAGE_CHARS]
    return "The tool reported an error without a text."
