"""The plan of a storm: the same for the same seed, all kinds of faults in it, no target hit before it recovered."""

from __future__ import annotations

import pytest

from tests.chaos.plan import RECOVERY_S, kinds, plan

STORM_S = 78.0
TTL_S = 2.0


def test_a_seed_is_a_storm() -> None:
    assert plan(7, seconds=STORM_S, lease_ttl_s=TTL_S) == plan(7, seconds=STORM_S, lease_ttl_s=TTL_S)
    assert plan(7, seconds=STORM_S, lease_ttl_s=TTL_S) != plan(8, seconds=STORM_S, lease_ttl_s=TTL_S)


@pytest.mark.parametrize("seed", range(50))
def test_two_minutes_have_every_kind_of_fault_and_let_each_target_recover(seed: int) -> None:
    faults = plan(seed, seconds=STORM_S, lease_ttl_s=TTL_S)
    happened = {(fault.target.partition("-")[0], fault.what) for fault in faults}
    assert happened == {(kind.targets[0].partition("-")[0], kind.what) for kind in kinds(TTL_S)}
    back: dict[str, float] = {}
    for fault in faults:
        assert fault.at_s >= back.get(fault.target, 0.0) - 0.1, "rounded for people"
        back[fault.target] = fault.at_s + fault.for_s + RECOVERY_S
    assert all(fault.for_s > TTL_S for fault in faults if fault.target.startswith("node") and fault.what == "stop")
