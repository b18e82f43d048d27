"""Approvals: what exactly is to be approved (a *revision*), who may say so, and whether that still counts.

A revision freezes one call; its digest is SHA-256 over the call's canonical JSON (RFC 8785). Votes belong to a
revision: whatever changes the call makes a new one, without votes. Pure; ``decide`` and ``settle`` go by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import orjson
import rfc8785
from msgspec import Struct
from msgspec.structs import replace

from daemon.faults import escape
from daemon.machine.commands import Who
from daemon.machine.ground import RISKS, Ground, Subject, Traits
from daemon.machine.spec import MAX_EXACT, ApprovalSpec, StepSpec

RevisionState = Literal["open", "approved", "rejected", "expired", "superseded", "voided", "closed"]
"""``superseded`` by an edit; ``voided``, since what was approved is not what would be done; ``closed`` with its run."""


class Starter(NamedTuple):
    """Who started a run: the user whose it is, and who made the service tokens that spoke for them, if any did: when
    it was started, and when the workflow was saved as it was then."""

    user_id: str
    token_maker: str | None = None
    spec_maker: str | None = None


class Vote(Struct, frozen=True, kw_only=True, gc=False):
    """One person's yes to one revision, with all that the audit asks of it. ``at``: epoch ms."""

    by: str
    at: int
    who: Who = Who()
    digest: str | None = None
    """As they gave it; None where none was asked for."""
    comment: str | None = None


class Revision(Struct, frozen=True, kw_only=True, gc=False):
    """A call as it waits for approval, or was approved. Times are epoch ms."""

    step_index: int
    number: int
    state: RevisionState
    agent_id: str
    tool_name: str
    timeout_ms: int
    schema_hash: str | None
    edited: str | None
    """The arguments as JSON text where somebody edited them; None: as the spec has them."""
    digest: str
    traits: Traits
    opened_at: int
    expires_at: int | None = None
    expired_at: int | None = None
    """When it went past its time and, as ``on_expiry`` is ``stay``, waited on."""
    ended_at: int | None = None
    votes: tuple[Vote, ...] = ()
    edited_by: str | None = None
    attempts: int = 0
    """How often the step had been attempted when it was asked, but for an attempt that waited to go again."""


class Difference(Struct, frozen=True, kw_only=True, gc=False):
    """Where an edit changed something: a JSON pointer (RFC 6901), what stood there and what stands there now."""

    path: str
    op: Literal["add", "remove", "replace"]
    before: Any = None
    after: Any = None


UNREADABLE = "unreadable"
MAX_SCHEMA_BYTES = 65_536
MOST_DIFFERENCES = 200
"""Told of one edit; both sets of arguments are kept whole anyway."""


def differences(before: Any, after: Any, at: str = "") -> Iterator[Difference]:
    """What ``after`` has otherwise than ``before``; lists of different length differ as a whole."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            place = f"{at}/{escape(key)}"
            if key not in after:
                yield Difference(path=place, op="remove", before=before[key])
            elif key not in before:
                yield Difference(path=place, op="add", after=after[key])
            else:
                yield from differences(before[key], after[key], place)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{at}/{index}")
    elif type(before) is not type(after) or before != after:
        yield Difference(path=at, op="replace", before=before, after=after)


def digest_of(
    *, agent_id: str, tool_name: str, schema_hash: str | None, arguments: Mapping[str, Any], timeout_ms: int
) -> str:
    """``sha256:`` and the hex SHA-256 of the call's canonical JSON (RFC 8785).

    The numbers are 64-bit floats, as RFC 8785 and the Gateway have them. Integers that no float holds stand only in
    specs older than their refusal, and are told as they are.
    """
    call = {
        "agent_id": agent_id,
        "tool_name": tool_name,
        "schema_hash": schema_hash,
        "arguments": arguments,
        "timeout_ms": timeout_ms,
    }
    return "sha256:" + hashlib.sha256(_canonical(call)).hexdigest()


def hash_of_schema(schema: object) -> str:
    """SHA-256 of a tool's input schema, hex, as ``digest_of`` reckons; ``UNREADABLE`` if it nests too deep to write.

    An agent may say what it likes: over ``MAX_SCHEMA_BYTES`` it is the hash of the JSON text with sorted keys, which
    takes a fiftieth of the time.
    """
    try:
        text = orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return UNREADABLE
    return hashlib.sha256(_canonical(schema) if len(text) <= MAX_SCHEMA_BYTES else text).hexdigest()


def _canonical(value: Any) -> bytes:
    try:
        return rfc8785.dumps(_floats(value))
    except rfc8785.CanonicalizationError:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _floats(value: Any) -> Any:
    """The JSON value, with the integers as floats that rfc8785 refuses although a float holds them (±2^53 itself)."""
    match value:
        case bool():
            return value
        case int() if abs(value) == MAX_EXACT:
            return float(value)
        case list():
            return [_floats(item) for item in value]
        case dict():
            return {key: _floats(item) for key, item in value.items()}
        case _:
            return value


def arguments_of(step: StepSpec, revision: Revision | None) -> Mapping[str, Any]:
    """What the tool is given: as somebody edited it, else as the spec has it."""
    if revision is None or revision.edited is None:
        return step.tool_config.arguments
    edited: dict[str, Any] = orjson.loads(revision.edited)
    return edited


def arguments_text(step: StepSpec, revision: Revision | None) -> str:
    """``arguments_of`` as JSON text."""
    return step.tool_config.arguments_json if revision is None or revision.edited is None else revision.edited


def freeze(
    step: StepSpec,
    *,
    step_index: int,
    number: int,
    ground: Ground,
    now: int,
    edited: str | None = None,
    edited_by: str | None = None,
    attempts: int = 0,
) -> Revision:
    """A new revision of the step's call, open from ``now`` on."""
    config, terms = step.tool_config, step.terms
    arguments = config.arguments if edited is None else orjson.loads(edited)
    return Revision(
        step_index=step_index,
        number=number,
        state="open",
        agent_id=config.agent_id,
        tool_name=config.tool_name,
        timeout_ms=config.timeout_ms,
        schema_hash=ground.schema_hash,
        edited=edited,
        digest=digest_of(
            agent_id=config.agent_id,
            tool_name=config.tool_name,
            schema_hash=ground.schema_hash,
            arguments=arguments,
            timeout_ms=config.timeout_ms,
        ),
        traits=ground.traits,
        opened_at=now,
        expires_at=None if terms.expires_in_ms is None else now + terms.expires_in_ms,
        edited_by=edited_by,
        attempts=attempts,
    )


