"""Event streams when something goes wrong: lost messages, slow clients, a node that leaves, too many clients."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import redis

from daemon import telemetry
from daemon.api import stream
from daemon.fabric.keys import Keys
from daemon.machine.commands import RunId
from daemon.machine.record import Told
from daemon.machine.wire import frames_of
from tests.api.harness import Stack, assert_each_once, stack, step
from tests.patience import PATIENCE_S, eventually


@contextmanager
def publishing_forbidden(url: str) -> Iterator[None]:
    """Every PUBLISH fails, so that whatever is committed meanwhile is told to nobody."""
    with redis.Redis.from_url(url) as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-publish")
        try:
            yield
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "+publish")


async def test_lost_publishes_are_repaired_at_the_heartbeat(live: Stack, redis_url: str) -> None:
    """Nobody is told of anything, the terminal event included: the watcher still sees all, and its stream ends."""
    run_id = await live.start(step("a", approval_policy="manual"), step("b", "streaming"))
    await live.until(run_id, "paused")
    async with live.watch(run_id) as watch:
        await watch.until("replay.done")
        with publishing_forbidden(redis_url):
            assert (await live.decide(run_id, "approve", {"step_id": "a"})).status == 200
            await live.until(run_id, "completed")
            await watch.until("run.completed")
            await watch.rest()
    assert_each_once(watch.seqs, end=await live.end_of(run_id))


async def test_who_was_told_what_postgres_has_lost_since_is_cut_off_and_begins_anew(
    live: Stack, redis_url: str, redis_prefix: str
) -> None:
    """Else the events that get those numbers would never be told, that the run is parked among them."""
    run_id = await live.start(step("a", approval_policy="manual"))
    await live.until(run_id, "paused")
    last = (await live.log(run_id))[-1]["seq"]
    lost = frames_of(run_id, "2026-01-01T00:00:00Z", [(last + 1, "step.approved", "{}")])
    async with live.watch(run_id) as watch:
        await watch.until("replay.done")
        with redis.Redis.from_url(redis_url) as bus:
            told = Told(last + 1, last + 1, False, lost)
            bus.publish(Keys(redis_prefix).events(RunId(UUID(run_id))), told.pack())
        await watch.until("step.approved")
        await watch.rest()
    async with live.watch(run_id, Last_Event_ID=str(last + 1)) as again:
        await again.until("replay.done")
    assert again.seqs == list(range(1, last + 1))


async def test_a_run_that_ends_between_the_look_and_the_replay_still_ends_its_stream(live: Stack) -> None:
    """The handler saw a run that runs; when it reads the log the run is over, and nothing more will be told."""
    run_id = await live.start(step("a", "slow"))
    await eventually(lambda: "slow" in live.tools.running, what="the tool running")
    looked, go_on = asyncio.Event(), asyncio.Event()
    runs = live.context.runs
    look = runs.head

    async def slow_look(*args: object, **kwargs: object) -> object:
        head = await look(*args, **kwargs)
        looked.set()
        await go_on.wait()
        return head

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "head", slow_look)
        coming = asyncio.create_task(live.ask("GET", f"/v1/workflow-runs/{run_id}/events"))
        await looked.wait()
    live.tools.release.set()
    await live.until(run_id, "completed")
    go_on.set()
    answered = await asyncio.wait_for(coming, PATIENCE_S)
    assert answered.body.count("event: run.completed") == 1


async def test_killed_subscriptions_leave_no_gap_and_no_repeat(live: Stack, redis_url: str) -> None:
    paced = {"lines": 150, "pace_ms": 5, "width": 300}
    run_id = await live.start(step("a", "streaming", arguments=paced), step("b", "streaming", arguments=paced))
    killed = 0
    with redis.Redis.from_url(redis_url) as admin:
        async with live.watch(run_id) as watch:
            reading = asyncio.create_task(watch.rest())
            while not reading.done():
                killed += int(admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))
                await asyncio.wait({reading}, timeout=0.05)
            reading.result()
    assert killed > 3
    assert "run.completed" in watch.types
    assert_each_once(watch.seqs, end=await live.end_of(run_id))


async def test_flushall_in_the_middle_of_a_run_leaves_no_gap_and_no_repeat(live: Stack, redis_url: str) -> None:
    paced = {"lines": 100, "pace_ms": 5}
    run_id = await live.start(step("a", "streaming", arguments=paced), step("b", "streaming", arguments=paced))
    with redis.Redis.from_url(redis_url) as admin:
        async with live.watch(run_id) as watch:
            await watch.until("tool.log", count=2)
            admin.flushall()
            await watch.until("tool.result")
            admin.flushall()
            await watch.until("run.completed")
    assert watch.seqs == list(range(1, len(watch.events) + 1))
    assert [execution.tool_name for execution in live.gateway.ledger] == ["streaming", "streaming"]


@pytest.fixture
async def narrow(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    """A node that keeps few messages for a watcher and serves few of them."""
    async with stack(
        database, redis_url, redis_prefix, sse_queue=4, sse_clients=2, sse_heartbeat_s=60, sse_close_s=0
    ) as opened:
        yield opened


class Slow:
    """A client with a small window that does not read until it is told to. HTTP/1.0, so frames come as they are."""

    def __init__(self, live: Stack) -> None:
        self._live = live
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def ask(self, run_id: str) -> None:
        loop = asyncio.get_running_loop()
        url = urlsplit(self._live.base)
        await loop.sock_connect(self._socket, (url.hostname, url.port))
        head = f"GET /v1/workflow-runs/{run_id}/events HTTP/1.0\r\n"
        head += f"Authorization: {self._live.headers()['Authorization']}\r\n\r\n"
        await loop.sock_sendall(self._socket, head.encode())

    async def seqs(self) -> list[int]:
        """The ids of all whole frames until the server hangs up."""
        heard = b""
        async with asyncio.timeout(PATIENCE_S):
            while more := await asyncio.get_running_loop().sock_recv(self._socket, 1 << 20):
                heard += more
        self._socket.close()
        whole = heard.split(b"\n\n")[:-1]
        return [int(found[1]) for frame in whole if (found := re.match(rb"id: (\d+)\n", frame))]


@pytest.fixture
def small_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel keeps little of what a stream has written, so that a few lines show who reads slowly."""
    whole = stream._Stream.run

    async def run(self: stream._Stream, *, finished: bool) -> None:
        transport = self._response._req.transport
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await whole(self, finished=finished)

    monkeypatch.setattr(stream._Stream, "run", run)


