"""What a run is at one moment, and the literal tables of what it may become.

Plain values; ``evolve`` alone makes new ones. A run keeps status and references per step, never results: those stand
in the rows of the attempts.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, TypeVar
from uuid import UUID

from msgspec import Struct

from daemon.machine.approval import Revision, Starter
from daemon.machine.commands import Epoch, Mark, ReqId, RunId
from daemon.machine.events import PausedReason
from daemon.machine.ground import Risk
from daemon.machine.spec import StepSpec, WorkflowSpec

RunStatus = Literal["running", "paused", "completed", "failed", "canceled"]
StepStatus = Literal["pending", "running", "success", "failed", "skipped", "rejected", "expired", "canceled"]
Canceling = Literal["timeout", "ack_timeout", "user", "run_timeout"]
"""Why the agent is asked to stop a call."""
AttemptState = Literal["intent", "sent", "acked", "unsent", "done", "failed", "timeout", "canceled", "unknown"]

RUN_MOVES: Mapping[RunStatus, frozenset[RunStatus]] = {
    "running": frozenset({"paused", "completed", "failed", "canceled"}),
    "paused": frozenset({"running", "failed", "canceled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "canceled": frozenset(),
}

STEP_MOVES: Mapping[StepStatus, frozenset[StepStatus]] = {
    "pending": frozenset({"running", "rejected", "expired", "skipped", "canceled"}),
    "running": frozenset({"pending", "success", "failed", "rejected", "expired", "canceled"}),
    "failed": frozenset({"pending", "running", "success", "skipped", "canceled"}),
    "success": frozenset(),
    "skipped": frozenset(),
    "rejected": frozenset(),
    "expired": frozenset(),
    "canceled": frozenset(),
}

ATTEMPT_MOVES: Mapping[AttemptState, frozenset[AttemptState]] = {
    "intent": frozenset({"sent", "acked", "unsent", "done", "failed", "timeout", "canceled", "unknown"}),
    "sent": frozenset({"acked", "done", "failed", "timeout", "canceled", "unknown"}),
    "acked": frozenset({"done", "failed", "timeout", "canceled", "unknown"}),
    "unsent": frozenset({"intent", "unsent"}),
    "done": frozenset(),
    "failed": frozenset(),
    "timeout": frozenset(),
    "canceled": frozenset(),
    "unknown": frozenset({"done", "failed", "timeout", "canceled"}),
}

WITH_THE_RUN: frozenset[Canceling | None] = frozenset({"user", "run_timeout"})
"""A call stopped because its run is over; the others are stopped for their own sake."""
IN_FLIGHT: frozenset[AttemptState] = frozenset({"intent", "sent", "acked"})
TERMINAL: frozenset[RunStatus] = frozenset(status for status, moves in RUN_MOVES.items() if not moves)

MAX_ATTEMPTS = 100
"""Attempts of one step; one more is refused."""
PAST_KEPT = 16
"""Ended attempts a run remembers, so that what comes late finds its step; older ones are counted and dropped."""
LOG_LIMIT_BYTES = 1_048_576
"""Log bytes kept of one attempt; the rest is counted as dropped."""


class IllegalMove(Exception):
    """The engine tried a move that no table allows: a defect of ours, never the user's."""


_S = TypeVar("_S", bound=str)


def check_move(table: Mapping[_S, frozenset[_S]], old: _S, new: _S) -> _S:
    """``new`` if the table allows the move from ``old``; else IllegalMove."""
    if new not in table[old]:
        raise IllegalMove(f"{old} → {new}")
    return new


class Limits(Struct, frozen=True, kw_only=True, gc=False):
    """The engine's patience, in milliseconds. Facts for the machine: events record the times computed from them."""

    ack_timeout_ms: int = 10_000
    cancel_grace_ms: int = 5_000
    patience_ms: int = 15_000
    backoff_ms: int = 500
    backoff_max_ms: int = 5_000
    repeats: int = 3
    """How often in a row a harmless call of unknown outcome is repeated before a person is asked (a count)."""


