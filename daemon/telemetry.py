"""Every metric, the log and spans: the one catalogue of what Runwarden tells about itself.

Anyone but ``machine`` may use it. Metrics are module-level Prometheus objects, named by what they count; nothing here
takes a run's id, a user or an agent as a label (their number has no bound).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, TextIO

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from daemon.counting import Count, Family, Level, Spread

registry = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=registry)
GCCollector(registry=registry)

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


def _counter(name: str, text: str) -> Count:
    return Family(registry, name, text, (), Count).labels()


def _counters(name: str, text: str, *labels: str) -> Family[Count]:
    return Family(registry, name, text, labels, Count)


def _gauge(name: str, text: str) -> Level:
    return Family(registry, name, text, (), Level).labels()


def _gauges(name: str, text: str, *labels: str) -> Family[Level]:
    return Family(registry, name, text, labels, Level)


def _histogram(name: str, text: str) -> Spread:
    return Family(registry, name, text, (), partial(Spread, _FAST)).labels()


def _histograms(name: str, text: str, *labels: str) -> Family[Spread]:
    return Family(registry, name, text, labels, partial(Spread, _FAST))


# Runtime: owning and carrying runs.
resident_runs = _gauge("runwarden_resident_runs", "Runs that this node holds in memory.")
claims = _counters("runwarden_claims_total", "Runs taken, by what became of it.", "outcome")
passivations = _counter("runwarden_passivations_total", "Runs let go because they only wait.")
turns = _counter("runwarden_turns_total", "Turns of runs: an inbox read and folded.")
parked = _counter("runwarden_parked_total", "Runs set aside as engine_interrupted because their own turn failed.")
given_up = _counter("runwarden_given_up_total", "Runs let go because nobody could say what they owe: a defect.")
poison_letters = _counter("runwarden_poison_letters_total", "Letters set aside because their run could not take them.")
authority_outdated = _counter(
    "runwarden_authority_outdated_total",
    "Transitions decided again because grants, policies or holds had changed before they were committed.",
)
fenced = _counter("runwarden_fenced_total", "Transitions refused because another node owns the run by now.")
leases_lost = _counter("runwarden_leases_lost_total", "Leases found missing or stolen at renewal.")
sweep_marks = _counters("runwarden_sweep_marks_total", "Runs that the sweep marked ready, by why.", "why")
looks = _counters(
    "runwarden_looks_total",
    "Looks at calls of passive runs: found, nothing, away, letters, postponed; overtaken besides by a claim or a wake.",
    "outcome",
)
busy_poll_seconds = _counter("runwarden_busy_poll_seconds_total", "Time that a lone run's node waited awake, not idle.")
letters = _counters("runwarden_letters_total", "Letters folded into runs, by kind.", "kind")
strangers = _counter("runwarden_strange_letters_total", "Letters about attempts that nobody made; forged or very late.")
attempts_ended = _counters("runwarden_attempts_ended_total", "Attempts of tool calls, by how they ended.", "outcome")
attempts_settled = _counters(
    "runwarden_attempts_settled_total", "Unknown outcomes that a late RESULT settled, by what it said.", "outcome"
)
repeats = _counters(
    "runwarden_repeats_total", "Harmless calls of unknown outcome that the engine repeats, by why it may.", "because"
)
runs_ended = _counters("runwarden_runs_ended_total", "Runs that came to their end, by status.", "status")

# Store: the journal.
commits = _counter("runwarden_commits_total", "Statements that committed transitions.")
appends = _counter("runwarden_appends_total", "Those of them that wrote the log alone; rows follow.")
checkpoints = _counter("runwarden_checkpoints_total", "Statements that wrote only the rows of earlier commits.")
transitions = _counter("runwarden_transitions_total", "Transitions committed.")
commit_seconds = _histogram("runwarden_commit_seconds", "Time of one grouped commit.")
commits_lost = _counter("runwarden_commits_lost_total", "Runs parked because Postgres had lost their commits.")
commit_repeats = _counter("runwarden_commit_repeats_total", "Commits repeated because their outcome was unknown.")
poisoned = _counter("runwarden_poisoned_total", "Transitions that Postgres can never accept.")

# Fabric and ingest: carrying.
ingest_envelopes = _counters(
    "runwarden_ingest_envelopes_total", "Envelopes read, by Gateway and type.", "gateway", "type"
)
ingest_dropped = _counter("runwarden_ingest_dropped_total", "Envelopes for no run of ours, or unreadable.")
gateway_subscribed = _gauges("runwarden_gateway_subscribed", "1 while this node reads a Gateway's events.", "gateway")
invoke_failed = _counter("runwarden_gateway_invoke_failed_total", "INVOKE_FAILED about calls of ours; proves nothing.")
chunks_dropped = _counter("runwarden_chunks_dropped_total", "CHUNKs dropped because a run's inbox was full.")

# Dispatch: speaking to Gateways.
calls = _counters(
    "runwarden_gateway_calls_total",
    "Calls to Gateways, by verb, what came of it, and Gateway (empty: it never came to one).",
    "verb",
    "outcome",
    "gateway",
)
call_seconds = _histograms("runwarden_gateway_call_seconds", "Time until the Gateway answered, by verb.", "verb")
open_posts = _gauge("runwarden_open_posts", "Invokes written and not answered yet.")

# Front.
requests = _counters("runwarden_http_requests_total", "Requests, by route and status.", "route", "status")
request_seconds = _histograms("runwarden_http_request_seconds", "Time of a request by route, but streams.", "route")
watchers = _gauge("runwarden_watchers", "Open event streams, and handlers waiting for a verdict.")
sse_cut = _counter("runwarden_sse_cut_total", "Event streams cut off because the client read too slowly.")
audit_withheld = _counter(
    "runwarden_audit_withheld_total", "Refusals (403) not written down: too many of one caller, or Postgres was away."
)
jwks_reads = _counters("runwarden_jwks_reads_total", "Readings of the issuer's keys: read, failed.", "outcome")
verdict_seconds = _histogram("runwarden_verdict_seconds", "From a command's row to its verdict, as its handler saw it.")


def exposition() -> bytes:
    """All metrics in Prometheus' text format 0.0.4."""
    return generate_latest(registry)


