"""A v0 database, as v0 made it, and runs in every state that it left them in. For ``test_import_v0``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg

DDL = """
CREATE TABLE workflows (
    id uuid PRIMARY KEY, user_id text NOT NULL, title text NOT NULL, description text, spec_json jsonb NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL);
CREATE TABLE workflow_runs (
    id uuid PRIMARY KEY, workflow_id uuid NOT NULL, user_id text NOT NULL, status text NOT NULL, paused_reason text,
    current_step_index integer NOT NULL DEFAULT 0, started_at timestamptz, finished_at timestamptz,
    last_activity_at timestamptz, error_code text, error_message text, workflow_snapshot jsonb NOT NULL,
    steps_state jsonb, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL);
CREATE TABLE workflow_run_events (
    id uuid PRIMARY KEY, run_id uuid NOT NULL, seq integer NOT NULL, event_type text NOT NULL, payload json NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL);
CREATE INDEX ON workflow_run_events (run_id, seq);
"""
AT = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)
Event = tuple[str, dict[str, Any]]


def spec(*tools: str, title: str = "From v0", **more: Any) -> dict[str, Any]:
    """A spec of steps s0, s1 … that call these tools, with the nulls that v0's models wrote; ``tool!`` is manual."""
    steps = [
        {
            "id": f"s{number}",
            "name": f"Step {number}",
            "type": "tool_call",
            "tool_config": {
                "agent_id": "agent-1",
                "tool_name": tool.rstrip("!"),
                "arguments": {},
                "timeout_ms": None,
                "stream": None,
            },
            "approval_policy": "manual" if tool.endswith("!") else "auto",
            "on_error": "stop",
        }
        for number, tool in enumerate(tools)
    ]
    return {"title": title, "description": None, "variables": None, "steps": steps, **more}


def about(step: int, **more: Any) -> dict[str, Any]:
    return {"step_id": f"s{step}", "current_step_index": step, **more}


def call(step: int, attempt: int = 0, *, state: str | None = "done", req_id: str | None = None) -> list[Event]:
    """The events of one call; ``state`` None: it never came to an end."""
    name = {"step_id": f"s{step}", "req_id": req_id or str(uuid4()), "attempt_index": attempt}
    events: list[Event] = [
        ("step.progress", about(step, status="running", attempt_index=attempt)),
        ("tool.status", name | {"state": "running"}),
        ("tool.log", name | {"channel": "stdout", "data": "a line\n", "dropped_bytes": 0, "dropped_lines": 0}),
    ]
    if state is None:
        return events
    fault = None if state == "done" else {"code": "tool_call_failed", "message": "it broke"}
    verdict = {"state": state, "ok": state == "done", "canceled": False, "exit_code": 0, "error": fault}
    events.append(("tool.result", name | verdict | {"duration_ms": 5, "result_preview": '{"content":[]}'}))
    if state == "done":
        return [*events, ("step.completed", about(step))]
    events.append(("step.progress", about(step, status="failed", attempt_index=attempt)))
    return [*events, ("step.paused", about(step, paused_reason="step_failed"))]


def waits(step: int) -> Event:
    return ("step.paused", about(step, paused_reason="awaiting_approval"))


@dataclass(slots=True)
class V0:
    """The database at ``url``; each method answers the id of what it wrote."""

    url: str
    ids: list[UUID] = field(default_factory=list)

    def make(self) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(DDL)

    def workflow(self, made: dict[str, Any], *, title: str = "From v0", user: str = "ann") -> UUID:
        workflow_id = uuid4()
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "INSERT INTO workflows VALUES (%s, %s, %s, NULL, %s, %s, %s)",
                (workflow_id, user, title, json.dumps(made), AT, AT),
            )
        return workflow_id

    def run(
        self,
        made: dict[str, Any],
        events: Sequence[Event] = (),
        *,
        status: str = "running",
        reason: str | None = None,
        index: int = 0,
        seqs: Sequence[int] | None = None,
        workflow_id: UUID | None = None,
        run_id: UUID | None = None,
    ) -> UUID:
        run_id = run_id or uuid4()
        end = AT + timedelta(minutes=5) if status in ("completed", "failed", "canceled") else None
        head = (run_id, workflow_id or uuid4(), "ann", status, reason, index, AT, end, AT, None, None)
        numbers = seqs or range(1, len(events) + 1)
        with psycopg.connect(self.url) as connection:
            connection.execute(
                "INSERT INTO workflow_runs VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, '{}', %s, %s)",
                (*head, json.dumps(made), AT, AT),
            )
            for place, (number, (kind, payload)) in enumerate(zip(numbers, events, strict=True)):
                at = AT + timedelta(seconds=place)
                body = json.dumps({"type": kind, "run_id": str(run_id), **payload})
                connection.execute(
                    "INSERT INTO workflow_run_events VALUES (%s, %s, %s, %s, %s, %s, %s)",
                    (uuid4(), run_id, number, kind, body, at, at),
                )
        self.ids.append(run_id)
        return run_id
