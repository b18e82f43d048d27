"""Virtual time: a ``World`` that goes from event to event, and an event loop for each host in it.

A host is what a process is in reality: it has a loop of its own, which the world lets turn when something is due. So a
crash is a loop that never turns again (no ``finally`` runs, nothing is given back), a stop is one that is not turned
for a while, and a clock jump moves one loop's time. Nothing here draws a random number or waits for real.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

Event = tuple[float, int, Callable[[], None]]


class World:
    """What happens when, in virtual seconds. Same seed, same order: events of one moment keep the order of making."""

    def __init__(self) -> None:
        self.now = 0.0
        self.host: HostLoop | None = None
        """Whose turn it is; None: the world's own (servers, agents, people)."""
        self._events: list[Event] = []
        self._number = 0

    def at(self, when: float, do: Callable[[], None]) -> None:
        """Do it at ``when``, or now if that is past."""
        self._number += 1
        heapq.heappush(self._events, (max(when, self.now), self._number, do))

    def after(self, delay: float, do: Callable[[], None]) -> None:
        self.at(self.now + delay, do)

    def run(self, until: float, *, enough: Callable[[], bool] = lambda: False) -> bool:
        """Go on to ``until``, or to the first moment at which it is ``enough``; whether it was."""
        while self._events and self._events[0][0] <= until:
            self.now, _, do = heapq.heappop(self._events)
            do()
            if enough():
                return True
        self.now = until
        return enough()

    def monotonic(self) -> float:
        """What ``time.monotonic`` says to whoever's turn it is."""
        return self.host.time() if self.host is not None else self.now


class _NoSelector:
    """Stands for the selector: no host has a socket, and none ever sleeps."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class HostLoop(asyncio.BaseEventLoop):
    """One host's event loop, turned by the world: one round of what is ready at a time."""

    def __init__(self, world: World, *, ahead: float = 0.0) -> None:
        super().__init__()
        self._selector = _NoSelector()
        self._world = world
        self._ahead = ahead
        """How far this host's clock is before the world's, seconds; only ever grows, as a monotonic clock does."""
        self._roused = False
        self._missed = False
        self.stopped = False
        self.gone = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.set_task_factory(self._make_task)  # type: ignore[arg-type] # typeshed wants a generic protocol

    def time(self) -> float:
        return self._world.now + self._ahead

    def jump(self, seconds: float) -> None:
        """The clock leaps forward: what was due in between is due now."""
        self._ahead += seconds
        self._rouse()

    def stop_still(self) -> None:
        """As at SIGSTOP, in the middle of whatever it does; the clock goes on."""
        self.stopped = True

    def go_on(self) -> None:
        self.stopped = False
        if self._missed:
            self._missed = False
            self._rouse()

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        self._rouse()
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer = super().call_at(when, callback, *args, context=context)
        self._world.at(when - self._ahead, lambda: None if timer.cancelled() else self._turn())
        return timer

    def bury(self) -> None:
        """After the end of the world: end every task, so that nothing is left unfinished, and close."""
        self.gone = False
        for _ in range(100):
            waiting = [task for task in self.tasks if not task.done()]
            if not waiting:
                break
            for task in waiting:
                task.cancel()
            for _ in range(20):
                self._round()
        for task in self.tasks:
            if task.done() and not task.cancelled():
                task.exception()
        self.close()

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **about: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **about)
        self.tasks.append(task)
        return task

    def _rouse(self) -> None:
        if not self._roused:
            self._roused = True
            self._world.at(self._world.now, self._turn)

    def _turn(self) -> None:
        self._roused = False
        if self.gone:
            return
        if self.stopped:
            self._missed = True
            return
        self._round()

    def _round(self) -> None:
        before, self._world.host = self._world.host, self
        try:
            self.stop()  # so that run_forever does one round and returns
            self.run_forever()
        finally:
            self._world.host = before

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
