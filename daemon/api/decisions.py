"""What people decide about a run: resume, approve, reject, skip, mark done, cancel, and what became of a command.

A handler decides nothing: it writes the person's word down as a command row, with the pause it saw, rings the run, and
waits a bounded time for the actor's verdict: applied → 200 with the run, refused → 409 with the reason, undecided →
202 with the command's URL. Of a call that waits for approval, whoever may not decide is told so before anything else
(``rights``).
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from typing import Annotated, Any, Literal
from uuid import UUID

import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import BeforeValidator, Field

from daemon import telemetry
from daemon.api.context import ATTEMPT, CALLER, CONTEXT, ORIGIN
from daemon.api.intake import Body, Id
from daemon.api.refusals import attempted
from daemon.api.repeats import Repeatable, once
from daemon.api.rights import require_right
from daemon.api.runs import RunPath, answer_run, missing_run, seen_head
from daemon.api.schemas import schema_faults
from daemon.api.shapes import json_response, moment
from daemon.errors import Conflict, Forbidden, Invalid, NotFound
from daemon.faults import MAX_FAULTS
from daemon.machine.commands import CommandId, CommandKind, RunId
from daemon.machine.decide_approval import FORBIDDEN
from daemon.machine.spec import Name, rounded
from daemon.store.meant import About
from daemon.store.once import Repeated

Text = Annotated[str, Field(max_length=2000)]


class CommandPath(RunPath):
    command_id: Id


class ResumeBody(Body):
    confirm: Literal["run_again"] | None = None


class CancelBody(Body):
    reason: Text | None = None


Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$", description="Of the revision that you saw.")]


class ApproveBody(Body):
    step_id: Name
    digest: Digest | None = Field(None, description="Required with a quorum, `allow_edit` or high risk.")
    comment: Text | None = None


class RejectBody(Body):
    step_id: Name
    digest: Digest | None = None
    reason: Text | None = None


class EditBody(Body):
    step_id: Name
    digest: Digest | None = None
    arguments: dict[str, Any] = Field(description="In the place of all the arguments that the call had.")
    comment: Text | None = None


class SkipBody(Body):
    step_id: Name
    reason: Text | None = None


_SAYS_SOMETHING = r"[^\s\x00-\x1f]"
"""What a note has at least one of: neither a blank nor a control character."""


def _says_something(note: object) -> object:
    if isinstance(note, str) and not re.search(_SAYS_SOMETHING, note):
        raise ValueError("say what you saw: it stands in the log as the evidence that the step is done")
    return note


Note = Annotated[str, Field(min_length=1, max_length=2000, pattern=_SAYS_SOMETHING), BeforeValidator(_says_something)]


class MarkDoneBody(Body):
    step_id: Name
    note: Note


async def resume(request: web.Request, path: RunPath, headers: Repeatable, body: ResumeBody) -> web.Response:
    """Continue a paused run: retry what failed, or approve what waits (v0's manner)."""
    return await _decide(request, path, headers, "resume", body)


async def approve(request: web.Request, path: RunPath, headers: Repeatable, body: ApproveBody) -> web.Response:
    """Agree to the call that waits; with the last of the quorum the step goes on."""
    await require_right(request, "approve", About(path.run_id, body.step_id), body.model_dump())
    return await _decide(request, path, headers, "approve", body, asked=True)


async def reject(request: web.Request, path: RunPath, headers: Repeatable, body: RejectBody) -> web.Response:
    """Refuse the step that waits: the run fails with approval_rejected, or goes on where on_error is continue."""
    await require_right(request, "reject", About(path.run_id, body.step_id), body.model_dump())
    return await _decide(request, path, headers, "reject", body, asked=True)


async def edit(request: web.Request, path: RunPath, headers: Repeatable, body: EditBody) -> web.Response:
    """Change the arguments of the call that waits, as its tool's input schema allows: a new revision, without votes."""
    await require_right(request, "edit", About(path.run_id, body.step_id), body.model_dump())
    view = await request.app[CONTEXT].runs.view(path.run_id, by=request[CALLER])
    if view is None:
        raise missing_run()
    faults = [*rounded(body.arguments, "/arguments"), *await schema_faults(request, view, body.step_id, body.arguments)]
    if faults:
        raise Invalid(faults=tuple(faults[:MAX_FAULTS]), code="invalid_arguments")
    return await _decide(request, path, headers, "edit", body, asked=True)


async def skip(request: web.Request, path: RunPath, headers: Repeatable, body: SkipBody) -> web.Response:
    """Leave the step behind that failed, or whose outcome nobody knows, and go on with the next."""
    return await _decide(request, path, headers, "skip", body)


async def mark_done(request: web.Request, path: RunPath, headers: Repeatable, body: MarkDoneBody) -> web.Response:
    """Say that the step's work is done, whatever the engine knows of it; the note stands in the log as evidence."""
    return await _decide(request, path, headers, "mark_done", body)


async def cancel(request: web.Request, path: RunPath, headers: Repeatable, body: CancelBody) -> web.Response:
    """End the run; a finished one is answered unchanged."""
    return await _decide(request, path, headers, "cancel", body, of=("running", "paused"))


async def command(request: web.Request, path: CommandPath) -> web.Response:
    """What became of a command."""
    head = await seen_head(request, path.run_id)
    row = await request.app[CONTEXT].commands.get(path.command_id, run_id=head.id)
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


async def _decide(
    request: web.Request,
    path: RunPath,
    headers: Repeatable,
    kind: CommandKind,
    body: Body,
    *,
    of: Collection[str] = ("paused",),
    asked: bool = False,
) -> web.Response:
    """A decision about the pause that stands as it is written down. Without a pause there is only ``cancel``.

    ``asked``: it is not only for whoever started the run, and admins, but for all who were asked about a call of it.
    """
    context, started = request.app[CONTEXT], time.monotonic()
    run_id, command_id = RunId(path.run_id), CommandId(uuid7.uuid7())
    try:
        status = await context.commands.say(
            command_id,
            kind,
            body.model_dump(exclude_none=True),
            run_id=run_id,
            by=request[CALLER],
            origin=request[ORIGIN],
            of=of,
            sees_pause=kind != "cancel",
            asked=asked,
            once=once(request, headers, body, str(command_id)),
        )
    except Repeated as first:  # said already: what is left is its verdict
        command_id = CommandId(UUID(first.made))
        return await _answer(request, run_id, command_id, started)
    if status is None:
        await seen_head(request, run_id)
        raise Forbidden(
            "The run is another's: you may see it and decide what you are asked, no more.", code="not_your_run"
        )
    if status not in of:
        if kind == "cancel":
            return await answer_run(request, run_id)
        request[ATTEMPT] = attempted(kind, run_id, body.model_dump())
        raise Conflict(f"The run is {status}, not paused.", code="not_paused")
    context.bell.ring(run_id)
    return await _answer(request, run_id, command_id, started)


async def _answer(request: web.Request, run_id: RunId, command_id: CommandId, started: float) -> web.Response:
    """The verdict, if it comes in time."""
    context = request.app[CONTEXT]
    decided = await context.verdicts.of([command_id], within_s=context.settings.verdict_wait_s)
    if not decided:
        return await answer_run(request, run_id, status=202, headers={"Location": command_url(run_id, command_id)})
    telemetry.verdict_seconds.observe(time.monotonic() - started)
    if decided[0].verdict == "refused":
        refusal = Forbidden if decided[0].code in FORBIDDEN else Conflict
        raise refusal(decided[0].message, code=decided[0].code or "conflict")
    return await answer_run(request, run_id)
