"""Everything that can be said to a run: commands of people, letters of Gateways and of our own dispatch.

The sealed table of contents of the engine's inputs. A *command* is a committed row and gets a verdict; a *letter*
names the attempt it speaks about (``req_id``) and gets none: what is stale is ignored or kept as evidence.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, NewType, TypeAlias
from uuid import UUID

from msgspec import Struct

RunId = NewType("RunId", UUID)
CommandId = NewType("CommandId", UUID)
Epoch = NewType("Epoch", int)
ReqId = NewType("ReqId", str)
Millis = NewType("Millis", int)
"""Epoch milliseconds of Postgres time."""

Urgency = Literal["s", "h", "c"]
"""How a run is rung: s, it may wait for company (ACK, CHUNK); h, now (RESULT); c, look at the command rows too."""

CommandKind = Literal["start", "approve", "reject", "edit", "resume", "skip", "mark_done", "cancel"]


class Who(Struct, frozen=True, kw_only=True, gc=False):
    """From where a person's word came: all of it from their token and its connection, never from a body."""

    roles: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    via: str | None = None
    """The service token that spoke for them."""
    address: str | None = None
    client: str | None = None


class Command(Struct, frozen=True, kw_only=True, gc=False):
    """One row of ``workflow_run_commands``: what a person (``issued_by``) wants of the run.

    ``seen_seq`` is the seq of the pause that the person's handler saw; None where no pause is concerned. ``who``: with
    which roles and groups they said it; nothing, of commands that were written down before this was kept.
    """

    id: CommandId
    kind: CommandKind
    seen_seq: int | None
    issued_by: str
    step_id: str | None = None
    confirm: str | None = None
    reason: str | None = None
    note: str | None = None
    digest: str | None = None
    """Of the revision that they saw, as they gave it."""
    comment: str | None = None
    arguments: str | None = None
    """JSON text: what an ``edit`` puts in the place of the call's arguments."""
    who: Who = Who()
    at: Millis | None = None
    """When it was written down; None: nobody knows, so it counts from when it is decided."""


class Mark(Struct, frozen=True, gc=False):
    """Where a letter stands among all letters of its ingest: (term of the holder, number within the term)."""

    term: int
    number: int


class Sent(Struct, frozen=True, kw_only=True, gc=False):
    """The Gateway answered 202: it wrote the call to the agent's socket. No proof that the agent saw it."""

    req_id: ReqId


class NotSent(Struct, frozen=True, kw_only=True, gc=False):
    """Proof that no agent saw the call. ``reason`` is a stable code, ``detail`` a sentence for people.

    ``tries`` is that of the ``Invoke`` it answers: the same attempt is sent again after a proof, and an old proof seen
    twice must not deny the newer call.
    """

    req_id: ReqId
    tries: int
    reason: str
    detail: str


class SendUncertain(Struct, frozen=True, kw_only=True, gc=False):
    """The call may have reached the agent: the answer was lost or says nothing."""

    req_id: ReqId
    reason: str
    detail: str


class Acked(Struct, frozen=True, kw_only=True, gc=False):
    """The agent received the call (``accepted``), or could not parse it (then no RESULT follows)."""

    req_id: ReqId
    accepted: bool
    reason: str | None = None


class Chunk(Struct, frozen=True, kw_only=True, gc=False):
    """Output of the running tool. ``dropped_*`` is what was lost since the previous chunk."""

    req_id: ReqId
    channel: str
    data: str
    dropped_bytes: int = 0
    dropped_lines: int = 0
    mark: Mark | None = None


class Result(Struct, frozen=True, kw_only=True, gc=False):
    """The RESULT envelope: what became of the call, as the agent tells it."""

    req_id: ReqId
    ok: bool
    canceled: bool = False
    error_code: str | None = None
    error_message: str | None = None
    exit_code: int | None = None
    result: Any = None


class CancelAcked(Struct, frozen=True, kw_only=True, gc=False):
    """The agent's answer to CANCEL: whether the call was active and is being stopped."""

    req_id: ReqId
    will_cancel: bool


Letter: TypeAlias = Sent | NotSent | SendUncertain | Acked | Chunk | Result | CancelAcked

IN_MEMORY = b""
"""What an entry that is in no inbox would be deleted by."""


class Entry(NamedTuple):
    """A letter as an inbox keeps it."""

    key: bytes
    """What to delete it by."""
    raw: bytes
    """The envelope."""
    mark: Mark
    letter: Letter | None = None
    """As it was read by who heard it, so that nobody need parse it again; None: it is still to be read."""
