"""The people: each has a run, watches it, and decides as its script says, through whatever node answers.

They are careful clients. A node that does not answer is left for another; what was asked and not answered is looked at
again before it is asked again; an answer 202 is followed to its verdict. What they were promised is written down here,
for ``evidence`` to compare with what became of it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.api.harness import Answer
from tests.chaos.scripts import SCRIPTS, Move, Script, Unknown
from tests.chaos.watcher import Watcher
from tests.patience import eventually, let_pass

PAUSE_S = 0.3
"""Between two tries of one person."""
AT_UNKNOWN: tuple[Unknown, ...] = ("resume", "resume", "skip", "mark-done", "leave")
LOOK_S = 3.0
"""A person looks at the run this often though its stream says nothing; one who has nothing left to do, seldom."""
SELDOM_S = 15.0


@dataclass(slots=True)
class Promises:
    """What was asked of the API, and what it said."""

    created: set[str] = field(default_factory=set)
    accepted: set[str] = field(default_factory=set)
    """Command ids that a 202 named."""
    applied: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each verb was answered 200 for each run."""
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each verb was asked of each run, answered or not: no command may exist beyond these."""
    answers: Counter[str] = field(default_factory=Counter)


class Doors:
    """The API of all nodes: one that answers is as good as another."""

    def __init__(self, http: aiohttp.ClientSession, bases: list[str], headers: dict[str, str], seed: int) -> None:
        self._http = http
        self._bases = bases
        self.headers = headers
        self._chance = random.Random(f"doors of {seed}")

    def any_order(self) -> list[str]:
        """The nodes as a balancer may try them."""
        return self._chance.sample(self._bases, len(self._bases))

    async def once(self, base: str, method: str, path: str, body: Any = None) -> Answer:
        """One exchange with one node. Raises ClientError, OSError, TimeoutError, ValueError."""
        timeout = aiohttp.ClientTimeout(total=15, sock_connect=3)
        more = {} if body is None else {"json": body}
        async with self._http.request(method, base + path, headers=self.headers, timeout=timeout, **more) as answer:
            return Answer(answer.status, answer.headers, await answer.json())

    async def read(self, path: str) -> Any:
        """What is there, from the first node that can tell; tries for ever."""
        while True:
            for base in self.any_order():
                with suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
                    answer = await self.once(base, "GET", path)
                    if answer.status == 200:
                        return answer.body
                    assert answer.status >= 500, f"GET {path}: {answer}"
            await let_pass(PAUSE_S)

    async def make(self, path: str, body: Any) -> Any:
        """Create something, trying again where no answer came: it may then exist twice."""
        while True:
            for base in self.any_order():
                with suppress(aiohttp.ClientError, OSError, TimeoutError, ValueError):
                    answer = await self.once(base, "POST", path, body)
                    if answer.status == 200:
                        return answer.body
                    assert answer.status >= 500, f"POST {path}: {answer}"
            await let_pass(PAUSE_S)


class Person:
    """One person with one run. ``rests``: nothing is left to do or to wait for."""

    def __init__(self, people: People, script: Script, *, at_unknown: Unknown, run_id: str = "") -> None:
        self.script = script
        self.at_unknown = at_unknown
        self.run_id = run_id
        self.rests = False
        self.watcher: Watcher | None = None
        self._people = people

    async def live(self) -> None:
        """Create the run if it is not given, watch it, decide; returns when it has ended."""
        doors, promises = self._people.doors, self._people.promises
        if not self.run_id:
            made = await doors.make("/v1/workflow-runs", {"workflow_id": self._people.workflows[self.script.name]})
            self.run_id = made["run_id"]
            promises.created.add(self.run_id)
        self.watcher = Watcher(self._people.http, doors.any_order, doors.headers, self.run_id)
        self._people.begin(self.watcher.run())
        while True:
            self.watcher.news.clear()
            run = await doors.read(f"/v1/workflow-runs/{self.run_id}")
            self.rests = self.script.rests(run, at_unknown=self.at_unknown)
            if run["status"] in ("completed", "failed", "canceled"):
                return
            move = self.script.move(run, at_unknown=self.at_unknown)
            if move is not None:
                await self._decide(_as_seen(move, run))
                await let_pass(PAUSE_S)
            else:
                await self._news(SELDOM_S if self.rests else LOOK_S)

    async def _news(self, within_s: float) -> None:
        assert self.watcher is not None
        await let_pass(PAUSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self.watcher.news.wait()

    async def _decide(self, move: Move) -> None:
        """Ask one node once; the run is read again before anything is asked again."""
        doors, promises, (verb, body) = self._people.doors, self._people.promises, move
        kind = verb.replace("-", "_")
        promises.asked[self.run_id, kind] += 1
        path = f"/v1/workflow-runs/{self.run_id}/{verb}"
        for base in doors.any_order():
            try:
                answer = await doors.once(base, "POST", path, body)
                break
            except aiohttp.ClientConnectorError:
                continue  # surely not asked: the next node
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                promises.answers["lost"] += 1
                return
        else:
            return
        promises.answers[str(answer.status)] += 1
        assert answer.status in (200, 202, 409) or answer.status >= 500, f"POST {path}: {answer}"
        if answer.status == 200:
            promises.applied[self.run_id, kind] += 1
        if answer.status == 202:
            location = answer.headers["Location"]
            promises.accepted.add(location.rpartition("/")[2])
            while (await doors.read(location))["verdict"] is None:
                await let_pass(PAUSE_S)


def _as_seen(move: Move, run: Mapping[str, Any]) -> Move:
    """A word on what waits for approval names the digest of what was seen."""
    verb, body = move
    asked = run["steps_state"][body["step_id"]].get("approval") if verb in ("approve", "reject") else None
    return move if asked is None else (verb, {**body, "digest": asked["digest"]})


class People:
    """All of them. ``drive`` lets them come one after the other."""

    def __init__(self, http: aiohttp.ClientSession, doors: Doors, group: asyncio.TaskGroup) -> None:
        self.http = http
        self.doors = doors
        self.promises = Promises()
        self.persons: list[Person] = []
        self.workflows: dict[str, str] = {}
        self._group = group
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Something that goes on until it ends or ``leave`` ends it."""
        self._tasks.append(self._group.create_task(work))

    async def leave(self) -> None:
        """Everybody goes home, and every stream is closed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def store_workflows(self) -> None:
        """One workflow a script."""
        for script in SCRIPTS:
            body = {"title": script.name, "spec": {"steps": list(script.steps)}}
            self.workflows[script.name] = (await self.doors.make("/v1/workflows", body))["workflow_id"]

    async def drive(self, count: int, *, seed: int, seconds: float) -> None:
        """``count`` people with a script each, evenly over ``seconds``."""
        chance = random.Random(f"people of {seed}")
        for number in range(count):
            person = Person(self, SCRIPTS[number % len(SCRIPTS)], at_unknown=chance.choice(AT_UNKNOWN))
            self.persons.append(person)
            self.begin(person.live())
            await let_pass(seconds / count)

    def adopt(self, runs: Mapping[str, str]) -> int:
        """People for runs (id → workflow id) that nobody knows of: their creation was asked and never answered."""
        scripts = {self.workflows[script.name]: script for script in SCRIPTS}
        strangers = runs.keys() - {person.run_id for person in self.persons}
        for run_id in sorted(strangers):
            person = Person(self, scripts[runs[run_id]], at_unknown="resume", run_id=run_id)
            self.persons.append(person)
            self.begin(person.live())
        return len(strangers)

    async def rest(self, quiet: Callable[[], Awaitable[bool]], *, within_s: float) -> None:
        """Wait until everybody rests and ``quiet`` says so of the engine."""

        async def all_rest() -> bool:
            await let_pass(PAUSE_S)
            return all(person.rests for person in self.persons) and await quiet()

        await eventually(all_rest, within_s=within_s, what="rest")

    async def come_back(self, last_seqs: Mapping[str, int], *, within_s: float) -> None:
        """Everybody looks once more, as a late visitor would: log lines may follow a run's end."""
        with suppress(TimeoutError):  # what is still missing then is lost, and told as that
            async with asyncio.timeout(within_s):
                for person in self.persons:
                    if person.watcher is not None:
                        await person.watcher.catch_up(last_seqs.get(person.run_id, 0))
