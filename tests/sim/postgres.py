"""Postgres in memory: the rows that the runtime relies on, the fence, claims, commands and the log.

``Postgres`` is the server: each method is one statement. ``Claims`` and ``Lane`` double the store's classes of these
names and pass ``tests/store/test_conformance``; the lane keeps the real one's whole way of finding out what became of
a commit. What a real server would refuse, and what no fenced engine can ask for, is kept in ``refused``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec.structs import fields

from daemon.machine.commands import Command, CommandId, Epoch, Millis, RunId
from daemon.machine.record import Known, Transition
from daemon.machine.spec import WorkflowSpec
from daemon.machine.state import TERMINAL, Run, new_run
from daemon.store import journal
from daemon.store.claims import FREE_TAKEOVERS, TAKEOVER_PAUSE_MAX_S, TAKEOVER_PAUSE_S
from daemon.store.commit import WHERE_IT_STANDS
from daemon.store.passive import Due
from daemon.store.tail import Tail, decode
from tests.machine.scenario import passive
from tests.sim.authority import Authority
from tests.sim.line import Connection
from tests.sim.rows import CommandRow, Intent, RunRow

SLOWER = 20.0
"""So much slower is the lane's clock, since steps here take longer than what a real lane takes for quick."""
PLACES = {one.name for one in fields(Command)}


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)


def _ms(moment: datetime) -> int:
    return (moment - _moment(0)) // timedelta(milliseconds=1)


