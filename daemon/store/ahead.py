"""A run that is read while its rows are behind its log: what they tell, and what its newest pages say beyond that.

Used by ``runs``. Attempts are told as the JSON that Postgres makes of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from daemon.machine.record import LOG_PREVIEW_CHARS, AttemptRow, StepRow
from daemon.machine.wire import PREVIEW_CHARS
from daemon.store.tail import Attempts, decode, join

_NULL = Raw(b"null")

StepTold = tuple[str, str, str | None]
"""Its id, its status, and the JSON of who decided what about it."""


class AttemptTold(Struct):
    """What is told of an attempt, in this order. Times are epoch s."""

    req_id: str
    attempt_index: int
    state: str
    start_ts: int
    end_ts: int | None
    ok: bool | None
    exit_code: int | None
    canceled: bool
    error: Raw
    result_json: Raw
    result_preview: str | None
    log_preview: str
    risk: str | None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(AttemptTold).decode


def steps_ahead(told: Sequence[StepTold], tail: Sequence[str]) -> list[StepTold]:
    """The steps as the pages' changes (JSON, oldest first) leave them."""
    found = {step_id: (step_id, status, decided) for step_id, status, decided in told}
    for changes in map(decode, tail):
        found |= {row.step_id: (row.step_id, row.status, _decided(row)) for row in changes.steps}
    return list(found.values())


def attempts_ahead(told: Sequence[tuple[int, str]], tail: Sequence[str]) -> list[tuple[int, str]]:
    """As ``steps_ahead``: each attempt with the index of its step, in order."""
    changed: Attempts = {}
    for changes in map(decode, tail):
        join(changed, changes.attempts)
    again = {step_index for step_index, _ in changed}
    found = {
        (step_index, one.attempt_index): one
        for step_index, one in ((step_index, _decode(text)) for step_index, text in told if step_index in again)
    }
    for place, row in changed.items():
        found[place] = _told(row, found.get(place))
    kept = [one for one in told if one[0] not in again]
    kept += [(step_index, _encode(found[step_index, index]).decode()) for step_index, index in sorted(found)]
    return sorted(kept, key=lambda one: one[0])


def _decided(row: StepRow) -> str | None:
    if row.approved_at_ms is None and row.decided_at_ms is None:
        return None
    who = (row.approved_by, row.approved_at_ms, row.decided_by, row.decided_at_ms, row.note)
    return _encode(who).decode()


def _told(row: AttemptRow, before: AttemptTold | None) -> AttemptTold:
    attempt, ended_at = row.attempt, row.attempt.ended_at
    log = (before.log_preview if before is not None else "") + (row.log_tail or "")
    one = AttemptTold(
        req_id=attempt.req_id,
        attempt_index=attempt.index,
        state=attempt.state,
        start_ts=attempt.intended_at // 1000,
        end_ts=None if ended_at is None else ended_at // 1000,
        ok=None if ended_at is None else attempt.state == "done",
        exit_code=row.exit_code,
        canceled=attempt.state == "canceled",
        error=_NULL if row.error is None else Raw(row.error.encode()),
        result_json=_NULL if row.result is None else Raw(row.result.encode()),
        result_preview=None if row.result is None else row.result[:PREVIEW_CHARS],
        log_preview=log[-LOG_PREVIEW_CHARS:],
        risk=attempt.risk,
    )
    if before is not None:
        one.exit_code = before.exit_code if row.exit_code is None else row.exit_code
        one.error = before.error if row.error is None else one.error
        if row.result is None:
            one.result_json, one.result_preview = before.result_json, before.result_preview
    return one
