"""Bringing v0's database over: read in one snapshot, written in batches, each whole or not at all. For ``import-v0``.

Safe to repeat and to stop at any instant: a run is written with everything of it in one transaction, and one that is
here already is left as it is, whatever has become of it since. v0's database is only read. ``v0_history`` and
``v0_run`` say what its rows mean.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from daemon.config import mask
from daemon.errors import SetupError
from daemon.machine.effects import deadline
from daemon.store.migrate import missing
from daemon.store.pool import GONE, REFUSED, Connection, Pool, open_pool, plain, reading, session
from daemon.store.v0_history import Refused, V0Event, V0Run, read_spec
from daemon.store.v0_run import Imported, rebuild

PATIENCE_S = 5.0
ONE_AT_A_TIME = 7277238006
"""Advisory lock of a writing batch: two imports at once would trip over one another's rows."""

_MS = "(extract(epoch FROM {0}) * 1000)::bigint AS {0}"
_WORKFLOWS = f"""
SELECT id::text AS id, user_id::text AS user_id, title, description, spec_json::text AS spec,
    {_MS.format("created_at")}, {_MS.format("updated_at")}
FROM workflows ORDER BY created_at, id
"""  # noqa: S608 - nothing of it is input
_RUNS = f"""
SELECT r.id::text AS id, r.workflow_id::text AS workflow_id, r.user_id::text AS user_id, r.status::text AS status,
    r.paused_reason::text AS paused_reason, r.current_step_index, r.error_code::text AS error_code, r.error_message,
    r.workflow_snapshot::text AS snapshot, w.title, r.created_at, r.started_at, r.finished_at, r.last_activity_at
FROM (SELECT id, workflow_id, user_id, status, paused_reason, current_step_index, error_code, error_message,
    workflow_snapshot, {", ".join(_MS.format(name) for name in ("created_at", "started_at", "finished_at"))},
    {_MS.format("last_activity_at")} FROM workflow_runs) r LEFT JOIN workflows w ON w.id = r.workflow_id
ORDER BY r.created_at, r.id
"""  # noqa: S608 - nothing of it is input
_EVENTS = f"""
SELECT run_id::text AS run_id, seq, event_type::text AS event_type, payload::text AS payload, {_MS.format("created_at")}
FROM workflow_run_events e WHERE e.run_id = ANY($1::text[]::<type>[]) ORDER BY run_id, seq, e.created_at, id
"""  # noqa: S608 - nothing of it is input

_TYPE = """
SELECT format_type(atttypid, NULL) FROM pg_attribute
WHERE attrelid = 'workflow_run_events'::regclass AND attname = 'run_id'
"""


class Finding(NamedTuple):
    """What is to be said of one row of v0's."""

    table: str
    id: str
    why: str


@dataclass(slots=True)
class Report:
    """What was taken, or would be; ``refused`` rows were not, ``notes`` were mended on the way."""

    workflows: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    events: int = 0
    parked: int = 0
    present: Counter[str] = field(default_factory=Counter)
    refused: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "workflows": self.workflows,
            "runs": dict(self.runs),
            "events": self.events,
            "parked": self.parked,
            "present": dict(self.present),
            "refused": [finding._asdict() for finding in self.refused],
            "notes": [finding._asdict() for finding in self.notes],
        }

    def lines(self, *, really: bool) -> Iterator[str]:
        """The report for people."""
        for finding in self.notes:
            yield f"note: {finding.table} {finding.id}: {finding.why}"
        for finding in self.refused:
            yield f"cannot be taken: {finding.table} {finding.id}: {finding.why}"
        verb = "were copied" if really else "would be copied"
        yield f"{self.workflows} workflows, {self.runs.total()} runs and {self.events} events {verb}."
        for status, count in sorted(self.runs.items()):
            yield f"{count:8}  {status}"
        if self.parked:
            yield f"{self.parked} of them arrive paused as engine_interrupted: v0 was in their midst."
        if self.present:
            yield f"{self.present['workflows']} workflows and {self.present['runs']} runs were here already."
        if self.refused:
            yield f"{len(self.refused)} rows cannot be taken; each is named above."
        if not really and (self.workflows or self.runs):
            yield "Nothing was changed: repeat it with --yes."


