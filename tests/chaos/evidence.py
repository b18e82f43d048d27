"""What is left after the storm, and the laws it must satisfy. ``gather`` reads it; ``faults`` is pure.

The evidence comes from places that know nothing of one another: the rows in Postgres, the ledger at the tool side, what
each watcher saw, and what the API promised to each person.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from tests.chaos.people import People, Promises
from tests.chaos.scripts import REPEATABLE, Script, Unknown

ENDS = {"completed": "run.completed", "failed": "run.failed", "canceled": "run.canceled"}


class Event(NamedTuple):
    seq: int
    event_type: str
    payload: dict[str, Any]


class Attempt(NamedTuple):
    """One row of the attempts; ``req_id`` is what the ledger knows it by."""

    req_id: str
    run_id: str
    step_index: int
    attempt: int
    state: str
    ended: bool


class Word(NamedTuple):
    """One command row: a person's word."""

    id: str
    run_id: str
    kind: str
    confirm: str | None
    applied_seq: int | None
    verdict: str | None


class Call(NamedTuple):
    """One line of the ledger."""

    req_id: str
    tool: str


@dataclass(slots=True)
class Life:
    """One run: its row, its log, and what concerns it from elsewhere."""

    run_id: str
    script: Script
    at_unknown: Unknown
    status: str
    reason: str | None
    last_seq: int
    events: list[Event] = field(default_factory=list)
    seen: list[Event] = field(default_factory=list)
    """What its watcher saw."""


@dataclass(slots=True)
class Evidence:
    """Everything; runs by id."""

    lives: dict[str, Life]
    attempts: list[Attempt]
    words: list[Word]
    ledger: list[Call]
    promises: Promises
    takeovers: int = 0
    appended: int = 0
    """Pages that were written to the log alone; how many a storm has of them depends on the machine."""

    def repeated(self) -> tuple[list[str], int]:
        """Executions of not repeatable tools after the first of their step: without a person's word (told), and with.

        The word is a ``run.resumed`` in the log between the two intents, and where nobody knew what became of the call
        before, a command that says ``run_again``.
        """
        of = {one.req_id: one for one in self.attempts}
        executed: dict[tuple[str, int], list[Attempt]] = defaultdict(list)
        for call in self.ledger:
            if call.tool not in REPEATABLE and call.req_id in of:
                executed[of[call.req_id].run_id, of[call.req_id].step_index].append(of[call.req_id])
        confirmed = Counter(w.run_id for w in self.words if w.verdict == "applied" and w.confirm == "run_again")
        doubled, by_word = [], 0
        for calls in executed.values():
            for before, after in pairwise(sorted(calls, key=lambda one: one.attempt)):
                permitted = before.attempt < after.attempt and self._resumed_between(before, after)
                if permitted and before.state == "unknown":
                    permitted = confirmed[after.run_id] > 0
                    confirmed[after.run_id] -= 1
                if permitted:
                    by_word += 1
                else:
                    doubled.append(f"run {after.run_id}: {before} and {after} were both executed, and nobody said so")
        return doubled, by_word

    def harmless(self) -> int:
        """Executions of repeatable tools after the first of their step, whoever wanted them."""
        of = {one.req_id: (one.run_id, one.step_index) for one in self.attempts}
        executed = Counter(of.get(call.req_id) for call in self.ledger if call.tool in REPEATABLE)
        return sum(count - 1 for count in executed.values())

    def _resumed_between(self, before: Attempt, after: Attempt) -> bool:
        seqs = {event.payload.get("req_id"): event.seq for event in self._intents(after.run_id)}
        first, last = seqs.get(before.req_id, 0), seqs.get(after.req_id, 0)
        return any(e.event_type == "run.resumed" and first < e.seq < last for e in self.lives[after.run_id].events)

    def _intents(self, run_id: str) -> Iterator[Event]:
        for event in self.lives[run_id].events:
            if event.event_type == "step.progress" and event.payload.get("status") == "running":
                yield event

    def faults(self) -> list[str]:
        """Every broken law, one a line; none is the hope."""
        return [
            *self.lost(),
            *self.repeated()[0],
            *(fault for life in self.lives.values() for fault in _faults_of(life)),
            *self._strange_calls(),
            *self._strange_words(),
            *self._strange_attempts(),
        ]

    def lost(self) -> list[str]:
        """What was promised and is not there: runs, commands, verdicts, events that a watcher never saw."""
        known = {word.id: word for word in self.words}
        applied = Counter((w.run_id, w.kind) for w in self.words if w.verdict == "applied")
        return [
            *(f"run {run_id}: created and gone" for run_id in sorted(self.promises.created - self.lives.keys())),
            *(f"command {id_}: accepted and gone" for id_ in sorted(self.promises.accepted - known.keys())),
            *(f"run {w.run_id}: {w.kind} {w.id} has no verdict" for w in self.words if w.verdict is None),
            *(
                f"run {run_id}: {verb} was answered 200 {count} times and applied {applied[run_id, verb]} times"
                for (run_id, verb), count in sorted(self.promises.applied.items())
                if verb != "cancel" and applied[run_id, verb] < count
            ),
            *(
                f"run {life.run_id}: its watcher saw {len(life.seen)} of {life.last_seq} events"
                for life in self.lives.values()
                if len(life.seen) < life.last_seq
            ),
        ]

    def _strange_calls(self) -> Iterator[str]:
        intended = {one.req_id for one in self.attempts}
        for req_id, count in Counter(call.req_id for call in self.ledger).items():
            if count > 1:
                yield f"{req_id} was executed {count} times"
            if req_id not in intended:
                yield f"{req_id} was executed, and no committed intent knows it"

    def _strange_words(self) -> Iterator[str]:
        for (run_id, kind), count in Counter((word.run_id, word.kind) for word in self.words).items():
            asked = 1 if kind == "start" else self.promises.asked[run_id, kind]
            if count > asked:
                yield f"run {run_id}: {count} commands {kind}, but it was asked {asked} times"

    def _strange_attempts(self) -> Iterator[str]:
        executed = {call.req_id for call in self.ledger}
        for one in self.attempts:
            if not one.ended:
                yield f"run {one.run_id}: {one} has no verdict"
            if one.state in ("done", "failed") and one.req_id not in executed:
                yield f"run {one.run_id}: {one} has an answer, and was never executed"


