"""The event stream as a browser reads it: ids, replay, live, resuming, heartbeats, and when it ends."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from tests.api.harness import Stack, Watch, assert_each_once, step
from tests.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIFETIME_S = 4
"""Of a token with which a stream is opened before it ends, though the machine may stall."""


async def finished(stack: Stack, *, lines: int = 5) -> tuple[str, int]:
    """A completed run and its last seq."""
    run_id = await stack.start(step("a", "streaming", arguments={"lines": lines}), step("b"))
    await stack.at_rest(run_id, "completed", "b")
    return run_id, (await stack.log(run_id))[-1]["seq"]


async def waiting(stack: Stack) -> tuple[str, int]:
    """A run that waits for approval, and its last seq."""
    run_id = await stack.start(step("a"), step("b", approval_policy="manual"))
    await stack.at_rest(run_id, "paused", "a")
    return run_id, (await stack.log(run_id))[-1]["seq"]


async def test_every_event_carries_its_dense_seq_as_id(shared: Stack) -> None:
    run_id = await shared.start(step("a", "streaming"), step("b"))
    async with shared.watch(run_id) as watch:
        events = await watch.rest()
    assert watch.seqs == list(range(1, len(events) + 1))
    told = [frame for frame in watch.frames if frame.data is not None and frame.data["type"] == "run.event"]
    assert [(frame.id, frame.event) for frame in told] == [(str(e["seq"]), e["event_type"]) for e in events]
    assert watch.types[0] == "run.created"
    assert watch.types.count("run.completed") == 1


async def test_the_stream_says_what_it_is_and_when_to_come_back(shared: Stack) -> None:
    run_id, _ = await finished(shared)
    async with shared.watch(run_id) as watch:
        assert watch.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert "no-cache" in watch.response.headers["Cache-Control"]
        assert watch.response.headers["X-Accel-Buffering"] == "no"
        assert (await watch.frame()).retry == 2000


async def test_the_replay_ends_with_replay_done_and_the_rest_is_live(shared: Stack) -> None:
    run_id, last = await waiting(shared)
    async with shared.watch(run_id) as watch:
        done = await watch.until("replay.done")
        assert done == {"type": "replay.done", "run_id": run_id, "after_seq": last}
        assert watch.seqs == list(range(1, last + 1))
        await shared.decide(run_id, "approve", {"step_id": "b"})
        events = await watch.rest()
    assert watch.seqs == list(range(1, len(events) + 1))
    assert sum(1 for frame in watch.frames if frame.event == "replay.done") == 1


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_after_seq_replays_what_came_after_it(shared: Stack, after: int) -> None:
    run_id, last = await finished(shared)
    async with shared.watch(run_id, query=f"?after_seq={after}") as watch:
        await watch.until("replay.done")
    assert watch.seqs == list(range(after + 1, last + 1))


async def test_last_event_id_wins_over_after_seq(shared: Stack) -> None:
    run_id, last = await waiting(shared)
    async with shared.watch(run_id, query="?after_seq=1", Last_Event_ID="3") as watch:
        await watch.until("replay.done")
    assert watch.seqs == list(range(4, last + 1))
    async with shared.watch(run_id, query="?after_seq=3", Last_Event_ID="0") as watch:
        await watch.until("replay.done")
    assert watch.seqs == list(range(1, last + 1))


@pytest.mark.parametrize("limit", [0, 1, 2, 7, 10**15])
async def test_limit_is_the_page_size_and_never_truncates(shared: Stack, limit: int) -> None:
    run_id, last = await finished(shared, lines=60)
    async with shared.watch(run_id, query=f"?limit={limit}") as watch:
        await watch.until("replay.done")
    assert watch.seqs == list(range(1, last + 1))


async def test_the_stream_of_a_finished_run_closes_soon_after_its_replay(shared: Stack) -> None:
    run_id, last = await finished(shared)
    began = time.monotonic()
    async with shared.watch(run_id) as watch:
        await watch.rest()
    assert time.monotonic() - began >= 0.19
    assert watch.seqs == list(range(1, last + 1))


async def test_a_live_stream_closes_soon_after_the_terminal_event(shared: Stack) -> None:
    run_id, _ = await waiting(shared)
    async with shared.watch(run_id) as watch:
        await watch.until("replay.done")
        await shared.decide(run_id, "approve", {"step_id": "b"})
        await watch.until("run.completed")
        over = time.monotonic()
        await watch.rest()
    assert time.monotonic() - over >= 0.1


async def test_late_log_lines_are_still_told_before_the_stream_closes(shared: Stack) -> None:
    run_id, _ = await waiting(shared)
    async with shared.watch(run_id) as watch:
        await watch.until("replay.done")
        await shared.decide(run_id, "approve", {"step_id": "b"})
        await watch.until("run.completed")
        req_id = shared.gateway.ledger[-1].req_id
        late = {"channel": "stdout", "data": "by the way\n"}
        shared.gateway.publish(
            {"v": 1, "type": "CHUNK", "agent_id": "agent-1", "req_id": req_id, "payload": late},
        )
        events = await watch.rest()
    assert "by the way\n" in "".join(e["payload"]["data"] for e in events if e["event_type"] == "tool.log")
    assert (await shared.run(run_id))["status"] == "completed"


async def get_events(stack: Stack, run_id: str, *, query: str = "", **headers: str) -> int:
    """The status of a stream's answer."""
    given = stack.headers(**headers)
    async with stack.http.get(f"{stack.base}/v1/workflow-runs/{run_id}/events{query}", headers=given) as answer:
        return answer.status


