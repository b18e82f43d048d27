"""The inbox: what waits for whose word, and several words at once. Nothing here decides; each word is a command."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import orjson
import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import ConfigDict, Field

from daemon.api.bulk import add_verdicts
from daemon.api.context import CALLER, CONTEXT, ORIGIN
from daemon.api.decisions import Digest, Text, command_url
from daemon.api.intake import Body, Id
from daemon.api.pages import PageQuery, page_until
from daemon.api.refusals import attempted, note_refused
from daemon.api.repeats import Repeatable, once
from daemon.api.rights import NOT_AN_APPROVER, Weighed, weigh
from daemon.api.shapes import json_response, terms_shape, vote_shape
from daemon.auth.caller import Origin
from daemon.machine.approval import needs_digest
from daemon.machine.commands import CommandId
from daemon.machine.ground import Traits
from daemon.machine.spec import Name, StepSpec
from daemon.store.approvals import Request, Waited
from daemon.store.commands import NewCommand
from daemon.store.meant import About
from daemon.store.once import Repeated
from daemon.store.runs import RunHead
from daemon.store.workflows import Place

MOST = 100
"""Decisions of one request."""


class Refusal(NamedTuple):
    """Why an item never becomes a command."""

    code: str
    message: str


UNSEEN = Refusal("not_found", "You see no run with this id.")


class Word(Body):
    """One decision of a batch."""

    model_config = ConfigDict(extra="forbid")

    run_id: Id
    step_id: Name
    decision: Literal["approve", "reject"]
    digest: Digest | None = None
    comment: Text | None = Field(None, description="Of an approval its comment, of a rejection its reason.")


class Batch(Body):
    """Body of ``POST /v1/approvals/decide``: a run stands in it once."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[Word], Field(min_length=1, max_length=MOST)]


async def listed(request: web.Request, query: PageQuery) -> web.Response:
    """What waits for you, oldest first. A page ends early where its calls are larger than 1 MiB together."""
    place = query.place
    after = None if place is None else Waited(_ms(place.created_at), place.id)
    found = await request.app[CONTEXT].approvals.waiting_for(request[CALLER], after=after, limit=query.limit)
    end = None if found.end is None else Place(_moment(found.end.opened_at_ms), found.end.run_id)
    return page_until(end, [_shape(one) for one in found.requests])


async def decide(request: web.Request, headers: Repeatable, body: Batch) -> web.Response:
    """Approve or reject several calls, each for itself; 200 with an item for each, applied or not."""
    context = request.app[CONTEXT]
    weighed = await weigh(request, [About(word.run_id, word.step_id) for word in body.items])
    items: list[dict[str, Any]] = []
    commands: dict[UUID, NewCommand] = {}
    for word, one in zip(body.items, weighed, strict=True):
        item: dict[str, Any] = {"run_id": str(word.run_id), "outcome": "refused", **UNSEEN._asdict()}
        if one is not None:
            item |= {"status": one.head.status, "paused_reason": one.head.paused_reason}
            refusal = _refusal(one, twice=word.run_id in commands)
            if refusal is None:
                commands[word.run_id] = command = _command(word, one.head, request[ORIGIN])
                url = command_url(one.head.id, command.id)
                item |= {"outcome": "undecided", "code": None, "message": None, "command": url}
            else:
                item |= refusal._asdict()
        items.append(item)
    answer: dict[str, Any] = {"items": items}
    try:
        await context.commands.add(*commands.values(), once=once(request, headers, body, answer))
    except Repeated as first:
        answer = first.made
    else:
        context.bell.ring(*(command.run_id for command in commands.values()))
        await _note_refused(request, body, weighed, items)
    await add_verdicts(context, answer["items"])
    return json_response(answer)


def _refusal(one: Weighed, *, twice: bool) -> Refusal | None:
    if one.forbids is not None:
        return Refusal(NOT_AN_APPROVER, one.forbids)
    if twice:
        return Refusal("named_twice", "The run stands in this batch already: that word is the one that counts.")
    if one.head.status != "paused":
        return Refusal("not_paused", f"The run is {one.head.status}, not paused.")
    return None


def _command(word: Word, head: RunHead, origin: Origin) -> NewCommand:
    return NewCommand(
        id=CommandId(uuid7.uuid7()),
        run_id=head.id,
        kind=word.decision,
        payload=_payload(word),
        seen_seq=head.paused_seq,
        origin=origin,
    )


def _payload(word: Word) -> dict[str, Any]:
    said = {"step_id": word.step_id, "digest": word.digest}
    said["comment" if word.decision == "approve" else "reason"] = word.comment
    return {name: value for name, value in said.items() if value is not None}


async def _note_refused(
    request: web.Request, body: Batch, weighed: Sequence[Weighed | None], items: Sequence[dict[str, Any]]
) -> None:
    """What was refused here is a line each, as if it had been said alone; what became a command is the journal's.

    What the caller does not see is no line, as everywhere.
    """
    for word, one, item in zip(body.items, weighed, items, strict=True):
        if one is not None and item["outcome"] == "refused":
            agent_id = one.agent_id if one.forbids is not None else None
            deed = attempted(word.decision, word.run_id, _payload(word), agent_id=agent_id)
            await note_refused(request, deed, code=item["code"], message=item["message"])


def _shape(one: Request) -> dict[str, Any]:
    step = StepSpec.model_validate(orjson.loads(one.step))
    terms = orjson.loads(one.terms)
    return {
        "run_id": str(one.run_id),
        "title": one.title,
        "started_by": one.user_id,
        "step_id": step.id,
        "step_name": step.name,
        "step_index": one.step_index,
        "revision": one.revision,
        "digest": one.digest,
        "agent_id": one.agent_id,
        "tool_name": one.tool_name,
        "schema_hash": one.schema_hash,
        "arguments": orjson.Fragment(one.arguments) if one.arguments is not None else step.tool_config.arguments,
        **terms_shape(terms),
        "approvers": one.approvers,
        "votes": [vote_shape(vote) for vote in orjson.loads(one.votes)],
        "forbid_self": step.terms.forbid_self,
        "allow_edit": step.terms.allow_edit,
        "needs_digest": needs_digest(step.terms, Traits(**terms["traits"])),
        "on_expiry": step.terms.on_expiry,
        "instructions": step.terms.instructions,
        "opened_at": one.opened_at_ms,
        "age_ms": max(0, one.now_ms - one.opened_at_ms),
        "expires_at": one.expires_at_ms,
        "expired_at": one.expired_at_ms,
        "edited_by": one.edited_by,
    }


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
