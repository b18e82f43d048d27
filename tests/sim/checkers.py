"""What must hold whatever went wrong: one function for each sentence, each answering its violations in words.

They look at what is left when a universe is quiet: the rows, the inboxes, the tools' ledger. None of them asks a host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import orjson
from msgspec.structs import replace

from daemon.machine.approval import Revision
from daemon.machine.commands import Command, ReqId, RunId
from daemon.machine.evolve import evolve
from daemon.machine.record import Transition
from daemon.machine.spec import parse_spec
from daemon.machine.state import IllegalMove, Run, run_of
from daemon.store.log import TERMINAL
from tests.sim import consent
from tests.sim.host import Servers
from tests.sim.reader import read_event
from tests.sim.rows import RunRow, new_run_like

FREE_OF_PAUSE = {"start", "cancel"}
"""Commands that concern no pause."""
WORDS = {
    "approve": {"step.approved"},
    "resume": {"step.approved", "run.resumed"},
    "edit": {"step.edited"},
}
"""Commands that may be right and end no pause, and what tells that they did: a vote is often not the last one."""


def judge(servers: Servers) -> list[str]:
    """All violations."""
    found = list(servers.store.refused)
    for run_id, row in servers.store.runs.items():
        name = f"run {list(servers.store.runs).index(run_id) + 1}"
        for checker in (seq_is_dense, replay_rebuilds_the_state, a_run_ends_at_most_once, commands_get_one_verdict):
            found += [f"{checker.__name__}: {name}: {one}" for one in checker(row)]
    found += consent.judge(servers)
    for check in (nothing_is_sent_twice, nothing_leaves_under_a_stale_lease, no_result_is_lost, no_result_goes_unasked):
        found += [f"{check.__name__}: {one}" for one in check(servers)]
    return found


def unrest(servers: Servers) -> list[str]:
    """Why the universe is not quiet: what is still to be done, or is being done."""
    found = [f"{len(servers.redis.ready)} offers that nobody deals with"] if servers.redis.ready else []
    for number, (run_id, row) in enumerate(servers.store.runs.items(), 1):
        found += [f"run {number} {why}" for why in _why_restless(servers, run_id, row)]
    return found


def _why_restless(servers: Servers, run_id: RunId, row: RunRow) -> Iterator[str]:
    status = row.head.status
    if status == "running":
        yield f"is still running at step {row.head.step_index}"
    if any(not command.verdicts for command in row.commands):
        yield f"is {status} and has a command without a verdict"
    # Of a run that waits for no answer a letter is late evidence: if its offer was lost, it is read at the next waking.
    late = run_id in servers.redis.lost_offers and row.head.unsettled is None
    if servers.redis.inboxes.get(run_id) and not late:
        yield f"is {status} and has letters that nobody reads"
    if servers.store.waits_in_vain(row):
        yield "is held by nothing"
    if row.owner is not None:
        yield f"is {status} and owned by {row.owner}"
    if servers.redis.holder(run_id) is not None:
        yield f"is {status} and leased"


def seq_is_dense(row: RunRow) -> Iterator[str]:
    seqs = [event.seq for event, _ in row.log]
    if seqs != list(range(1, len(seqs) + 1)):
        yield f"the log goes {seqs}"
    if row.head.last_seq != len(seqs):
        yield f"{len(seqs)} events, and last_seq {row.head.last_seq}"


def replay_rebuilds_the_state(row: RunRow) -> Iterator[str]:
    replayed, kept = new_run_like(row.head), row.read()
    for _, replayed in _replay(row):  # noqa: B007 - the last one is wanted
        pass
    if replayed.last_seq < len(row.log):
        yield f"the log tells what cannot be at {row.log[replayed.last_seq][0]}"
        return
    replayed = replace(replayed, revision=_as_rows_tell(replayed.approval))
    kept = replace(kept, revision=_as_rows_tell(kept.approval))
    if replace(replayed, last_at=0) != replace(kept, last_at=0):
        names = [
            name
            for name in Run.__struct_fields__
            if getattr(replayed, name) != getattr(kept, name) and name != "last_at"
        ]
        yield f"replay and rows differ in {names}"


def _as_rows_tell(revision: Revision | None) -> Revision | None:
    """A revision without what no card tells: that the tool is denied, which no approval changes."""
    return None if revision is None else replace(revision, traits=replace(revision.traits, denied=False))


def a_run_ends_at_most_once(row: RunRow) -> Iterator[str]:
    ends = [event.seq for event, _ in row.log if event.event_type in TERMINAL]
    if len(ends) > 1:
        yield f"ends at {ends}"
    late = {event.event_type for event, _ in row.log if ends and event.seq > ends[0]}
    if moved := {kind for kind in late if not kind.startswith("tool.")}:
        yield f"after its end came {sorted(moved)}"


def commands_get_one_verdict(row: RunRow) -> Iterator[str]:
    """Each exactly one, and whoever decides a pause saw that pause; no two decide the same."""
    decided: Counter[int | None] = Counter()
    claimed: set[int] = set()
    befores = {after.last_seq: before for before, after in _replay(row)}
    for kept in row.commands:
        command, verdicts = kept.command, {verdict for verdict, _ in kept.verdicts}
        if len(verdicts) != 1:
            yield f"{command.kind} of {command.issued_by} has {len(verdicts)} verdicts"
            continue
        (verdict, transition), *_ = kept.verdicts
        if not verdict.applied or command.kind in FREE_OF_PAUSE:
            continue
        if command.kind in WORDS:
            ends = set(_ends(command, transition)) - claimed
            if not ends:
                continue
            claimed.add(min(ends))
        decided[command.seen_seq] += 1
        seqs = range(transition.expected_seq + 1, transition.run.last_seq + 1)
        if not any(_leaves_pause(befores.get(seq), command.seen_seq) for seq in seqs):
            yield f"{command.kind} of {command.issued_by} saw the pause at {command.seen_seq}, and another was decided"
    for seen, times in decided.items():
        if times > 1:
            yield f"the pause at {seen} was decided {times} times"


def _ends(command: Command, transition: Transition) -> Iterator[int]:
    """The events of that transition by which this person's word ended a pause."""
    for event in transition.events:
        if event.event_type in WORDS[command.kind] and orjson.loads(event.payload)["by"] == command.issued_by:
            yield event.seq