async def test_last_event_id_at_the_end_of_a_finished_run_answers_204(shared: Stack) -> None:
    run_id, last = await finished(shared)
    assert await get_events(shared, run_id, **{"Last-Event-ID": str(last)}) == 204
    assert await get_events(shared, run_id, **{"Last-Event-ID": str(last + 5)}) == 204
    assert await get_events(shared, run_id, **{"Last-Event-ID": str(last - 1)}) == 200
    assert await get_events(shared, run_id, query=f"?after_seq={last}") == 200


async def test_last_event_id_at_the_end_of_a_run_that_waits_is_a_stream(shared: Stack) -> None:
    run_id, last = await waiting(shared)
    async with shared.watch(run_id, Last_Event_ID=str(last)) as watch:
        await watch.until("replay.done")
        assert watch.events == []


async def test_an_idle_stream_has_heartbeat_comments_and_nothing_else(shared: Stack) -> None:
    run_id, _ = await waiting(shared)
    async with shared.watch(run_id) as watch:
        await watch.until("replay.done")
        assert [await watch.frame() for _ in range(3)] == [(None, None, None, "ping", None)] * 3


async def test_a_stream_ends_with_its_callers_token(shared: Stack) -> None:
    run_id, _ = await waiting(shared)
    headers = {"Authorization": f"Bearer {shared.token(lifetime_s=LIFETIME_S)}"}
    url = f"{shared.base}/v1/workflow-runs/{run_id}/events"
    began = time.time()
    async with shared.http.get(url, headers=headers) as response:
        assert response.status == 200
        await Watch(response).rest()
    assert int(began) + LIFETIME_S <= time.time() + 0.05
    async with shared.http.get(url, headers=headers) as response:
        assert response.status == 401


async def test_fifty_watchers_that_come_at_any_moment_see_every_event_once(shared: Stack) -> None:
    """Watchers join all through a run with many log lines, each from a seq of its own."""
    paced = {"lines": 150, "pace_ms": 5, "width": 200}
    run_id = await shared.start(step("a", "streaming", arguments=paced), step("b", "streaming", arguments=paced))

    async def come(number: int) -> tuple[int, list[int]]:
        await eventually(lambda: time.monotonic() >= began + number * 0.035)
        after = (number * 7) % 20
        async with shared.watch(run_id, query=f"?after_seq={after}&limit={number % 5 + 1}") as watch:
            await watch.rest()
            return after, watch.seqs

    began = time.monotonic()
    seen = await asyncio.gather(*(come(number) for number in range(50)))
    end = await shared.end_of(run_id)
    assert end > 40
    for after, seqs in seen:
        assert_each_once(seqs, after=after, end=end)


async def test_a_client_that_reconnects_after_every_event_sees_each_once(shared: Stack) -> None:
    paced = {"lines": 100, "pace_ms": 5, "width": 500}
    run_id = await shared.start(step("a", "streaming", arguments=paced), step("b"))
    seqs: list[int] = []
    url = f"{shared.base}/v1/workflow-runs/{run_id}/events"
    while True:
        headers = shared.headers(**{"Last-Event-ID": str(seqs[-1])} if seqs else {})
        async with shared.http.get(url, headers=headers) as response:
            if response.status == 204:
                break
            watch = Watch(response)
            with pytest.MonkeyPatch.context():
                while not watch.events:
                    try:
                        await watch.frame()
                    except EOFError:
                        break
            seqs += watch.seqs
    assert_each_once(seqs, end=await shared.end_of(run_id))


async def test_head_of_a_stream_is_refused_and_holds_nothing_open(shared: Stack) -> None:
    run_id, _ = await waiting(shared)
    url = f"{shared.base}/v1/workflow-runs/{run_id}/events"
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with shared.http.head(url, headers=shared.headers(), timeout=timeout) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET")


async def test_two_watchers_of_one_run_see_the_same(shared: Stack) -> None:
    run_id, _ = await waiting(shared)
    async with shared.watch(run_id) as one, shared.watch(run_id) as other:
        await one.until("replay.done")
        await other.until("replay.done")
        await shared.decide(run_id, "approve", {"step_id": "b"})
        both: tuple[list[Any], list[Any]] = (await one.rest(), await other.rest())
    assert both[0] == both[1]
