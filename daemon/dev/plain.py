"""The demo told as plain text, line by line: for pipes, CI logs and terminals that can do no more.

``demo`` and ``run watch`` use it where there is no terminal; ``screen`` tells the same story where there is one. No
control codes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Self, assert_never

from daemon.dev import card
from daemon.dev.story import News, Step, Story, duration

DECIDED = {
    "rejected": "rejected",
    "expired": "expired: nobody decided in time",
    "skipped": "skipped",
    "done": "marked done",
}
"""What a person said of a step, or did not say in time, by the state it is in since."""


class Plain:
    """Writes each piece of news as it comes."""

    def __init__(self, story: Story, write: Callable[[str], None]) -> None:
        self._story = story
        self._write = write
        self._headed: Step | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """There is nothing to give back."""

    def aside(self) -> AbstractContextManager[object]:
        """While somebody else writes or asks: nothing to do here."""
        return nullcontext()

    def tell(self, news: News) -> None:
        """Write what happened."""
        step = news.step
        if step is None or news.told == "nothing":
            return
        if step is not self._headed:
            self._headed = step
            self._write(f"\n{step.number}/{len(self._story.steps)}  {step.name}  ({step.tool})")
        mark = "│ " if news.told in ("said", "ended") else ""
        for line in news.lines:
            self._write(f"     {mark}{line}")
        match news.told:
            case "begun" | "said" | "noted":
                pass
            case "waits":
                self._waits()
            case "decided":
                self._write(f"     {DECIDED.get(step.state, 'approved')}")
            case "ended":
                self._ended(step)
            case never:
                assert_never(never)

    def _waits(self) -> None:
        """The digest stands there to be named by whoever has looked at what it is over."""
        shown = self._story.pause.card if self._story.pause is not None else None
        if shown is None:
            self._write("     waits for approval")
            return
        self._write(f"     waits for approval: {card.traits(shown)}")
        self._write(f"     {shown['digest']}")

    def _ended(self, step: Step) -> None:
        if step.state == "done":
            self._write(f"     done in {duration(step.duration_ms)}")
            return
        goes_on = ", and the run goes on (on_error: continue)" if step.continues else ""
        self._write(f"     failed after {duration(step.duration_ms)}{goes_on}")
        for line in step.fault_lines:
            self._write(f"     ! {line}")
