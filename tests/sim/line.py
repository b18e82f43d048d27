"""How a double is reached: ``Line`` is one host's way to one server, where a simulation puts its faults.

The servers (``postgres``, ``redis``, ``gateway``) are plain synchronous objects; each of their methods is one exchange
that happens in one moment. ``Near`` is a line without a way, for the conformance suites; ``faults.Far`` the
simulation's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

_T = TypeVar("_T")
_S = TypeVar("_S")


class Line(Protocol):
    """One exchange is a question and its answer; either may be lost, and the asker cannot tell which."""

    @property
    def whose(self) -> str:
        """The name of the host that asks."""
        ...

    async def ask(self, what: str, do: Callable[[], _T]) -> _T:
        """The server does ``do`` in one moment. Raises what the doubled client would when the answer is lost."""
        ...

    async def wait(self, what: str, look: Callable[[], _T], bells: Bells, bell: str, block_s: float) -> _T:
        """The server looks now and whenever ``bell`` rings, until it finds something true or ``block_s`` is over."""
        ...


class Bells:
    """Who waits at a server for something to come. A ring wakes all that wait then; they look again."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def wait(self, bell: str, wake: Callable[[], None]) -> None:
        self._waiting.setdefault(bell, []).append(wake)

    def ring(self, bell: str) -> None:
        for wake in self._waiting.pop(bell, ()):
            wake()


class Near:
    """No way at all: every exchange succeeds at once."""

    whose = "near"

    async def ask(self, what: str, do: Callable[[], _T]) -> _T:
        await asyncio.sleep(0)
        return do()

    async def wait(self, what: str, look: Callable[[], _T], bells: Bells, bell: str, block_s: float) -> _T:
        try:
            async with asyncio.timeout(block_s):
                while not (found := look()):
                    woken = asyncio.Event()
                    bells.wait(bell, woken.set)
                    await woken.wait()
        except TimeoutError:
            return look()
        return found


class Connection(Generic[_S]):
    """A server and the line to it: what the doubles get where the real rooms get a pool or a client."""

    def __init__(self, server: _S, line: Line) -> None:
        self.server = server
        self.line = line
