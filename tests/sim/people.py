"""People: they look at a run, think, and press a button, knowing only what they saw; two may press at once.

What a person says is a committed row before anything else happens, as the API does it; the bell after it may be lost.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, get_args
from uuid import UUID

from daemon.fabric.inbox import Post
from daemon.machine.commands import CommandId, CommandKind, RunId
from tests.sim.faults import Chance
from tests.sim.host import Servers
from tests.sim.loop import World

KINDS = get_args(CommandKind)
PRESSES: Mapping[str | None, tuple[str, ...]] = {
    None: ("nothing",) * 12 + ("cancel", "approve", "resume"),
    "awaiting_approval": ("approve",) * 8 + ("reject", "resume", "cancel", "skip"),
    "step_failed": ("resume",) * 4 + ("cancel", "approve", "skip", "skip", "mark_done"),
    "outcome_unknown": ("resume",) * 4 + ("cancel", "skip", "mark_done"),
    "engine_interrupted": ("resume", "cancel"),
}
"""What somebody presses at a run that is paused for this reason (None: that runs)."""


class Person:
    """One person, who looks every now and then at some run, while there is ``trouble`` or until told to stop."""

    def __init__(self, name: str, world: World, servers: Servers, chance: Chance, rng: random.Random) -> None:
        self._name = name
        self._world, self._servers, self._chance, self._rng = world, servers, chance, rng

    def work(self) -> None:
        """Look at a run now, decide in a while, and come back, until the trouble is over."""
        if not self._chance.trouble:
            return
        runs = [run_id for run_id, row in self._servers.store.runs.items() if not row.head.terminal]
        if runs:
            self._look(self._rng.choice(runs))
        self._world.after(self._rng.uniform(0.2, 1.5), self.work)

    def clear(self) -> None:
        """Decide whatever waits, so that every run ends: approve what is to be approved, cancel the rest."""
        for run_id, row in self._servers.store.runs.items():
            if row.head.status == "paused" and not any(not command.verdicts for command in row.commands):
                kind = "approve" if row.head.paused_reason == "awaiting_approval" else "cancel"
                self._say(run_id, kind, row.head.paused_seq, {"step_id": row.head.spec.steps[row.head.step_index].id})
        self._world.after(1.0, self.clear)

    def _look(self, run_id: RunId) -> None:
        seen = self._servers.store.runs[run_id].head
        kind = self._rng.choice(PRESSES[seen.paused_reason if seen.status == "paused" else None])
        if kind not in KINDS:
            return
        step = seen.step
        right = self._rng.random() < 0.95
        payload = {
            "step_id": step.id if step is not None and right else "another step",
            "confirm": "run_again" if self._rng.random() < 0.8 else None,
            "note": "I have seen it",
        }
        seen_seq = seen.paused_seq if seen.status == "paused" else None
        self._world.after(self._rng.expovariate(2.0), lambda: self._say(run_id, kind, seen_seq, payload))

    def _say(self, run_id: RunId, kind: Any, seen_seq: int | None, payload: dict[str, Any]) -> None:
        command_id = CommandId(UUID(int=self._rng.getrandbits(128)))
        seen = None if kind == "cancel" else seen_seq
        self._servers.store.add_command(command_id, run_id, kind, payload, seen, self._name)
        if "redis" not in self._servers.out:
            self._servers.redis.append([Post(run_id, "c")], bound=100)