async def import_v0(
    source: str, target: str, *, really: bool, batch: int, progress: Callable[[int], None] = lambda _: None
) -> Report:
    """Copy everything from ``source`` to ``target``, or only look. Raises SetupError when that cannot begin.

    When a database goes away in the midst of it, StoreUnavailable: what was copied is whole, and a repeat goes on.
    """
    pool = await open_pool(target, size=2, patience_s=PATIENCE_S)
    try:
        unseen = await asyncio.to_thread(missing, target)
        if unseen:
            raise SetupError(f"The database lacks migrations ({', '.join(unseen)}): run 'runwarden migrate' first.")
        v0 = await _open_source(source)
        try:
            async with v0.transaction(isolation="repeatable_read", readonly=True):
                return await _Import(v0, pool, really=really, batch=batch, progress=progress).all()
        except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as fault:
            raise SetupError(f"{mask(source)} is not a v0 database: {plain(fault)}") from None
        except GONE as fault:
            raise SetupError(
                f"v0's Postgres at {mask(source)} went away: {plain(fault)}. Repeat the command."
            ) from None
        finally:
            await v0.close(timeout=PATIENCE_S)
    finally:
        await pool.close()


async def _open_source(url: str) -> Connection:
    try:
        connection: Connection = await asyncpg.connect(url, **session("runwarden import-v0", pooled=False))
    except (*GONE, asyncpg.PostgresError, ValueError) as fault:
        raise SetupError(f"v0's Postgres at {mask(url)} does not answer: {plain(fault)}") from None
    return connection


