"""``runwarden demo``: the whole road once, shown while it happens, through the HTTP API like any other client.

Called by ``cli`` only. It starts a ``DevStack``, stores the example workflow, runs it, follows its events, asks for the
approval (or gives it, where nobody can be asked) and tells the result. It knows no room's inside.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, TextIO

import aiohttp
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from daemon.dev import card
from daemon.dev.example import demo_mcp_servers, demo_repository, demo_workflow
from daemon.dev.keyboard import yes_or_no
from daemon.dev.plain import Plain
from daemon.dev.screen import Screen, lively, starting
from daemon.dev.sse import follow
from daemon.dev.stack import DevStack
from daemon.dev.story import Pause, Story, clean, duration, hints
from daemon.errors import RunwardenError, SetupError, WorldError
from daemon.telemetry import set_up_logging

LIMIT_S = 120.0
NOTES = "RELEASE_NOTES.md"
EXCERPT_LINES = 8
TRY_NEXT = (
    ("make dev", "keeps this stack running on port 8080, with a token and a curl example"),
    (".venv/bin/runwarden dev --mcp-config mcp.json", "the same, in front of your own MCP servers"),
)


class Unfinished(WorldError):
    """The demo did not come to its end."""

    code = "demo_unfinished"


class Demo:
    """One showing, made inside the event loop. ``data`` stays for a look afterwards; the next showing empties it.

    ``seconds``: about how long the streaming step takes. ``limit_s``: for all of it but a person's thinking.
    """

    def __init__(
        self,
        data: Path,
        console: Console,
        *,
        seconds: float,
        limit_s: float = LIMIT_S,
        weather: Sequence[str] = (),
    ) -> None:
        self._data = data.resolve()
        self._notes = self._data / "out" / NOTES
        self._log = self._data / "node.log"
        self._console = console
        self._lively = lively(console)
        self._can_ask = sys.stdin.isatty() and sys.stdout.isatty()
        self._seconds = seconds
        self._limit_s = limit_s
        self._weather = weather
        self._clock = asyncio.timeout(limit_s)

    async def show(self) -> bool:
        """Whether the run completed. Raises RunwardenError when it came to no end, with the place of the node's log."""
        try:
            repo, written = self._prepare()
        except OSError as fault:
            raise SetupError(f"{self._data} cannot hold the demo's data: {fault}. Name another directory.") from None
        with written:
            set_up_logging(level="INFO", style="text", stream=written)  # beside the view, which it would tear
            try:
                async with self._clock:
                    return await self._show(repo)
            except TimeoutError:
                late = f"The demo was not over after {self._limit_s:g} s."
                raise Unfinished(f"{late} The node's log may tell why: {self._log}") from None
            except RunwardenError as fault:
                raise Unfinished(f"{fault}\nThe node's log may tell more: {self._log}") from None
            finally:
                set_up_logging(level="WARNING", style="text")

    def _prepare(self) -> tuple[Path, TextIO]:
        """The repository to read and the log to write; the notes and the log of an earlier showing go."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in (self._notes, self._log):
            old.unlink(missing_ok=True)
        return demo_repository(Path.cwd(), self._data), self._log.open("w", encoding="utf-8")

    async def _show(self, repo: Path) -> bool:
        begun = time.monotonic()
        async with AsyncExitStack() as ends:
            with starting(self._console):
                servers = demo_mcp_servers(repo, self._notes.parent)
                stack = await ends.enter_async_context(
                    DevStack(self._data, servers, port=0, fresh=True, weather=self._weather)
                )
            took = duration((time.monotonic() - begun) * 1000)
            self._say(f"They are up ({took}); the API answers at {stack.api_url}")
            headers = {"Authorization": f"Bearer {stack.token}"}
            session = await ends.enter_async_context(aiohttp.ClientSession(stack.api_url, headers=headers))
            return await self._run(stack, session, repo)

    async def _run(self, stack: DevStack, session: aiohttp.ClientSession, repo: Path) -> bool:
        spec = demo_workflow(stack.agent_id, repo, seconds=self._seconds)
        workflow = await _call(session, "POST", "/v1/workflows", {"title": spec["title"], "spec": spec})
        begun = time.monotonic()
        run = await _call(session, "POST", "/v1/workflow-runs", {"workflow_id": workflow["workflow_id"]})
        url = f"/v1/workflow-runs/{run['run_id']}"
        story = Story(workflow["spec"])
        self._head(workflow, repo, run["run_id"])
        async with (
            Screen(story, self._console) if self._lively else Plain(story, self._say) as teller,
            aclosing(_events(session, url)) as events,
        ):
            async for payload in events:
                news = story.hear(payload)
                teller.tell(news)
                if news.told == "waits" and story.pause is not None:
                    with teller.aside():
                        verb = "approve" if await self._agreed(story.pause, stack, session, url) else "reject"
                    await _call(session, "POST", f"{url}/{verb}", story.pause.named)
                if story.outcome is not None:
                    break
        self._tell_end(story, time.monotonic() - begun, await _call(session, "GET", url))
        return story.outcome == "completed"

    async def _agreed(self, pause: Pause, stack: DevStack, session: aiohttp.ClientSession, url: str) -> bool:
        """The person's answer; the demo's own where nobody can be asked. Waiting for a person costs no time."""
        if not self._can_ask:
            self._say("     no terminal to ask at: the demo approves by itself, naming that digest", "magenta")
            return True
        run = await _call(session, "GET", url)
        self._console.print(self._question(pause, stack, _result_text(run, "draft")))
        loop = asyncio.get_running_loop()
        left = (self._clock.when() or 0.0) - loop.time()
        self._clock.reschedule(None)
        agreed = await yes_or_no("Let it run?")
        self._clock.reschedule(loop.time() + left)
        return agreed

    def _question(self, pause: Pause, stack: DevStack, draft: str) -> Panel:
        """What is to be decided: the call's card, what the tool says of itself, and what would be written."""
        text = Text("\n".join(card.lines(pause.card)) if pause.card is not None else "")
        if pause.step is not None:
            text.append(f"\nof itself the tool says: {hints(_tool(stack, pause.step.tool))}\n")
        text.append("\n" + "\n".join(_excerpt(draft)), "dim")
        text.no_wrap, text.overflow = True, "ellipsis"
        title = Text(f"Approval needed: {pause.step.name if pause.step is not None else ''}", "bold magenta")
        return Panel(text, title=title, title_align="left", border_style="magenta", padding=(0, 1))

    def _head(self, workflow: dict[str, Any], repo: Path, run_id: str) -> None:
        self._say()
        self._say(workflow["title"], "bold")
        self._say(workflow["description"] or "")
        self._say(f"repository {repo} · run {run_id}", "dim")
        if self._lively:
            self._say()

    def _tell_end(self, story: Story, took_s: float, run: dict[str, Any]) -> None:
        failed, done, took = story.count("failed"), story.count("done"), duration(took_s * 1000)
        self._say()
        if story.outcome == "completed":
            passed = f", {failed} failed and the run went on" if failed else ""
            self._say(f"The run completed in {took}: {done} steps done{passed}.", "bold green")
            self._say(_result_text(run, story.steps[-1].id))
            if not self._can_ask:  # whoever was asked has read them
                for line in ("", *_excerpt(self._notes.read_text(encoding="utf-8"))):
                    self._say(f"  {line}".rstrip(), "dim")
            self._say("\nTry next:")
            for command, what in TRY_NEXT:
                self._say(f"  {command}\n      {what}")
        elif story.count("rejected"):
            self._say("You rejected the step, so the run has failed and nothing was published.", "bold yellow")
            self._say("Run the demo again and answer y to see it through.")
        else:
            self._say(f"The run {story.outcome} after {took}: {story.why}", "bold red")
            self._say(f"The node's log: {self._log}; what the MCP servers wrote: {self._data / 'mcp'}")

    def _say(self, text: str = "", style: str = "") -> None:
        """One line, never wrapped by us, never taken for markup."""
        self._console.print(Text(text, style), soft_wrap=True)


