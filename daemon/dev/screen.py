"""The demo told in a terminal: what is over stays above, what runs is live below, with its last log lines and progress.

``demo`` uses it where standard output is a terminal, and ``plain`` elsewhere. It is drawn from the
event loop, never from a thread; leaving it gives the terminal back as it was.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from daemon.dev.keyboard import without_echo
from daemon.dev.plain import DECIDED
from daemon.dev.story import News, Step, Story, duration, tells_share

FRAME_S = 0.08
LOG_LINES = 8
STARTING = "Starting Postgres, Valkey, the dev Gateway with three MCP servers, and a node …"
_INDENT = (0, 0, 0, 6)


def lively(console: Console) -> bool:
    """Whether this terminal can show what is live."""
    return console.is_terminal and not console.is_dumb_terminal


def starting(console: Console) -> AbstractContextManager[object]:
    """Shows that the start takes its time; nothing where there is no terminal."""
    return console.status(Text(STARTING)) if lively(console) else nullcontext()


class Screen:
    """The live view of one story."""

    def __init__(self, story: Story, console: Console) -> None:
        self._story = story
        self._console = console
        self._tail: deque[str] = deque(maxlen=max(2, min(LOG_LINES, console.height - len(story.steps) - 6)))
        self._begun = time.monotonic()
        self._spinner = Spinner("dots", style="cyan")
        self._live: Live | None = None
        self._drawing: asyncio.Task[None] | None = None
        self._keyboard: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        self._open()
        self._drawing = asyncio.create_task(self._draw(), name="screen")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._drawing is not None:
            self._drawing.cancel()
        self._close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While somebody else writes or asks: the live part is taken away, and comes back below."""
        self._close()
        yield
        self._open()

    def tell(self, news: News) -> None:
        """Show what happened."""
        step = news.step
        if step is None:
            return
        if news.told in ("said", "ended"):
            self._tail.extend(line for line in news.lines if not tells_share(line))  # the bar says it already
        match news.told:
            case "noted" | "waits":
                for line in news.lines:
                    self._console.print(Padding(Text(line, "yellow"), _INDENT))
            case "begun":
                self._begun = time.monotonic()
                self._tail.clear()
            case "decided" if step.state in DECIDED:
                no = step.state in ("rejected", "expired")
                mark, style = (Text("✗", "red"), "red") if no else (Text("↷", "yellow"), "yellow")
                self._console.print(_line(step, mark, DECIDED[step.state].split(":")[0], self._story, style=style))
            case "ended":
                self._tail.clear()
                self._console.print(*_over(step, self._story), sep="\n")
        self._refresh()

    def _open(self) -> None:
        self._keyboard = without_echo()  # a pressed key would move what we draw
        self._live = Live(
            console=self._console,
            get_renderable=self._now,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()
        keyboard, self._keyboard = self._keyboard, None
        if keyboard is not None:
            keyboard()

    async def _draw(self) -> None:
        while True:
            self._refresh()
            await asyncio.sleep(FRAME_S)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _now(self) -> RenderableType:
        """What is not over yet."""
        return Group(*self._rows())

    def _rows(self) -> Iterator[RenderableType]:
        for step in self._story.steps:
            match step.state:
                case "running":
                    elapsed = duration((time.monotonic() - self._begun) * 1000)
                    yield _line(step, self._spinner, elapsed, self._story, style="bold")
                    for line in self._tail:
                        yield Padding(Text(f"│ {line}", "dim", no_wrap=True, overflow="ellipsis"), _INDENT)
                    if step.share is not None:
                        yield Padding(_share(*step.share), _INDENT)
                case "waiting":
                    yield _line(step, Text("?", "magenta"), "needs approval", self._story, style="magenta")
                case "pending":
                    yield _line(step, Text("·", "dim"), "", self._story, style="dim")


def _line(step: Step, mark: RenderableType, right: str, story: Story, *, style: str) -> Table:
    """One step on one line: mark, number, name, tool, time; the tool gives way where the terminal is narrow."""
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(width=2, justify="right")
    row.add_column(width=len(f"{len(story.steps)}/{len(story.steps)}"))
    row.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    row.add_column(ratio=2, no_wrap=True, overflow="ellipsis")
    row.add_column(width=14, justify="right", no_wrap=True)
    number = Text(f"{step.number}/{len(story.steps)}", "dim")
    row.add_row(mark, number, Text(step.name, style), Text(step.tool, "dim"), Text(right, "dim"))
    return row


def _over(step: Step, story: Story) -> Iterator[RenderableType]:
    """A step that has ended, for good."""
    took = duration(step.duration_ms)
    if step.state == "done":
        yield _line(step, Text("✓", "green"), took, story, style="")
        return
    style = "yellow" if step.continues else "red"
    yield _line(step, Text("!" if step.continues else "✗", style), took, story, style=style)
    if step.continues:
        yield Padding(Text("failed, and the run goes on (on_error: continue)", style), _INDENT)
    for line in step.fault_lines:
        yield Padding(Text(line, style), _INDENT)


def _share(done: int, total: int) -> Table:
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=total, completed=done, width=40), Text(f"{done} of {total}", "dim"))
    return bar
