"""What people say of a call that waits for approval: yes, no, or "with these arguments". A part of ``decide``.

Each word is weighed on what stands now: the revision that waits, who may decide by today's grants and policies, and the
digest of what they saw.
"""

from __future__ import annotations

from itertools import islice

import orjson

from daemon.machine.approval import (
    MOST_DIFFERENCES,
    Revision,
    Vote,
    arguments_of,
    differences,
    freeze,
    needs_digest,
    valid_votes,
    who_may_not,
)
from daemon.machine.commands import Command
from daemon.machine.decision import Decision, Refusal, not_at_that_pause, not_that_step
from daemon.machine.events import RunFailed, StepApproved, StepEdited, StepRejected, StepVoted
from daemon.machine.ground import Ground
from daemon.machine.needs import Facts
from daemon.machine.spec import StepSpec
from daemon.machine.state import Run

NOT_AN_APPROVER = "not_an_approver"
"""By the grants and policies that stand they may not decide."""
FORBIDDEN = frozenset({NOT_AN_APPROVER, "role_required"})
"""Codes that say who may not, rather than what cannot be."""
_DECIDING = frozenset({"approver", "admin"})
"""Roles that may say yes or no where they are asked; commands from before roles were kept have none."""
_ITS_EDITOR = "You edited this call, so somebody else must approve it."


def approve(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    """One yes. It counts once for each person; with the last that is needed the step goes on."""
    refusal = _not_that_approval(run, command)
    return Decision(refusal=refusal) if refusal is not None else _vote(run, command, now, facts)


def resumed(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    """v0's way to approve: a bare word that names neither step nor digest. Not where that would be too little, and not
    by somebody whose token may drive runs only."""
    roles = command.who.roles
    if roles and not _DECIDING.intersection(roles):
        message = f"To resume it is to approve it, which needs the role 'approver'; your token has {', '.join(roles)}."
        return Decision(refusal=Refusal("role_required", message))
    revision, terms = run.approval, run.spec.steps[run.step_index].terms
    if revision is not None and (needs_digest(terms, revision.traits) or terms.forbid_self):
        message = "This step takes more than a bare word: use approve, with step_id and the digest of what you saw."
        return Decision(refusal=Refusal("use_approve", message))
    return _vote(run, command, now, facts)


def reject(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    """One no ends it, whatever the quorum."""
    refusal = _not_that_approval(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    asked = _asked(run, command, now, facts, votes=False)
    if isinstance(asked, Refusal):
        return Decision(refusal=asked)
    rejected = StepRejected(
        step_index=run.step_index,
        by=command.issued_by,
        reason=command.reason,
        who=command.who,
        digest=asked.revision.digest,
    )
    if asked.step.continues:
        return Decision((rejected,))
    # The run ends with the rejection, not at the turn's end: the next command of the same turn must see it over.
    message = f"Step {asked.step.name!r} was rejected."
    return Decision((rejected, RunFailed(error_code="approval_rejected", message=message)))


def edit(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    """Other arguments: a new revision, without votes. Whether the tool's schema allows them was asked before."""
    refusal = _not_that_approval(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    asked = _asked(run, command, now, facts, votes=False)
    if isinstance(asked, Refusal):
        return Decision(refusal=asked)
    if not asked.step.terms.allow_edit:
        return Decision(refusal=Refusal("edit_not_allowed", "The step does not allow its arguments to be edited."))
    if command.arguments is None:
        return Decision(refusal=Refusal("arguments_required", "Say which arguments the call shall have."))
    before, after = arguments_of(asked.step, asked.revision), orjson.loads(command.arguments)
    diff = tuple(islice(differences(before, after), MOST_DIFFERENCES))
    if not diff:
        return Decision()
    revision = freeze(
        asked.step,
        step_index=run.step_index,
        number=asked.revision.number + 1,
        ground=asked.ground,
        now=now,
        edited=command.arguments,
        edited_by=command.issued_by,
        attempts=asked.revision.attempts,
    )
    edited = StepEdited(
        step_index=run.step_index,
        by=command.issued_by,
        revision=revision,
        diff=diff,
        who=command.who,
        comment=command.comment,
    )
    return Decision((edited,))


class _Asked:
    """What a person's word is about, once it may be heard."""

    __slots__ = ("ground", "revision", "step")

    def __init__(self, step: StepSpec, revision: Revision, ground: Ground) -> None:
        self.step = step
        self.revision = revision
        self.ground = ground


def _vote(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    asked = _asked(run, command, now, facts, votes=True)
    if isinstance(asked, Refusal):
        return Decision(refusal=asked)
    revision, terms = asked.revision, asked.step.terms
    if command.digest is None and needs_digest(terms, revision.traits):
        message = "Name the digest of what you saw: it stands in the approval and in step.paused."
        return Decision(refusal=Refusal("digest_required", message))
    standing = valid_votes(revision, terms, asked.ground, run.starter)
    people = {vote.by for vote in standing} | {command.issued_by}
    if len(people) == len(standing) < terms.quorum:
        return Decision()  # said already
    vote = Vote(by=command.issued_by, at=now, who=command.who, digest=command.digest, comment=command.comment)
    if len(people) < terms.quorum:
        return Decision((StepVoted(step_index=run.step_index, vote=vote),))
    return Decision((StepApproved(step_index=run.step_index, vote=vote),))


def _forbidden(run: Run, command: Command, facts: Facts, *, votes: bool) -> Refusal | None:
    """Why this person may not decide, or (``votes``) not say yes; None also while nobody can know yet."""
    step, revision = run.spec.steps[run.step_index], run.approval
    ground = facts.grounds.of(step.tool_config.agent_id, step.tool_config.tool_name)
    if ground is None:
        return None
    forbids = who_may_not(step.terms, ground, starter=run.starter, by=command.issued_by, groups=command.who.groups)
    if forbids is None and votes and step.terms.forbid_self and revision is not None:
        forbids = _ITS_EDITOR if revision.edited_by == command.issued_by else None
    return None if forbids is None else Refusal(NOT_AN_APPROVER, forbids)


def _asked(run: Run, command: Command, now: int, facts: Facts, *, votes: bool) -> _Asked | Refusal:
    """The revision that waits, if this person may decide it, and it is the one that they saw."""
    forbidden = _forbidden(run, command, facts, votes=votes)
    if forbidden is not None:
        return forbidden
    step, revision = run.spec.steps[run.step_index], run.approval
    ground = facts.grounds.of(step.tool_config.agent_id, step.tool_config.tool_name)
    if revision is None or revision.state != "open" or ground is None:
        return Refusal("pause_changed", "What exactly waits for approval is only being found out. Read the run again.")
    if command.digest is not None and command.digest != revision.digest:
        return Refusal("digest_mismatch", "The call that waits is not the one whose digest you name. Read it again.")
    said_at = now if command.at is None else min(command.at, now)  # it may have lain there while nobody looked
    if revision.expires_at is not None and said_at >= revision.expires_at:
        return Refusal("approval_expired", "It was to be decided earlier than this.")
    return _Asked(step, revision, ground)


def _not_that_approval(run: Run, command: Command) -> Refusal | None:
    refusal = not_at_that_pause(run, command)
    if refusal is not None:
        return refusal
    if run.paused_reason != "awaiting_approval":
        return Refusal(
            "not_awaiting_approval", f"The run is paused as {run.paused_reason}; nothing waits for approval."
        )
    return not_that_step(run, command)
