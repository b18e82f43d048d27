"""What callers were refused (403), for the audit: a line each, but only so many a minute, so that nobody floods it.

Used by ``gate``, after the handler and before the answer, and by handlers that refuse a part of what they were asked.
The bound is a caller's and a node's; what it withholds is counted, and told by the caller's next line. What is
another's is 404 to a caller, and no line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from aiohttp import web

from daemon import telemetry
from daemon.api.context import ATTEMPT, CONTEXT, OPERATION, ORIGIN
from daemon.errors import RunwardenError, StoreUnavailable
from daemon.machine.commands import CommandKind
from daemon.store.audit import Deed
from daemon.telemetry import log

MOST = 30
"""Lines of one caller in a window."""
WINDOW_S = 60.0
CALLERS = 10_000
"""Callers that are kept in mind; whoever was refused first is forgotten first."""
MAX_AGENT_ID = 255
FORBIDDEN = 403


@dataclass(slots=True)
class _Window:
    since: float
    lines: int = 0
    withheld: int = 0


class Refusals:
    """Who was refused how often lately, on this node."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def admit(self, actor: str, now: float) -> int | None:
        """None when this refusal is one too many; else how many were withheld since the caller's last line."""
        window = self._windows.get(actor)
        if window is None or now - window.since >= WINDOW_S:
            withheld = window.withheld if window is not None else 0
            self._windows.pop(actor, None)  # so that it stands last again
            self._windows[actor] = window = _Window(now, withheld=withheld)
            if len(self._windows) > CALLERS:
                del self._windows[next(iter(self._windows))]
        if window.lines >= MOST:
            window.withheld += 1
            return None
        window.lines += 1
        told, window.withheld = window.withheld, 0
        return told


REFUSALS: web.AppKey[Refusals] = web.AppKey("refusals", Refusals)


async def note_refusal(request: web.Request, fault: RunwardenError) -> None:
    """If it is one, write its line, as far as the bound and Postgres allow; the caller is refused in any case."""
    attempt = request.get(ATTEMPT)
    if ORIGIN not in request or (fault.status != FORBIDDEN and attempt is None):
        return
    deed = attempt or Deed(action=request.get(OPERATION, "none"), run_id=_run_id(request), agent_id=_agent_id(request))
    await note_refused(request, deed, code=fault.problem_code, message=fault.detail)


async def note_refused(request: web.Request, deed: Deed, *, code: str, message: str) -> None:
    """Write the line of something that was attempted and refused, within the bound."""
    origin = request[ORIGIN]
    withheld = request.app[REFUSALS].admit(origin.actor, time.monotonic())
    if withheld is None:
        telemetry.audit_withheld.inc()
        return
    detail = deed.detail | {"message": message} | ({"withheld": withheld} if withheld else {})
    deed = replace(deed, outcome="refused", code=code, detail=detail)
    try:
        await request.app[CONTEXT].trail.note(origin, deed)
    except StoreUnavailable as away:
        telemetry.audit_withheld.inc()
        log.warning("a refusal is not in the audit", actor=origin.actor, action=deed.action, fault=str(away))


def attempted(kind: CommandKind, run_id: UUID, said: Mapping[str, Any], *, agent_id: str | None = None) -> Deed:
    """A word that was refused before it was a command, as the audit tells it."""
    return Deed(
        action=f"run.{kind}",
        run_id=run_id,
        step_id=said.get("step_id"),
        agent_id=agent_id,
        digest=said.get("digest"),
        comment=said.get("comment") or said.get("reason") or said.get("note"),
    )


def _run_id(request: web.Request) -> UUID | None:
    try:
        return UUID(request.match_info.get("run_id", ""))
    except ValueError:
        return None


def _agent_id(request: web.Request) -> str | None:
    """The agent that the path names, if it can be one's name at all."""
    said = request.match_info.get("agent_id", "")
    return said if 0 < len(said) <= MAX_AGENT_ID and said.isprintable() else None
