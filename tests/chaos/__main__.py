"""``python -m tests.chaos [--seed N] [--minutes M] [--runs R]``: chaos with real processes, as ``make chaos`` calls it.

Prints the plan of the faults, lets them happen while people drive their runs, waits until everything rests, and judges
the evidence. Exit code 1, the seed, the command to repeat it and the logs' place when a law was broken. What the faults
meet depends on the machine, so the same seed repeats the storm, not each instant of it.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import signal
import sys
import time
from collections import Counter
from datetime import UTC, datetime

import aiohttp
import asyncpg
import uvloop

from daemon.auth.tokens import mint
from tests.api.harness import SECRET
from tests.chaos.evidence import Evidence, figures, gather, read_ledger, story
from tests.chaos.people import Doors, People
from tests.chaos.plan import Fault, plan
from tests.chaos.plant import LEASE_TTL_S, Plant, plant
from tests.patience import let_pass

STORM_SHARE = 0.65
"""Of the minutes: the rest is for the start, the last runs and the verdict."""
DRIVE_SHARE = 0.85
"""Of the storm: when the last run is created."""
REST_S = 180.0
"""Longest wait for rest after the storm: deadlines and graces are a fraction of it."""
LATE_S = 5.0
"""A fault that comes later than this is left out: on a slow machine there are fewer, the storm is as long."""
COME_BACK_S = 30.0
TELL_S = 10.0
AT_REST = """
SELECT (SELECT count(*) FROM workflow_runs WHERE status = 'running')
     + (SELECT count(*) FROM workflow_run_commands WHERE verdict IS NULL)
     + (SELECT count(*) FROM workflow_run_attempts WHERE ended_at_ms IS NULL) AS open,
       (SELECT sum(last_seq) FROM workflow_runs) AS seqs
