"""All that actors and the host know of the world: protocols, kept by ``store``, ``fabric`` and ``dispatch``, and by the
simulation's doubles. What a method may raise is part of it: FabricUnavailable and StoreUnavailable mean "again later".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from daemon.machine.commands import Command, Entry, Epoch, Letter, RunId, Urgency
from daemon.machine.effects import Effect, Invoke
from daemon.machine.ground import Grounds
from daemon.machine.needs import Hint
from daemon.machine.record import Known, Outcomes, Told, Transition
from daemon.machine.state import Run

Held = tuple[RunId, str, Epoch]
"""A run, the owner token it is held with, and the epoch of the claim."""

Offer = tuple[bytes, RunId]
"""An entry of the ready stream, to be acknowledged, and the run it offers."""


class Lane(Protocol):
    """Commits batches in turn; a run stands in a batch once."""

    async def commit(self, batch: Sequence[Transition]) -> Outcomes:
        """Answers once the outcome of every transition is known; never raises for Postgres' sake."""
        ...

    async def keep_up(self) -> None:
        """Write to rows what commits wrote to the log alone; until cancelled."""
        ...


class Claims(Protocol):
    """Claims in Postgres: the fence."""

    async def claim(self, wanted: Mapping[RunId, str]) -> tuple[list[tuple[Run, Epoch]], int]: ...

    async def release(self, given: Sequence[tuple[RunId, Epoch, str, int | None, int]]) -> set[RunId]: ...

    async def park_lost(self, known: Sequence[Known]) -> set[RunId]: ...

    async def still_held(self, held: Sequence[Held]) -> set[RunId]: ...

    async def open_commands(self, run_ids: Sequence[RunId]) -> dict[RunId, list[Command]]: ...


class Leases(Protocol):
    """Leases in Redis: the courtesy."""

    async def take(self, wanted: Mapping[RunId, str]) -> set[RunId]: ...

    async def seal(self, claimed: Sequence[Held]) -> set[RunId]: ...

    async def renew(self, held: Sequence[Held]) -> Mapping[RunId, str]: ...

    async def release(self, held: Sequence[Held], *, force: bool = False) -> Mapping[RunId, str]: ...


class Inbox(Protocol):
    """Letters, and this node's doorbell. ``read`` answers at most ``read_limit`` letters of one run."""

    @property
    def read_limit(self) -> int: ...

    async def read(self, run_ids: Sequence[RunId]) -> dict[RunId, list[Entry]]: ...

    async def give_back(self, letters: Sequence[tuple[RunId, Entry]]) -> None: ...

    async def delete(self, folded: Mapping[RunId, Sequence[bytes]]) -> None: ...

    async def listen(self, node: str, block_ms: int) -> dict[RunId, Urgency]: ...


class Publisher(Protocol):
    """Tells watchers."""

    async def publish(self, said: Sequence[tuple[RunId, Told]]) -> list[int]: ...


class Ready(Protocol):
    """Runs without an owner."""

    async def mark(self, run_ids: Sequence[RunId], *, if_room: bool = False) -> int: ...

    async def take(self, count: int, block_ms: int) -> list[Offer]: ...

    async def reclaim(self, idle_ms: int, count: int) -> list[Offer]: ...

    async def give_back(self) -> int: ...

    async def done(self, entries: Sequence[bytes]) -> None: ...


class Aside(Protocol):
    """Where letters are kept that a run cannot take."""

    async def keep(self, letters: Iterable[tuple[RunId, bytes, str]]) -> None: ...


Permit = Callable[[], bool]
"""Asked immediately before the bytes are written: is the lease fresh, and is the call still owed?"""

Later = Callable[[Callable[[], object]], None]
"""Does something when nothing more urgent is to be done, soon or at once."""

Answer = Callable[[Letter | None], None]
"""Called exactly once when an effect is through; None says nothing to the run."""


class Dispatch(Protocol):
    """Carries effects out, each in its own time."""

    def submit(self, effect: Effect, *, permit: Permit, answer: Answer) -> None: ...


class Authority(Protocol):
    """What stands about the calls of runs, as it is known here."""

    def lacks(self, run: Run) -> bool: ...

    async def learn(self, runs: Sequence[Run]) -> None: ...

    def grounds(self, run: Run) -> Grounds: ...

    def allows(self, run: Run, call: Invoke) -> bool: ...

    def outdated(self) -> None: ...

    def confirmed(self, version: int, at: float) -> None: ...


class Tools(Protocol):
    """What tools say of themselves, as far as it is known."""

    @property
    def hints(self) -> Mapping[tuple[str, str], Hint]: ...

    def want(self, agent_id: str) -> None: ...


class Weather(Protocol):
    """Whether somebody hears the events of the Gateways, so that a call's RESULT will be noticed."""

    @property
    def all_heard(self) -> bool:
        """Whether that is so for every Gateway; then nobody need ask about an agent."""
        ...

    def unheard(self, agents: frozenset[str]) -> frozenset[str]:
        """Those of the agents whose Gateway nobody hears. Where an agent's Gateway is not known, any may be it."""
        ...
