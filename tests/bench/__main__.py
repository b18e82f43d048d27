"""``make bench``: measure everything, or what is named, on a stack of its own. Prints Markdown, writes JSON.

    python -m tests.bench [WHAT …] [NAME=VALUE …]

WHAT is one of ``KINDS``; none means all but ``profile``. NAME=VALUE sets an option of those that have it (each
module's ``Options``), ``SIZE=miniature`` makes everything tiny, ``OUT=path`` names the JSON file.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import resource
import sys
from pathlib import Path
from typing import Any

import uvloop

from tests.bench.report import Report, machine, write_json
from tests.bench.stack import open_stack

KINDS = ("throughput", "latency", "flat", "capacity", "sse", "api", "upkeep", "profile")
ALL = KINDS[:-1]
OUT = "build/bench.json"


def options_of(module: Any, given: dict[str, str], *, miniature: bool = False) -> Any:
    """The module's options with what was given. Raises ValueError for what is no number."""
    base = module.MINIATURE if miniature else module.Options()
    fields = {one.name: one.type for one in dataclasses.fields(base)}
    mine = {name.lower(): value for name, value in given.items() if name.lower() in fields}
    return dataclasses.replace(base, **{name: type(getattr(base, name))(value) for name, value in mine.items()})


async def main(arguments: list[str]) -> int:
    """Measure; 2 when what is asked for does not exist. A goal that is missed is a finding, not a failure."""
    given = dict(one.split("=", 1) for one in arguments if "=" in one)
    kinds = [one for one in arguments if "=" not in one and one != "all"] or list(ALL)
    modules = {kind: importlib.import_module(f"tests.bench.{kind}") for kind in kinds if kind in KINDS}
    known = {one.name.upper() for module in modules.values() for one in dataclasses.fields(module.Options)}
    odd = [kind for kind in kinds if kind not in KINDS] + [
        name for name in given if name not in known | {"OUT", "SIZE"}
    ]
    if odd:
        print(
            f"{', '.join(odd)}: no such measurement or option. There are {', '.join(KINDS)}; {', '.join(sorted(known))}"
        )
        return 2
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65_536), hard))
    where = machine()
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    reports = []
    for kind, module in modules.items():
        options = options_of(module, given, miniature=given.get("SIZE") == "miniature")
        report = Report(kind, dataclasses.asdict(options))
        print(f"\n## {kind}: " + ", ".join(f"{name} {value}" for name, value in report.options.items()))
        async with open_stack(counts=hasattr(module, "COUNTS")) as stack:
            await module.measure(stack, options, report)
        report.verdicts()
        reports.append(report)
        write_json(Path(given.get("OUT", OUT)), reports, where)
    return 0


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(main(sys.argv[1:])))
