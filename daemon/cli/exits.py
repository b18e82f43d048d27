"""What exit codes mean, and the one place where errors become them. The table stands in docs/cli.md for people.

What the operator, the caller or the machine does wrong is told in a line on standard error with what to do next, or
with ``--json`` as one JSON object there; never as a traceback.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from io import TextIOWrapper
from itertools import takewhile
from typing import IO, Any

import click

from daemon.errors import RunwardenError


class Exit(IntEnum):
    """Exit codes, stable."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_AUTHORISED = 4
    NOT_FOUND = 5
    REFUSED = 6
    INVALID = 7
    UNDECIDED = 8
    RUN_FAILED = 10
    RUN_CANCELED = 11
    RUN_PAUSED = 12
    INTERRUPTED = 130


def needs_ascii(stream: IO[Any]) -> bool:
    """Whether JSON must escape what is not ASCII: what such a stream would write instead is no JSON."""
    return (getattr(stream, "encoding", None) or "utf8").lower().replace("-", "") != "utf8"


class Told(click.ClickException):
    """A failure as the caller is told it: what happened, a stable code, and what to do next."""

    def __init__(
        self,
        message: str,
        *,
        exit_code: Exit,
        code: str,
        hint: str = "",
        faults: Sequence[tuple[str, str]] = (),
        as_json: bool = False,
    ) -> None:
        """``faults`` are those of a body, if that is what is wrong: (JSON pointer, message) pairs."""
        super().__init__(message)
        self.faults = tuple(faults)
        self.exit_code = int(exit_code)  # type: ignore[misc] # click means it so, and its types do not say it
        self.code = code
        self.hint = hint
        self.as_json = as_json

    def show(self, file: IO[Any] | None = None) -> None:
        if self.as_json:
            error = {"code": self.code, "detail": self.message, "hint": self.hint, "exit_code": int(self.exit_code)}
            file = file or sys.stderr
            click.echo(json.dumps({"error": error}, ensure_ascii=needs_ascii(file)), file=file)
            return
        super().show(file)
        if self.hint:
            click.echo(self.hint, file=file or sys.stderr)


class Commands(click.Group):
    """A group whose commands may raise our errors, and where ``--json`` holds for what is wrong with the words too."""

    def main(self, *args: Any, **more: Any) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):  # a title may have what the terminal's encoding has not
            sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it from the start
        return super().main(*args, **more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_AS_JSON] = "--json" in takewhile(lambda word: word != "--", args)
        with _telling(ctx):
            _check_text(ctx, args)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _telling(ctx):
            return super().invoke(ctx)


_AS_JSON = f"{__name__}.as_json"
"""In a context's ``meta``: whether the words ask for JSON, known before any command has understood them."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a disk answers that takes no more. A closed pipe is not one of these: click ends quietly then."""


@contextmanager
def _telling(ctx: click.Context) -> Iterator[None]:
    as_json: bool = ctx.meta[_AS_JSON]
    try:
        yield
    except Told as fault:
        fault.as_json = fault.as_json or as_json
        raise
    except RunwardenError as fault:
        raise _for(click.ClickException(str(fault)), as_json=as_json) from None
    except click.ClickException as fault:
        raise _for(fault, as_json=as_json) from None
    except UnicodeEncodeError as fault:  # a word that is a file's name too, or a setting
        odd = click.UsageError(f"Something was said in bytes that cannot be sent: {fault.reason}.", ctx)
        raise _for(odd, as_json=as_json) from None
    except OSError as fault:
        if fault.errno not in _FULL:
            raise
        _give_up_output()
        raise _for(click.ClickException(f"It cannot be written: {fault}"), as_json=as_json) from None


def _check_text(ctx: click.Context, words: Sequence[str]) -> None:
    """Refuse words that are no text, unless they name a file: those may have any bytes."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            if os.path.lexists(word):
                continue
            encoding = sys.getfilesystemencoding().upper()
            told = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
            or_else = "" if encoding == "UTF-8" else ", or set LC_ALL to a locale of UTF-8"
            message = f"{told} has bytes that are no {encoding}: write it in {encoding}{or_else}."
            raise click.UsageError(message, ctx) from None


def _give_up_output() -> None:
    """What is still to be written goes nowhere: Python would try once more on its way out, and fail as loudly."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _for(fault: click.ClickException, *, as_json: bool) -> click.ClickException:
    """The same for programs; people get click's own words, with the usage."""
    if not as_json:
        return fault
    code, hint = "failed", ""
    if isinstance(fault, click.UsageError):
        code, hint = "usage", f"How it is used: {fault.ctx.command_path} --help" if fault.ctx else ""
    return Told(fault.format_message(), exit_code=Exit(fault.exit_code), code=code, hint=hint, as_json=True)