async def test_a_slow_client_is_cut_off_and_resumes_without_gap_or_repeat(narrow: Stack, small_pipes: None) -> None:
    # paced, so that it comes in many more commits than the queue has places, however fast this machine is
    flood = {"lines": 400, "width": 2000, "pace_ms": 3}
    run_id = await narrow.start(
        step("a", approval_policy="manual"), step("b", "streaming", arguments=flood), step("c", "streaming")
    )
    await narrow.until(run_id, "paused")
    cut_before = telemetry.sse_cut.value
    slow = Slow(narrow)
    await slow.ask(run_id)
    await eventually(lambda: narrow.context.feed.clients == 1, what="the stream")
    await narrow.decide(run_id, "resume")
    await narrow.until(run_id, "completed")
    seen = await slow.seqs()
    end = await narrow.end_of(run_id)
    assert telemetry.sse_cut.value == cut_before + 1
    assert seen == list(range(1, len(seen) + 1))
    assert seen[-1] < end
    async with narrow.watch(run_id, Last_Event_ID=str(seen[-1])) as resumed:
        await resumed.rest()
    assert_each_once(seen + resumed.seqs, end=end)


async def test_one_stream_too_many_is_503_with_a_hint_to_come_back(narrow: Stack) -> None:
    run_id = await narrow.start(step("a", approval_policy="manual"))
    await narrow.until(run_id, "paused")
    async with narrow.watch(run_id), narrow.watch(run_id):
        refused = await narrow.ask("GET", f"/v1/workflow-runs/{run_id}/events")
        assert (refused.status, refused.body["code"]) == (503, "too_many_streams")
        assert int(refused.headers["Retry-After"]) >= 1


async def test_a_stream_ends_with_its_token_though_its_heartbeat_is_far_away(narrow: Stack) -> None:
    run_id = await narrow.start(step("a", approval_policy="manual"))
    await narrow.until(run_id, "paused")
    began = time.time()
    narrow.tokens["ann"] = narrow.token(lifetime_s=4)
    async with narrow.watch(run_id) as watch:
        await watch.rest()
    assert int(began) + 4 <= time.time() + 0.05


async def test_a_drain_ends_every_stream_with_a_hint_to_come_back_soon(live: Stack) -> None:
    runs = [await live.start(step("a", "slow")) for _ in range(2)]
    async with live.watch(runs[0]) as one, live.watch(runs[0]) as other, live.watch(runs[1]) as third:
        for watch in (one, other, third):
            await watch.until("tool.status")
        live.tools.release.clear()
        await live.node.drain()
        for watch in (one, other, third):
            await watch.rest()
            assert watch.frames[-1].retry == 500
    told = await live.ask("GET", "/readyz")
    assert (told.status, told.body["status"]) == (503, "leaving")


async def test_streams_replay_while_redis_is_away(live: Stack, redis_url: str) -> None:
    run_id = await live.start(step("a"))
    await live.until(run_id, "completed")
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-subscribe")
        try:
            admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            async with live.watch(run_id) as watch:
                await watch.rest()
        finally:
            admin.execute_command("ACL", "SETUSER", "default", "+subscribe")
    assert "run.completed" in watch.types