def _faults_of(life: Life) -> Iterator[str]:
    """The laws of one run's log, and of its end."""
    if not life.script.accepts((life.status, life.reason), at_unknown=life.at_unknown):
        yield f"run {life.run_id} ({life.script.name}) ended {life.status}, {life.reason}"
    if [event.seq for event in life.events] != list(range(1, life.last_seq + 1)):
        yield f"run {life.run_id}: its log is not dense up to {life.last_seq}"
    ends = [event.event_type for event in life.events if event.event_type in ENDS.values()]
    if ends != ([ENDS[life.status]] if life.status in ENDS else []):
        yield f"run {life.run_id} is {life.status}, its log says {ends}"
    results = Counter(event.payload["req_id"] for event in life.events if event.event_type == "tool.result")
    for req_id, count in results.items():
        if count > 1:
            yield f"run {life.run_id}: {count} verdicts on {req_id}"
    if life.seen != life.events[: len(life.seen)]:
        wrong = next((one for one, other in zip(life.seen, life.events, strict=False) if one != other), life.seen[-1:])
        yield f"run {life.run_id}: its watcher saw what the log does not say: {wrong}"


async def gather(connection: asyncpg.Connection[asyncpg.Record], people: People, ledger: Path) -> Evidence:
    """Read it, with everything at rest."""
    persons = {person.run_id: person for person in people.persons}
    lives = {}
    for row in await connection.fetch("SELECT id::text, status, paused_reason, last_seq FROM workflow_runs"):
        person = persons[row["id"]]
        assert person.watcher is not None
        seen = [Event(e["seq"], e["event_type"], e["payload"]) for e in person.watcher.events]
        life = Life(row["id"], person.script, person.at_unknown, *list(row)[1:], seen=seen)
        lives[row["id"]] = life
    rows = await connection.fetch(
        "SELECT run_id::text, seq, event_type, payload FROM workflow_run_events ORDER BY 1, 2"
    )
    for run_id, seq, event_type, payload in rows:
        lives[run_id].events.append(Event(seq, event_type, json.loads(payload)))
    attempts = await connection.fetch(
        "SELECT req_id, run_id::text, step_index, attempt, state, ended_at_ms IS NOT NULL FROM workflow_run_attempts"
    )
    words = await connection.fetch(
        "SELECT id::text, run_id::text, kind, payload->>'confirm', applied_seq, verdict FROM workflow_run_commands"
    )
    takeovers = await connection.fetchval("SELECT count(*) FROM chaos_takeovers")
    appended = await connection.fetchval("SELECT count(*) FROM workflow_run_pages WHERE changes IS NOT NULL")
    return Evidence(
        lives,
        [Attempt(*row) for row in attempts],
        [Word(*row) for row in words],
        read_ledger(ledger),
        people.promises,
        takeovers,
        appended,
    )


def read_ledger(path: Path) -> list[Call]:
    """The executions so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Call(line["req_id"], line["tool"]) for line in map(json.loads, lines)]


def figures(evidence: Evidence, hits: Mapping[str, int], more: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The table that is printed at the end."""
    ends = Counter(life.reason or life.status for life in evidence.lives.values())
    doubled, by_word = evidence.repeated()
    return [
        ("runs", len(evidence.lives)),
        *((f"  {end}", count) for end, count in ends.most_common()),
        ("calls", len(evidence.ledger)),
        ("faults", sum(hits.values())),
        *((f"  {kind}", hits[kind]) for kind in sorted(hits)),
        ("takeovers", evidence.takeovers),
        ("commits appended", evidence.appended),
        ("unknown", sum(one.state == "unknown" for one in evidence.attempts)),
        ("repeated by a person's word", by_word),
        ("repeated because harmless", evidence.harmless()),
        ("commands", sum(word.kind != "start" for word in evidence.words)),
        ("events", sum(len(life.events) for life in evidence.lives.values())),
        *more.items(),
        ("doubled", len(doubled)),
        ("lost", len(evidence.lost())),
    ]


def story(evidence: Evidence, run_ids: Sequence[str]) -> str:
    """Everything about some runs as JSON, for whoever looks for the cause."""
    told = {
        run_id: {
            "script": life.script.name,
            "end": [life.status, life.reason],
            "events": life.events,
            "attempts": [one for one in evidence.attempts if one.run_id == run_id],
            "words": [one for one in evidence.words if one.run_id == run_id],
        }
        for run_id, life in evidence.lives.items()
        if run_id in run_ids
    }
    return json.dumps(told, indent=1, default=str)
