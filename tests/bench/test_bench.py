"""The benchmarks in miniature, against a real stack, so that ``make bench`` works on the day it is needed.

Nothing here judges a time. What is judged: each measurement runs through, no call is made twice, no event is missed,
and what is counted (not timed) is what it should be.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.bench.__main__ import KINDS, options_of
from tests.bench.nursery import Nursery
from tests.bench.profile import ROOMS, room_of
from tests.bench.report import Report, percentile, show
from tests.bench.stack import Stack, open_stack

ROOT = Path(__file__).resolve().parents[2]
TIMED = re.compile(r"/ (the )?(floor|own|one|empty)|times|ms|p50|p99|a second|RSS|CPU|bytes|whole table")
"""Goals that a busy machine, or a table of fifty rows, may miss in miniature."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> AsyncIterator[Stack]:
    nursery = Nursery()
    async with open_stack((postgres, valkey)) as opened:
        opened.nursery = nursery
        yield opened
    nursery.close()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("kind", KINDS)
async def test_each_measurement_runs_in_miniature(kind: str, stack: Stack) -> None:
    module = importlib.import_module(f"tests.bench.{kind}")
    report = Report(kind, {}, quiet=True)
    await module.measure(stack, module.MINIATURE, report)
    assert report.tables
    assert [goal for goal in report.goals if not goal["met"] and not TIMED.search(goal["name"])] == []


def test_an_option_is_given_by_its_name() -> None:
    module = importlib.import_module("tests.bench.capacity")
    options = options_of(module, {"RUNS": "7", "HOLD": "0.5", "WATCHERS": "9"})
    assert (options.runs, options.hold, options.paused) == (7, 0.5, 100_000)


def test_make_passes_every_option_on() -> None:
    """An option that the Makefile does not know would be ignored without a word."""
    found = re.search(r"^SIZES := ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found is not None
    passed = set(found[1].replace("\\\n", " ").split())
    modules = [importlib.import_module(f"tests.bench.{kind}") for kind in KINDS]
    known = {name.upper() for module in modules for name in module.Options.__dataclass_fields__}
    assert passed == known | {"SIZE", "OUT"}


def test_every_path_of_the_node_has_a_room() -> None:
    assert room_of("", "event loop") == "event loop"
    assert room_of("daemon/machine/wire.py", "frames_of") == "publish"
    assert room_of("daemon/fabric/inbox.py", "Inbox.read") == "inbox, fabric"
    assert {room_of(str(path.relative_to(ROOT)), "f") for path in ROOT.glob("daemon/runtime/*.py")} < {
        room for room, _ in ROOMS
    }


def test_percentiles_are_values_that_were_measured() -> None:
    assert [percentile([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 2.0, 4.0, 4.0]
    assert show(12345.6) == "12,346"
