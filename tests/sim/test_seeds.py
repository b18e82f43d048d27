"""Some seeds on each run of the suite (``make sim SEEDS=500`` plays many), and that a seed is one universe for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import orjson
import pytest

from daemon.machine.approval import RevisionState
from tests.sim.__main__ import seeds, told
from tests.sim.faults import Plan, draw
from tests.sim.mutations import EDICTS
from tests.sim.postgres import Postgres
from tests.sim.universe import Universe, play

FEW = range(24)
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("seed", FEW)
def test_a_seed_keeps_every_promise(seed: int) -> None:
    report = play(seed)
    if report.violations:
        pytest.fail(told(report), pytrace=False)


def test_a_seed_is_the_same_universe_in_every_process() -> None:
    """Whatever order sets of strings and of objects have there: what fails once can be watched again."""
    script = "from tests.sim.universe import play\nfor seed in range(100, 104): print(play(seed).fingerprint)"
    there = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    here = [play(seed).fingerprint for seed in range(100, 104)]
    assert there.stdout.split() == here
    assert len(set(here)) == len(here)


def test_in_calm_weather_every_call_runs_once_and_nothing_fails() -> None:
    """What the trouble is compared with: a universe in which nothing goes wrong shows no trace of any repair."""
    universe = Universe(1, Plan(odd_tools=0.0, people=0, runs=4))
    report = universe.play()
    assert report.violations == ()
    assert {status.split(":")[0] for status in report.statuses} == {"completed"}
    ledger = universe.servers.gateway.ledger
    assert len(ledger.executions) == sum(len(row.steps) for row in universe.servers.store.runs.values())
    assert {how for _, _, what, how in report.trace if ":" in what} == {"well"}


def test_among_the_seeds_is_trouble_of_every_kind() -> None:
    """No kind of fault may drop out of the draw unnoticed, nor be part of every plan."""
    plans = [draw(Universe(seed)._rng("plan")) for seed in range(100)]
    for kind in Plan.__slots__:
        values = Counter(bool(getattr(plan, kind)) for plan in plans)
        if kind not in ("hosts", "runs", "people", "trouble_s", "ttl_s", "odd_tools"):
            assert min(values[True], values[False]) > 10, kind


def test_among_the_seeds_runs_take_quick_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that commits are appended, rows follow by themselves, and an owner appends to what another has claimed."""
    made = Counter[tuple[str, bool]]()

    def count(name: str) -> None:
        make = getattr(Postgres, name)

        def counted(*given: object) -> int | None:
            answer: int | None = make(*given)
            made[name, answer is not None] += 1
            return answer

        monkeypatch.setattr(Postgres, name, counted)

    for name in ("append", "follow"):
        count(name)
    for seed in range(60):
        play(seed)
    assert made["append", True] > 300
    assert min(made["follow", True], made["append", False], made["follow", False]) > 5, made


def test_the_faults_really_strike() -> None:
    """Each stroke of fate that is planned leaves its line in the trace."""
    plan = Plan(
        crash=0.012, stop=0.004, lose=0.02, slow=0.01, hint=0.3, thefts=5, outages=4, jumps=5, drains=2, forgets=2,
        hosts=3, runs=5,
    )  # fmt: skip
    seen = {
        part for seed in range(3) for _, _, what, how in play(seed, plan).trace for part in (what.split(" is ")[0], how)
    }
    fates = {"lost", "unanswered", "slow", "stop", "crash before", "crash during", "crash after"}
    assert fates <= seen
    assert {"crashes", "stands still", "leaves", "bell", "offer", "steals a lease", "Redis forgets everything"} <= seen
    assert any(one.startswith("the clock of") for one in seen)


def test_a_stopped_host_does_nothing_and_then_goes_on() -> None:
    universe = Universe(3, Plan(hosts=1, runs=2, people=0, odd_tools=0.0))
    universe.world.at(2.0, lambda: universe.hosts[0].stop(3.0))
    trace = universe.play().trace
    begun = [at for at, who, what, _ in trace if who == "h1" and ":" in what]
    assert not [at for at in begun if 2.0 < at < 5.0]
    assert [at for at in begun if at >= 5.0]


def test_seeds_are_named_by_number_or_by_range() -> None:
    assert seeds("3") == range(3)
    assert seeds("7..9") == range(7, 10)


def test_among_the_seeds_people_vote_and_rules_change() -> None:
    """Whatever may become of a run by authority and approvals becomes of some run within a few universes."""
    seen: set[str] = set()
    for seed in range(20):
        universe = Universe(seed, EDICTS)
        assert universe.play().violations == ()
        for row in universe.servers.store.runs.values():
            seen |= {f"{one.command.kind} {verdict.code}" for one in row.commands for verdict, _ in one.verdicts}
            seen |= {history[-1][1].state for history in row.approvals.values()}
            for event, _ in row.log:
                body = orjson.loads(event.payload)
                seen |= {event.event_type, body.get("paused_reason") or "", *body.keys() & {"voids"}}
    assert set(get_args(RevisionState)) - {"open"} <= seen
    assert {"held", "agent_unauthorized", "step.voted", "step.edited", "step.expired", "voids"} <= seen
    assert {"approve not_an_approver", "approve digest_mismatch", "approve digest_required", "resume held"} <= seen
