"""One small universe, and a fault at each exchange in it, one after the other: no await is special.

``strikes`` are all of them, ``strike`` plays one. The test beside it plays some, ``python -m tests.sim`` all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from tests.sim.faults import Fate, Plan
from tests.sim.universe import Report, Universe, play

SMALL = Plan(hosts=2, runs=1, people=1, trouble_s=2.9, odd_tools=0.0)
SEED = 7
"""A run of two calls, of which somebody approves the first."""
HELD_S = (2.1, 2.5)
"""From when to when the agent is held: the approval comes in between."""
HARMLESS: Sequence[Fate] = ("well", "slow")
FATES: Sequence[Fate] = tuple(fate for fate in get_args(Fate) if fate not in HARMLESS)

Strike = tuple[Fate, int]
"""What happens, and at which exchange, counted from 1 over all hosts."""


def strikes() -> list[Strike]:
    """Every fate at every exchange, from the run's creation to the peace, told by a universe in which all goes well."""
    calm = strike(("well", 0))
    exchanges = [(at, what) for at, _, what, _ in calm.trace if ":" in what or what.startswith("creates")]
    created = next(number for number, (_, what) in enumerate(exchanges) if what.startswith("creates"))
    peace = sum(at < SMALL.trouble_s for at, _ in exchanges)
    return [(fate, number) for fate in FATES for number in range(created + 1, peace)]


def hold(universe: Universe, back: bool) -> None:
    """Hold the agent, or release it, and tell every host."""
    universe.enact("the agent is held", back=back)
    universe.hint()


def strike(one: Strike) -> Report:
    """The small universe with this fate at this exchange, and nothing else going wrong."""
    fate, number = one
    exchanges = 0

    def deal(what: str) -> Fate:
        nonlocal exchanges
        exchanges += 1
        return fate if exchanges == number else "well"

    def change(universe: Universe) -> None:
        universe.chance.dealt = deal
        for at, back in zip(HELD_S, (False, True), strict=True):
            universe.world.at(at, lambda back=back: hold(universe, back))  # type: ignore[misc] # bound here

    return play(SEED, SMALL, change=change)
