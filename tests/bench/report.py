"""What was measured, as Markdown for people and as JSON for machines: tables, goals with their verdict, raw numbers."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil


def median(values: Sequence[float]) -> float:
    """The middle; NaN of nothing."""
    return statistics.median(values) if values else math.nan


def percentile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` (0 … 1) of all are not above (nearest rank); NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))] if ordered else math.nan


def show(value: object) -> str:
    """A cell: numbers with three digits that matter."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if math.isnan(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


@dataclass(slots=True)
class Report:
    """One measurement's findings. ``say`` prints at once, so that a long measurement can be followed."""

    what: str
    options: dict[str, Any]
    tables: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False

    def say(self, text: str = "") -> None:
        if not self.quiet:
            print(text, flush=True)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table in Markdown."""
        self.tables.append({"headings": list(headings), "rows": [list(row) for row in rows]})
        self.say(f"\n| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
        for row in rows:
            self.say(f"| {' | '.join(show(cell) for cell in row)} |")

    def goal(self, name: str, got: float, wanted: float, *, at_most: bool = True, unit: str = "") -> None:
        """One goal and whether it is met."""
        met = got <= wanted if at_most else got >= wanted
        self.goals.append({"name": name, "got": got, "wanted": wanted, "at_most": at_most, "unit": unit, "met": met})

    def verdicts(self) -> None:
        """All goals as a table."""
        if self.goals:
            self.say("\n| goal | wanted | got | met |\n|---|---|---|---|")
        for one in self.goals:
            sign = "≤" if one["at_most"] else "≥"
            wanted, got = f"{sign} {show(one['wanted'])}{one['unit']}", f"{show(one['got'])}{one['unit']}"
            self.say(f"| {one['name']} | {wanted} | {got} | {'yes' if one['met'] else 'NO'} |")

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "options": self.options,
            "tables": self.tables,
            "goals": self.goals,
            "raw": self.raw,
        }


def processes_table(report: Report, pieces: dict[str, tuple[int, dict[str, float], dict[str, float]]]) -> None:
    """CPU seconds, CPU ms a step and peak RSS of each process; piece → (steps, CPU s, MB)."""
    names = [name for piece in pieces.values() for name in piece[1]]
    names = list(dict.fromkeys(names))
    rows: list[list[object]] = []
    for title, (steps, cpu_s, rss_mb) in pieces.items():
        row: list[object] = [title]
        for name in names:
            used = cpu_s.get(name)
            row.append(
                ""
                if used is None
                else f"{used:.2f} s, {1000 * used / steps:.3f} ms, {rss_mb.get(name, math.nan):.0f} MB"
            )
        whole = sum(cpu_s.values())
        rows.append([*row, f"{whole:.2f} s, {1000 * whole / steps:.3f} ms"])
    report.table(["CPU s, CPU ms a step, peak RSS", *names, "all"], rows)


def machine() -> dict[str, Any]:
    """Where and when, and how busy it was: figures of a machine with other work are no figures."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def write_json(path: Path, reports: Sequence[Report], where: dict[str, Any]) -> None:
    """Everything of one call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"machine": where, "measured": [report.as_json() for report in reports]}
    path.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")
