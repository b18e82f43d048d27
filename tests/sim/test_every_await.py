"""A fault at any await of a small universe breaks no promise: every sixth of all strikes here, all in ``make sim``."""

from __future__ import annotations

import pytest

from tests.sim.__main__ import told
from tests.sim.every_await import FATES, strike, strikes
from tests.sim.faults import Fate

STRIDE = 6


@pytest.mark.parametrize("fate", FATES)
def test_a_fault_at_any_await_breaks_no_promise(fate: Fate) -> None:
    chosen = [one for one in strikes() if one[0] == fate][FATES.index(fate) :: STRIDE]
    assert len(chosen) > 10
    for one in chosen:
        report = strike(one)
        assert fate in {how for _, _, _, how in report.trace}
        if report.violations:
            pytest.fail(f"{fate} at exchange {one[1]}\n{told(report)}", pytrace=False)
