"""People: they look at a run, think, and press a button, knowing only what they saw; two may press at once.

What a person says is a committed row before anything else happens, as the API does it; the bell after it may be lost.
At each seat somebody else of ``TOKENS`` may sit down, whoever they are and whatever they may.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, get_args
from uuid import UUID

from daemon.fabric.inbox import Post
from daemon.machine.commands import CommandId, CommandKind, RunId, Who
from daemon.machine.state import Run
from tests.sim.authority import TOKENS, USER
from tests.sim.faults import Chance
from tests.sim.host import Servers
from tests.sim.loop import World

KINDS = get_args(CommandKind)
PRESSES: Mapping[str | None, tuple[str, ...]] = {
    None: ("nothing",) * 12 + ("cancel", "approve", "resume"),
    "awaiting_approval": ("approve",) * 9 + ("edit",) * 4 + ("reject", "resume", "cancel", "skip"),
    "step_failed": ("resume",) * 4 + ("cancel", "approve", "skip", "skip", "mark_done"),
    "outcome_unknown": ("resume",) * 4 + ("cancel", "skip", "mark_done"),
    "engine_interrupted": ("resume", "cancel"),
    "agent_unauthorized": ("resume",) * 3 + ("nothing", "cancel", "approve"),
    "held": ("nothing",) * 6 + ("resume", "cancel"),
}
"""What somebody presses at a run that is paused for this reason (None: that runs)."""

Token = tuple[str, tuple[str, ...]]
"""A person and the groups that their token names."""


class Person:
    """A seat, from which somebody looks every now and then at some run, while there is ``trouble`` or until told to
    stop."""

    def __init__(self, world: World, servers: Servers, chance: Chance, rng: random.Random) -> None:
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
                self._clear(run_id, row.read())
        self._world.after(1.0, self.clear)

    def _clear(self, run_id: RunId, run: Run) -> None:
        if run.paused_reason in ("held", "agent_unauthorized"):  # nothing holds or bars it any more
            if run.paused_reason != "held":
                self._say(run_id, "resume", run.paused_seq, {}, (USER, ()))
            return
        voter = next(self._voters(run), None) if run.paused_reason == "awaiting_approval" else None
        if voter is None:
            self._say(run_id, "cancel", run.paused_seq, {}, (USER, ()))
        else:
            self._say(run_id, "approve", run.paused_seq, _about(run), voter)

    def _voters(self, run: Run) -> Iterator[Token]:
        """Who may decide on what waits, and has not."""
        step, revision = run.spec.steps[run.step_index], run.approval
        for by, tokens in TOKENS.items():
            groups = max(tokens, key=len)
            if not self._servers.store.authority.rules.may_decide(step, by, groups, user=run.user_id):
                continue
            edited = step.terms.forbid_self and revision is not None and revision.edited_by == by
            if not edited and not any(vote.by == by for vote in (revision.votes if revision is not None else ())):
                yield by, groups

    def _look(self, run_id: RunId) -> None:
        seen, rng = self._servers.store.runs[run_id].read(), self._rng
        kind = rng.choice(PRESSES[seen.paused_reason if seen.status == "paused" else None])
        token = self._somebody(seen)
        if kind not in KINDS:
            return
        about = _about(seen) | {
            "confirm": "run_again" if rng.random() < 0.8 else None,
            "note": "I have seen it",
            "arguments": f'{{"n":{rng.randrange(4)}}}',
        }
        if rng.random() < 0.05:
            about["step_id"] = "another step"
        if rng.random() < 0.1:
            about["digest"] = rng.choice((None, "sha256:ff"))
        seen_seq = seen.paused_seq if seen.status == "paused" else None
        self._world.after(rng.expovariate(2.0), lambda: self._say(run_id, kind, seen_seq, about, token))

    def _somebody(self, seen: Run) -> Token:
        """Mostly somebody who may decide what waits, if anything does."""
        voters = list(self._voters(seen)) if seen.paused_reason == "awaiting_approval" else []
        if voters and self._rng.random() < 0.75:
            return self._rng.choice(voters)
        by = self._rng.choice(list(TOKENS))
        return by, self._rng.choice(TOKENS[by])

    def _say(self, run_id: RunId, kind: Any, seen_seq: int | None, about: Mapping[str, Any], token: Token) -> None:
        command_id = CommandId(UUID(int=self._rng.getrandbits(128)))
        seen = None if kind == "cancel" else seen_seq
        by, groups = token
        payload = {**about, "who": Who(groups=groups)}
        if kind != "edit":
            payload.pop("arguments", None)
        self._servers.store.add_command(command_id, run_id, kind, payload, seen, by)
        if "redis" not in self._servers.out:
            self._servers.redis.append([Post(run_id, "c")], bound=100)


def _about(run: Run) -> dict[str, Any]:
    """What somebody who sees the run says that they mean."""
    return {
        "step_id": run.step.id if run.step is not None else None,
        "digest": run.approval.digest if run.approval is not None else None,
    }