def _leaves_pause(before: Run | None, seen_seq: int | None) -> bool:
    return before is not None and before.status == "paused" and before.paused_seq == seen_seq


def nothing_is_sent_twice(servers: Servers) -> Iterator[str]:
    """An attempt runs at most once; it is written again only after a proof that no agent saw it."""
    for req_id, times in Counter(req_id for _, req_id in servers.gateway.ledger.executions).items():
        if times > 1:
            yield f"{_attempt(servers, req_id)} ran {times} times"
    for req_id, writes in servers.gateway.ledger.writes.items():
        for earlier, later in pairwise(writes):
            if not earlier.proven:
                yield f"{_attempt(servers, req_id)} sent by {earlier.host}, unproven, and again by {later.host}"


def nothing_leaves_under_a_stale_lease(servers: Servers) -> Iterator[str]:
    """At the write of a call, the sender's lease was renewed less than half its TTL ago, by Redis' own account."""
    for req_id, writes in servers.gateway.ledger.writes.items():
        for write in writes:
            if write.lease_age_s > servers.ttl_s / 2:
                yield f"{_attempt(servers, req_id)} left {write.host} with a lease {write.lease_age_s:.2f} s old"


def no_result_is_lost(servers: Servers) -> Iterator[str]:
    """A RESULT that came into an inbox, and that Redis did not forget, stands in the log."""
    for run_id, letter in servers.redis.appended.values():
        row = servers.store.runs.get(run_id)
        if row is None or b'"RESULT"' not in letter:
            continue
        attempt = row.read().find(orjson.loads(letter)["req_id"])
        if attempt is not None and attempt.state != "unsent" and not attempt.answered:
            yield f"{_attempt(servers, attempt.req_id)} is {attempt.state}, and its RESULT was never heard"


def no_result_goes_unasked(servers: Servers) -> Iterator[str]:
    """Who gives a call up asks the result store first: what it held by then is not called unknown unasked."""
    ledger = servers.gateway.ledger
    for row in servers.store.runs.values():
        for attempt in row.attempts.values():
            stored = ledger.stored.get(attempt.req_id)
            if attempt.state != "unknown" or stored is None:
                continue
            given_up = _given_up_at(row, attempt.req_id)
            asked = any(at > stored for at in ledger.inquired.get(attempt.req_id, ()))
            if given_up is not None and stored < given_up and not asked:
                yield f"{_attempt(servers, attempt.req_id)} is unknown, its RESULT was stored, and nobody asked"


def _given_up_at(row: RunRow, req_id: str) -> float | None:
    """When the engine decided to stop this attempt."""
    for before, after in _replay(row):
        was, now = before.find(ReqId(req_id)), after.find(ReqId(req_id))
        if was is not None and now is not None and was.canceling is None and now.canceling is not None:
            return row.moments.get(after.last_seq)
    return None


def _replay(row: RunRow) -> Iterator[tuple[Run, Run]]:
    """The run before and after each event of its log, as far as the log can be believed."""
    run = new_run_like(row.head)
    for event, at in row.log:
        try:
            before, run = run, evolve(run, read_event(event.event_type, event.payload, at), at)
        except (IllegalMove, AssertionError):
            return
        yield before, run


def _attempt(servers: Servers, req_id: str) -> str:
    """An attempt's name for people."""
    run_id = run_of(req_id)
    row = servers.store.runs.get(run_id) if run_id is not None else None
    if row is None:
        return f"a stranger's call {req_id}"
    number = list(servers.store.runs).index(row.head.id) + 1
    attempt = next((one for one in row.attempts.values() if one.req_id == req_id), None)
    place = f"step {attempt.step_index} attempt {attempt.index}" if attempt is not None else "an unknown attempt"
    return f"run {number} {place}"


def snapshot(steps: Sequence[dict[str, Any]]) -> str:
    """A workflow of these steps as its row keeps it."""
    return parse_spec({"title": "A workflow", "steps": list(steps)}).model_dump_json()
