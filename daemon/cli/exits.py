"""What exit codes mean, and the one place where errors become them. The table stands in docs/cli.md for people.

What the operator, the caller or the machine does wrong is told in a line on standard error with what to do next, or
with ``--json`` as one JSON object there; never as a traceback.
"""

from __future__ import annotations

import json
import sys
from enum import IntEnum
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


class Told(click.ClickException):
    """A failure as the caller is told it: what happened, a stable code, and what to do next."""

    def __init__(self, message: str, *, exit_code: Exit, code: str, hint: str = "", as_json: bool = False) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)  # type: ignore[misc] # click means it so, and its types do not say it
        self.code = code
        self.hint = hint
        self.as_json = as_json

    def show(self, file: IO[Any] | None = None) -> None:
        if self.as_json:
            error = {"code": self.code, "detail": self.message, "hint": self.hint, "exit_code": int(self.exit_code)}
            click.echo(json.dumps({"error": error}, ensure_ascii=False), file=file or sys.stderr)
            return
        super().show(file)
        if self.hint:
            click.echo(self.hint, file=file or sys.stderr)


class Commands(click.Group):
    """A group whose commands may raise our errors."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RunwardenError as fault:
            raise click.ClickException(str(fault)) from None