"""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Chaos:
    """One chaos, from the plan to the verdict."""

    def __init__(self, *, seed: int, minutes: float, runs: int, keep: bool) -> None:
        self.keep = keep
        self.seed, self.minutes, self.runs = seed, minutes, runs
        self.storm_s = minutes * 60 * STORM_SHARE
        self.plan = plan(seed, seconds=self.storm_s, lease_ttl_s=LEASE_TTL_S)
        self.faults: list[str] = []
        self.missed = 0
        """Faults left out, because their target had not recovered from the one before."""
        self._seqs = -1
        self._restless: list[str] = []

    async def run(self) -> list[str]:
        """Every broken law."""
        began = time.monotonic()
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):  # so that what was started ends
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        say(f"Chaos of seed {self.seed}: {self.runs} runs, {len(self.plan)} faults in {self.storm_s:.0f} s of storm")
        say("\n".join(f"  {fault}" for fault in self.plan))
        async with plant(keep=lambda: self.keep or bool(self.faults)) as opened:
            self.faults = ["it did not come to its end"]
            try:
                evidence, people = await self._storm(opened, began)
            except BaseException:
                say(f"The logs are in {opened.logs}")
                raise
            watchers = [person.watcher for person in people.persons if person.watcher is not None]
            self.faults = [
                *opened.faults,
                *self._restless,
                *(fault for watcher in watchers for fault in watcher.faults),
            ]
            self.faults += evidence.faults()
            more = {
                "stream connections": sum(watcher.connections for watcher in watchers),
                **{f"answers {status}": n for status, n in sorted(people.promises.answers.items())},
                "faults left out": self.missed,
                "seconds": round(time.monotonic() - began),
            }
            say("\n".join(f"  {name:<30} {value:>7}" for name, value in figures(evidence, opened.hits, more)))
            if self.keep or self.faults:
                named = re.findall(r"run ([0-9a-f-]{36})", "\n".join(self.faults))
                (opened.logs / "faults.txt").write_text("\n".join(self.faults) + "\n")
                (opened.logs / "runs.json").write_text(story(evidence, named))
                say(f"The logs, and the stories of the runs concerned, are in {opened.logs}")
        return self.faults

    async def _storm(self, opened: Plant, began: float) -> tuple[Evidence, People]:
        headers = {"Authorization": f"Bearer {mint('ann', SECRET, lifetime_s=24 * 3600)}"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http, asyncio.TaskGroup() as group:
            people = People(http, Doors(http, opened.bases, headers, self.seed), group)
            await people.store_workflows()
            say(f"Everything runs after {time.monotonic() - began:.0f} s; the storm begins")
            telling = group.create_task(self._tell(opened, people))
            async with asyncio.TaskGroup() as storm:
                storm.create_task(people.drive(self.runs, seed=self.seed, seconds=self.storm_s * DRIVE_SHARE))
                for fault in self.plan:
                    storm.create_task(self._befall(opened, fault))
            say("The storm is over and everything runs again; waiting for rest")
            connection = await asyncpg.connect(opened.postgres.url)
            try:
                await people.rest(lambda: self._quiet(connection, people), within_s=REST_S)
            except AssertionError:
                self._restless = [f"run {p.run_id} never came to rest" for p in people.persons if not p.rests]
            telling.cancel()
            await people.leave()
            evidence = await self._judge(opened, connection, people)
            await connection.close()
        return evidence, people

    async def _befall(self, opened: Plant, fault: Fault) -> None:
        await let_pass(fault.at_s)
        if await opened.busy(fault.target, within_s=LATE_S):
            self.missed += 1
            return
        began = time.monotonic()
        with (opened.logs / "storm.log").open("a") as diary:
            diary.write(f"{datetime.now(UTC).isoformat()} {fault}\n")
            diary.flush()
            await opened.hit(fault)
            diary.write(f"{datetime.now(UTC).isoformat()} {fault}: over after {time.monotonic() - began:.1f} s\n")

    async def _tell(self, opened: Plant, people: People) -> None:
        began = time.monotonic()
        while True:
            await let_pass(TELL_S)
            rest = Counter(person.rests for person in people.persons)
            calls = len(read_ledger(opened.ledger))
            say(f"  {time.monotonic() - began:4.0f} s: {rest[False]} runs go, {rest[True]} rest; {calls} calls")

    async def _quiet(self, connection: asyncpg.Connection[asyncpg.Record], people: People) -> bool:
        """Nothing open, nothing moved since the last look, and everybody has a person."""
        strangers = await connection.fetch("SELECT id::text, workflow_id::text FROM workflow_runs")
        adopted = people.adopt(dict(strangers))
        row = await connection.fetchrow(AT_REST)
        before, self._seqs = self._seqs, row["seqs"]
        return not adopted and row["open"] == 0 and before == row["seqs"]

    async def _judge(self, opened: Plant, connection: asyncpg.Connection[asyncpg.Record], people: People) -> Evidence:
        """The evidence of one moment, at which everybody has seen what there is to see."""
        while True:
            ends = dict(await connection.fetch("SELECT id::text, last_seq FROM workflow_runs"))
            await people.come_back(ends, within_s=COME_BACK_S)
            evidence = await gather(connection, people, opened.ledger)
            if all(life.last_seq == ends[run_id] for run_id, life in evidence.lives.items()):
                return evidence


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="of the storm; otherwise a new one")
    parser.add_argument("--minutes", type=float, default=2.0, help="about how long all of it takes")
    parser.add_argument("--runs", type=int, default=204, help="how many runs are driven")
    parser.add_argument("--keep", action="store_true", help="keep the logs though nothing was broken")
    given = parser.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    again = f"make chaos SEED={seed} MINUTES={given.minutes:g} RUNS={given.runs}"
    try:
        faults = uvloop.run(Chaos(seed=seed, minutes=given.minutes, runs=given.runs, keep=given.keep).run())
    except BaseException:
        say(f"Chaos FAILED to come to its end. Again: {again}")
        raise
    if faults:
        say("\n".join(f"  {fault}" for fault in faults[:50]))
        say(f"Chaos FAILED: {len(faults)} laws broken. Again: {again}")
        return 1
    say(f"Chaos survived: nothing lost, nothing run twice without a person's word. Again: {again}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
