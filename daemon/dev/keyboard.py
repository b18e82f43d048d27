"""The person at the terminal, asked without a thread: the event loop goes on, and a cancellation ends the question.

Called by ``demo`` and ``run watch``, which ask only where standard input and output are a terminal, and by ``screen``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import termios
from collections.abc import Callable, Mapping

_ANSWERS = {"yes": True, "no": False}


def without_echo() -> Callable[[], None]:
    """Stops the terminal from showing what is typed; answers how to give it back. Nothing, where there is none."""
    if not sys.stdin.isatty():
        return lambda: None
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    quiet = termios.tcgetattr(keyboard)
    quiet[3] &= ~(termios.ECHO | termios.ECHONL)
    termios.tcsetattr(keyboard, termios.TCSANOW, quiet)
    return lambda: termios.tcsetattr(keyboard, termios.TCSANOW, before)


async def yes_or_no(question: str) -> bool:
    """Asks until the answer is one; an end of input (Ctrl-D) is a no."""
    return _ANSWERS[await choose(question, {"y": "yes", "n": "no"}, at_end="no")]


async def choose(question: str, answers: Mapping[str, str], *, at_end: str = "later") -> str:
    """One of the ``answers`` (key → word), given as its key or the word; asks until it is one.

    ``at_end`` stands for the end of input (Ctrl-D). Keys pressed before the question do not count.
    """
    keyboard = sys.stdin.fileno()
    termios.tcflush(keyboard, termios.TCIFLUSH)
    while True:
        sys.stdout.write(f"{question} [{'/'.join(answers)}] ")
        sys.stdout.flush()
        line = await _line(keyboard)
        if not line:
            return at_end
        said = line.decode(errors="replace").strip().lower()
        if said in answers or said in answers.values():
            return answers.get(said, said)


async def _line(keyboard: int) -> bytes:
    """The next line; a terminal gives whole lines to whoever reads."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        if not typed.done():
            typed.set_result(os.read(keyboard, 1024))

    loop.add_reader(keyboard, read)
    try:
        return await typed
    finally:
        loop.remove_reader(keyboard)
