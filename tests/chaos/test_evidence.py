"""The judge of the chaos sees every crime: each broken law, put into blameless evidence, is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.evidence import Attempt, Call, Event, Evidence, Life, Word
from tests.chaos.people import Promises
from tests.chaos.scripts import SCRIPTS

RUN = "0190163d-8694-739b-aea5-966c26f8ad90"
FIRST, SECOND = "first-call", "second-call"


def blameless() -> Evidence:
    """A run whose second call of a step was a person's word, after an outcome that nobody knew."""
    told = [
        ("run.created", {}),
        ("step.progress", {"status": "running", "req_id": FIRST}),
        ("tool.result", {"req_id": FIRST}),
        ("step.paused", {}),
        ("run.resumed", {}),
        ("step.progress", {"status": "running", "req_id": SECOND}),
        ("tool.result", {"req_id": SECOND}),
        ("run.completed", {}),
    ]
    events = [Event(seq, kind, payload) for seq, (kind, payload) in enumerate(told, 1)]
    life = Life(RUN, SCRIPTS[0], "resume", "completed", None, len(events), events, list(events))
    promises = Promises(created={RUN}, accepted={"resume-1"})
    promises.asked[RUN, "resume"] = promises.applied[RUN, "resume"] = 1
    return Evidence(
        {RUN: life},
        [Attempt(FIRST, RUN, 0, 0, "unknown", True), Attempt(SECOND, RUN, 0, 1, "done", True)],
        [
            Word("start-1", RUN, "start", None, 2, "applied"),
            Word("resume-1", RUN, "resume", "run_again", 6, "applied"),
        ],
        [Call(FIRST, "quick"), Call(SECOND, "quick")],
        promises,
    )


def _renumbered(evidence: Evidence, *without: str) -> None:
    life = evidence.lives[RUN]
    kept = [event for event in life.events if event.event_type not in without]
    life.events = [event._replace(seq=seq) for seq, event in enumerate(kept, 1)]
    life.seen, life.last_seq = list(life.events), len(life.events)


def _no_confirmation(evidence: Evidence) -> None:
    evidence.words[1] = evidence.words[1]._replace(confirm=None)


def _no_verdict(evidence: Evidence) -> None:
    evidence.words[1] = evidence.words[1]._replace(verdict=None)


def _undecided_attempt(evidence: Evidence) -> None:
    evidence.attempts[1] = evidence.attempts[1]._replace(ended=False)


def _wrong_end(evidence: Evidence) -> None:
    evidence.lives[RUN].status, evidence.lives[RUN].reason = "paused", "engine_interrupted"


def _left_unknown(evidence: Evidence) -> None:
    """This person would have had it run again."""
    _renumbered(evidence, "run.completed")
    evidence.lives[RUN].status, evidence.lives[RUN].reason = "paused", "outcome_unknown"


def _seen_twice(evidence: Evidence) -> None:
    evidence.lives[RUN].seen.insert(3, evidence.lives[RUN].seen[2])


CRIMES: dict[str, tuple[Callable[[Evidence], object], str]] = {
    "a call without an intent": (lambda e: e.ledger.append(Call("forged", "quick")), "no committed intent"),
    "an attempt sent twice": (lambda e: e.ledger.append(Call(SECOND, "quick")), "executed 2 times"),
    "a repeat that nobody wanted": (lambda e: _renumbered(e, "run.resumed"), "nobody said so"),
    "a repeat of the unknown without its confirmation": (_no_confirmation, "nobody said so"),
    "an answer of a tool that never ran": (lambda e: e.ledger.pop(), "never executed"),
    "a run that vanished": (lambda e: e.promises.created.add("another"), "created and gone"),
    "a command that vanished": (lambda e: e.promises.accepted.add("cancel-1"), "accepted and gone"),
    "a command without a verdict": (_no_verdict, "has no verdict"),
    "an applied command that was not": (lambda e: e.promises.applied.update({(RUN, "approve"): 1}), "answered 200"),
    "a command that nobody gave": (lambda e: e.promises.asked.clear(), "asked 0 times"),
    "an attempt without a verdict": (_undecided_attempt, "has no verdict"),
    "an end that the script does not know": (_wrong_end, "ended paused, engine_interrupted"),
    "an unknown outcome that its person would not leave": (_left_unknown, "ended paused, outcome_unknown"),
    "a gap in the log": (lambda e: e.lives[RUN].events.pop(3), "not dense"),
    "an end without its event": (lambda e: _renumbered(e, "run.completed"), "is completed, its log says []"),
    "two ends": (lambda e: e.lives[RUN].events.append(e.lives[RUN].events[-1]), "its log says ['run.completed', 'run"),
    "two verdicts on one attempt": (lambda e: e.lives[RUN].events.append(e.lives[RUN].events[2]), "2 verdicts"),
    "a watcher who missed the end": (lambda e: e.lives[RUN].seen.pop(), "saw 7 of 8"),
    "a watcher who saw something twice": (_seen_twice, "what the log does not say"),
}


def test_blameless_evidence_has_no_fault() -> None:
    evidence = blameless()
    assert evidence.faults() == []
    assert evidence.harmless() == 0
    assert evidence.repeated() == ([], 1)


@pytest.mark.parametrize("crime", CRIMES)
def test_a_crime_is_seen(crime: str) -> None:
    commit, named = CRIMES[crime]
    evidence = blameless()
    commit(evidence)
    assert named in "\n".join(evidence.faults())


def test_a_tool_that_may_be_repeated_may_be_repeated() -> None:
    evidence = blameless()
    _renumbered(evidence, "run.resumed")
    evidence.ledger = [call._replace(tool="lookup") for call in evidence.ledger]
    assert evidence.faults() == []
    assert evidence.harmless() == 1
