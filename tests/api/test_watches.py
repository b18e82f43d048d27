"""A stream ends soon after its watcher's right to see the run, and what it costs to know when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
import uuid_utils.compat as uuid7

from daemon.api.callers import Callers
from daemon.api.feed import Feed, Watcher
from daemon.api.watches import AT_ONCE, Watches
from daemon.errors import StoreUnavailable
from daemon.fabric.bus import Bus
from daemon.store.log import EventLog, Page
from daemon.store.sight import Asked, Sight, Standing
from tests.api.case import Case
from tests.api.harness import Watch
from tests.patience import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def policed(case: Case) -> str:
    """A run of ann's that waits for olga, whose agent it is, or for ada, who was let approve."""
    await case.policy(requires_approval=True)
    run_id, _ = await case.waiting(case.auto())
    return run_id


async def pings(watch: Watch, count: int = 3) -> None:
    for _ in range(count):
        assert (await watch.frame()).comment == "ping"


async def is_gone(case: Case, run_id: str, sub: str) -> None:
    """The reconnect is answered like any other request."""
    again = await case.stack.ask("GET", f"/v1/workflow-runs/{run_id}/events", sub=sub)
    assert (again.status, again.body["code"]) == (404, "not_found")


async def test_it_ends_when_the_grant_is_revoked_and_nobody_else_s_does(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await policed(case)
    read: list[int] = []
    real = EventLog.page

    async def page(log: EventLog, of: UUID, *, after_seq: int, limit: int) -> Page:
        read.append(after_seq)
        return await real(log, of, after_seq=after_seq, limit=limit)

    monkeypatch.setattr(EventLog, "page", page)
    async with AsyncExitStack() as open_:
        watching = {
            sub: await open_.enter_async_context(case.stack.watch(run_id, sub=sub))
            for sub in ("ada", "olga", "ann", "root")
        }
        for watch in watching.values():
            await watch.until("replay.done")
            await pings(watch)
        before = len(read)
        await case.revoke("ada", "approve")
        await watching["ada"].rest()
        assert len(read) == before, "what it may not see any more is not even read"
        assert watching["ada"].frames[-1].retry == 500
        for sub in ("olga", "ann", "root"):
            await pings(watching[sub])
    await is_gone(case, run_id, "ada")


async def test_it_ends_when_the_agent_is_another_s(case: Case) -> None:
    run_id = await policed(case)
    async with case.stack.watch(run_id, sub="olga") as watch, case.stack.watch(run_id, sub="ada") as hers:
        await watch.until("replay.done")
        await hers.until("replay.done")
        binding = f"/v1/bridge/agents/{case.agent_id}/binding"
        await case.ok("PUT", binding, "root", {"owner": "eve"})
        await watch.rest()
        await pings(hers)
    await is_gone(case, run_id, "olga")


async def test_it_ends_at_the_grant_s_own_end_though_nobody_changed_anything(case: Case) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=5)
    await case.grant("bob", "approve", expires_at=ends.isoformat())
    run_id = await policed(case)
    async with case.stack.watch(run_id, sub="bob") as watch, case.stack.watch(run_id, sub="ada") as hers:
        await watch.until("replay.done")
        await watch.rest()
        assert datetime.now(UTC) >= ends
        await hers.until("replay.done")
        await pings(hers)
    await is_gone(case, run_id, "bob")


async def test_whoever_the_step_names_sees_it_for_good(case: Case) -> None:
    run_id, _ = await case.waiting(case.manual(approvers=["user:ada"]))
    async with case.stack.watch(run_id, sub="ada") as watch:
        await watch.until("replay.done")
        await case.revoke("ada", "approve")
        await pings(watch)


async def test_a_token_that_ends_in_the_middle_of_a_replay_ends_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, _ = await case.waiting()
    stack, real, ends = case.stack, EventLog.page, 0.0

    async def page(log: EventLog, of: UUID, *, after_seq: int, limit: int) -> Page:
        nonlocal ends
        if after_seq:  # the second page takes until after the token's end
            ends = ends or time.time() + 4
            await eventually(lambda: time.time() >= ends)
        return await real(log, of, after_seq=after_seq, limit=limit)

    monkeypatch.setattr(EventLog, "page", page)
    headers = {"Authorization": f"Bearer {stack.token(lifetime_s=4)}"}
    async with stack.http.get(f"{stack.base}/v1/workflow-runs/{run_id}/events?limit=1", headers=headers) as response:
        watch = Watch(response)
        await watch.rest()
    assert watch.seqs == [1, 2]
    assert "replay.done" not in watch.types


# --- what it costs --------------------------------------------------------------------------------------------------


