"""Bad weather: Postgres away, Redis away, no Gateway. What still works, what is answered, and that all of it recovers.

What keeps a node from starting is shown in ``tests/cli/test_serve``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon.dev.processes import free_port
from tests.api.answers import assert_problem
from tests.api.cuttable import Relay, before_postgres, before_redis
from tests.api.harness import Answer, Stack, assert_each_once, stack, step
from tests.patience import eventually


@pytest.fixture
async def postgres_line(database: str, servers_dir: Path, redis_prefix: str) -> AsyncIterator[tuple[Relay, str]]:
    folder = servers_dir / redis_prefix
    folder.mkdir()
    async with before_postgres(database, folder) as line:
        yield line


@pytest.fixture
async def redis_line(redis_url: str) -> AsyncIterator[tuple[Relay, str]]:
    async with before_redis(redis_url) as line:
        yield line


@pytest.fixture
async def cut_off(
    database: str, postgres_line: tuple[Relay, str], redis_line: tuple[Relay, str], redis_prefix: str
) -> AsyncIterator[Stack]:
    """A node that speaks to Postgres and Redis through relays."""
    async with stack(postgres_line[1], redis_line[1], redis_prefix, verdict_wait_s=0.5) as opened:
        opened.database = database
        yield opened
        for relay, _ in (postgres_line, redis_line):
            if not relay.whole:
                await relay.mend()
        await until_ready(opened, "ready")


async def until_ready(live: Stack, status: str) -> Answer:
    """What /readyz says, once it says this."""

    async def there() -> Answer | None:
        told = await live.ask("GET", "/readyz")
        return told if told.body["status"] == status else None

    found = await eventually(there, what=f"being {status}")
    assert found is not None
    return found


async def requests(live: Stack, run_id: str, workflow_id: str) -> dict[str, Answer]:
    """One of each kind of request."""
    return {
        "a workflow": await live.post("/v1/workflows", {"title": "T", "spec": {"steps": [step("a")]}}),
        "a run": await live.post("/v1/workflow-runs", {"workflow_id": workflow_id}),
        "reading": await live.ask("GET", f"/v1/workflow-runs/{run_id}"),
        "watching": await live.ask("GET", f"/v1/workflow-runs/{run_id}/events"),
        "deciding": await live.decide(run_id, "approve", {"step_id": "a"}),
        "canceling": await live.decide(run_id, "cancel"),
    }


async def test_without_postgres_everything_is_503_and_it_recovers(
    cut_off: Stack, postgres_line: tuple[Relay, str]
) -> None:
    workflow_id = await cut_off.workflow(step("a", approval_policy="manual"))
    run_id = (await cut_off.post("/v1/workflow-runs", {"workflow_id": workflow_id})).body["run_id"]
    await cut_off.until(run_id, "paused")
    await postgres_line[0].cut()
    for name, answered in (await requests(cut_off, run_id, workflow_id)).items():
        assert_problem(answered, 503, "store_unavailable", "Postgres")
        assert int(answered.headers["Retry-After"]) >= 1, name
    told = await until_ready(cut_off, "not_ready")
    assert told.status == 503
    assert told.body["checks"]["postgres"] != "ok"
    assert told.body["checks"]["redis"] == "ok"
    assert (await cut_off.ask("GET", "/healthz")).status == 200
    assert (await cut_off.ask("GET", "/metrics")).status == 200
    await postgres_line[0].mend()
    await until_ready(cut_off, "ready")
    assert (await cut_off.decide(run_id, "approve", {"step_id": "a"})).status in (200, 202), "a node here waits briefly"
    await cut_off.until(run_id, "completed")


async def test_a_run_in_the_middle_of_a_tool_survives_a_cut_to_postgres(
    cut_off: Stack, postgres_line: tuple[Relay, str]
) -> None:
    """The RESULT comes while nothing can be committed: it is not lost, and no event is there twice."""
    run_id = await cut_off.start(step("a", "slow"), step("b"))
    await eventually(lambda: "slow" in cut_off.tools.running, what="the tool running")
    await postgres_line[0].cut()
    cut_off.tools.release.set()
    await eventually(lambda: cut_off.gateway.of("RESULT"), what="the result")
    await until_ready(cut_off, "not_ready")
    await postgres_line[0].mend()
    await until_ready(cut_off, "ready")
    await cut_off.until(run_id, "completed")
    assert [execution.tool_name for execution in cut_off.gateway.ledger] == ["slow", "ok"]
    seqs = [event["seq"] for event in await cut_off.log(run_id)]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_a_stream_that_loses_postgres_can_be_taken_up_again(
    cut_off: Stack, postgres_line: tuple[Relay, str]
) -> None:
    run_id = await cut_off.start(step("a"), step("b", "slow"), step("c"))
    async with cut_off.watch(run_id) as watch:
        await watch.until("tool.status", count=2)
        await postgres_line[0].cut()
        await until_ready(cut_off, "not_ready")
        cut_off.tools.release.set()
        await postgres_line[0].mend()
        await cut_off.until(run_id, "completed")
        await watch.rest()
    seqs, end = watch.seqs, await cut_off.end_of(run_id)
    if seqs[-1] < end:
        async with cut_off.watch(run_id, Last_Event_ID=str(seqs[-1])) as again:
            await again.rest()
        seqs += again.seqs
    assert_each_once(seqs, end=end)


async def test_without_redis_reads_and_replays_work_and_a_new_run_waits_on_disk(
    cut_off: Stack, redis_line: tuple[Relay, str]
) -> None:
    done = await cut_off.start(step("a"))
    await cut_off.until(done, "completed")
    workflow_id = await cut_off.workflow(step("a"))
    await redis_line[0].cut()
    told = await until_ready(cut_off, "not_ready")
    assert told.body["checks"]["redis"] != "ok"
    assert told.body["checks"]["postgres"] == "ok"
    assert (await cut_off.run(done))["status"] == "completed"
    async with cut_off.watch(done) as watch:
        await watch.rest()
    assert "run.completed" in watch.types
    made = await cut_off.post("/v1/workflow-runs", {"workflow_id": workflow_id})
    assert (made.status, made.body["status"]) == (200, "running")
    assert (await cut_off.run(made.body["run_id"]))["steps_state"]["a"]["attempts"] == []
    await redis_line[0].mend()
    await until_ready(cut_off, "ready")
    await cut_off.until(made.body["run_id"], "completed")


async def test_without_redis_a_decision_is_202_with_its_url_and_applied_once_redis_is_back(
    cut_off: Stack, redis_line: tuple[Relay, str]
) -> None:
    run_id = await cut_off.start(step("a", approval_policy="manual"))
    await cut_off.until(run_id, "paused")
    await redis_line[0].cut()
    await until_ready(cut_off, "not_ready")
    answered = await cut_off.decide(run_id, "approve", {"step_id": "a"})
    assert (answered.status, answered.body["status"]) == (202, "paused")
    location = answered.headers["Location"]
    assert location.startswith(f"/v1/workflow-runs/{run_id}/commands/")
    command = await cut_off.ask("GET", location)
    assert (command.status, command.body["kind"], command.body["verdict"]) == (200, "approve", None)
    await redis_line[0].mend()
    await cut_off.until(run_id, "completed")
    assert (await cut_off.ask("GET", location)).body["verdict"] == "applied"


async def test_a_run_in_the_middle_of_a_tool_survives_a_cut_to_redis(
    cut_off: Stack, redis_line: tuple[Relay, str]
) -> None:
    run_id = await cut_off.start(step("a", "slow"), step("b"))
    await eventually(lambda: "slow" in cut_off.tools.running, what="the tool running")
    await redis_line[0].cut()
    await until_ready(cut_off, "not_ready")
    cut_off.tools.release.set()
    await eventually(lambda: cut_off.gateway.of("RESULT"), what="the result")
    await redis_line[0].mend()
    await cut_off.until(run_id, "completed")
    assert [execution.tool_name for execution in cut_off.gateway.ledger] == ["slow", "ok"]


async def test_a_gateway_that_is_not_there_at_start_is_a_red_pause_and_resume_works_once_it_is(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    async with stack(database, redis_url, redis_prefix, gateway_url=url, step_patience_s=0.8) as live:
        told = await until_ready(live, "ready")
        assert told.status == 200
        assert url in told.body["checks"]["gateway"]
        run_id = await live.start(step("a"))
        run = await live.until(run_id, "paused")
        assert run["paused_reason"] == "step_failed"
        attempt = run["steps_state"]["a"]["attempts"][0]
        assert (attempt["ok"], attempt["error"]["code"]) == (False, "gateway_unavailable")
        assert live.gateway.ledger == []
        await live.gateway.start(port=port)

        async def heard() -> bool:
            return (await live.ask("GET", "/readyz")).body["checks"]["gateway"] == "ok"

        await eventually(heard, what="the Gateway being heard")
        assert (await live.decide(run_id, "resume")).status == 200
        run = await live.until(run_id, "completed")
        assert [attempt["ok"] for attempt in run["steps_state"]["a"]["attempts"]] == [False, True]
        assert len(live.gateway.ledger) == 1


async def test_a_gateway_that_comes_within_the_patience_costs_no_pause(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    port = free_port()
    async with stack(database, redis_url, redis_prefix, gateway_url=f"http://127.0.0.1:{port}") as live:
        run_id = await live.start(step("a"))
        async with live.watch(run_id) as watch:
            await watch.until("tool.unsent")
            await live.gateway.start(port=port)
            await watch.rest()
        assert "step.paused" not in watch.types
        run = await live.run(run_id)
        assert [attempt["ok"] for attempt in run["steps_state"]["a"]["attempts"]] == [True]


async def test_a_run_that_only_waits_finds_the_result_that_a_gap_in_the_gateways_stream_swallowed(live: Stack) -> None:
    """Nobody holds the run, its RESULT is never published: after the gap it asks, long before its deadline."""
    run_id = await live.start(step("a", "slow"), step("b"))

    async def passive() -> bool:
        rows = await live.sql("SELECT owner, wake_at FROM workflow_runs WHERE id = $1::text::uuid", run_id)
        return rows[0]["owner"] is None and rows[0]["wake_at"] is not None

    await eventually(lambda: "slow" in live.tools.running, what="the tool running")
    await eventually(passive, what="the run being passive")
    with live.gateway.weather.during("lost_result"):
        live.tools.release.set()
        await eventually(lambda: live.gateway.of("RESULT"), what="the result")
    for request in live.gateway._subscribers.values():
        request.transport.abort()
    await live.until(run_id, "completed")
    assert [execution.tool_name for execution in live.gateway.ledger] == ["slow", "ok"]
