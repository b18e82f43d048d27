"""Who may begin a call: a bounded number to one agent, a bounded number together; the rest waits in order, not begun.

Only `invoker` uses it. An agent whose socket is blocked leaves its calls hanging for ever; bounded per agent, it cannot
take the connections of its neighbours. Whoever waits here has written nothing, which is what every refusal proves.
"""

import asyncio
from collections import deque
from typing import Final

from gateway_client.errors import NotSent

_LANES_KEPT: Final = 1000


class Turnstile:
    """`per_agent` of None sets no bound, `patience_s` of None waits for ever. Each `enter` is followed by a `leave`."""

    def __init__(self, *, in_all: int, per_agent: int | None, patience_s: float | None) -> None:
        self._in_all = in_all
        self._per_agent = min(per_agent or in_all, in_all)
        self._patience_s = patience_s
        self._places = _Places(in_all)
        self._lanes: dict[str, _Lane] = {}
        self._waiting: set[asyncio.Timeout] = set()
        self._shut = False

    async def enter(self, agent_id: str) -> None:
        """Before a call. Raises NotSent: `agent_busy`, `gateway_unavailable`, or `not_permitted` once shut."""
        if self._shut:
            raise NotSent("not_permitted", "no call is begun any more")
        if self.enter_at_once(agent_id):
            return
        lane = self._lanes.get(agent_id) or self._lane(agent_id)
        lane.users += 1
        try:
            await self._wait(lane, agent_id)
        except BaseException:
            lane.users -= 1
            raise

    def enter_at_once(self, agent_id: str) -> bool:
        """As `enter`, where nobody need wait; False, and nothing is entered, where one must, or once shut."""
        if self._shut:
            return False
        lane = self._lanes.get(agent_id) or self._lane(agent_id)
        if lane.places.locked() or self._places.locked():
            return False
        lane.users += 1
        lane.places.take()
        self._places.take()
        return True

    def leave(self, agent_id: str) -> None:
        """After it, however it ended."""
        lane = self._lanes[agent_id]
        lane.users -= 1
        self._places.release()
        lane.places.release()

    def shut(self) -> None:
        """From now on nobody begins; those who wait are refused at once."""
        self._shut = True
        for wait in self._waiting:
            if not wait.expired():  # one whose time has just come cannot be told any more, and need not be
                wait.reschedule(asyncio.get_running_loop().time())

    async def _wait(self, lane: "_Lane", agent_id: str) -> None:
        """The agent's place first: who waits for a busy agent must not hold a place that another could use."""
        in_lane = False
        try:
            async with asyncio.timeout(self._patience_s) as wait:
                self._waiting.add(wait)
                try:
                    await lane.places.acquire()
                    in_lane = True
                    await self._places.acquire()
                finally:
                    self._waiting.discard(wait)
        except BaseException as fault:
            if in_lane:
                lane.places.release()
            if isinstance(fault, TimeoutError):
                raise self._refusal(agent_id, in_lane=in_lane) from None
            raise

    def _lane(self, agent_id: str) -> "_Lane":
        """Lanes that nobody uses are forgotten when there are many; it costs less than making one for each call."""
        if len(self._lanes) >= _LANES_KEPT:
            self._lanes = {agent: lane for agent, lane in self._lanes.items() if lane.users}
        lane = self._lanes[agent_id] = _Lane(self._per_agent)
        return lane

    def _refusal(self, agent_id: str, *, in_lane: bool) -> NotSent:
        if self._shut:
            return NotSent("not_permitted", "no call is begun any more")
        if in_lane:
            return NotSent("gateway_unavailable", f"{self._in_all} calls wait for the Gateway's answer already")
        return NotSent("agent_busy", f"{self._per_agent} calls to {agent_id} wait for the Gateway's answer already")


class _Places:
    """A semaphore whose places are taken without a coroutine where one is free, as one nearly always is."""

    def __init__(self, free: int) -> None:
        self._free = free
        self._waiters: deque[asyncio.Future[None]] = deque()

    def locked(self) -> bool:
        """Whether one would have to wait. A place that is given back while somebody waits is theirs at once."""
        return self._free == 0

    def take(self) -> None:
        """Only where it is not `locked`."""
        self._free -= 1

    async def acquire(self) -> None:
        """Waits in order for a place."""
        if not self.locked():
            self.take()
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():  # it was given the place in the same moment
                self.release()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def release(self) -> None:
        """Gives a place back, or to whoever has waited longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1


class _Lane:
    def __init__(self, places: int) -> None:
        self.places = _Places(places)
        self.users = 0  # that call the agent, or wait to