class Attempt(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One call of a step's tool. Times are epoch ms; ``ended_at`` set means there is a verdict."""

    step_index: int
    index: int
    req_id: ReqId
    state: AttemptState
    epoch: Epoch
    first_intended_at: int
    intended_at: int
    ack_by: int
    deadline_at: int
    acked_at: int | None = None
    canceling: Canceling | None = None
    cancel_until: int | None = None
    retry_at: int | None = None
    """Proven unsent: when the same call goes again. Of unknown outcome, but harmless: when the next attempt may go."""
    tries: int = 0
    unsent_reason: str | None = None
    unsent_detail: str | None = None
    ended_at: int | None = None
    answered: bool = False
    log_bytes: int = 0
    risk: Risk | None = None
    """Of its tool, as it was intended."""
    mark: Mark | None = None

    @property
    def in_flight(self) -> bool:
        """Whether the tool may be running or about to run."""
        return self.ended_at is None and self.state in IN_FLIGHT


class StepState(Struct, frozen=True, kw_only=True, gc=False):
    """One step: its status, how often it was attempted, who approved it, who ended it otherwise (epoch ms each)."""

    status: StepStatus = "pending"
    attempts: int = 0
    approved_by: str | None = None
    approved_at: int | None = None
    decided_by: str | None = None
    """Who rejected it, skipped it or marked it done; ``note`` is what they said."""
    decided_at: int | None = None
    note: str | None = None


class Run(Struct, frozen=True, kw_only=True, gc=False):
    """A run as the machine sees it. ``attempt`` is the newest one; ``past`` holds earlier ones, newest first."""

    id: RunId
    workflow_id: UUID
    user_id: str
    nonce: bytes
    spec: WorkflowSpec
    steps: tuple[StepState, ...]
    status: RunStatus = "running"
    paused_reason: PausedReason | None = None
    paused_seq: int = 0
    step_index: int = 0
    last_seq: int = 0
    last_at: int = 0
    started_at: int | None = None
    finished_at: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    attempt: Attempt | None = None
    past: tuple[Attempt, ...] = ()
    revision: Revision | None = None
    """The newest one; of the current step, or of one that is behind."""
    groups: tuple[str, ...] = ()
    """As whom it acts beside its user: the groups of the token that created it, and whether that was an admin's."""
    admin: bool = False
    token_maker: str | None = None
    """Who made the service token that it was created with; None of a token that nobody made here."""
    spec_maker: str | None = None
    """Who made the service token that the workflow was saved with, in the version that it was made of; as above."""

    @property
    def starter(self) -> Starter:
        return Starter(self.user_id, self.token_maker, self.spec_maker)

    @property
    def approval(self) -> Revision | None:
        """The newest revision of the current step's call."""
        revision = self.revision
        return revision if revision is not None and revision.step_index == self.step_index else None

    @property
    def terminal(self) -> bool:
        return self.status in TERMINAL

    @property
    def step(self) -> StepSpec | None:
        """The spec of the current step; None when all are behind."""
        return self.spec.steps[self.step_index] if self.step_index < len(self.spec.steps) else None

    @property
    def step_state(self) -> StepState | None:
        return self.steps[self.step_index] if self.step_index < len(self.steps) else None

    @property
    def in_flight(self) -> bool:
        return self.attempt is not None and self.attempt.in_flight

    @property
    def unsettled(self) -> Attempt | None:
        """The attempt of unknown outcome that the run stands still for: a RESULT may yet settle it."""
        attempt = self.attempt
        if attempt is None or attempt.state != "unknown" or attempt.step_index != self.step_index:
            return None
        repeats = self.status == "running" and attempt.retry_at is not None
        return attempt if repeats or self.paused_reason in ("outcome_unknown", "engine_interrupted") else None

    def find(self, req_id: ReqId) -> Attempt | None:
        """The attempt that a letter speaks about, if this run remembers it."""
        if self.attempt is not None and self.attempt.req_id == req_id:
            return self.attempt
        return next((attempt for attempt in self.past if attempt.req_id == req_id), None)


def new_run(
    *,
    run_id: RunId,
    workflow_id: UUID,
    user_id: str,
    nonce: bytes,
    spec: WorkflowSpec,
    last_at: int = 0,
    groups: tuple[str, ...] = (),
    admin: bool = False,
    token_maker: str | None = None,
    spec_maker: str | None = None,
) -> Run:
    """A run to which nothing has happened yet."""
    return Run(
        id=run_id,
        workflow_id=workflow_id,
        user_id=user_id,
        nonce=nonce,
        spec=spec,
        steps=(StepState(),) * len(spec.steps),
        last_at=last_at,
        groups=groups,
        admin=admin,
        token_maker=token_maker,
        spec_maker=spec_maker,
    )


def make_req_id(run_id: RunId, nonce: bytes, step_index: int, attempt_index: int) -> ReqId:
    """Routable without a look-up and unguessable: 22 characters of run id, 22 of HMAC-SHA256(nonce, step, attempt).

    The alphabet is ``[A-Za-z0-9_-]`` (RFC 4648 §5), which the Gateway's paths carry unharmed.
    """
    proof = _keyed(nonce).copy()
    proof.update(b"%d:%d" % (step_index, attempt_index))
    return ReqId(route_of(run_id) + _b64(proof.digest()[:16]))


def utf8_size(text: str) -> int:
    """How many bytes the text takes as UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


@lru_cache(maxsize=16_384)
def route_of(run_id: RunId) -> str:
    """The beginning of every ``req_id`` of the run: see ``route_in``."""
    return _b64(run_id.bytes)


def run_of(req_id: str) -> RunId | None:
    """The run a req_id was made for; None when it is not one of ours. Proves nothing: see ``make_req_id``."""
    route = route_in(req_id)
    return _run_named(route) if route else None


def route_in(req_id: str) -> str:
    """The part of a req_id that names its run; empty when it is none of ours."""
    return req_id[:22] if len(req_id) == 44 else ""


@lru_cache(maxsize=16_384)
def name_of(run_id: RunId) -> str:
    """The id as text. Remembered: each event of a step tells it."""
    return str(run_id)


@lru_cache(maxsize=4096)
def _keyed(nonce: bytes) -> hmac.HMAC:
    """Remembered with its key in it: a copy that goes on from there takes 2.2 µs, the whole 3.7."""
    return hmac.new(nonce, digestmod="sha256")


@lru_cache(maxsize=16_384)
def _run_named(name: str) -> RunId | None:
    """Remembered, because a call brings three letters and more."""
    try:
        return RunId(UUID(bytes=urlsafe_b64decode(name + "==")))
    except ValueError:
        return None


def _b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()
