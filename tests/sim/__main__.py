"""Play many seeds: ``python -m tests.sim 500``, ``python -m tests.sim 40..80``; two processes, or ``-j N``.

Seeds from 0 on are followed by a fault at every single await of a small universe. Prints each failing seed with its
violations, the end of its trace, and the command that replays it. Exit status 1 if any failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter

import click

from tests.sim.every_await import strike, strikes
from tests.sim.universe import Report, play

LAST_LINES = 40


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("seeds", type=seeds, help="how many, from 0; or first..last")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("-v", "--verbose", action="store_true", help="the whole trace of each seed")
    given = parser.parse_args()
    begun, failed, ends = time.monotonic(), [], Counter[str]()
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for report in pool.imap(play, given.seeds, chunksize=4):
            ends.update(status.split(":")[0] for status in report.statuses)
            if report.violations:
                failed.append(f"seed {report.seed}")
            if report.violations or given.verbose:
                click.echo(told(report, lines=None if given.verbose else LAST_LINES))
        click.echo(f"{len(given.seeds)} seeds in {time.monotonic() - begun:.1f} s; runs: {dict(sorted(ends.items()))}")
        everywhere = strikes() if given.seeds.start == 0 else []  # else somebody looks for certain seeds
        for (fate, number), report in zip(everywhere, pool.imap(strike, everywhere, chunksize=16), strict=True):
            if report.violations:
                failed.append(f"{fate} at exchange {number}")
                click.echo(f"{told(report)}\n   but it was: {failed[-1]} of the universe in tests/sim/every_await.py")
    click.echo(
        f"{len(everywhere)} faults, one at each await of a small universe; {time.monotonic() - begun:.1f} s in all"
    )
    if failed:
        click.echo(f"{len(failed)} FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def seeds(text: str) -> range:
    """``N``: the first N; ``a..b``: these."""
    first, dots, last = text.partition("..")
    return range(int(first), int(last) + 1) if dots else range(int(first))


def told(report: Report, *, lines: int | None = LAST_LINES) -> str:
    """A report for people: the end of its trace (all of it if ``lines`` is None), and what to do about it."""
    trace = report.trace if lines is None else report.trace[-lines:]
    return "\n".join(
        [
            f"── seed {report.seed}: {report.plan}",
            *(f"{at:10.4f} {who:<10} {what:<36} {how}" for at, who, what, how in trace),
            *(f"   VIOLATION {one}" for one in report.violations),
            f"   {report.fingerprint[:16]}; quiet {report.took_s:.1f} s after the trouble",
            f"   replay: make sim SEEDS={report.seed}..{report.seed}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