class Log:
    """Structured logging: a sentence and fields. ``log.info("node ready", port=8080)``."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: Any) -> None:
        self._logger.debug(message, extra={"fields": fields})

    def info(self, message: str, **fields: Any) -> None:
        self._logger.info(message, extra={"fields": fields})

    def warning(self, message: str, **fields: Any) -> None:
        self._logger.warning(message, extra={"fields": fields})

    def error(self, message: str, **fields: Any) -> None:
        self._logger.error(message, extra={"fields": fields})

    def exception(self, message: str, **fields: Any) -> None:
        """As ``error``, with the traceback of the exception being handled."""
        self._logger.error(message, exc_info=True, extra={"fields": fields})


log = Log("runwarden")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        stamp = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        text = f"{stamp} {record.levelname.lower():<7} {record.getMessage()}" + (f"  {fields}" if fields else "")
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def set_up_logging(*, level: str, style: str, stream: TextIO | None = None) -> None:
    """Send everything to ``stream`` (else standard error) as ``json`` or ``text``. Call once, at the edge."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("runwarden").setLevel(level)


def set_up_tracing(mode: str, *, node: str) -> None:
    """``console`` writes finished spans to standard error; ``off`` leaves OpenTelemetry's no-op in place."""
    if mode == "console":
        provider = TracerProvider(resource=Resource.create({"service.name": "runwarden", "service.instance.id": node}))
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        trace.set_tracer_provider(provider)
        _providers.append(provider)


_tracer = trace.get_tracer("runwarden")


_providers: list[TracerProvider] = []
"""Empty: spans lead nowhere, and are not made; the no-op's own cost is 0.05 ms, most of it for reading headers."""


@contextmanager
def span(name: str, *, headers: Mapping[str, str] | None = None, **attributes: str | int) -> Iterator[trace.Span]:
    """A span around a block; ``headers`` may carry a caller's ``traceparent`` (W3C Trace Context)."""
    if not _providers:
        yield trace.INVALID_SPAN
        return
    context = propagate.extract(dict(headers)) if headers else None
    with _tracer.start_as_current_span(name, context=context, attributes=attributes) as current:
        yield current


def trace_headers() -> dict[str, str]:
    """``traceparent`` of the current span, for a call to a neighbour; empty when tracing is off."""
    carrier: dict[str, str] = {}
    if _providers:
        propagate.inject(carrier)
    return carrier
