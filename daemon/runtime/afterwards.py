"""What comes after a commit, and after a turn that led to nothing: the letters folded are deleted, those that a run
cannot take are kept elsewhere, watchers are told, and the run may have its next turn. The host's last part.

A run waits for the deletion of its letters, since its next turn reads its inbox; it does not wait for watchers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from daemon import telemetry
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.machine.commands import RunId
from daemon.runtime.actor import Actor, Turn
from daemon.runtime.clock import Clock
from daemon.runtime.ports import Aside, Claims, Inbox, Later, Publisher
from daemon.runtime.residents import Residents
from daemon.runtime.telling import Telling
from daemon.telemetry import log


class Rest(Protocol):
    """The turn is over; ``owes``: what is owed has not been sent yet."""

    def __call__(self, actor: Actor, *, owes: bool) -> None: ...


class Afterwards:
    """``put`` turns that were committed, or that had nothing to commit; ``run`` until cancelled."""

    def __init__(
        self,
        *,
        residents: Residents,
        clock: Clock,
        claims: Claims,
        inbox: Inbox,
        aside: Aside,
        publisher: Publisher,
        rest: Rest,
        later: Later,
        retry_s: float,
    ) -> None:
        self._residents = residents
        self._clock = clock
        self._claims = claims
        self._inbox = inbox
        self._aside = aside
        self._telling = Telling(publisher, later)
        self._rest = rest
        self._retry_s = retry_s
        self._done: asyncio.Queue[list[Turn]] = asyncio.Queue()

    def put(self, turns: list[Turn]) -> None:
        """These are through."""
        self._done.put_nowait(turns)

    async def quiet(self) -> None:
        """Until watchers were told everything."""
        await self._telling.quiet()

    async def run(self) -> None:
        """All that came at once together, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._telling.run(), name="telling")
            while True:
                turns = await self._done.get()
                while not self._done.empty():
                    turns += self._done.get_nowait()
                await self._conclude(turns)

    async def _conclude(self, turns: list[Turn]) -> None:
        turns = await self._still_ours(turns)
        turns = await self._set_aside(turns)
        moved: dict[Actor, bool] = {}
        folded: dict[RunId, tuple[bytes, ...]] = {}
        for turn in turns:
            if turn.transition is not None:
                self._telling.tell(turn.actor, turn.transition)
            if turn.folded:
                folded[turn.actor.id] = folded.get(turn.actor.id, ()) + turn.folded
            moved[turn.actor] = turn.transition is not None
        for actor, has_moved in moved.items():
            if actor.id not in folded:
                self._rest(actor, owes=not has_moved)  # what a commit left owed was sent as it came back
        if not folded:
            return
        try:
            await self._inbox.delete(folded)
        except FabricUnavailable as fault:
            log.warning("letters stay, and will be known again by their marks", fault=str(fault))
        for actor, has_moved in moved.items():
            if actor.id in folded:
                self._rest(actor, owes=not has_moved)

    async def _set_aside(self, turns: list[Turn]) -> list[Turn]:
        """Keep what is set aside; while Postgres is away it stays in the inbox, and is found again."""
        letters = [(turn.actor.id, raw, turn.aside) for turn in turns if turn.aside for _, raw, *_ in turn.entries]
        if not letters:
            return turns
        for run_id, _, why in letters:
            log.error("a letter is set aside", run_id=str(run_id), fault=why)
        try:
            await self._aside.keep(letters)
        except StoreUnavailable as fault:
            log.warning("poison letters stay where they are", fault=str(fault))
            for turn in turns:
                if turn.aside:
                    self._residents.keep(turn.actor, turn.entries)
            return [replace(turn, entries=()) if turn.aside else turn for turn in turns]
        return turns

    async def _still_ours(self, turns: Sequence[Turn]) -> list[Turn]:
        """A turn that committed has passed the fence; one whose letters led to nothing has not.

        What means nothing to an old state may be news to the present one, so Postgres is asked before such letters are
        deleted. If it stands (and it cannot have moved without us), they are of no use to anybody.
        """
        folded = [turn.actor for turn in turns if turn.transition is None]
        if not folded:
            return list(turns)
        try:
            held = await self._claims.still_held([(actor.id, actor.owner, actor.epoch) for actor in folded])
        except StoreUnavailable as fault:
            log.warning("letters that led to nothing stay for now", fault=str(fault))
            for turn in turns:
                if turn.transition is None:
                    self._residents.keep(turn.actor, turn.entries)
            self._residents.put_back(folded, self._clock.monotonic() + self._retry_s)
            return [turn for turn in turns if turn.transition is not None]
        for turn in turns:
            if turn.transition is None and turn.actor.id not in held:
                telemetry.fenced.inc()
                log.info("fenced: another node owns the run", run_id=str(turn.actor.id), epoch=turn.actor.epoch)
                self._residents.drop(turn.actor, turn.entries)
        return [turn for turn in turns if turn.transition is not None or turn.actor.id in held]
