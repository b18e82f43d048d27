"""The table of the runs in memory: who is rung, who is busy, and the alarms. The host's alone; only ``wait`` and
``quiet`` await anything.

A run is marked busy here before anything about it is awaited, so it never has two turns at once.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator
from math import inf

from daemon import telemetry
from daemon.machine.commands import Entry, RunId, Urgency
from daemon.machine.state import route_in, route_of
from daemon.runtime.actor import Actor
from daemon.runtime.strays import Strays, in_memory


class Residents:
    """Actors by run. ``hold_s``: how long a softly rung run waits for company; ``bound``: letters one keeps at most."""

    def __init__(self, monotonic: Callable[[], float], *, hold_s: float, bound: int = 10_000) -> None:
        self._monotonic = monotonic
        self._hold_s = hold_s
        self._bound = bound
        self._actors: dict[RunId, Actor] = {}
        self._routed: dict[str, Actor] = {}
        """By what their calls' ids begin with: letters find their run without its id (three a step, a µs each)."""
        self._rung: dict[RunId, None] = {}
        self._alarms: list[tuple[float, RunId]] = []
        self._bell = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        """When it rings the bell (monotonic s)."""
        self.strays = Strays()
        """Letters of runs that moved out."""

    def __len__(self) -> int:
        return len(self._actors)

    def __iter__(self) -> Iterator[Actor]:
        return iter(list(self._actors.values()))

    def get(self, run_id: RunId) -> Actor | None:
        return self._actors.get(run_id)

    def add(self, actor: Actor) -> None:
        """A freshly claimed run moves in and is looked at."""
        self._actors[actor.id] = self._routed[route_of(actor.id)] = actor
        telemetry.resident_runs.set(len(self._actors))
        self._wake(actor)

    def remove(self, actor: Actor) -> None:
        """The run moves out; what others still hold of the actor is no longer listened to."""
        if self._actors.get(actor.id) is actor:
            del self._actors[actor.id], self._routed[route_of(actor.id)]
            self._rung.pop(actor.id, None)
            telemetry.resident_runs.set(len(self._actors))
        mail, actor.mail = actor.mail, []
        self.strays.add(actor.id, mail)

    def keep(self, actor: Actor, letters: Iterable[Entry], *, again: bool = False) -> None:
        """These were not folded: what no inbox has stays with the run. ``again``: another turn shall follow."""
        if self._actors.get(actor.id) is not actor:
            self.strays.add(actor.id, letters)
            return
        actor.mail[:0] = in_memory(letters)
        actor.unread = True
        if again:
            actor.rung = "c"

    def drop(self, actor: Actor, letters: Iterable[Entry]) -> None:
        """The run is not ours any more; these letters that were not folded are the next holder's."""
        self.keep(actor, letters)
        self.remove(actor)

    def hand(self, req_id: str, urgency: Urgency, entry: Entry) -> bool:
        """Give a letter about a call to its run, if that lives here. Past the bound what may wait is dropped."""
        actor = self._routed.get(route_in(req_id))
        if actor is None:
            return False
        if urgency == "s" and len(actor.mail) >= self._bound:
            telemetry.chunks_dropped.inc()
            return True
        actor.mail.append(entry)
        self._ring(actor, urgency)
        return True

    def ring(self, run_id: RunId, urgency: Urgency) -> bool:
        """Something came for this run, perhaps into its inbox; False when it does not live here."""
        actor = self._actors.get(run_id)
        if actor is None:
            return False
        actor.unread = True
        self._ring(actor, urgency)
        return True

    def ring_here(self, actor: Actor, urgency: Urgency) -> None:
        """As ``ring``, about something that this node has in memory."""
        if self._actors.get(actor.id) is actor:
            self._ring(actor, urgency)

    def _ring(self, actor: Actor, urgency: Urgency) -> None:
        if urgency == "s":
            if actor.rung is None:  # else it has its alarm, or will be looked at before
                actor.rung = "s"
                self.alarm(actor, self._monotonic() + self._hold_s)
            return
        if actor.rung != "c":
            actor.rung = urgency
        self._wake(actor)

    def free(self, actor: Actor) -> None:
        """The turn is over; if somebody rang meanwhile, the next one begins."""
        actor.busy = False
        if actor.rung is not None:
            if actor.rung == "s":
                self.alarm(actor, self._monotonic() + self._hold_s)
            else:
                self._wake(actor)

    def alarm(self, actor: Actor, at: float) -> None:
        """Look at the run at ``at`` (monotonic s) at the latest.

        Each turn sets the alarm of its run anew, mostly to a later moment. So an alarm that was set stays, and is set
        again when it comes too early: one a run, and few are ever moved.
        """
        actor.look_at = min(at, actor.look_at)
        if at < actor.alarm_at:
            self._set_alarm(actor, at)

    async def wait(self) -> None:
        """Until some run may be looked at."""
        while True:
            self._ring_due()
            if self._rung:
                return
            self._bell.clear()
            self._set_timer()
            await self._bell.wait()

    def take(self, limit: int) -> list[Actor]:
        """At most ``limit`` rung runs, now busy."""
        taken: list[Actor] = []
        for run_id in list(self._rung):
            if len(taken) == limit:
                break
            del self._rung[run_id]
            actor = self._actors.get(run_id)
            if actor is not None and not actor.busy:
                actor.busy = True
                actor.look_at = inf
                taken.append(actor)
        return taken

    async def quiet(self) -> None:
        """Until every turn under way is over and every answer told by now is folded.

        It does not wait for a moment without any turn: where tools talk there is none. Polls, because only a drain
        waits for it and turns need not pay for that.
        """
        until = {actor: actor.rests + int(actor.busy) + int(bool(actor.local or actor.mail)) for actor in self}
        while until:
            until = {
                actor: rests
                for actor, rests in until.items()
                if actor.rests < rests
                and (actor.busy or actor.local or actor.mail)
                and self._actors.get(actor.id) is actor
            }
            await asyncio.sleep(0.01)

    def put_back(self, actors: Iterable[Actor], at: float) -> None:
        """Their turn could not even begin; again at ``at``."""
        for actor in actors:
            actor.busy = False
            self.alarm(actor, at)

    def _wake(self, actor: Actor) -> None:
        if not actor.busy:
            self._rung[actor.id] = None
            self._bell.set()

    def _set_alarm(self, actor: Actor, at: float) -> None:
        actor.alarm_at = at
        heapq.heappush(self._alarms, (at, actor.id))
        if at < self._timer_at:
            self._bell.set()

    def _set_timer(self) -> None:
        """For the nearest alarm, unless it rings before. Nearly each turn sets an alarm; few are the nearest."""
        if not self._alarms or self._timer_at <= self._alarms[0][0]:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._alarms[0][0]
        wait_s = max(0.0, self._timer_at - self._monotonic())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer, self._timer_at = None, inf
        self._bell.set()

    def _ring_due(self) -> None:
        now = self._monotonic()
        while self._alarms and self._alarms[0][0] <= now:
            at, run_id = heapq.heappop(self._alarms)
            actor = self._actors.get(run_id)
            if actor is None or actor.alarm_at != at:  # another was set for an earlier moment
                continue
            actor.alarm_at = inf
            if actor.look_at <= now:
                actor.look_at = inf
                actor.unread = True  # a bell may have been lost
                self._wake(actor)
            elif actor.look_at < inf:
                self._set_alarm(actor, actor.look_at)
