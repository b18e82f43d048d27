"""Bad weather by name: the oddities of the real Gateway and its agents, and which of them hold now.

``CONDITIONS`` is the catalogue, and ``docs/weather.md`` is made from it. ``gateway``, ``tunnel`` and ``mischief`` ask
``holds`` and do what the name says; tests, ``--weather`` and ``PUT /dev/weather`` change what holds. This module never
touches a call or an event itself. For each condition ``tests/gateway/test_weather`` shows what is seen on the wire, and
``tests/weather`` what a run does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daemon.dev.envelope import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One oddity: what is seen, and the sections of the Gateway's contract that tell of it."""

    says: str
    contract: str


CONDITIONS: dict[str, Condition] = {
    "lost_result": Condition(
        contract="2",
        says="A RESULT is stored, but reaches no SSE subscriber.",
    ),
    "lost_result_after_cancel": Condition(
        contract="6",
        says="A canceled call stops and CANCEL_ACK says so, but its RESULT is neither published nor stored.",
    ),
    "lost_result_after_timeout": Condition(
        contract="6",
        says="A call that the agent's own `timeout_ms` ended has no RESULT, and a later CANCEL finds it unknown.",
    ),
    "chunk_after_result": Condition(
        contract="4",
        says="Every CHUNK of a call comes after its RESULT.",
    ),
    "duplicate_result": Condition(
        contract="4",
        says="Each RESULT comes twice.",
    ),
    "late_result": Condition(
        contract="5, 6",
        says="A RESULT is held back, unstored, until the weather changes.",
    ),
    "collateral_canceled": Condition(
        contract="6",
        says="Canceling one call costs the agent its connection: RESULT, DISCONNECT, TOOLS, RESULT again, and every "
        "other running call of the agent ends as canceled, which nobody asked for.",
    ),
    "sse_overflow": Condition(
        contract="2",
        says="A burst right behind each RESULT fills the subscribers' buffers and pushes it out; it is stored.",
    ),
    "silent": Condition(
        contract="5",
        says="POST /invoke is answered 202, but the agent neither acknowledges nor ever runs the call.",
    ),
    "frozen_agent": Condition(
        contract="5",
        says="POST /invoke and /cancel are answered 202 and nothing else happens; when the weather changes, the agent "
        "reads what has queued up and runs the calls late.",
    ),
    "hanging_invoke": Condition(
        contract="5",
        says="POST /invoke and /cancel are not answered until the weather changes; a client that gives up first tears "
        "down the agent's connection, and all its calls with it.",
    ),
    "ghost_agent": Condition(
        contract="5",
        says="The agent is listed online, but POST /invoke and /cancel are answered 502 send_failed.",
    ),
    "false_disconnect": Condition(
        contract="5",
        says="As a call begins, DISCONNECT is published for its agent, which is there and goes on.",
    ),
    "resent_result": Condition(
        contract="4, 5",
        says="The agent's connection ends as it sends a RESULT: DISCONNECT, TOOLS, and only then the RESULT.",
    ),
    "tunnel_cut": Condition(
        contract="5",
        says="As a call begins, the agent's connection is cut: DISCONNECT, TOOLS, and RESULT canceled for each of its "
        "calls, although nobody asked.",
    ),
    "agent_killed": Condition(
        contract="5",
        says="As a call begins, its agent is killed: DISCONNECT, no RESULT ever; it is back when the weather changes.",
    ),
    "oversize_result": Condition(
        contract="7",
        says="Each RESULT is over the size limit: it is never published, and the agent falls off and reconnects in a "
        "loop until the weather changes.",
    ),
    "oversize_invoke": Condition(
        contract="7",
        says="Each call is over the size limit: POST /invoke is answered 202, then DISCONNECT and TOOLS; no ACK, no "
        "RESULT.",
    ),
    "gateway_restart": Condition(
        contract="2, 5",
        says="The next call that is acknowledged sees the Gateway restart, once: streams end with a bare EOF and no "
        "DISCONNECT, every call ends as canceled, told when its agent is back.",
    ),
    "forged_result": Condition(
        contract="8",
        says="With each call a stranger publishes RESULTs for a req_id that nobody made and for one that is none.",
    ),
    "stolen_req_id": Condition(
        contract="8",
        says="A stranger who knows the req_id publishes a RESULT for each call before its agent does.",
    ),
    "plain_404": Condition(
        contract="1",
        says="POST /invoke and /cancel are answered `404 page not found` in plain text, as at a wrong path.",
    ),
    "no_result_store": Condition(
        contract="1",
        says="GET /results is answered 501 redis_not_enabled.",
    ),
    "ack_before_202": Condition(
        contract="1",
        says="All events of a call, its RESULT included, are published before POST /invoke is answered.",
    ),
    "rounded_integers": Condition(
        contract="3",
        says="Numbers in arguments and results go through float64: 9007199254740993 becomes 9007199254740992. The "
        "Gateway always does this, named or not.",
    ),
}