class _Import:
    """One pass over v0's tables."""

    def __init__(
        self, v0: Connection, pool: Pool, *, really: bool, batch: int, progress: Callable[[int], None]
    ) -> None:
        self._v0 = v0
        self._pool = pool
        self._really = really
        self._batch = batch
        self._progress = progress
        self._report = Report()
        self._events_query = _EVENTS

    async def all(self) -> Report:
        """Workflows, then runs with their events."""
        self._events_query = _EVENTS.replace("<type>", str(await self._v0.fetchval(_TYPE)))  # so that its index serves
        await self._workflows()
        rows, done = [], 0
        async for row in self._v0.cursor(_RUNS, prefetch=self._batch):
            rows.append(row)
            if len(rows) == self._batch:
                await self._runs(rows)
                done, rows = done + len(rows), []
                self._progress(done)
        await self._runs(rows)
        return self._report

    def _refuse(self, table: str, row_id: object, why: str) -> None:
        self._report.refused.append(Finding(table, str(row_id), why))

    async def _workflows(self) -> None:
        async for row in self._v0.cursor(_WORKFLOWS, prefetch=self._batch):
            try:
                record = _workflow(row)
            except (Refused, ValueError, OverflowError) as fault:
                self._refuse("workflows", row["id"], plain(fault))
                continue
            async with reading(self._pool) as connection:
                if await connection.fetchval("SELECT count(*) FROM workflows WHERE id = $1", record[0]):
                    self._report.present["workflows"] += 1
                    continue
                if self._really:
                    try:
                        await connection.execute(
                            "INSERT INTO workflows (id, user_id, title, description, spec, created_at, updated_at)"
                            " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING",
                            *record,
                        )
                    except REFUSED as fault:
                        self._refuse("workflows", row["id"], f"Postgres refuses it: {plain(fault)}")
                        continue
            self._report.workflows += 1

    async def _runs(self, rows: Sequence[asyncpg.Record]) -> None:
        """One batch: what is new of it, rebuilt and written."""
        named: dict[UUID, asyncpg.Record] = {}
        for row in rows:
            try:
                named[UUID(row["id"])] = row
            except ValueError:
                self._refuse("workflow_runs", row["id"], "its id is no UUID")
        async with reading(self._pool) as connection:
            present = await _present(connection, list(named))
        self._report.present["runs"] += len(present)
        wanted = {run_id: row for run_id, row in named.items() if run_id not in present}
        if not wanted:
            return
        events = await self._events({row["id"]: run_id for run_id, row in wanted.items()})
        rebuilt = [run for run_id, row in wanted.items() if (run := self._rebuilt(row, events.get(run_id, ())))]
        written = await self._write(rebuilt) if self._really else rebuilt
        for imported in written:
            self._count(imported)

    async def _events(self, names: dict[str, UUID]) -> dict[UUID, list[V0Event] | str]:
        """The events of these runs; of a run whose log cannot be read, why."""
        found: dict[UUID, list[V0Event] | str] = {}
        for row in await self._v0.fetch(self._events_query, list(names)):
            run_id = names[row["run_id"]]
            known = found.setdefault(run_id, [])
            if isinstance(known, str):
                continue
            try:
                body = orjson.loads(row["payload"]) if row["payload"] is not None else {}
                known.append(V0Event(int(row["seq"]), row["event_type"], body, int(row["created_at"])))
            except (ValueError, TypeError) as fault:
                found[run_id] = f"its event {row['seq']} cannot be read: {plain(fault)}"
        return found

    def _rebuilt(self, row: asyncpg.Record, events: Sequence[V0Event] | str) -> Imported | None:
        if isinstance(events, str):
            self._refuse("workflow_runs", row["id"], events)
            return None
        try:
            now = time.time_ns() // 1_000_000
            return rebuild(_run(row), events, nonce=secrets.token_bytes(16), now=now, title=row["title"])
        except (Refused, ValueError, TypeError, OverflowError) as fault:
            self._refuse("workflow_runs", row["id"], plain(fault))
            return None

    async def _write(self, runs: Sequence[Imported]) -> list[Imported]:
        """Those that were written: all together, or, where Postgres refuses one of them, each by itself."""
        try:
            return await self._transaction(runs)
        except (*REFUSED, OverflowError) as fault:
            if len(runs) == 1:
                self._refuse("workflow_runs", runs[0].run.id, f"Postgres refuses it: {plain(fault)}")
                return []
        return [one for run in runs for one in await self._write([run])]

    async def _transaction(self, runs: Sequence[Imported]) -> list[Imported]:
        async with reading(self._pool) as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", ONE_AT_A_TIME)
            present = await _present(connection, [one.run.id for one in runs])
            new = [one for one in runs if one.run.id not in present]
            now = time.time_ns() // 1_000_000
            for table, columns, records in _tables(new, now):
                await connection.copy_records_to_table(table, records=records, columns=columns)
        self._report.present["runs"] += len(present)
        return new

    def _count(self, imported: Imported) -> None:
        run = imported.run
        self._report.runs[run.status] += 1
        self._report.events += len(imported.log)
        self._report.parked += run.paused_reason == "engine_interrupted"
        self._report.notes += [Finding("workflow_runs", str(run.id), note) for note in imported.notes]


async def _present(connection: Connection, ids: Sequence[UUID]) -> set[UUID]:
    return {row["id"] for row in await connection.fetch("SELECT id FROM workflow_runs WHERE id = ANY($1)", list(ids))}


def _workflow(row: asyncpg.Record) -> tuple[object, ...]:
    """A row of our ``workflows``. Raises Refused, ValueError, OverflowError."""
    data = orjson.loads(row["spec"]) if row["spec"] is not None else None
    if row["description"] is not None and isinstance(data, dict):
        data["description"] = row["description"]
    spec, text = read_spec(data, title=row["title"])
    if not 1 <= len(row["user_id"] or "") <= 255:
        raise Refused("its user_id is not of 1 to 255 characters")
    created = _moment(row["created_at"] or 0)
    updated = _moment(row["updated_at"]) if row["updated_at"] is not None else created
    return (UUID(row["id"]), row["user_id"], spec.title, spec.description, text, created, updated)


