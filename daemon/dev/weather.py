"""Bad weather by name: what the dev Gateway can be told to do wrong, as the real one was seen to do.

``DevGateway`` asks before each INVOKE reaches an agent and before each event reaches the subscribers. Tests change the
weather. A new condition is one row in ``CONDITIONS``; this module never touches a call or an event itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from daemon.dev.envelope import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One kind of weather. Each question gets the envelope it is about; False means "this one is lost"."""

    says: str
    reaches_agent: Callable[[Json], bool] = lambda _invoke: True
    reaches_subscribers: Callable[[Json], bool] = lambda _event: True


CONDITIONS: dict[str, Condition] = {
    "lost_result": Condition(
        says="a RESULT is stored but never published on SSE",
        reaches_subscribers=lambda event: event["type"] != "RESULT",
    ),
    "silent": Condition(
        says="POST /invoke is answered 202, but the agent neither acknowledges nor runs the call",
        reaches_agent=lambda _invoke: False,
    ),
}


class Weather:
    """The conditions that hold now; fair (none) at first."""

    def __init__(self) -> None:
        self._now: frozenset[str] = frozenset()

    @property
    def now(self) -> frozenset[str]:
        """The names of the conditions that hold."""
        return self._now

    def change(self, *names: str) -> None:
        """Replaces the weather; no name at all means fair."""
        if unknown := set(names) - CONDITIONS.keys():
            raise ValueError(f"no such weather: {', '.join(sorted(unknown))}; there is {', '.join(CONDITIONS)}")
        self._now = frozenset(names)

    @contextmanager
    def during(self, *names: str) -> Iterator[None]:
        """Adds conditions for the length of a ``with`` block."""
        before = self._now
        self.change(*before, *names)
        try:
            yield
        finally:
            self._now = before

    def reaches_agent(self, invoke: Json) -> bool:
        """Whether this INVOKE arrives at its agent."""
        return all(CONDITIONS[name].reaches_agent(invoke) for name in self._now)

    def reaches_subscribers(self, event: Json) -> bool:
        """Whether this event arrives at the SSE subscribers."""
        return all(CONDITIONS[name].reaches_subscribers(event) for name in self._now)