class Counted:
    """As ``store.sight.Sight``, of what the test says, and counts what it is asked."""

    def __init__(self) -> None:
        self.version, self.now_ms, self.ends_ms = 7, 1000, cast("int | None", None)
        self.gone: set[Asked] = set()
        self.asked: list[str | int] = []
        self.away = False

    async def standing(self) -> Standing:
        self.asked.append("standing")
        return Standing(self.version, self.now_ms)

    async def next_end(self) -> int | None:
        self.asked.append("next end")
        return self.ends_ms

    async def lost(self, asked: Sequence[Asked]) -> set[Asked]:
        self.asked.append(len(asked))
        if self.away:
            raise StoreUnavailable("gone")
        return self.gone & set(asked)

    def taken(self) -> list[str | int]:
        taken, self.asked = self.asked, []
        return taken


class Silence:
    """A bus that says nothing."""

    async def watch(self, run_ids: Any) -> None: ...

    async def unwatch(self, run_id: Any) -> None: ...


async def watching(open_: AsyncExitStack, feed: Feed, count: int, *, asked: bool = True) -> list[Watcher]:
    """Watchers, each of a run of its own."""
    watchers = []
    for number in range(count):
        run_id = uuid7.uuid7()
        watcher = await open_.enter_async_context(feed.watch(run_id))
        watcher.asked = Asked(run_id, (f"user:{number}",)) if asked else None
        watchers.append(watcher)
    return watchers


async def test_two_thousand_watchers_cost_a_row_a_heartbeat_until_authority_changes() -> None:
    sight, feed = Counted(), Feed(cast("Bus", Silence()), bound=10)
    watches = Watches(feed, cast("Callers", SimpleNamespace()), cast("Sight", sight))
    async with AsyncExitStack() as open_:
        await watching(open_, feed, 2000, asked=False)
        await watches.look()
        assert sight.taken() == [], "whoever watches what is their own costs nothing"
        others = await watching(open_, feed, 2000)
        all_of_them = [AT_ONCE] * (2000 // AT_ONCE)
        await watches.look()
        assert sight.taken() == ["standing", "next end", *all_of_them]
        for _ in range(3):
            await watches.look()
            assert sight.taken() == ["standing"]
        await watching(open_, feed, 1)
        await watches.look()
        assert sight.taken() == ["standing", 1], "whoever came since is asked about once"
        sight.version, sight.gone = 8, {one for watcher in others[:2] if (one := watcher.asked) is not None}
        await watches.look()
        assert sight.taken() == ["standing", "next end", *all_of_them, 1]
        assert [watcher.closed for watcher in others] == [True] * 2 + [False] * 1998


async def test_watchers_by_one_right_are_asked_about_once_and_again_at_the_end_of_a_grant() -> None:
    sight, feed = Counted(), Feed(cast("Bus", Silence()), bound=10)
    watches = Watches(feed, cast("Callers", SimpleNamespace()), cast("Sight", sight))
    async with AsyncExitStack() as open_:
        same = Asked(uuid7.uuid7(), ("group:ops",))
        for _ in range(3):
            (await open_.enter_async_context(feed.watch(same.run_id))).asked = same
        sight.ends_ms = 5000
        await watches.look()
        assert sight.taken() == ["standing", "next end", 1]
        sight.now_ms = 4999
        await watches.look()
        assert sight.taken() == ["standing"]
        sight.now_ms, sight.ends_ms = 5000, None
        await watches.look()
        assert sight.taken() == ["standing", "next end", 1]
        await watches.look()
        assert sight.taken() == ["standing"]


async def test_who_could_not_be_asked_about_stays_and_is_asked_about_at_the_next_heartbeat() -> None:
    sight, feed = Counted(), Feed(cast("Bus", Silence()), bound=10)
    watches = Watches(feed, cast("Callers", SimpleNamespace()), cast("Sight", sight))
    async with AsyncExitStack() as open_:
        (watcher,) = await watching(open_, feed, 1)
        assert watcher.asked is not None
        sight.gone, sight.away = {watcher.asked}, True
        with pytest.raises(StoreUnavailable):
            await watches.look()
        assert not watcher.closed
        sight.away = False
        await watches.look()
        assert watcher.closed


async def test_the_statements_tell_a_right_that_stands_from_one_that_does_not(case: Case) -> None:
    run_id = UUID(await policed(case))
    sight = Sight(case.stack.context.runs._pool)
    stands, gone = Asked(run_id, ("group:x", "user:ada")), Asked(run_id, ("user:bob",))
    nowhere = Asked(uuid7.uuid7(), ("user:ada",))
    assert await sight.lost([gone, stands, nowhere]) == {gone, nowhere}
    before = await sight.standing()
    await case.revoke("ada", "approve")
    after = await sight.standing()
    assert await sight.lost([stands]) == {stands}
    assert after.version > before.version
