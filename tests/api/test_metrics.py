"""``/metrics``: valid exposition with the names of the catalogue, values that follow what happened, bounded labels."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from daemon import telemetry
from tests.api.harness import Stack, step
from tests.patience import eventually

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scrape(live: Stack) -> Samples:
    """Every sample by name and labels; a name that is told twice is a fault."""
    told = await live.ask("GET", "/metrics")
    assert told.status == 200
    assert told.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples: Samples = {}
    for family in text_string_to_metric_families(told.body):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples
            samples[key] = sample.value
    return samples


def grown(before: Samples, after: Samples) -> dict[tuple[str, ...], float]:
    """By how much what grew did: (name, label values …) → difference."""
    moved = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    return {(name, *(value for _, value in labels)): by for (name, labels), by in moved.items()}


async def test_the_counters_follow_what_happened(live: Stack) -> None:
    before = await scrape(live)
    run_id = await live.start(
        step("a"), step("b", "is_error", on_error="continue"), step("c", approval_policy="manual")
    )
    await live.until(run_id, "paused")
    await live.decide(run_id, "approve", {"step_id": "c"})
    await live.until(run_id, "completed")
    await live.ask("GET", "/v1/nothing")
    moved = grown(before, await scrape(live))
    assert moved["runwarden_attempts_ended_total", "done"] == 2
    assert moved["runwarden_attempts_ended_total", "failed"] == 1
    assert moved["runwarden_runs_ended_total", "completed"] == 1
    assert moved["runwarden_gateway_calls_total", "default", "sent", "invoke"] == 3
    assert moved["runwarden_letters_total", "Result"] == 3
    assert moved["runwarden_claims_total", "claimed"] >= 1
    assert moved["runwarden_commits_total",] >= 4
    assert moved["runwarden_verdict_seconds_count",] == 1
    requests = "runwarden_http_requests_total"
    assert moved[requests, "/v1/workflows", "200"] == 1
    assert moved[requests, "/v1/workflow-runs/{run_id}/approve", "200"] == 1
    assert moved[requests, "none", "404"] == 1


async def test_the_gauges_say_how_it_is_now(live: Stack) -> None:
    run_id = await live.start(step("a", "slow"))
    await eventually(lambda: "slow" in live.tools.running, what="the tool running")
    async with live.watch(run_id) as watch:
        await watch.until("replay.done")
        now = await scrape(live)
        assert now["runwarden_resident_runs", ()] == 1
        assert now["runwarden_watchers", ()] == 1
        assert now["runwarden_gateway_subscribed", (("gateway", "default"),)] == 1
        live.tools.release.set()
        await watch.rest()

    async def quiet() -> bool:
        now = await scrape(live)
        return (
            now["runwarden_resident_runs", ()] == now["runwarden_watchers", ()] == now["runwarden_open_posts", ()] == 0
        )

    await eventually(quiet, what="nothing going on")


async def test_no_label_holds_what_has_no_bound(live: Stack) -> None:
    """Neither ids, users nor agents: what clients make up must not become time series."""
    run_id = await live.start(step("a", agent="an-agent-of-theirs"), sub="a-user-of-theirs")
    for path in (f"/v1/workflow-runs/{run_id}", "/v1/made-up", f"/v1/workflow-runs/{run_id}/made-up"):
        await live.ask("GET", path, sub="a-user-of-theirs")
    told = (await live.ask("GET", "/metrics")).body
    for secret in (run_id, "theirs", "made-up", live.token()):
        assert secret not in told


async def test_every_metric_of_the_catalogue_is_exposed_from_the_start(live: Stack) -> None:
    told = (await live.ask("GET", "/metrics")).body
    ours = [name for name in telemetry.registry._names_to_collectors if name.startswith("runwarden_")]
    families = {family.name for family in text_string_to_metric_families(told)}
    bases = {name for name in ours if not name.endswith(("_created", "_total", "_bucket", "_sum", "_count"))}
    assert len(bases) > 15
    assert bases <= families
