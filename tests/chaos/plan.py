"""The plan of the faults: made from a seed before anything starts, printed, and the same for the same seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

NODES = ("node-1", "node-2", "node-3")


class Fault(NamedTuple):
    """At ``at_s`` of the storm ``what`` happens to ``target``, which is away for ``for_s``; then it is brought back."""

    at_s: float
    target: str
    what: str
    for_s: float

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} s  {self.target:<9} {self.what:<6} {f'{self.for_s:.1f} s' if self.for_s else ''}"


class Kind(NamedTuple):
    """A kind of fault: how often it comes beside the others, and the bounds of how long it lasts, in seconds."""

    targets: Sequence[str]
    what: str
    weight: int
    shortest_s: float
    longest_s: float


def kinds(lease_ttl_s: float) -> tuple[Kind, ...]:
    """Kill is SIGKILL, stop SIGSTOP and later SIGCONT, drain SIGTERM (Postgres: a fast shutdown), flush FLUSHALL."""
    return (
        Kind(NODES, "kill", 6, 0.0, 4.0),
        Kind(NODES, "stop", 4, 1.3 * lease_ttl_s, 2.5 * lease_ttl_s),
        Kind(NODES, "drain", 4, 0.0, 3.0),
        Kind(["postgres"], "kill", 2, 0.0, 2.0),
        Kind(["postgres"], "stop", 1, 0.5, 3.0),
        Kind(["postgres"], "drain", 1, 0.0, 1.5),
        Kind(["valkey"], "kill", 2, 0.0, 2.0),
        Kind(["valkey"], "stop", 1, 0.5, 3.0),
        Kind(["valkey"], "flush", 3, 0.0, 0.0),
        Kind(["gateway"], "kill", 2, 0.0, 3.0),
        Kind(["gateway"], "stop", 1, 0.5, 4.0),
        Kind(["gateway"], "drain", 1, 0.0, 2.0),
    )


RECOVERY_S = 4.0
"""After a fault its target is left alone for this long: to be brought back, and to do some work."""


def plan(seed: int, *, seconds: float, lease_ttl_s: float) -> list[Fault]:
    """Faults over ``seconds``, 1.4 s apart on average: first each kind once in a random order, then by weight.

    Faults of different targets may overlap.
    """
    chance = random.Random(f"faults of {seed}")
    known = kinds(lease_ttl_s)
    waiting = list(known)
    faults: list[Fault] = []
    free_at: dict[str, float] = {}
    at_s = chance.uniform(1.0, 2.0)
    while at_s < seconds:
        possible = [one for one in waiting or known if _free(one, free_at, at_s)]
        if possible:
            kind = chance.choices(possible, [one.weight for one in possible])[0]
            target, for_s = chance.choice(_free(kind, free_at, at_s)), chance.uniform(kind.shortest_s, kind.longest_s)
            faults.append(Fault(round(at_s, 1), target, kind.what, round(for_s, 1)))
            free_at[target] = at_s + for_s + RECOVERY_S
            waiting = [one for one in waiting if one is not kind]
        at_s += chance.uniform(0.4, 2.4)
    return faults


def _free(kind: Kind, free_at: dict[str, float], at_s: float) -> list[str]:
    """The targets of this kind that have recovered from the fault before."""
    return [target for target in kind.targets if free_at.get(target, 0.0) <= at_s]
