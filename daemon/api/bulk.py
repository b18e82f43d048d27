"""One decision about many runs: cancel, resume or retry what a filter means, with a result for each of them.

Every item is a command of its own, on disk before it is acknowledged and decided by its run's actor; this handler only
writes them all down in one statement and waits a bounded time for their verdicts. Nothing is approved in bulk here:
a step that waits for approval is decided by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import ConfigDict, Field, model_validator

from daemon.api.context import CALLER, CONTEXT, ORIGIN, Context
from daemon.api.decisions import Text, command_url
from daemon.api.intake import Body, Id
from daemon.api.repeats import Repeatable, once
from daemon.api.selection import Selection
from daemon.api.shapes import json_response
from daemon.auth.caller import Origin
from daemon.machine.commands import CommandId, CommandKind
from daemon.machine.events import PausedReason
from daemon.store.commands import NewCommand
from daemon.store.matching import Filter
from daemon.store.once import Repeated
from daemon.store.runs import RunHead

MOST = 500
"""Runs of one request; what the filter means beside them is told by ``more``."""

RESUMABLE: frozenset[PausedReason] = frozenset(
    {"step_failed", "outcome_unknown", "engine_interrupted", "agent_unauthorized"}
)
RETRYABLE: frozenset[PausedReason] = frozenset({"step_failed", "outcome_unknown"})


class RunFilter(Selection):
    """Which runs; at least one field, and no empty list, so that nobody cancels everything by asking for nothing."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    run_ids: Annotated[list[Id], Field(min_length=1, max_length=MOST)] | None = None

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("name at least one thing that the runs have in common")
        return self


class BulkBody(Body):
    """Body of ``POST /v1/workflow-runs/bulk``. ``resume`` means every pause but an approval, ``retry`` failed steps."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["cancel", "resume", "retry"]
    filter: RunFilter
    reason: Text | None = None
    confirm: Literal["run_again"] | None = None
    limit: Annotated[int, Field(ge=1, le=MOST)] = MOST
    dry_run: bool = False


async def decide(request: web.Request, headers: Repeatable, body: BulkBody) -> web.Response:
    """Submit the action for each run that the filter means; 200 with an item for each, applied or not."""
    context, user = request.app[CONTEXT], request[CALLER].user_id
    found = await context.runs.matching(_filter(body), user_id=user, limit=body.limit + 1)
    heads, more = found[: body.limit], len(found) > body.limit
    items: dict[UUID, dict[str, Any]] = {head.id: _item(head) for head in heads}
    fitting = [head for head in heads if _fits(head, body.action, items[head.id])]
    commands = [] if body.dry_run else [_command(head, body, request[ORIGIN]) for head in fitting]
    for command in commands:
        items[command.run_id]["command"] = command_url(command.run_id, command.id)
    for named in body.filter.run_ids or () if not more else ():
        items.setdefault(named, _missing(named))
    answer: dict[str, Any] = {"action": body.action, "items": list(items.values()), "more": more}
    if not body.dry_run:
        try:
            await context.commands.add(*commands, once=once(request, headers, body, answer))
        except Repeated as first:
            answer = first.made
        else:
            context.bell.ring(*(command.run_id for command in commands))
        await add_verdicts(context, answer["items"])
        if body.action == "cancel":
            await _say_too_late(context, user, answer["items"])
    return json_response(answer)


def _filter(body: BulkBody) -> Filter:
    """The filter in the store's words; runs named by id are answered for one by one, whatever their state."""
    wanted = body.filter
    statuses: Sequence[str] | None = wanted.status
    reasons: Sequence[str] | None = wanted.paused_reason
    if wanted.run_ids is None:
        statuses = statuses or (["running", "paused"] if body.action == "cancel" else ["paused"])
        if body.action != "cancel":
            reasons = reasons or sorted(RESUMABLE if body.action == "resume" else RETRYABLE)
    return wanted.filter(run_ids=wanted.run_ids, statuses=statuses, paused_reasons=reasons)


def _item(head: RunHead) -> dict[str, Any]:
    """An item before anything was said: undecided."""
    item = {"run_id": str(head.id), "status": head.status, "paused_reason": head.paused_reason}
    return item | {"outcome": "undecided", "code": None, "message": None}


def _missing(run_id: UUID) -> dict[str, Any]:
    why = {"code": "not_found", "message": "No run of yours has this id and fits the rest of the filter."}
    return {"run_id": str(run_id), "outcome": "refused"} | why


def _fits(head: RunHead, action: str, item: dict[str, Any]) -> bool:
    """Whether the action is about this run at all; if not, its item says why."""
    if action == "cancel":
        if head.terminal:
            item |= _ended(head)
        return not head.terminal
    if head.status != "paused":
        item |= {"outcome": "refused", "code": "not_paused", "message": f"The run is {head.status}, not paused."}
        return False
    if head.paused_reason not in (RESUMABLE if action == "resume" else RETRYABLE):
        message = f"The run is paused as {head.paused_reason}, which {action} is not about."
        item |= {"outcome": "refused", "code": f"not_to_{action}", "message": message}
        return False
    return True


def _ended(head: RunHead) -> dict[str, Any]:
    return {"status": head.status, "outcome": "unchanged", "message": f"The run is {head.status} already."}


async def _say_too_late(context: Context, user: str, items: list[dict[str, Any]]) -> None:
    """A cancel is never refused: of a run that had ended by then its item says so."""
    applied = {UUID(item["run_id"]): item for item in items if item["outcome"] == "applied"}
    if applied:
        ended = Filter(run_ids=list(applied), statuses=["completed", "failed"])
        for head in await context.runs.matching(ended, user_id=user, limit=len(applied)):
            applied[head.id] |= _ended(head)


def _command(head: RunHead, body: BulkBody, origin: Origin) -> NewCommand:
    kind: CommandKind = "cancel" if body.action == "cancel" else "resume"
    said = {"reason": body.reason} if kind == "cancel" else {"confirm": body.confirm}
    return NewCommand(
        id=CommandId(uuid7.uuid7()),
        run_id=head.id,
        kind=kind,
        payload={key: value for key, value in said.items() if value is not None},
        seen_seq=None if kind == "cancel" else head.paused_seq,
        origin=origin,
    )


async def add_verdicts(context: Context, items: list[dict[str, Any]]) -> None:
    """To each item that has a command, its verdict, if it comes within the wait."""
    waiting = {UUID(item["command"].rpartition("/")[2]): item for item in items if "command" in item}
    if waiting:
        for row in await context.verdicts.of(list(waiting), within_s=context.settings.verdict_wait_s):
            waiting[row.id] |= {"outcome": row.verdict, "code": row.code, "message": row.message}
