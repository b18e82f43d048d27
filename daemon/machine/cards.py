"""What an approval looks like in payloads and answers: the card of what waits, a vote, and from where a word came."""

from __future__ import annotations

from typing import Any

import orjson
from msgspec import to_builtins

from daemon.machine.approval import Revision, Vote, arguments_text, needs_digest
from daemon.machine.commands import Who
from daemon.machine.state import Run

CARD_ARGUMENTS_CHARS = 16_384
"""Most characters of a call's arguments that an event tells to whoever is to approve it."""


def vote_payload(vote: Vote, run: Run) -> dict[str, Any]:
    """One person's yes, and how many there are now."""
    body: dict[str, Any] = {"by": vote.by}
    if run.revision is not None:
        terms = run.spec.steps[run.revision.step_index].terms
        body |= {"revision": run.revision.number, "digest": run.revision.digest}
        body |= {"votes": len(run.revision.votes), "quorum": terms.quorum}
    body |= {"digest_given": vote.digest} if vote.digest is not None else {}
    body |= {"comment": vote.comment} if vote.comment is not None else {}
    return body | said_by(vote.who)


def said_by(who: Who) -> dict[str, Any]:
    """From where a person's word came, as far as it is known."""
    return {"who": to_builtins(who)} if who != Who() else {}


def approval_card(revision: Revision, run: Run) -> dict[str, Any]:
    """All that whoever is to decide must see. Times are epoch ms; big arguments are cut, the run has them whole."""
    step = run.spec.steps[revision.step_index]
    traits, terms = revision.traits, step.terms
    text = arguments_text(step, revision)
    whole = len(text) <= CARD_ARGUMENTS_CHARS
    return {
        "revision": revision.number,
        "digest": revision.digest,
        "agent_id": revision.agent_id,
        "tool_name": revision.tool_name,
        "timeout_ms": revision.timeout_ms,
        "schema_hash": revision.schema_hash,
        "arguments": orjson.Fragment(text) if whole else None,
        "arguments_preview": None if whole else text[:CARD_ARGUMENTS_CHARS],
        "edited_by": revision.edited_by,
        "attempts": revision.attempts,
        "risk": traits.risk,
        "writes": traits.writes,
        "open_world": traits.open_world,
        "idempotent": traits.idempotent,
        "requires_approval": traits.requires_approval,
        "approvers": list(terms.approvers),
        "quorum": terms.quorum,
        "votes": [vote.by for vote in revision.votes],
        "forbid_self": terms.forbid_self,
        "allow_edit": terms.allow_edit,
        "needs_digest": needs_digest(terms, traits),
        "opened_at": revision.opened_at,
        "expires_at": revision.expires_at,
        "on_expiry": terms.on_expiry,
        "instructions": terms.instructions,
    }