class Postgres:
    """The server. ``now_ms``: its clock, epoch ms."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.runs: dict[RunId, RunRow] = {}
        self.authority = Authority()
        self.refused: list[str] = []
        self.moment: Callable[[], float] = lambda: 0.0
        """A time that no clock jump touches, for whoever judges afterwards."""

    def create(
        self, *, run_id: RunId, workflow_id: UUID, user_id: str, nonce: bytes, snapshot: str, command_id: UUID
    ) -> None:
        """A run and its start command."""
        spec = WorkflowSpec.model_validate_json(snapshot)
        run = new_run(run_id=run_id, workflow_id=workflow_id, user_id=user_id, nonce=nonce, spec=spec)
        now = self.now_ms()
        self.runs[run_id] = RunRow(run, wake_at=now, last_at=now)
        self.add_command(CommandId(command_id), run_id, "start", {}, None, user_id)

    def add_command(
        self,
        command_id: CommandId,
        run_id: RunId,
        kind: Any,
        payload: Mapping[str, Any],
        seen_seq: int | None,
        issued_by: str,
    ) -> None:
        about = {name: value for name, value in payload.items() if name in PLACES}
        at = Millis(self.now_ms())
        command = Command(id=command_id, kind=kind, seen_seq=seen_seq, issued_by=issued_by, at=at, **about)
        self.runs[run_id].commands.append(CommandRow(command, at))

    def claim(self, wanted: Mapping[RunId, str]) -> list[tuple[RunId, Epoch, str]]:
        claimed = []
        for run_id in sorted(wanted.keys() & self.runs.keys()):
            row = self.runs[run_id]
            if row.owner is not None and row.wake_at is not None and row.wake_at > self.now_ms():
                continue  # it was taken over too often without getting anywhere: not yet
            taken_over, times = row.owner is not None, row.recoveries
            row.checkpoint()
            row.epoch, row.owner, row.wake_at = row.epoch + 1, wanted[run_id], None
            row.recoveries = times + 1 if taken_over else 0
            if taken_over and times >= FREE_TAKEOVERS:
                pause_s = min(TAKEOVER_PAUSE_S * 2 ** min(times - FREE_TAKEOVERS, 30), TAKEOVER_PAUSE_MAX_S)
                row.wake_at = self.now_ms() + int(pause_s * 1000)
            claimed.append((run_id, Epoch(row.epoch), wanted[run_id]))
        return claimed

    def load(self, claimed: Sequence[tuple[RunId, Epoch, str]]) -> tuple[list[tuple[Run, Epoch]], int]:
        return [(self.runs[run_id].read(), epoch) for run_id, epoch, _ in claimed], self.now_ms()

    def release(self, given: Sequence[tuple[RunId, Epoch, str, int | None, int]]) -> set[RunId]:
        moved = set()
        for run_id, epoch, owner, wake_at, last_seq in given:
            if self.holds(run_id, epoch, owner) and self.runs[run_id].last_seq == last_seq:
                row = self.runs[run_id]
                row.checkpoint()
                row.owner, row.recoveries = None, 0
                row.wake_at = self.now_ms() if self.waits_in_vain(row) else wake_at
                moved.add(run_id)
        return moved

    def waits_in_vain(self, row: RunRow) -> bool:
        """Whether the run is paused for a hold that is over."""
        return row.head.paused_reason == "held" and not self.authority.rules.holding(row.head.user_id)

    def behind(self, known: Sequence[Known]) -> set[RunId]:
        """Runs of which an owner knows more than stands here. This server loses nothing, so there are none."""
        rows = [(one, self.runs[one.run_id]) for one in known]
        lost = {one.run_id for one, row in rows if row.epoch < one.epoch or row.last_seq < one.last_seq}
        self.refused += [f"{run_id} is said to have lost commits" for run_id in lost]
        return lost

    def holds(self, run_id: RunId, epoch: int, owner: str) -> bool:
        """Whether nobody has claimed the run since."""
        row = self.runs.get(run_id)
        return row is not None and (row.epoch, row.owner) == (epoch, owner)

    def passes(self, one: Transition, tail: Tail | None) -> bool:
        """The fence: WHERE id, epoch, owner, last_seq; and with a tail that its newest page is there."""
        if not self.holds(one.run_id, one.epoch, one.owner):
            return False
        row = self.runs[one.run_id]
        written_seq = one.expected_seq if tail is None else tail.written_seq
        return row.head.last_seq == written_seq and (tail is None or tail.page in row.moments)

    def follows(self, one: Transition, page: int) -> bool:
        """The fence of an append: WHERE id, epoch, owner; and that the page before it is there."""
        return self.holds(one.run_id, one.epoch, one.owner) and page in self.runs[one.run_id].moments

    def authorized(self, batch: Sequence[Transition]) -> bool:
        """The other fence: the oldest version that any of them names must be the one that stands."""
        named = min((one.authority for one in batch if one.authority is not None), default=None)
        return named in (None, self.authority.version)

    def commit(self, batch: Sequence[Transition], tail: Tail | None = None) -> int | None:
        """One statement: where all pass the fences all is written. Answers now; None: one did not, nothing is."""
        tails = [tail if tail is not None and not tail.empty and tail.precedes(one) else None for one in batch]
        if not (self.authorized(batch) and all(map(self.passes, batch, tails))):
            return None
        if any(event.seq in self.runs[one.run_id].moments for one in batch for event in one.events):
            return None  # the key of the pages
        for one, before in zip(batch, tails, strict=True):
            self._write(one, one if before is None else before.carried_by(one))
        return self.now_ms()

    def append(self, one: Transition, changes: str, page: int) -> int | None:
        """As ``commit``, to the log alone."""
        if not (self.follows(one, page) and self.authorized([one])):
            return None
        row = self.runs[one.run_id]
        if one.events[0].seq in row.moments:
            return None
        row.tail.append((one, decode(changes)))
        self._log(row, one)
        return self.now_ms()

    def follow(self, run_id: RunId, epoch: int, owner: str, written_seq: int) -> int | None:
        """A checkpoint alone."""
        if not self.holds(run_id, epoch, owner) or self.runs[run_id].head.last_seq != written_seq:
            return None
        row = self.runs[run_id]
        row.checkpoint()
        row.recoveries, row.wake_at = 0, None
        return row.head.last_seq

    def _write(self, one: Transition, rows: Transition) -> None:
        row = self.runs[one.run_id]
        if row.head.status in TERMINAL and row.head.status != one.run.status:
            self.refused.append(f"{one.run_id} was {row.head.status} for ever and became {one.run.status}")
        row.head, row.last_at, row.recoveries, row.wake_at, row.tail = one.run, one.at, 0, None, []
        row.steps.update({step.step_index: step for step in rows.steps})
        row.attempts.update({(a.attempt.step_index, a.attempt.index): a.attempt for a in rows.attempts})
        for place in one.approvals:
            row.approvals.setdefault((place.step_index, place.revision), []).append((self.moment(), place))
        self._log(row, one)
        decided = {verdict.command_id: verdict for verdict in one.verdicts}
        for command in row.commands:
            if command.command.id in decided:
                command.verdicts.append((decided[command.command.id], one))

    def _log(self, row: RunRow, one: Transition) -> None:
        known = {event.seq for event, _ in row.log}
        self.refused += [f"{one.run_id} has two events {e.seq}" for e in one.events if e.seq in known]
        row.intents += [
            Intent(
                a.attempt.req_id,
                a.attempt.step_index,
                a.arguments,
                one.authority,
                self.authority.version,
                self.moment(),
            )
            for a in one.attempts
            if a.arguments is not None
        ]
        row.log += [(event, one.at) for event in one.events]
        row.moments.update((event.seq, self.moment()) for event in one.events)

    def open_commands(self, run_ids: Sequence[RunId]) -> dict[RunId, list[Command]]:
        found = {run_id: [c.command for c in self.runs[run_id].commands if not c.verdicts] for run_id in run_ids}
        return {run_id: commands for run_id, commands in found.items() if commands}

    def due(self, limit: int, but: Collection[RunId]) -> list[Due]:
        now = self.now_ms()
        waking = [(row.wake_at, i) for i, row in self.runs.items() if row.owner is None and row.wake_at is not None]
        found = [(at, run_id) for at, run_id in sorted(waking) if at <= now and run_id not in but][:limit]
        runs = ((at, run_id, self.runs[run_id]) for at, run_id in found)
        return [Due(i, Epoch(row.epoch), _moment(at), now, passive(row.read())) for at, i, row in runs]

    def sleep_on(self, looked_at: Sequence[tuple[Due, int | None]]) -> set[RunId]:
        moved = set()
        for one, wake_at in looked_at:
            row = self.runs[one.run_id]
            if row.owner is None and row.epoch == one.epoch and row.wake_at == _ms(one.wake_at):
                row.wake_at = wake_at
                moved.add(one.run_id)
        return moved

    def wake_waiting(self, agents: Collection[str] | None) -> None:
        for row in self.runs.values():
            step = row.head.step
            meant = agents is None or (step is not None and step.tool_config.agent_id in agents)
            if meant and row.owner is None and row.wake_at is not None:
                row.wake_at = self.now_ms()

    def wake_held(self) -> None:
        for row in self.runs.values():
            held = row.head.status == "paused" and row.head.paused_reason == "held"
            if held and row.owner is None and row.wake_at is None:
                row.wake_at = self.now_ms()

    def wake_asked(self) -> None:
        """Every one that asks anybody: more than the real one wakes, which is always allowed."""
        for row in self.runs.values():
            asks = row.head.status == "paused" and row.head.paused_reason == "awaiting_approval"
            if asks and row.owner is None:
                row.wake_at = self.now_ms()

    def owned(self, after: UUID, limit: int) -> list[RunId]:
        return sorted(run_id for run_id, row in self.runs.items() if row.owner is not None and run_id > after)[:limit]

    def owned_by(self, nodes: Sequence[str], limit: int) -> list[RunId]:
        rows = sorted(self.runs.items(), key=lambda item: item[1].last_at)
        return [run_id for run_id, row in rows if row.owner is not None and row.owner.split("/")[0] in nodes][:limit]

    def commanded(self, older_than_s: float, limit: int) -> list[RunId]:
        since = self.now_ms() - older_than_s * 1000
        waiting = [(c.created_at, i) for i, row in self.runs.items() for c in row.commands if not c.verdicts]
        oldest: dict[RunId, int] = {}
        for at, run_id in sorted(waiting):
            oldest.setdefault(run_id, at)
        return [run_id for run_id, at in oldest.items() if at < since][:limit]


class Claims:
    """Doubles ``daemon.store.claims.Claims``."""

    def __init__(self, connection: Connection[Postgres]) -> None:
        self._line, self._server = connection.line, connection.server

    async def claim(self, wanted: Mapping[RunId, str]) -> tuple[list[tuple[Run, Epoch]], int]:
        claimed = await self._line.ask("claim", lambda: self._server.claim(wanted))
        if not claimed:
            return [], 0
        return await self._line.ask("load", lambda: self._server.load(claimed))

    async def release(self, given: Sequence[tuple[RunId, Epoch, str, int | None, int]]) -> set[RunId]:
        return await self._line.ask("release", lambda: self._server.release(given))

    async def park_lost(self, known: Sequence[Known]) -> set[RunId]:
        return await self._line.ask("park lost", lambda: self._server.behind(known))

    async def still_held(self, held: Sequence[tuple[RunId, str, Epoch]]) -> set[RunId]:
        server = self._server
        return await self._line.ask(
            "still held", lambda: {i for i, owner, epoch in held if server.holds(i, epoch, owner)}
        )

    async def open_commands(self, run_ids: Sequence[RunId]) -> dict[RunId, list[Command]]:
        return await self._line.ask("open commands", lambda: self._server.open_commands(run_ids))

    async def wake_waiting(self, agents: Collection[str] | None = None) -> None:
        await self._line.ask("wake waiting", lambda: self._server.wake_waiting(agents))

    async def owned(self, after: UUID, limit: int) -> list[RunId]:
        return await self._line.ask("owned", lambda: self._server.owned(after, limit))

    async def owning_nodes(self) -> list[str]:
        rows = self._server.runs.values()
        return await self._line.ask(
            "owning nodes", lambda: sorted({row.owner.split("/")[0] for row in rows if row.owner})
        )

    async def owned_by(self, nodes: Sequence[str], limit: int) -> list[RunId]:
        return await self._line.ask("owned by", lambda: self._server.owned_by(nodes, limit))

    async def commanded(self, older_than_s: float, limit: int) -> list[RunId]:
        return await self._line.ask("commanded", lambda: self._server.commanded(older_than_s, limit))

    async def ensure_partitions(self, months_ahead: int) -> int:
        return await self._line.ask("partitions", lambda: 0)


class PassiveRuns:
    """Doubles ``daemon.store.passive.PassiveRuns``."""

    def __init__(self, connection: Connection[Postgres]) -> None:
        self._line, self._server = connection.line, connection.server

    async def due(self, limit: int, but: Collection[RunId] = ()) -> list[Due]:
        without = set(but)
        return await self._line.ask("due", lambda: self._server.due(limit, without))

    async def sleep_on(self, looked_at: Sequence[tuple[Due, int | None]]) -> set[RunId]:
        if not looked_at:
            return set()
        return await self._line.ask("sleep on", lambda: self._server.sleep_on(looked_at))


class Poison:
    """Doubles ``daemon.store.poison.Poison``: no letter here is one that nobody can take."""

    def __init__(self, connection: Connection[Postgres]) -> None:
        self._line, self._server = connection.line, connection.server

    async def keep(self, letters: Iterable[tuple[RunId, bytes, str]]) -> None:
        told = [f"{run_id}: a letter was set aside: {why}" for run_id, _, why in letters]
        await self._line.ask("set aside", lambda: self._server.refused.extend(told))


class Runs:
    """Doubles of ``daemon.store.runs.Runs`` what creates a run."""

    def __init__(self, connection: Connection[Postgres]) -> None:
        self._line, self._server = connection.line, connection.server

    async def create(self, *, origin: object, **columns: Any) -> None:
        await self._line.ask("create", lambda: self._server.create(**columns))


class Lane(journal.Lane):
    """The store's own lane, with its statements answered by the double. A lost answer raises an OSError."""

    def __init__(self, connection: Connection[Postgres]) -> None:
        super().__init__("in memory", monotonic=lambda: asyncio.get_running_loop().time() / SLOWER)
        self._line, self._server = connection.line, connection.server

    async def _append(self, connection: object, one: Transition, changes: str, page: int) -> int:
        return _passed(await self._line.ask("commit", lambda: self._server.append(one, changes, page)))

    async def _follow(self, connection: object, tail: Tail) -> int | None:
        last, before = tail.last, tail.written_seq
        asked = self._line.ask("commit", lambda: self._server.follow(last.run_id, last.epoch, last.owner, before))
        return await asked

    async def _write(self, connection: object, batch: Sequence[Transition]) -> int:
        tail = self._tail
        return _passed(await self._line.ask("commit", lambda: self._server.commit(batch, tail)))

    async def _connected(self) -> Any:
        return self

    def _drop(self) -> None:
        pass

    async def fetch(self, statement: str, run_ids: Sequence[RunId]) -> list[dict[str, Any]]:
        assert statement == WHERE_IT_STANDS, "the lane asks nothing else"
        return await self._line.ask(
            "where it stands", lambda: [self._stand(i) for i in run_ids if i in self._server.runs]
        )

    def _stand(self, run_id: RunId) -> dict[str, Any]:
        row = self._server.runs[run_id]
        place = {"id": run_id, "epoch": row.epoch, "owner": row.owner, "last_seq": row.last_seq}
        place |= {"written_seq": row.head.last_seq}
        return place | {"now_ms": self._server.now_ms(), "authority": self._server.authority.version}


def _passed(now_ms: int | None) -> int:
    if now_ms is None:
        raise journal.Fenced("a run is not as its owner knew it")
    return now_ms
