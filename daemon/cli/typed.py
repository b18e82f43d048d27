"""What is typed, read strictly: what cannot be meant is refused here with a reason, before anything is sent."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from daemon.cli.exits import Exit, Told

_KEY = re.compile(r"[!-~]{1,255}")


class Number(click.FloatRange):
    """A range of numbers. Click's own lets ``nan`` through, and without a bound ``inf``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no number.", param, ctx)
        return found


def key(_ctx: click.Context, _option: click.Parameter, typed: str | None) -> str | None:
    """An idempotency key, as the API takes it. An empty one would be none, and the call done twice after all."""
    if typed is not None and not _KEY.fullmatch(typed):
        raise click.BadParameter("1 to 255 letters, digits and signs of ASCII; no space, no line break")
    return typed


def named(file: Path) -> str:
    """A file as it is told of."""
    return "standard input" if str(file) == "-" else str(file)


def text_of(file: Path) -> str:
    """What a file says, or standard input. Raises Told (``bad_file``)."""
    try:
        with click.open_file(str(file), encoding="utf-8") as opened:
            return str(opened.read())
    except (OSError, ValueError) as fault:
        why = (fault.strerror if isinstance(fault, OSError) else None) or str(fault)
        raise Told(f"{named(file)} cannot be read: {why}", exit_code=Exit.INVALID, code="bad_file") from None


def base_url(text: str) -> str:
    """The base URL of an API, without a slash at its end. Raises ValueError with what is wrong, and never repeats it:
    there may be a password in it."""
    if not text.isprintable() or " " in text:
        raise ValueError("it has a space or a control character")
    if not text.startswith(("http://", "https://")):
        raise ValueError("a URL begins with http:// or https://")
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError:
        raise ValueError("its host is no address; an IPv6 one stands in brackets, as in http://[::1]:8080") from None
    try:
        sound = parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError("its port is no number from 1 to 65535")
    if "@" in parts.netloc:
        raise ValueError("it has a user or a password; who calls is told by the token alone")
    if not host:
        raise ValueError("it names no host")
    if parts.query or parts.fragment:
        raise ValueError("a base URL has no ? and no #")
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError("its host is no name of a host: each part has 1 to 63 characters") from None
    return text.rstrip("/")
