"""What commands print: one JSON document, a table, or a run for people. Text of others reaches no terminal raw."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from daemon.cli.exits import needs_ascii

_MARKS = {"success": "✓", "failed": "✗", "rejected": "✗", "running": "▸", "skipped": "↷", "canceled": "✗"}
_MARKS |= {"expired": "✗"}
_COLOURS = {"success": "green", "completed": "green", "failed": "red", "rejected": "red", "paused": "magenta"}
_COLOURS |= {"expired": "red", "high": "red"}
_COLOURS |= {"running": "cyan", "canceled": "yellow", "skipped": "yellow"}

_READABLE = 6
"""Columns that a cell of a table needs at least, or all that it has."""


def document(value: Any) -> None:
    """The one JSON document of a command."""
    click.echo(json.dumps(value, ensure_ascii=needs_ascii(sys.stdout), indent=2))


def line(value: Any) -> None:
    """One line of NDJSON, at once."""
    click.echo(json.dumps(value, ensure_ascii=needs_ascii(sys.stdout), separators=(",", ":")))


def plain(value: object) -> str:
    """A value on one line, without control characters."""
    from daemon.dev.story import clean

    match value:
        case None:
            text = ""
        case bool():
            text = "yes" if value else "no"
        case _:
            text = str(value)
    return clean(text).replace("\n", " ").replace("\t", " ")


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, none: str) -> None:
    """Rows under ``columns`` (key → heading): a table at a terminal, else tab-separated lines after their headings."""
    if not rows:
        click.echo(none, err=not sys.stdout.isatty())
        return
    cells = [[plain(row.get(key)) for key in columns] for row in rows]
    if not sys.stdout.isatty():
        for one in ([*columns.values()], *cells):
            click.echo("\t".join(one))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    widest = [max(map(len, column)) for column in zip(columns.values(), *cells, strict=True)]
    if widest[0] + sum(2 + min(_READABLE, width) for width in widest[1:]) > console.width:
        _blocks(cells, [*columns.values()])
        return
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for number, heading in enumerate(columns.values()):
        shown.add_column(heading, no_wrap=number == 0, overflow="fold")
    for one in cells:
        shown.add_row(*(Text(cell, _COLOURS.get(cell.split(" ")[0], "")) for cell in one))
    console.print(shown)


def _blocks(cells: Sequence[Sequence[str]], headings: Sequence[str]) -> None:
    """Rows one below the other, a line for each cell: where a table would leave nothing of them but their ids."""
    margin = max(map(len, headings))
    for number, one in enumerate(cells):
        if number:
            click.echo()
        for heading, cell in zip(headings, one, strict=True):
            click.echo(f"{heading:<{margin}} {click.style(cell, _COLOURS.get(cell.split(' ')[0]))}")


def state(run: Mapping[str, Any]) -> str:
    """A run's status with what it waits for."""
    reason = run.get("paused_reason") if run["status"] == "paused" else None
    return f"{run['status']} ({reason})" if reason else str(run["status"])


def run(shape: Mapping[str, Any]) -> None:
    """A run for people: its head, then its steps."""
    snapshot, status = shape["workflow_snapshot"], state(shape)
    head = {"run": shape["run_id"], "title": snapshot.get("title"), "status": status, "started": shape["created_at"]}
    head |= {"updated": shape["updated_at"], "workflow": shape["workflow_id"]}
    if shape.get("error_code"):
        head["error"] = f"{shape['error_code']}: {shape.get('error_message') or ''}"
    for key, value in head.items():
        click.echo(f"{key:<9} " + click.style(plain(value), _COLOURS.get(str(value).split(" ")[0])))
    for number, step in enumerate(snapshot["steps"], 1):
        known = shape["steps_state"].get(step["id"], {"status": "pending", "attempts": []})
        mark = click.style(_MARKS.get(known["status"], "·"), _COLOURS.get(known["status"]))
        tries = len(known["attempts"])
        tried = f", {tries} attempts" if tries > 1 else ""
        tool = step["tool_config"]["tool_name"]
        click.echo(f"  {mark} {number}  {plain(step['name'])}  ({plain(tool)})  {known['status']}{tried}")
        last = known["attempts"][-1] if known["attempts"] else None
        if last is not None and last["error"] and known["status"] != "success":
            click.echo(f"       ! {plain(last['error'].get('message') or last['error'].get('code'))}")
        for line in _approval(known.get("approval"), shape):
            click.echo(f"       {line}")


def _approval(approval: Mapping[str, Any] | None, shape: Mapping[str, Any]) -> Iterator[str]:
    """What waits for approval, whole; of what was decided only by whom."""
    from daemon.dev import card

    if approval is None:
        return
    waits = card.of_run(shape)
    if waits is not None and waits["digest"] == approval["digest"] and approval["state"] == "open":
        yield from card.lines(waits)
        if approval["expired_at"] is not None:
            yield f"nobody decided by {card.moment(approval['expired_at'])}; it waits on"
        return
    said = ", ".join(plain(vote["by"]) for vote in approval["votes"])
    edited = f", edited by {plain(approval['edited_by'])}" if approval["edited_by"] else ""
    yield f"approval {approval['state']}{f' by {said}' if said else ''}{edited}: {approval['digest']}"


def next_words(shape: Mapping[str, Any]) -> str:
    """What a person may do about a run that stands still; empty when it does not."""
    if shape["status"] != "paused":
        return ""
    name = f"runwarden run {{}} {shape['run_id']}"
    match shape["paused_reason"]:
        case "awaiting_approval":
            words = "approve|reject|edit|cancel" if _editable(shape) else "approve|reject|cancel"
        case "step_failed":
            words = "resume|skip|mark-done|cancel"
        case "outcome_unknown":
            return f"Look at what was done, then: {name.format('resume')} --run-again, or skip, mark-done, cancel"
        case "agent_unauthorized" if shape.get("error_code") == "tool_denied":
            return f"Once an admin allows the tool: {name.format('resume')}, or cancel"
        case "agent_unauthorized":
            agent = plain(shape["workflow_snapshot"]["steps"][shape["current_step_index"]]["tool_config"]["agent_id"])
            return f"Once its owner has said `runwarden agent grant {agent} use`: {name.format('resume')}, or cancel"
        case "held":
            return f"It goes on by itself when the hold is released (runwarden hold list), or: {name.format('cancel')}"
        case _:
            words = "resume|cancel"
    return "Next: " + name.format(words)


def _editable(shape: Mapping[str, Any]) -> bool:
    step = shape["workflow_snapshot"]["steps"][shape["current_step_index"]]
    return bool((step.get("approval") or {}).get("allow_edit"))
