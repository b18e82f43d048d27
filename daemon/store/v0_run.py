"""A v0 run as ours, so that our engine can carry it on. Pure; for ``import_v0``.

What v0 was in the midst of is ended as our engine ends what it knows no more of: the call gets the outcome ``unknown``
and the run is parked (``engine_interrupted``), so that nothing runs a second time before a person has looked. Log,
steps, attempts and row agree afterwards, as if our engine had written them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from msgspec.structs import replace

from daemon.machine.commands import RunId
from daemon.machine.events import AttemptEnded, Event, RunParked, StepPaused
from daemon.machine.evolve import evolve
from daemon.machine.state import PAST_KEPT, Run, RunStatus, new_run
from daemon.machine.wire import payload
from daemon.store.v0_history import (
    ENDS,
    NOT_TOLD,
    STATUSES,
    Call,
    Fold,
    LogRow,
    Refused,
    V0Event,
    V0Run,
    dense,
    read_spec,
)

INTERRUPTED = (
    "v0 was in the midst of this run when it was brought over. Look at what was done, then resume or cancel it."
)


@dataclass(slots=True, kw_only=True)
class Imported:
    """A run ready to be written. ``notes`` say what had to be mended on the way."""

    run: Run
    snapshot: str
    created_at: int
    calls: list[Call]
    log: list[LogRow]
    notes: list[str] = field(default_factory=list)


def rebuild(row: V0Run, events: Sequence[V0Event], *, nonce: bytes, now: int, title: str | None) -> Imported:
    """The run as ours at ``now`` (epoch ms). ``title``: its workflow's, for a snapshot without one. Raises Refused."""
    status = STATUSES.get(row.status)
    if status is None:
        raise Refused(f"its status is {row.status!r}, which is none of {', '.join(STATUSES)}")
    if not 1 <= len(row.user_id) <= 255:
        raise Refused("its user_id is not of 1 to 255 characters")
    lacks = isinstance(row.snapshot, dict) and not row.snapshot.get("title")
    spec, text = read_spec(row.snapshot, title=title if lacks else None)
    fresh = new_run(run_id=RunId(row.id), workflow_id=row.workflow_id, user_id=row.user_id, nonce=nonce, spec=spec)
    notes: list[str] = []
    fold = Fold(fresh)
    for event in dense(events, notes):
        fold.hear(event)
    quiet = max(row.last_activity_at or row.created_at, *(event.at for event in events), row.created_at)
    run = replace(
        fresh,
        steps=tuple(fold.steps),
        step_index=fold.index,
        last_seq=len(fold.log),
        last_at=quiet,
        started_at=row.started_at or row.created_at,
        error_code=row.error_code,
        error_message=row.error_message,
    )
    imported = Imported(
        run=run,
        snapshot=text,
        created_at=row.created_at,
        calls=fold.calls,
        log=fold.log,
        notes=notes,
    )
    _Ending(imported, row, fold, now).apply(status)
    return imported


class _Ending:
    """Brings a rebuilt run to where its row says it is, so that log, rows and row agree."""

    def __init__(self, imported: Imported, row: V0Run, fold: Fold, now: int) -> None:
        self._imported = imported
        self._row = row
        self._fold = fold
        self._now = max(now, imported.run.last_at)

    def apply(self, status: RunStatus) -> None:
        """End, pause or park the run; its steps, calls and log follow."""
        if status in ENDS:
            self._finish(status)
            return
        reason = self._row.paused_reason if status == "paused" else None
        open_call = self._fold.calls and self._fold.calls[-1].attempt.ended_at is None
        stands = reason in ("awaiting_approval", "step_failed") and not open_call
        self._catch_up(may_have_run=not stands)
        self._carry_calls()
        if stands and reason is not None and self._imported.run.step is not None:
            self._pause(reason)
        else:
            self._park()

    def _finish(self, status: RunStatus) -> None:
        run, row, at = self._imported.run, self._row, self._row.finished_at or self._imported.run.last_at
        self._fold.close(at)
        steps = [replace(step, status="canceled") if step.status == "running" else step for step in run.steps]
        if status == "completed":
            left = ("pending", "canceled")
            steps = [replace(step, status="success") if step.status in left else step for step in steps]
        index = len(steps) if status == "completed" else min(max(run.step_index, row.step_index, 0), len(steps))
        reason = "user_cancel" if status == "canceled" else None
        run = replace(run, status=status, paused_reason=reason, finished_at=at, steps=tuple(steps), step_index=index)
        self._imported.run = run
        if not self._fold.ends:
            body: dict[str, Any] = {"type": ENDS[status], "run_id": str(run.id), "imported": True}
            if status == "failed":
                body |= {"error_code": row.error_code or "failed", "message": row.error_message or ""}
            elif status == "canceled":
                body |= {"reason": row.error_message, "by": row.user_id, "until": at}
            self._log(ENDS[status], body, max(at, run.last_at))
            self._imported.run = replace(run, last_seq=len(self._imported.log), last_at=max(at, run.last_at))

    def _catch_up(self, *, may_have_run: bool) -> None:
        """v0's row may be further than its log. Then the log lacks events, and the step it stands at may have run."""
        fold, index = self._fold, min(self._row.step_index, len(self._fold.steps))
        if index <= fold.index:
            return
        self._imported.notes.append(f"its log ends before step {index + 1}, at which it stands")
        for number in range(index):
            if fold.steps[number].status in ("pending", "running"):
                fold.steps[number] = replace(fold.steps[number], status="success")
        fold.close(self._imported.run.last_at)
        fold.index = index
        if may_have_run and index < len(fold.steps):
            fold.open(index, None, self._imported.run.last_at)

    def _carry_calls(self) -> None:
        attempts = [call.attempt for call in reversed(self._imported.calls)]
        self._imported.run = replace(
            self._imported.run,
            steps=tuple(self._fold.steps),
            step_index=self._fold.index,
            attempt=attempts[0] if attempts else None,
            past=tuple(attempts[1 : PAST_KEPT + 1]),
        )

    def _pause(self, reason: str) -> None:
        run = self._imported.run
        index = run.step_index
        status = "pending" if reason == "awaiting_approval" else "failed"
        steps = (*run.steps[:index], replace(run.steps[index], status=status), *run.steps[index + 1 :])
        standing = self._fold.pause
        if standing is not None and standing[1] == reason:
            self._imported.run = replace(
                run, steps=steps, status="paused", paused_reason=reason, paused_seq=standing[0]
            )
            return
        self._imported.run = replace(run, steps=steps)
        self._tell(
            StepPaused(step_index=index, paused_reason="step_failed" if status == "failed" else "awaiting_approval")
        )

    def _park(self) -> None:
        run = self._imported.run
        if run.attempt is not None and run.attempt.ended_at is None:
            self._tell(
                AttemptEnded(
                    req_id=run.attempt.req_id,
                    outcome="unknown",
                    answered=False,
                    error_code="outcome_unknown",
                    error_message=NOT_TOLD,
                )
            )
            self._fold.close(self._now)
        self._tell(RunParked(step_index=self._imported.run.step_index, message=INTERRUPTED))

    def _tell(self, event: Event) -> None:
        """One event of our own engine, at the end of the log."""
        run = self._imported.run = evolve(self._imported.run, event, self._now)
        self._log(event.type, payload(event, run, self._now), self._now)

    def _log(self, event_type: str, body: Mapping[str, Any], at: int) -> None:
        row = LogRow(len(self._imported.log) + 1, event_type, orjson.dumps(body).decode(), at)
        self._imported.log.append(row)
