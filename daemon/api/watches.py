"""Whose streams end, though their runs go on: at each heartbeat, those of tokens and of rights that are gone.

Used by ``front``. A stream is opened by a right that is looked at then; it may stay for hours. What can end is asked
again, for all watchers of this node together: keys of JWTs in memory, and service tokens in one statement, each time.
The right of whoever is asked about a run of somebody else's is asked again only when the version of authority moved,
or a grant's own end has come: as long as neither has, a heartbeat costs one row. Whoever started the run, and admins,
see it as long as their token is good, and a stream ends by itself at that token's end (``stream``).
"""

from __future__ import annotations

from itertools import islice

from daemon.api.callers import Callers
from daemon.api.feed import Feed, Watcher
from daemon.auth.caller import Caller
from daemon.store.runs import RunHead
from daemon.store.sight import Asked, Sight

AT_ONCE = 200
"""Rights that one statement asks about."""


def right_of(head: RunHead, caller: Caller) -> Asked | None:
    """By what the caller sees the run, if that may end before their token does."""
    if caller.admin or caller.user_id == head.user_id:
        return None
    return Asked(head.id, tuple(sorted(caller.subjects)))


class Watches:
    """What is known of the rights that the feed's watchers watch by."""

    def __init__(self, feed: Feed, callers: Callers, sight: Sight) -> None:
        self._feed = feed
        self._callers = callers
        self._sight = sight
        self._version = 0
        self._ends_ms: int | None = None
        self._round = 0
        """Raised whenever the rights may be others; a watcher keeps the round in which its right was found to stand."""

    async def look(self) -> None:
        """End what must end. Raises StoreUnavailable: then everything stays until the next heartbeat."""
        if keys := self._feed.keys:
            self._feed.expel(keys=self._callers.withdrawn(keys))
        if tokens := self._feed.tokens:
            self._feed.expel(tokens=await self._callers.ended(tokens))
        if self._feed.asked():
            await self._look_at_rights()

    async def _look_at_rights(self) -> None:
        stands = await self._sight.standing()
        if stands.version != self._version or (self._ends_ms is not None and stands.now_ms >= self._ends_ms):
            self._ends_ms = await self._sight.next_end()  # before the rights: what ends meanwhile they know already
            self._version = stands.version
            self._round += 1
        left = iter([watcher for watcher in self._feed.asked() if watcher.found_in != self._round])
        while some := list(islice(left, AT_ONCE)):
            await self._look_at(some)

    async def _look_at(self, watchers: list[Watcher]) -> None:
        rights = {watcher.asked for watcher in watchers if watcher.asked is not None}
        lost = await self._sight.lost(list(rights))
        for watcher in watchers:
            watcher.found_in = self._round
        self._feed.expel(asked=lost)
