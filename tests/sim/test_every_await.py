"""One small universe, and a fault at each exchange in it, one after the other: no await is special."""

from __future__ import annotations

import pytest

from tests.sim.__main__ import told
from tests.sim.faults import Fate, Plan
from tests.sim.universe import Report, Universe, play

SMALL = Plan(hosts=2, runs=1, people=1, trouble_s=3.0, odd_tools=0.0, finishes=True)
SEED = 5


def struck(number: int | None, fate: Fate) -> tuple[Report, int]:
    """The small universe with this fate at its exchange of this number (None: at no one); how many there were."""
    exchanges = 0

    def deal(what: str) -> Fate:
        nonlocal exchanges
        exchanges += 1
        return fate if exchanges == number else "well"

    def change(universe: Universe) -> None:
        universe.chance.dealt = deal

    return play(SEED, SMALL, change=change), exchanges


@pytest.mark.parametrize("fate", ["crash before", "crash during", "crash after", "unanswered", "stop"])
def test_a_fault_at_any_await_breaks_no_promise(fate: Fate) -> None:
    calm, exchanges = struck(None, fate)
    assert calm.violations == ()
    until_peace = sum(":" in what and at < SMALL.trouble_s for at, _, what, _ in calm.trace)
    assert 50 < until_peace <= exchanges
    for number in range(1, until_peace + 1):
        report, _ = struck(number, fate)
        if report.violations:
            pytest.fail(f"{fate} at exchange {number}\n{told(report)}", pytrace=False)