def _tool(stack: DevStack, name: str) -> dict[str, Any]:
    return next((tool for tool in stack.tools if tool["name"] == name), {})


async def _events(session: aiohttp.ClientSession, url: str) -> AsyncGenerator[dict[str, Any], None]:
    """The payloads of the run's events, however often the connection breaks."""
    async with aclosing(follow(session, f"{url}/events")) as messages:
        async for message in messages:
            told = json.loads(message.data)
            if told["type"] == "run.event":
                yield told["payload"]


async def _call(
    session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One call of the API. Raises WorldError with the API's own words when it is refused."""
    try:
        async with session.request(method, path, json=body) as answer:
            told: dict[str, Any] = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError) as fault:
        raise WorldError(f"{method} {path} failed: {fault or type(fault).__name__}") from fault
    if answer.status not in (200, 202):
        raise WorldError(f"{method} {path} answers {answer.status}: {told.get('detail', told)}")
    return told


def _result_text(run: dict[str, Any], step_id: str) -> str:
    """The text that a step's last attempt answered; empty if there is none."""
    for attempt in reversed(run["steps_state"].get(step_id, {}).get("attempts", ())):
        parts = (attempt["result_json"] or {}).get("content", ())
        return clean("\n".join(part["text"] for part in parts if part.get("type") == "text"))
    return ""


def _excerpt(text: str) -> list[str]:
    lines = [line for line in clean(text).splitlines() if line.strip()]
    more = [f"… and {len(lines) - EXCERPT_LINES} lines more"] if len(lines) > EXCERPT_LINES else []
    return lines[:EXCERPT_LINES] + more
