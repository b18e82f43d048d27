"""The checkers are proven: each engine that is broken on purpose is caught, by the checker that is there for it."""

from __future__ import annotations

import pytest

from tests.sim.mutations import MUTATIONS, Case
from tests.sim.universe import play

MOST_SEEDS = 40


@pytest.mark.parametrize("case", MUTATIONS.values(), ids=MUTATIONS)
def test_a_broken_engine_is_caught(case: Case) -> None:
    """And the very universe that catches it has nothing to say against the whole engine."""
    caught = next((seed for seed in range(MOST_SEEDS) if _caught(seed, case)), None)
    assert caught is not None, f"{MOST_SEEDS} seeds saw nothing"
    assert play(caught, case.plan).violations == ()


def _caught(seed: int, case: Case) -> bool:
    with case.break_it():
        violations = play(seed, case.plan).violations
    return any(words in one for words in case.noticed_by for one in violations)