def as_frozen(step: StepSpec, revision: Revision) -> bool:
    """Whether the call that would be made is the one that the digest is over."""
    return revision.digest == digest_of(
        agent_id=step.tool_config.agent_id,
        tool_name=step.tool_config.tool_name,
        schema_hash=revision.schema_hash,
        arguments=arguments_of(step, revision),
        timeout_ms=step.tool_config.timeout_ms,
    )


def needs_digest(terms: ApprovalSpec, traits: Traits) -> bool:
    """Whether who approves must name the digest of what they saw; then ``/resume`` approves nothing either."""
    return terms.quorum > 1 or terms.allow_edit or traits.risk == "high"


def bare_word(terms: ApprovalSpec, traits: Traits) -> bool:
    """Whether a yes is v0's: of whoever started the run, to the step rather than to one exact call of it."""
    others = bool(terms.approvers) or terms.forbid_self or traits.requires_approval
    return not others and not needs_digest(terms, traits)


_ITS_MAKER = (
    "You made the service token that started the run, so you count as who started it and may not approve this step:"
    " somebody else must. Let tokens for such runs be made by an admin who is not asked about them."
)
_ITS_AUTHOR = (
    "You made the service token that the workflow was saved with, so you count as who wrote what this run does and may"
    " not approve this step: somebody else must. Let it be saved anew without a token of yours, for the next runs."
)


def who_may_not(
    terms: ApprovalSpec, ground: Ground, *, starter: Starter, by: str, groups: tuple[str, ...]
) -> str | None:
    """Why this person may not decide, as a sentence; None: they may.

    Those named in ``approvers``; if none, the run's user. Where policy requires approval: the agent's owner and whom
    they let approve, and ``approvers`` can only narrow that. ``forbid_self`` is about the makers of tokens too: else
    who may make tokens for others would approve what they started, or wrote, in another's name. (Without a token
    nobody but the run's user has written it.)
    """
    mine: set[Subject] = {f"user:{by}", *(f"group:{group}" for group in groups)}
    if terms.forbid_self and by == starter.user_id:
        return "Whoever started the run may not approve this step: somebody else must."
    if terms.forbid_self and by == starter.token_maker:
        return _ITS_MAKER
    if terms.forbid_self and by == starter.spec_maker:
        return _ITS_AUTHOR
    if ground.traits.requires_approval and not mine & ground.deciders:
        return "Policy requires approval of this tool by the agent's owner, or by whom they let approve."
    if terms.approvers:
        return None if mine & set(terms.approvers) else "The step names its approvers, and you are none of them."
    if not ground.traits.requires_approval and by != starter.user_id:
        return "Only whoever started the run may decide on this step."
    return None


def stands(revision: Revision, step: StepSpec, ground: Ground, starter: Starter) -> str | None:
    """Why an approved revision counts no more, as a sentence; None: the verdict on the call is what it was."""
    worse = became_worse(revision, step, ground)
    if worse is not None:
        return worse
    if len(valid_votes(revision, step.terms, ground, starter)) < step.terms.quorum:
        return "Not all who approved it may do so any more."
    return None


def outdated(revision: Revision, step: StepSpec, ground: Ground) -> str | None:
    """Why what waits must be asked anew, as a sentence: others are to be asked, or a yes would be void at once."""
    if ground.traits.requires_approval and not revision.traits.requires_approval:
        return "Since it was asked, policy has come to require approval by the agent's owner, or whom they let approve."
    return became_worse(revision, step, ground)


def became_worse(revision: Revision, step: StepSpec, ground: Ground) -> str | None:
    """How the call is more than what was frozen, as a sentence.

    What became laxer takes nothing from what was approved. A schema that nobody knows says nothing.
    """
    then, today = revision.traits, ground.traits
    if not as_frozen(step, revision):
        return "The call is not the one that was shown."
    if RISKS[today.risk] > RISKS[then.risk]:
        return f"Since it was shown, the tool's risk has risen from {then.risk} to {today.risk}."
    if (today.writes and not then.writes) or (today.open_world and not then.open_world):
        return "Since it was shown, the tool has come to count as writing or as open-world."
    if None not in (revision.schema_hash, ground.schema_hash) and revision.schema_hash != ground.schema_hash:
        return "Since it was shown, the tool's input schema has changed."
    return None


def valid_votes(revision: Revision, terms: ApprovalSpec, ground: Ground, starter: Starter) -> tuple[Vote, ...]:
    """The votes of those who may still decide, one of each person: of several, said under several groups, the last."""
    standing = {
        vote.by: vote
        for vote in revision.votes
        if who_may_not(terms, ground, starter=starter, by=vote.by, groups=vote.who.groups) is None
    }
    return tuple(standing.values())


def ended(revision: Revision | None, state: RevisionState, at: int) -> Revision | None:
    """The revision in its end state, if it was open; else as it is."""
    if revision is None or revision.state != "open":
        return revision
    return replace(revision, state=state, ended_at=at)
