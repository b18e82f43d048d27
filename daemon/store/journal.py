"""The journal: commits transitions of many runs in one statement, fenced, and says exactly what became of each.

Used by ``runtime/host`` through ``ports.Journal``. A transition is committed when run, epoch, owner and last_seq are as
the turn found them; one that intends a call, only while the grants, policies and holds stand that it went by. Where one
of a batch is not, none is. Then, and when the reply is lost, the rows are read: mine and advanced to my target means it
was committed; mine and unchanged, repeat (or decide again, if the authority is another); else fenced. So nothing is
ever applied twice. A row older than what was committed before means that Postgres lost commits: then the run is parked
(``quarantine``), and fenced too.

What is not our fault is repeated for ever; what can never be accepted is split out, alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import asyncpg

from daemon import telemetry
from daemon.machine.record import Known, Outcomes, Transition
from daemon.store.commit import (
    APPEND,
    CHECKPOINT,
    COMMIT,
    COMMIT_DECIDING,
    FENCED,
    WHERE_IT_STANDS,
    appending,
    arguments,
)
from daemon.store.pool import CONNECT_TIMEOUT_S, CONTENDED, GONE, REFUSED, Connection, plain, session
from daemon.store.quarantine import is_behind, park_lost
from daemon.store.tail import CHECKPOINT_AFTER_S, Tail
from daemon.telemetry import log

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0
OTHER_WAYS = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")
PLANS = {"plan_cache_mode": "force_generic_plan", "jit": "off"} | dict.fromkeys(OTHER_WAYS, "off")
"""No plan of the commit depends on what is in a batch, so that planning each is a waste. The one plan shall find its
runs by index, whatever is cheapest while the table is small. Without JIT: before Postgres 18 a way that is off counts
as so dear that each execution was compiled, 0.4 s a commit."""
PLANS_KEPT_S = 30.0
"""While there are up to ten runs or so, even by index all are read for each; that plan must not stay while they become
thousands. (What ANALYZE finds ends it too, a minute later or two.)"""


class Fenced(asyncpg.PostgresError):
    """A run of the batch is not as its owner knew it; asyncpg raises this by its code."""

    sqlstate = FENCED


class Lane:
    """One connection that carries commits, reopened for ever. Its owner commits in turn, and beside that keeps up."""

    def __init__(self, url: str, *, pooled: bool = False, monotonic: Callable[[], float] = time.monotonic) -> None:
        """``pooled``: see ``pool.session``."""
        self._url = url
        self._monotonic = monotonic
        self._session = session("runwarden journal", pooled=pooled)
        if not pooled:
            self._session["server_settings"] |= PLANS
        self._connection: Connection | None = None
        self._planned_at = 0.0
        """Monotonic s."""
        self._tail: Tail | None = None
        """Of the run whose the last commit was, if it was alone; and as long as there is anything in it."""
        self._appended = asyncio.Event()
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Connect now, so that the first commit need not. Raises what asyncpg raises."""
        await self._connected()

    async def close(self) -> None:
        """Say good-bye to Postgres; one that does not answer is left without."""
        if self._connection is not None and not self._connection.is_closed():
            try:
                await self._connection.close(timeout=CONNECT_TIMEOUT_S)
            except GONE:
                self._drop()

    async def commit(self, batch: Sequence[Transition]) -> Outcomes:
        """Commit until the outcome of every transition is known. A run stands in a batch once.

        Does not raise for what Postgres says or for its absence: it repeats until it knows.
        """
        outcomes = Outcomes()
        async with self._turn:
            await self._settle(list(batch), outcomes)
        return outcomes

    async def keep_up(self) -> None:
        """Write to its rows what was appended of a run, once that has stopped taking quick steps; until cancelled."""
        while True:
            await self._appended.wait()
            self._appended.clear()
            await asyncio.sleep(CHECKPOINT_AFTER_S)
            if self._tail is None or self._tail.empty:
                continue
            self._appended.set()
            if self._monotonic() - self._tail.at >= CHECKPOINT_AFTER_S and not await self.checkpoint():
                await asyncio.sleep(BACKOFF_MAX_S)

    async def checkpoint(self) -> bool:
        """Write the tail to its rows now. False where Postgres is away: the next commit of the run takes it along."""
        async with self._turn:
            tail = self._tail
            if tail is None or tail.empty:
                return True
            run = tail.last.run
            try:
                written_seq = await self._follow(await self._connected(), tail)
            except Exception as fault:  # noqa: BLE001 - whatever is wrong with one run must not end the node
                self._drop()
                if isinstance(fault, (*GONE, asyncpg.PostgresError)):
                    log.warning("rows stay behind for a while", run_id=str(run.id), fault=plain(fault))
                    return False
                log.exception("rows cannot be written", run_id=str(run.id))
                self._tail = None  # so its owner gives it up at the next commit
                return True
            if written_seq == run.last_seq:
                tail.written()
                telemetry.checkpoints.inc()
            else:
                self._tail = None
                if written_seq is not None:  # else the run was let go, which wrote them, or an answer of ours was lost
                    log.error("rows cannot be written", run_id=str(run.id), written_seq=written_seq)
            return True

    async def _settle(self, batch: list[Transition], outcomes: Outcomes, *, lost: bool = False) -> None:
        """``lost``: a commit of these got no answer, so that it may still be under way."""
        pause_s = BACKOFF_FIRST_S
        while batch:
            try:
                now_ms = await self._commit_once(batch)
                outcomes.committed.update(dict.fromkeys([one.run_id for one in batch], now_ms))
                batch = []
            except Fenced:
                left = await self._resolve_patiently(batch, outcomes, lost=lost)
                if len(left) == len(batch):  # the rows say that all may be committed: not at full speed for ever
                    telemetry.commit_repeats.inc()
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, BACKOFF_MAX_S)
                batch = left
            except CONTENDED:
                telemetry.commit_repeats.inc()
            except REFUSED as fault:
                await self._split(batch, outcomes, fault, lost=lost)
                return
            except (*GONE, asyncpg.PostgresError) as fault:
                telemetry.commit_repeats.inc()
                await self._wait_out(fault, pause_s)
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
                lost = True
                batch = await self._resolve_patiently(batch, outcomes, lost=lost)
            except Exception as fault:  # noqa: BLE001 - the driver could not even send it: one run's defect, not ours
                self._drop()
                await self._split(batch, outcomes, fault, lost=lost)
                return

    async def _split(self, batch: list[Transition], outcomes: Outcomes, fault: Exception, *, lost: bool) -> None:
        """Halve until the culprit is alone: its neighbours never suffer."""
        if len(batch) == 1:
            telemetry.poisoned.inc()
            log.error("Postgres can never accept a transition", run_id=str(batch[0].run_id), fault=str(fault))
            outcomes.poisoned[batch[0].run_id] = plain(fault)
            return
        middle = len(batch) // 2
        await self._settle(batch[:middle], outcomes, lost=lost)
        await self._settle(batch[middle:], outcomes, lost=lost)

    async def _commit_once(self, batch: list[Transition]) -> int:
        """Postgres time, epoch ms. Raises Fenced when none moved."""
        started = self._monotonic()
        connection = await self._connected()
        tail = self._tail if len(batch) == 1 else None
        changes = tail.changes(batch[0], started) if tail is not None else None
        try:
            if tail is not None and changes is not None:
                now_ms = await self._append(connection, batch[0], changes, tail.page)
            else:
                now_ms = await self._write(connection, batch)
        except asyncpg.UniqueViolationError as fault:
            if (fault.table_name or "").startswith("workflow_run_pages"):
                raise Fenced from fault  # by a commit of our own that got no answer, and was under way still
            raise
        self._note(batch, appended=changes is not None)
        telemetry.commit_seconds.observe(self._monotonic() - started)
        telemetry.commits.inc()
        telemetry.transitions.inc(len(batch))
        return now_ms

    async def _append(self, connection: Connection, one: Transition, changes: str, page: int) -> int:
        """Write it to the log alone. Raises Fenced."""
        now_ms: int | None = await connection.fetchval(APPEND, *appending(one, changes, page))
        if now_ms is None:
            raise Fenced
        return now_ms

    async def _follow(self, connection: Connection, tail: Tail) -> int | None:
        """Let the rows follow the log. Answers how far they go then; None: they are not where the tail began."""
        last = tail.last
        written_seq: int | None = await connection.fetchval(
            CHECKPOINT, last.run_id, last.epoch, last.owner, tail.written_seq
        )
        return written_seq

    async def _write(self, connection: Connection, batch: Sequence[Transition]) -> int:
        """Write them to the log and to their rows, and what is in the tail of any. Raises Fenced."""
        given = arguments(batch, self._tail)
        if given.decides:
            now_ms: int = await connection.fetchval(COMMIT_DECIDING, *given.moved, *given.decided)
        else:
            now_ms = await connection.fetchval(COMMIT, *given.moved)
        return now_ms

    def _note(self, batch: Sequence[Transition], *, appended: bool) -> None:
        """These are committed."""
        tail, now = self._tail, self._monotonic()
        if tail is not None and appended and tail.precedes(batch[0]):
            telemetry.appends.inc()
            tail.append(batch[0], now)
            self._appended.set()
        elif tail is None or tail.empty or any(one.run_id == tail.last.run_id for one in batch):
            self._tail = Tail(batch[0], now) if len(batch) == 1 and batch[0].events else None

    async def _resolve(self, batch: list[Transition], outcomes: Outcomes, *, lost: bool) -> list[Transition]:
        """Read the rows of transitions whose outcome is unknown; answers those to repeat.

        A lost commit that waits for a lock goes on without us. Repeated, it is the same; but what is decided anew by
        another authority would be taken for committed when it is. So such a run is given up: a new claim shuts it out.
        """
        connection = await self._connected()
        rows = await connection.fetch(WHERE_IT_STANDS, [one.run_id for one in batch])
        found = {row["id"]: row for row in rows}
        again: list[Transition] = []
        behind: list[Known] = []
        for one in batch:
            row = found.get(one.run_id)
            mine = row is not None and row["epoch"] == one.epoch and row["owner"] == one.owner
            if row is not None and mine and one.events and row["last_seq"] == one.run.last_seq:
                outcomes.committed[one.run_id] = row["now_ms"]
                self._note([one], appended=row["written_seq"] != row["last_seq"])
            elif row is not None and mine and row["last_seq"] == one.expected_seq and self._accounts_for(one, row):
                if one.authority in (None, row["authority"]):
                    again.append(one)
                else:
                    (outcomes.fenced if lost else outcomes.outdated).add(one.run_id)
            else:
                outcomes.fenced.add(one.run_id)
                known = Known(one.run_id, one.epoch, one.owner, one.expected_seq)
                if row is None:
                    log.error("Postgres has lost a run", run_id=str(one.run_id))
                elif is_behind(row, known):
                    behind.append(known)
        if behind:
            await park_lost(connection, behind)
        return again

    def _accounts_for(self, one: Transition, row: asyncpg.Record) -> bool:
        """Whether the rows go as far as is known here; a checkpoint whose answer was lost is known from now on."""
        tail, written_seq = self._tail, row["written_seq"]
        if tail is None or tail.empty or not tail.precedes(one):
            return bool(written_seq == one.expected_seq)
        if written_seq == one.expected_seq:
            tail.written()
        return bool(written_seq == tail.written_seq)

    async def _resolve_patiently(self, batch: list[Transition], outcomes: Outcomes, *, lost: bool) -> list[Transition]:
        pause_s = BACKOFF_FIRST_S
        while True:
            try:
                return await self._resolve(batch, outcomes, lost=lost)
            except CONTENDED:
                telemetry.commit_repeats.inc()
            except (*GONE, asyncpg.PostgresError) as fault:
                await self._wait_out(fault, pause_s)
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)

    async def _wait_out(self, fault: BaseException, pause_s: float) -> None:
        """Postgres is away, or says what nobody here has heard before: a new connection, a moment later."""
        if isinstance(fault, GONE):
            log.warning("the journal waits for Postgres", fault=plain(fault))
        else:
            log.error("the journal does not understand Postgres, and tries again", fault=plain(fault))
        self._drop()
        await asyncio.sleep(pause_s)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._url, **self._session)
            self._planned_at = time.monotonic()
        elif time.monotonic() - self._planned_at >= PLANS_KEPT_S:
            await self._connection.execute("DISCARD PLANS")
            self._planned_at = time.monotonic()
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
