"""Following a run: live at a terminal, in plain lines without one, an event a line for programs; and asking in place.

The run's past is folded silently into the view and never asked about: a question is put only about the pause that
stands, and is taken back when somebody else answers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any

import click
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from daemon.cli import show
from daemon.cli.client import Api
from daemon.cli.exits import Exit, Told
from daemon.dev import card
from daemon.dev.keyboard import choose
from daemon.dev.plain import Plain
from daemon.dev.screen import Screen, lively
from daemon.dev.story import News, Pause, Story, clean

EXITS = {"completed": Exit.OK, "failed": Exit.RUN_FAILED, "canceled": Exit.RUN_CANCELED}

LATE_S = 0.8
"""After a pause, or an end that came just now, that ends the watching."""

NOT_MINE = frozenset({"not_an_approver", "not_your_run"})
"""Refusals after which one may go on watching."""

_LATER = {"l": "later"}
_QUESTIONS: dict[str, tuple[str, Mapping[str, str]]] = {
    "awaiting_approval": ("Let it run? yes, no (rejects it) or later", {"y": "approve", "n": "reject"}),
    "step_failed": ("It failed. retry, skip, cancel the run or later", {"r": "resume", "s": "skip", "c": "cancel"}),
    "outcome_unknown": (
        "The tool may have run. run it again, skip, cancel the run or later",
        {"r": "resume", "s": "skip", "c": "cancel"},
    ),
}
_QUESTIONS |= {"held": ("It goes on by itself once it is released. cancel the run or later", {"c": "cancel"})}
_OTHERWISE = ("The run stands still. resume, cancel or later", {"r": "resume", "c": "cancel"})


async def watch(api: Api, run_id: str, *, as_json: bool, until_pause: bool, ask: bool, after_seq: int = 0) -> Exit:
    """Follow the run to its end, or to a pause; the exit code that tells it."""
    run = await api.get(f"/v1/workflow-runs/{run_id}")
    async with AsyncExitStack() as ends:
        view = _View(run, as_json=as_json)
        if view.teller is not None:
            await ends.enter_async_context(view.teller)
        asks = ask and not as_json and not until_pause and sys.stdin.isatty() and sys.stdout.isatty()
        watcher = _Watcher(api, run, view, asks=asks, until_pause=until_pause)
        events = await ends.enter_async_context(aclosing(api.events(run_id, after_seq=after_seq if as_json else 0)))
        code = await watcher.follow(events)
    if not as_json:
        view.end(await api.get(f"/v1/workflow-runs/{run_id}"))
    return code


class _View:
    """How the run is told. ``teller`` is None for programs."""

    def __init__(self, run: Mapping[str, Any], *, as_json: bool) -> None:
        self.story = Story(run["workflow_snapshot"])
        self.console = Console(highlight=False, force_terminal=None if sys.stdout.isatty() else False)
        self.teller: Screen | Plain | None = None
        if not as_json:
            self.say(f"{show.plain(run['workflow_snapshot'].get('title'))}  ({run['run_id']})", "bold")
            lives = lively(self.console)
            self.teller = Screen(self.story, self.console) if lives else Plain(self.story, self.say)

    def tell(self, message: Mapping[str, Any], news: News) -> None:
        """One event, which ``story`` has heard."""
        if self.teller is None:
            show.line(message)
        else:
            self.teller.tell(news)

    def say(self, text: str, style: str = "") -> None:
        """One line, never wrapped by us, never taken for markup."""
        self.console.print(Text(text, style), soft_wrap=True)

    def end(self, run: Mapping[str, Any]) -> None:
        """What became of it."""
        style = {"completed": "bold green", "failed": "bold red"}.get(run["status"], "bold yellow")
        why = f": {clean(run['error_message'])}" if run.get("error_message") and run["status"] == "failed" else ""
        self.say(f"\nThe run is {show.state(run)}{why}", style)
        if words := show.next_words(run):
            self.say(words)

    def question(self, pause: Pause) -> Panel:
        """What is to be decided."""
        step = pause.step
        text = Text()
        if pause.card is not None:
            text.append("\n".join(card.lines(pause.card)))
        elif step is not None:
            text.append(f"{step.tool}\n", "bold")
            for name, value in step.arguments.items():
                text.append(f"  {clean(name)}  {clean(json.dumps(value, ensure_ascii=False))}\n")
            for fault in step.fault_lines:
                text.append(f"{fault}\n", "red")
        if pause.message:
            text.append(f"{pause.message}\n", "red")
        text.overflow = "fold"  # never cut: nothing is approved unseen
        title = Text(f"{pause.reason}: {step.name if step else 'the run'}", "bold magenta")
        return Panel(text, title=title, title_align="left", border_style="magenta", padding=(0, 1))


class _Watcher:
    """Reads events and, beside them, answers; ends with an exit code."""

    def __init__(self, api: Api, run: Mapping[str, Any], view: _View, *, asks: bool, until_pause: bool) -> None:
        self._api = api
        self._run_id: str = run["run_id"]
        self._view = view
        self._asks = asks
        self._until_pause = until_pause
        self._replayed = False
        self._asked: Pause | None = None
        self._question: asyncio.Task[Exit | None] | None = None

    async def follow(self, events: Any) -> Exit:
        """Until the run's end, or a pause that ends the watching."""
        coming: asyncio.Task[dict[str, Any]] = asyncio.ensure_future(anext(events))
        try:
            while True:
                both = {coming} if self._question is None else {coming, self._question}
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if self._question is not None and self._question.done():
                    left, self._question = self._question.result(), None
                    if left is not None:
                        return left
                if not coming.done():
                    continue
                try:
                    message = coming.result()
                except StopAsyncIteration:
                    return await self._by_status()
                code = await self._take(message)
                if code is Exit.RUN_PAUSED or (code is not None and message["type"] == "run.event"):
                    await self._late(events)
                if code is not None:
                    return code
                coming = asyncio.ensure_future(anext(events))
        finally:
            await self._cancelled(coming)
            await self._take_back()

    async def _late(self, events: Any) -> None:
        """A log's last lines may come after the verdict that they led to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LATE_S):
                async for message in events:
                    if message["type"] == "run.event":
                        self._view.tell(message, self._view.story.hear(message["payload"]))

    async def _take(self, message: dict[str, Any]) -> Exit | None:
        """One message; an exit code when nothing more is to come."""
        story = self._view.story
        if message["type"] == "replay.done":
            self._replayed = True
            status = (await self._api.get(f"/v1/workflow-runs/{self._run_id}"))["status"]
            if status in EXITS and story.outcome is None:  # a log that tells of no end: v0 wrote none of a cancel
                return EXITS[status]
        elif message["type"] == "run.event":
            news = story.hear(message["payload"])
            if story.pause is not self._asked:  # before anything is written behind the question
                await self._take_back()
            self._view.tell(message, news)
        if not self._replayed:
            return None
        if story.outcome in EXITS:
            return EXITS[story.outcome]
        if story.pause is not None:
            if self._until_pause:
                return Exit.RUN_PAUSED
            if self._asks and self._asked is not story.pause:
                self._asked = story.pause
                self._question = asyncio.create_task(self._ask(story.pause), name="question")
        return None

    async def _ask(self, pause: Pause) -> Exit | None:
        """Put the question and send the answer; an exit code when the person leaves it for later."""
        assert self._view.teller is not None  # noqa: S101 - programs are not asked
        question, answers = _QUESTIONS.get(pause.reason, _OTHERWISE)
        with self._view.teller.aside():
            self._view.console.print(self._view.question(pause))
            verb = await choose(question, {**answers, **_LATER})
            if verb == "later":
                return Exit.RUN_PAUSED
            body: dict[str, Any] = {}
            if verb in ("approve", "reject", "skip"):
                body = pause.named
            elif verb == "resume" and pause.reason == "outcome_unknown":
                body = {"confirm": "run_again"}
            try:
                answer = await self._api.decide(self._run_id, verb, body)
            except Told as fault:
                self._view.say(f"Refused: {clean(fault.message)} {fault.hint}", "yellow")
                if fault.exit_code != Exit.REFUSED and fault.code not in NOT_MINE:
                    raise
            else:
                if answer.status == 202:
                    self._view.say("Written down; no node has decided on it yet.", "yellow")
        return None

    async def _take_back(self) -> None:
        question, self._question, self._asked = self._question, None, None
        if question is not None and not question.done():
            await self._cancelled(question)
            click.echo()

    async def _by_status(self) -> Exit:
        run = await self._api.get(f"/v1/workflow-runs/{self._run_id}")
        return EXITS.get(run["status"], Exit.UNREACHABLE)

    @staticmethod
    async def _cancelled(task: asyncio.Task[Any]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
