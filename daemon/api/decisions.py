"""What people decide about a run: resume, approve, reject, skip, mark done, cancel, and what became of a command.

A handler decides nothing: it writes the person's word down as a command row, with the pause it saw, rings the run, and
waits a bounded time for the actor's verdict: applied → 200 with the run, refused → 409 with the reason, undecided →
202 with the command's URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Annotated, Any, Literal

import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from daemon import telemetry
from daemon.api.context import CALLER, CONTEXT
from daemon.api.gate import parse, path_id, read_json
from daemon.api.runs import answer_run
from daemon.api.shapes import json_response, moment
from daemon.errors import Conflict, FabricUnavailable, NotFound
from daemon.machine.commands import CommandId, CommandKind, RunId
from daemon.machine.spec import Name
from daemon.store.commands import CommandRow, NewCommand
from daemon.store.runs import RunHead

LOOK_AGAIN_S = 0.5
"""Verdicts are told over the bus; in case a message is lost the row is read this often."""

Text = Annotated[str, Field(max_length=2000)]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class ResumeBody(Body):
    confirm: Literal["run_again"] | None = None


class CancelBody(Body):
    reason: Text | None = None


class ApproveBody(Body):
    step_id: Name


class RejectBody(Body):
    step_id: Name
    reason: Text | None = None


class SkipBody(Body):
    step_id: Name
    reason: Text | None = None


class MarkDoneBody(Body):
    step_id: Name
    note: Annotated[str, Field(min_length=1, max_length=2000)]


async def resume(request: web.Request) -> web.Response:
    """Continue a paused run: retry what failed, or approve what waits (v0's manner)."""
    body = parse(ResumeBody, await read_json(request, optional=True))
    return await _decide(request, "resume", body)


async def approve(request: web.Request) -> web.Response:
    """Let the step that waits go on."""
    return await _decide(request, "approve", parse(ApproveBody, await read_json(request)))


async def reject(request: web.Request) -> web.Response:
    """Refuse the step that waits: the run fails with approval_rejected, or goes on where on_error is continue."""
    return await _decide(request, "reject", parse(RejectBody, await read_json(request)))


async def skip(request: web.Request) -> web.Response:
    """Leave the step behind that failed, or whose outcome nobody knows, and go on with the next."""
    return await _decide(request, "skip", parse(SkipBody, await read_json(request)))


async def mark_done(request: web.Request) -> web.Response:
    """Say that the step's work is done, whatever the engine knows of it; the note stands in the log as evidence."""
    return await _decide(request, "mark_done", parse(MarkDoneBody, await read_json(request)))


async def cancel(request: web.Request) -> web.Response:
    """End the run; a finished one is answered unchanged."""
    head = await _head(request)
    body = parse(CancelBody, await read_json(request, optional=True))
    if head.terminal:
        return await answer_run(request, head.id)
    return await _submit(request, head, "cancel", body, seen_seq=None)


async def command(request: web.Request) -> web.Response:
    """What became of a command."""
    head = await _head(request)
    row = await request.app[CONTEXT].commands.get(path_id(request, "command_id"), run_id=head.id)
    if row is None:
        raise NotFound("There is no such command of this run.")
    return json_response(
        {
            "command_id": str(row.id),
            "run_id": str(row.run_id),
            "kind": row.kind,
            "created_at": moment(row.created_at),
            "verdict": row.verdict,
            "code": row.code,
            "message": row.message,
            "applied_seq": row.applied_seq,
        }
    )


def command_url(run_id: RunId, command_id: CommandId) -> str:
    """Where to ask what became of a command."""
    return f"/v1/workflow-runs/{run_id}/commands/{command_id}"


async def _head(request: web.Request) -> RunHead:
    context = request.app[CONTEXT]
    head = await context.runs.head(path_id(request, "run_id"), user_id=request[CALLER].user_id)
    if head is None:
        raise NotFound("There is no such run, or it is not yours.")
    return head


async def _decide(request: web.Request, kind: CommandKind, body: Body) -> web.Response:
    """A decision about the pause that this handler sees now. Without a pause there is nothing to decide."""
    head = await _head(request)
    if head.status != "paused":
        raise Conflict(f"The run is {head.status}, not paused.", code="not_paused")
    return await _submit(request, head, kind, body, seen_seq=head.paused_seq)


async def _submit(
    request: web.Request, head: RunHead, kind: CommandKind, body: Body, *, seen_seq: int | None
) -> web.Response:
    context = request.app[CONTEXT]
    command_id = CommandId(uuid7.uuid7())
    started = time.monotonic()
    async with context.feed.watch(head.id) as watcher:
        await context.commands.add(
            NewCommand(
                id=command_id,
                run_id=head.id,
                kind=kind,
                payload=body.model_dump(exclude_none=True),
                seen_seq=seen_seq,
                issued_by=request[CALLER].user_id,
            )
        )
        with contextlib.suppress(FabricUnavailable):  # it is on disk; without the bell the sweep finds it
            await context.inbox.ring(head.id)
        until = started + context.settings.verdict_wait_s
        row = await _verdict(request, head, command_id, until=until, watcher=watcher)
    if row is None or row.verdict is None:
        location = command_url(head.id, command_id)
        return await answer_run(request, head.id, status=202, headers={"Location": location})
    telemetry.verdict_seconds.observe(time.monotonic() - started)
    if row.verdict == "refused":
        raise Conflict(row.message, code=row.code or "conflict")
    return await answer_run(request, head.id)


async def _verdict(
    request: web.Request, head: RunHead, command_id: CommandId, *, until: float, watcher: Any
) -> CommandRow | None:
    """The command's row once decided; None when ``until`` (monotonic s) comes first."""
    commands = request.app[CONTEXT].commands
    wanted = str(command_id)
    look_at = time.monotonic() + LOOK_AGAIN_S
    while (now := time.monotonic()) < until:
        told = None
        with contextlib.suppress(TimeoutError):
            told = await watcher.next(max(0.001, min(until, look_at) - now))
        if (told is not None and wanted in told.decided) or time.monotonic() >= look_at:
            look_at = time.monotonic() + LOOK_AGAIN_S
            row = await commands.get(command_id, run_id=head.id)
            if row is not None and row.verdict is not None:
                return row
    await asyncio.sleep(0)
    return await commands.get(command_id, run_id=head.id)
