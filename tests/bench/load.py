"""Runs for measurements: made in bulk as the API would leave them, carried at a given number in flight, or cloned.

Making runs is not what is measured, but it happens inside the measured time: one statement and one pipeline for all
runs that may begin now. Used by every module that measures; nothing here judges.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
import uuid_utils.compat as uuid7

from tests.bench.stack import AGENT, USER, Place

LOOK_S = 0.005
STUCK_S = 60.0
"""A load that makes no progress for so long has failed."""
CREATE = """
WITH given AS (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bytea[]) AS t(id, command_id, nonce)),
runs AS (
    INSERT INTO workflow_runs (id, workflow_id, user_id, status, nonce, wake_at)
    SELECT id, $4, $6, 'running', nonce, now() + interval '1 hour' FROM given
), specs AS (
    INSERT INTO workflow_run_specs (run_id, snapshot) SELECT id, $5::text::json FROM given
)
INSERT INTO workflow_run_commands (id, run_id, kind, issued_by) SELECT command_id, id, 'start', $6 FROM given
"""
COMPLETED = "SELECT count(*) FROM workflow_runs WHERE id = ANY($1::uuid[]) AND status = 'completed'"
STANDING = "SELECT status, paused_reason, count(*) FROM workflow_runs GROUP BY 1, 2"
TABLES = ("specs", "steps", "attempts", "pages", "commands", "approvals")


@dataclass(frozen=True, slots=True)
class Carried:
    """What a load took: ``seconds`` until every run was committed as completed, ``gaps_ms`` between steps, CPU, RSS."""

    steps: int
    seconds: float
    gaps_ms: list[float]
    cpu_s: dict[str, float]
    rss_mb: dict[str, float]

    @property
    def rate(self) -> float:
        """Steps a second."""
        return self.steps / self.seconds


def spec(steps: int, *, hold_ms: int = 0, chunk_bytes: int = 0, **first: Any) -> dict[str, Any]:
    """A spec of so many steps; ``first`` changes the first of them (``approval_policy="manual"``)."""
    asked = {name: value for name, value in (("hold_ms", hold_ms), ("chunk_bytes", chunk_bytes)) if value}
    made = []
    for number in range(steps):
        last = {"last": True} if number == steps - 1 else {}
        tool = {
            "agent_id": AGENT,
            "tool_name": "bench__echo",
            "arguments": asked | last,
            "timeout_ms": 600_000,
            "stream": True,
        }
        made.append(
            {
                "id": f"s{number}",
                "name": f"Step {number}",
                "type": "tool_call",
                "tool_config": tool,
                "approval_policy": "auto",
                "on_error": "stop",
            }
        )
    made[0] |= first
    return {"title": "bench", "description": None, "variables": {}, "steps": made}


async def make_runs(place: Place, count: int, of: dict[str, Any]) -> list[UUID]:
    """Runs with their start commands, offered to the nodes."""
    ids = [uuid7.uuid7() for _ in range(count)]
    nonces = [secrets.token_bytes(16) for _ in ids]
    commands = [uuid7.uuid7() for _ in ids]
    await place.sql.execute(CREATE, ids, commands, nonces, uuid7.uuid7(), orjson.dumps(of).decode(), USER)
    pipe = place.stack.redis.pipeline(transaction=False)
    for run_id in ids:
        pipe.xadd(place.keys.ready, {"r": run_id.hex})
    await pipe.execute()
    return ids


async def carry(place: Place, of: dict[str, Any], *, runs: int, inflight: int) -> Carried:
    """Carry runs of a spec, at most ``inflight`` at once. Raises TimeoutError when nothing moves any more.

    New runs are made when a twentieth of those in flight have finished, so that making them costs little.
    """
    stack = place.stack
    await stack.reset()
    ids: list[UUID] = []
    before = stack.usage()
    while len(ids) < runs:
        finished = max(0, len(ids) - inflight + max(1, inflight // 20)) if ids else 0
        await _finished(place, finished)
        ids += await make_runs(place, min(inflight - len(ids) + finished, runs - len(ids)), of)
    await _finished(place, runs)
    await until(place, COMPLETED, runs, ids)
    after = stack.usage()
    counted, steps = await stack.state(gaps=True), runs * len(of["steps"])
    if counted["calls"] != steps or counted["twice"]:
        raise AssertionError(f"{steps} steps took {counted['calls']} calls, {counted['twice']} of them twice")
    return Carried(steps, after.at - before.at, counted["gaps_ms"], after.since(before), after.rss_mb)


async def _finished(place: Place, runs: int) -> None:
    """Until so many runs are finished; TimeoutError when none has finished for a long time."""
    waiting = asyncio.ensure_future(place.stack.finished(runs))
    before = -1
    while not waiting.done():
        await asyncio.wait([waiting], timeout=STUCK_S)
        found = await place.sql.fetchval("SELECT sum(last_seq) FROM workflow_runs") if not waiting.done() else before
        if not waiting.done() and found == before:
            raise TimeoutError(f"no run moved for {STUCK_S:.0f} s: {await place.sql.fetch(STANDING)}")
        before = found
    await waiting


async def until(place: Place, query: str, wanted: int, *args: Any, within_s: float = STUCK_S) -> float:
    """Wait until a count is reached; answers the seconds. Raises TimeoutError."""
    began = time.monotonic()
    while (found := await place.sql.fetchval(query, *args)) < wanted:
        if time.monotonic() - began > within_s:
            raise TimeoutError(f"{found} instead of {wanted}: {query}")
        await asyncio.sleep(LOOK_S)
    return time.monotonic() - began


async def clone(place: Place, run_id: UUID, copies: int, *, page: int = 5000) -> list[UUID]:
    """Copies of a run with every row it has, each with ids of its own: what a node leaves, made by SQL alone."""
    columns = {table: await _columns(place, f"workflow_run_{table}") for table in TABLES}
    columns["runs"] = await _columns(place, "workflow_runs")
    made: list[UUID] = []
    while len(made) < copies:
        ids = [uuid7.uuid7() for _ in range(min(page, copies - len(made)))]
        await place.sql.execute("CREATE TEMP TABLE clones (run_id uuid, nonce bytea, tag text)")
        rows = [(one, secrets.token_bytes(16), secrets.token_hex(11)) for one in ids]
        await place.sql.copy_records_to_table("clones", records=rows)
        for table in ("runs", *TABLES):
            await place.sql.execute(_clone(table, columns[table]), run_id)
        await place.sql.execute("DROP TABLE clones")
        made += ids
    return made


def _clone(table: str, columns: Sequence[str]) -> str:
    """INSERT … SELECT of one table; what must be unique is new, all else is copied."""
    own, name = ("id", "workflow_runs") if table == "runs" else ("run_id", f"workflow_run_{table}")
    fresh = {own: "c.run_id", "nonce": "c.nonce", "req_id": "c.tag || t.step_index || '-' || t.attempt"}
    if table == "commands":
        fresh["id"] = "gen_random_uuid()"
    if table == "pages":
        fresh["events"] = "replace(t.events::text, $1::uuid::text, c.run_id::text)::json"
    chosen = ", ".join(fresh.get(column, f"t.{column}") for column in columns)
    return f"INSERT INTO {name} ({', '.join(columns)}) SELECT {chosen} FROM clones c, {name} t WHERE t.{own} = $1::uuid"


async def _columns(place: Place, table: str) -> list[str]:
    found = await place.sql.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position", table
    )
    return [row[0] for row in found]
