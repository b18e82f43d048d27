"""What must hold of authority and approvals, whatever went wrong: the other half of ``checkers``.

Read off the rows, with their history, and the tools' ledger; by ``authority.Rules``, which share nothing with the
daemon but the meaning of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import orjson

from daemon.machine.approval import digest_of
from daemon.machine.effects import AGENT_BACKSTOP_MS
from daemon.machine.record import ApprovalRow
from daemon.machine.spec import ApprovalSpec, StepSpec
from daemon.machine.state import run_of
from tests.sim.authority import Rules
from tests.sim.gateway import Write
from tests.sim.host import Servers
from tests.sim.rows import Intent, RunRow

ENDS = {
    "open": {"open", "approved", "rejected", "expired", "superseded", "voided", "closed"},
    "approved": {"approved", "voided"},
}
"""What may become of a revision; what stands nowhere here is the end of it."""
Told = Iterator[tuple[RunRow, str]]


def judge(servers: Servers) -> list[str]:
    """All violations."""
    rows = list(servers.store.runs.values())
    return [f"{check.__name__}: run {rows.index(row) + 1} {what}" for check in CHECKS for row, what in check(servers)]


def no_call_is_intended_against_the_rules(servers: Servers) -> Told:
    """Each intent was decided by the version that stood at its commit, and that version neither bars nor holds it, nor
    asks for an approval that it has not got."""
    for row in servers.store.runs.values():
        for intent in row.intents:
            if intent.named != intent.standing:
                yield row, f"{_step(intent)} was decided by version {intent.named}, and {intent.standing} stood"
            tool = _spec(row, intent).tool_config.tool_name
            for why in servers.store.authority.of(intent.standing).forbid(row.head.user_id, tool):
                yield row, f"{_step(intent)} was intended although {why}"
            gated = servers.store.authority.of(intent.standing).gates(_spec(row, intent))
            if gated and not _approved(row, intent.step_index, intent.at):
                yield row, f"{_step(intent)} was intended although somebody must approve it"


def no_call_leaves_against_what_its_host_knows(servers: Servers) -> Told:
    """Between commit and first byte the host asks again: what it had read by then neither bars nor holds the call, nor
    asks for an approval that the call has not got."""
    authority = servers.store.authority
    for row, write, intent in _writes(servers):
        known = authority.known_to(write.host, write.at)
        if not known:
            yield row, f"{_step(intent)} left {write.host}, which knew of no rules"
            continue
        rules = authority.of(known)
        for why in rules.forbid(row.head.user_id, write.call.tool_name):
            yield row, f"{_step(intent)} left {write.host}, which knew that {why}"
        if rules.gates(_spec(row, intent)) and not _approved(row, intent.step_index, write.at):
            yield row, f"{_step(intent)} left {write.host}, which knew that somebody must approve it"


def nothing_gated_leaves_unapproved(servers: Servers) -> Told:
    """What leaves is what was frozen and approved: by as many different people as must, who might by the rules when
    they said so, and might still when the call was intended."""
    authority = servers.store.authority
    for row, write, intent in _writes(servers):
        spec = _spec(row, intent)
        if write.call.arguments != orjson.loads(intent.arguments):
            yield row, f"{_step(intent)} left with other arguments than its attempt keeps"
        if not authority.of(intent.standing).gates(spec):
            continue
        newest = _newest(row, intent.step_index, write.at)
        if newest is None or newest.state != "approved":
            yield row, f"{_step(intent)} left, and its newest revision is {newest and newest.state}"
            continue
        if newest.digest != _digest(write, newest.schema_hash):
            yield row, f"{_step(intent)} left, and is not what was approved"
        quorum = (spec.approval or ApprovalSpec()).quorum
        then = _agreed(
            row, newest, spec, lambda vote, row=row, newest=newest: authority.standing(_heard(row, newest, vote))
        )
        today = _agreed(row, newest, spec, lambda vote, intent=intent: authority.of(intent.standing))
        if min(len(then), len(today)) < quorum:
            yield row, f"{_step(intent)} needs {quorum} approvals: {sorted(then)} might, {sorted(today)} may"


def a_revision_is_decided_once(servers: Servers) -> Told:
    """It is closed for ever, numbers have no gaps, and votes belong to one revision and name its digest, or none."""
    for row in servers.store.runs.values():
        seen: dict[tuple[int, str, int], int] = {}
        for (index, number), history in sorted(row.approvals.items()):
            name = f"revision {number} of step {index}"
            if number > 1 and (index, number - 1) not in row.approvals:
                yield row, f"{name} has none before it"
            for (_, old), (_, new) in pairwise(history):
                if new.state not in ENDS.get(old.state, ()):
                    yield row, f"{name} was {old.state} and became {new.state}"
                if new.digest != old.digest:
                    yield row, f"{name} became another call"
            for vote in {str(vote): vote for _, one in history for vote in _votes(one)}.values():
                if seen.setdefault((index, vote["by"], vote["at"]), number) != number:
                    yield row, f"{name} has a vote of {vote['by']} on another"
                if vote["digest"] not in (None, history[-1][1].digest):
                    yield row, f"{name} has a vote of {vote['by']} on another digest"


CHECKS: Sequence[Callable[[Servers], Told]] = (
    no_call_is_intended_against_the_rules,
    no_call_leaves_against_what_its_host_knows,
    nothing_gated_leaves_unapproved,
    a_revision_is_decided_once,
)


def _writes(servers: Servers) -> Iterator[tuple[RunRow, Write, Intent]]:
    """Each call that left a host, with the last intent of it before that."""
    for req_id, writes in servers.gateway.ledger.writes.items():
        run_id = run_of(req_id)
        row = servers.store.runs[run_id] if run_id is not None else None
        for write in writes:
            intents = [one for one in row.intents if one.req_id == req_id and one.at <= write.at] if row else []
            if row is not None and intents:
                yield row, write, intents[-1]


def _approved(row: RunRow, step_index: int, at: float) -> bool:
    newest = _newest(row, step_index, at)
    return newest is not None and newest.state == "approved"


def _newest(row: RunRow, step_index: int, at: float) -> ApprovalRow | None:
    """The newest revision of a step as it stood at that moment."""
    found = None
    for (index, _), history in sorted(row.approvals.items()):
        if index == step_index:
            found = next((one for when, one in reversed(history) if when <= at), found)
    return found


def _digest(write: Write, schema_hash: str | None) -> str:
    call = write.call
    return digest_of(
        agent_id=call.agent_id,
        tool_name=call.tool_name,
        schema_hash=schema_hash,
        arguments=call.arguments,
        timeout_ms=call.timeout_ms - AGENT_BACKSTOP_MS,
    )


def _agreed(row: RunRow, revision: ApprovalRow, spec: StepSpec, rules: Callable[[Any], Rules]) -> set[str]:
    """Who said yes to it and may, by the rules that count for their vote."""
    return {
        vote["by"]
        for vote in _votes(revision)
        if rules(vote).may_decide(spec, vote["by"], vote["who"]["groups"], user=row.head.user_id)
    }


def _heard(row: RunRow, revision: ApprovalRow, vote: Any) -> float:
    """When the vote was committed."""
    history = row.approvals[revision.step_index, revision.revision]
    return next(when for when, one in history if vote in _votes(one))


def _votes(revision: ApprovalRow) -> list[Any]:
    return orjson.loads(revision.votes)  # type: ignore[no-any-return] # a list of votes


def _spec(row: RunRow, intent: Intent) -> StepSpec:
    return row.head.spec.steps[intent.step_index]


def _step(intent: Intent) -> str:
    return f"step {intent.step_index}"
