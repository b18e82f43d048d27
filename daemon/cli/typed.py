"""What is typed, read strictly: what cannot be meant is refused here with a reason, before anything is sent."""

from __future__ import annotations

import math
import re
from typing import Any

import click

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