class Weather:
    """What holds now; nothing (fair) at first. ``name`` is for every agent, ``name@agent`` for one."""

    def __init__(self) -> None:
        self._now: frozenset[str] = frozenset()
        self._spent: set[str] = set()
        self._changed = asyncio.Event()

    @property
    def now(self) -> frozenset[str]:
        """The conditions that hold, as they were given."""
        return self._now

    def change(self, *conditions: str) -> None:
        """Replaces the weather; none means fair. What was held back is let go. ValueError for an unknown name."""
        check(conditions)
        self._set(frozenset(conditions))

    @contextmanager
    def during(self, *conditions: str) -> Iterator[None]:
        """Adds conditions for the length of a ``with`` block."""
        before = self._now
        self.change(*before, *conditions)
        try:
            yield
        finally:
            self._set(before)

    def holds(self, name: str, agent_id: str = "") -> bool:
        """Whether a condition holds, for this agent where one is concerned."""
        return name in self._now or f"{name}@{agent_id}" in self._now

    def holds_once(self, name: str, agent_id: str) -> bool:
        """As ``holds``, but True only once each time the condition is switched on."""
        if not self.holds(name, agent_id) or name in self._spent:
            return False
        self._spent.add(name)
        return True

    async def lifted(self, name: str, agent_id: str) -> None:
        """Returns when the condition does not hold (any more)."""
        while self.holds(name, agent_id):
            await self._changed.wait()

    def reaches_agent(self, invoke: Json) -> bool:
        """Whether this INVOKE arrives at its agent."""
        return not self.holds("silent", invoke["agent_id"])

    def reaches_subscribers(self, event: Json) -> bool:
        """Whether this event is offered to the SSE subscribers."""
        return event["type"] != "RESULT" or not self.holds("lost_result", event.get("agent_id", ""))

    def _set(self, conditions: frozenset[str]) -> None:
        self._now = conditions
        self._spent &= {condition.partition("@")[0] for condition in conditions}
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def parse(text: str) -> tuple[str, ...]:
    """The conditions in ``NAME[@AGENT][,NAME[@AGENT]…]``; empty for fair. ValueError for an unknown name."""
    conditions = tuple(word for part in text.split(",") if (word := part.strip()))
    check(conditions)
    return conditions


def check(conditions: Iterable[str]) -> None:
    """Raises ValueError naming the conditions that do not exist, and those that do."""
    if unknown := {condition.partition("@")[0] for condition in conditions} - CONDITIONS.keys():
        raise ValueError(f"no such weather: {', '.join(sorted(unknown))}; there is {', '.join(CONDITIONS)}")


def reference_markdown() -> str:
    """The text of ``docs/weather.md``."""
    rows = [f"| `{name}` | {one.says} | {one.contract} |" for name, one in CONDITIONS.items()]
    return "\n".join([_HEAD, *rows, ""])


_HEAD = """# Weather of the dev Gateway

Made from `daemon/dev/weather.py` by `make docs`; do not edit by hand.

The Gateway and its agents have odd moments, all of them seen with a real one. The dev Gateway plays each on demand, so
that you can see what your workflows do then:

    runwarden dev --weather late_result,false_disconnect
    runwarden demo --weather duplicate_result

`NAME@AGENT` makes it one agent's weather. While `runwarden dev` runs, `GET /dev/weather` on the dev Gateway tells the
weather and `PUT` replaces it; an empty body makes it fair, and what was held back is let go. `runwarden dev` prints the
command. For each name, `tests/weather` has the test that shows what a run does.

| weather | what is seen | section of the Gateway's contract |
|---|---|---|"""


if __name__ == "__main__":
    print(reference_markdown(), end="")  # noqa: T201 - this is the generator of docs/weather.md
