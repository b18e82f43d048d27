"""What stories are told with: a universe without chance, strokes of fate at chosen moments, letters by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from uuid import UUID

import orjson

from daemon.fabric.inbox import Post
from daemon.machine.commands import CommandId, CommandKind, Mark, RunId
from tests.sim.authority import AGENT
from tests.sim.faults import Fate, Plan
from tests.sim.rows import RunRow
from tests.sim.universe import Report, Universe

LOOK_S = 0.002
BEGIN_S = 1.5
UNREAD = ("not quiet: run 1 is completed and has letters that nobody reads",)
"""What is found where a run was left alone with its letters."""


def play(story: Story, tell: Callable[[Story], None], engine: AbstractContextManager[None]) -> Report:
    """What becomes of the story that is told once its hosts have begun, by an engine that may be broken on purpose."""
    story.world.at(BEGIN_S, lambda: tell(story))
    with engine:
        return story.universe.play()


class Story:
    """A universe of so many hosts in which nothing happens by itself; ``plan`` says more about it."""

    def __init__(self, *, hosts: int, seed: int = 1, **plan: Any) -> None:
        self.universe = Universe(seed, Plan(hosts=hosts, runs=0, people=0, trouble_s=20.0, finishes=False, **plan))
        self.world, self.servers = self.universe.world, self.universe.servers

    def run_of(self, *tools: str, timeout_ms: int = 8000, **more: Any) -> RunId:
        """A run that calls these tools of the agent, one after the other; ``more``: what else each step says."""
        return self.universe.create_run(
            *(
                {
                    "id": f"s{number}",
                    "name": f"Step {number}",
                    "tool_config": {"agent_id": AGENT, "tool_name": tool, "timeout_ms": timeout_ms},
                    **more,
                }
                for number, tool in enumerate(tools)
            )
        )

    def enact(self, measure: str, *, back: bool = False, hinted: bool = True) -> None:
        """Take a measure, or take it back; ``hinted``: every host hears that something changed."""
        self.universe.enact(measure, back=back)
        if hinted:
            self.universe.hint()

    def say(self, run_id: RunId, kind: CommandKind, by: str, **about: Any) -> None:
        """A person who sees the run as it stands says so."""
        command_id = CommandId(UUID(int=len(self.row(run_id).commands) + 1))
        self.servers.store.add_command(command_id, run_id, kind, about, self.row(run_id).head.paused_seq, by)
        self.servers.redis.append([Post(run_id, "c")], bound=100)

    def deal(self, what: str, fate: Fate) -> None:
        """The next exchange of this kind has this fate; all others go well."""
        left = [fate]
        self.universe.chance.dealt = lambda asked: left.pop() if asked == what and left else "well"

    def polled(self) -> bool:
        """Whether a host has just asked for the version of the authority, and will not for a while."""
        asked = [at for at, _, what, _ in self.universe.trace if what == "postgres: authority version"]
        return bool(asked) and 0.02 < self.world.now - asked[-1] < 0.2

    def when(self, holds: Callable[[], Any], do: Callable[[], None]) -> None:
        """As soon as it holds, once."""
        if holds():
            do()
        else:
            self.world.after(LOOK_S, lambda: self.when(holds, do))

    def row(self, run_id: RunId) -> RunRow:
        return self.servers.store.runs[run_id]

    def owner(self, run_id: RunId) -> str | None:
        """The host that owns the run by Postgres."""
        owner = self.row(run_id).owner
        return owner.partition(".")[0] if owner is not None else None

    def intended(self, run_id: RunId, step_index: int) -> bool:
        """Whether a call of this step was intended."""
        return (step_index, 0) in self.row(run_id).attempts

    def at_rest(self, run_id: RunId) -> bool:
        """Whether nobody owns the run."""
        return self.row(run_id).owner is None and self.servers.redis.holder(run_id) is None

    def letters(self, run_id: RunId) -> int:
        """How many letters wait in its inbox."""
        return len(self.servers.redis.inboxes.get(run_id, ()))

    def tell_result(self, run_id: RunId, step_index: int, **payload: Any) -> None:
        """The RESULT of a step's first call comes into the run's inbox."""
        req_id = self.row(run_id).attempts[step_index, 0].req_id
        letter = {"v": 1, "type": "RESULT", "agent_id": AGENT, "req_id": req_id, "payload": {"ok": True} | payload}
        mark = Mark(int(self.world.now * 1000), 1)
        self.servers.redis.append([Post(run_id, "h", orjson.dumps(letter), mark)], bound=100)