def _run(row: asyncpg.Record) -> V0Run:
    """A row of v0's ``workflow_runs``. Raises ValueError, TypeError."""
    try:
        workflow_id = UUID(row["workflow_id"])
    except (TypeError, ValueError):
        raise Refused("its workflow_id is no UUID") from None
    times = (row["created_at"], row["started_at"], row["finished_at"], row["last_activity_at"])
    created = next((at for at in times if at is not None), 0)
    return V0Run(
        id=UUID(row["id"]),
        workflow_id=workflow_id,
        user_id=row["user_id"] or "",
        status=row["status"] or "",
        paused_reason=row["paused_reason"],
        step_index=row["current_step_index"] or 0,
        snapshot=orjson.loads(row["snapshot"]) if row["snapshot"] is not None else None,
        created_at=created,
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        last_activity_at=row["last_activity_at"],
        error_code=row["error_code"],
        error_message=row["error_message"],
    )


def _moment(at: int) -> datetime:
    return datetime.fromtimestamp(at / 1000, UTC)


def _maybe(at: int | None) -> datetime | None:
    return None if at is None else _moment(at)


Rows = list[tuple[object, ...]]


def _tables(runs: Sequence[Imported], now: int) -> Iterator[tuple[str, tuple[str, ...], Rows]]:
    """What is to be copied into each table, in the order of their keys."""
    yield _heads(runs, now)
    yield "workflow_run_specs", ("run_id", "snapshot"), [(one.run.id, one.snapshot) for one in runs]
    steps: Rows = [
        (
            one.run.id,
            index,
            one.run.spec.steps[index].id,
            step.status,
            step.attempts,
            step.approved_by,
            step.approved_at,
        )
        for one in runs
        for index, step in enumerate(one.run.steps)
        if step.status != "pending" or step.attempts or step.approved_at is not None
    ]
    names = ("run_id", "step_index", "step_id", "status", "attempts", "approved_by", "approved_at_ms")
    yield "workflow_run_steps", names, steps
    yield _attempts(runs)
    log: Rows = [(one.run.id, r.seq, r.event_type, r.payload, _moment(r.at)) for one in runs for r in one.log]
    yield "workflow_run_single_events", ("run_id", "seq", "event_type", "payload", "created_at"), log


def _heads(runs: Sequence[Imported], now: int) -> tuple[str, tuple[str, ...], Rows]:
    columns: tuple[str, ...] = (
        "id",
        "workflow_id",
        "user_id",
        "status",
        "paused_reason",
        "paused_seq",
        "current_step_index",
    )
    columns += ("last_seq", "wake_at", "nonce", "created_at", "started_at", "finished_at", "last_activity_at")
    columns += ("error_code", "error_message", "title", "step_count")
    rows: Rows = []
    for one in runs:
        run = one.run
        place = (run.id, run.workflow_id, run.user_id, run.status, run.paused_reason, run.paused_seq, run.step_index)
        times = (_moment(one.created_at), _maybe(run.started_at), _maybe(run.finished_at), _moment(run.last_at))
        # What exactly waits for approval is frozen by the first node that looks, so one is told to look at once.
        asks = run.paused_reason == "awaiting_approval"
        wake = _moment(now) if asks else _maybe(deadline(run, now))
        about = (run.error_code, run.error_message, run.spec.title, len(run.spec.steps))
        rows.append((*place, run.last_seq, wake, run.nonce, *times, *about))
    return "workflow_runs", columns, rows


def _attempts(runs: Sequence[Imported]) -> tuple[str, tuple[str, ...], Rows]:
    columns: tuple[str, ...] = ("run_id", "step_index", "attempt", "req_id", "epoch", "state", "first_intended_at_ms")
    columns += ("intended_at_ms", "ack_by_ms", "deadline_at_ms", "acked_at_ms", "ended_at_ms", "answered", "log_bytes")
    columns += ("arguments", "error", "exit_code", "result", "log_tail")
    rows: Rows = []
    for one in runs:
        for call in one.calls:
            a = call.attempt
            name = (one.run.id, a.step_index, a.index, a.req_id, a.epoch, a.state)
            times = (a.first_intended_at, a.intended_at, a.ack_by, a.deadline_at, a.acked_at, a.ended_at)
            arguments = one.run.spec.steps[a.step_index].tool_config.arguments_json
            end = (a.answered, a.log_bytes, arguments, call.error, call.exit_code, call.result, call.log_tail)
            rows.append((*name, *times, *end))
    return "workflow_run_attempts", columns, rows
