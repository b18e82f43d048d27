"""Counters that cost nothing tell prometheus_client the same as its own would."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from daemon.counting import Count, Family, Level, Spread

BOUNDS = (0.1, 1.0, 2.5)


def lines(registry: CollectorRegistry) -> set[str]:
    """The exposition, but for the time of creation, which only prometheus_client's own tell."""
    return {line for line in generate_latest(registry).decode().splitlines() if "_created" not in line}


def test_the_exposition_is_that_of_the_library() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counters = (
        Family(ours, "c_total", "Text.", ("a", "b"), Count),
        Counter("c_total", "Text.", ("a", "b"), registry=theirs),
    )
    gauges = (Family(ours, "g", "Text.", (), Level), Gauge("g", "Text.", registry=theirs))
    spreads = (
        Family(ours, "h", "Text.", ("a",), partial(Spread, BOUNDS)),
        Histogram("h", "Text.", ("a",), buckets=BOUNDS, registry=theirs),
    )
    for counter in counters:
        counter.labels("x", 1).inc()
        counter.labels("x", 1).inc(2.5)
        counter.labels("y", "é\n").inc()
    for gauge in (gauges[0].labels(), gauges[1]):
        gauge.set(7)
        gauge.inc()
        gauge.dec(3)
    for spread in spreads:
        for value in (0.0, 0.1, 0.2, 2.5, 99.0):
            spread.labels("z").observe(value)
    assert lines(ours) == lines(theirs)


def test_what_never_happened_is_told_as_nothing() -> None:
    registry = CollectorRegistry()
    Family(registry, "c_total", "Text.", (), Count).labels()
    Family(registry, "h", "Text.", ("a",), partial(Spread, BOUNDS))
    assert registry.get_sample_value("c_total") == 0
    assert registry.get_sample_value("h_count", {"a": "x"}) is None
