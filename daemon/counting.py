"""Counters, gauges and histograms that cost next to nothing to count with; prometheus_client tells what they hold.

For ``telemetry`` alone. A step counts some twenty things. prometheus_client's own metrics take a lock each time (2 to
3 µs, 50 µs a step); all our counting is done by the one thread of the event loop, so that these only add (0.1 µs).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString


class Count:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class Level(Count):
    """A number that goes up and down."""

    __slots__ = ()

    def dec(self, amount: float = 1) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = value


class Spread:
    """How values are spread over buckets; ``bounds`` are the upper ones, in order, +Inf not among them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated counts by upper bound, as Prometheus wants them."""
        told, so_far = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self.counts, strict=True):
            so_far += count
            told.append((str(floatToGoString(bound)), float(so_far)))  # type: ignore[no-untyped-call]  # untyped there
        return told


_V = TypeVar("_V", Count, Level, Spread)


class Family(Collector, Generic[_V]):
    """One metric with its children by label values, made when first asked for."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, labels: Sequence[str], make: Callable[[], _V]
    ) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._make: Callable[[], _V] = make
        self._children: dict[tuple[object, ...], _V] = {}
        registry.register(self)

    def labels(self, *values: object) -> _V:
        """The child of these label values; their number has a bound that the caller knows."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client."""
        kind = self._make()
        family: CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
        if isinstance(kind, Spread):
            family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        else:
            named = GaugeMetricFamily if isinstance(kind, Level) else CounterMetricFamily
            family = named(self._name, self._text, labels=self._labels)
        for values, child in self._children.items():
            names = [str(value) for value in values]
            if isinstance(family, HistogramMetricFamily):
                assert isinstance(child, Spread)  # noqa: S101 - made by the same maker as ``kind``
                family.add_metric(names, child.buckets(), child.total)
            else:
                assert isinstance(child, Count)  # noqa: S101 - as above
                family.add_metric(names, child.value)
        yield family
