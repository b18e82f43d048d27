"""``runwarden approvals list|decide``: what waits for you, and several words at once, with a result for each.

A file of decisions is a JSON object a line, {"run_id", "step_id", "decision", "digest"?, "comment"?}, or one document:
a list of such, or {"items": […]}, as ``approvals list --json`` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli import show, typed
from daemon.cli.connection import Connection, talking
from daemon.cli.exits import Exit, Told
from daemon.dev import card

if TYPE_CHECKING:
    from daemon.cli.client import Api

INBOX = "/v1/approvals"
BATCH = 100
_COLUMNS = {"age": "age", "risk": "risk", "agent_id": "agent", "tool_name": "tool", "run_id": "run", "step_id": "step"}
_COLUMNS |= {"agreed": "agreed", "expires": "decide by"}
_SAID = ("run_id", "step_id", "decision", "digest", "comment")
_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"))


@click.group()
def approvals() -> None:
    """See and decide what waits for you."""


@approvals.command("list")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="Where the page before ended (its next_cursor).")
@talking
def list_(to: Connection, limit: int, cursor: str | None) -> None:
    """List the calls that wait for your approval, oldest first."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(INBOX, limit=limit, cursor=cursor)

    page = to.run(work)
    if to.as_json:
        show.document(page)
        return
    show.table([one | _told(one) for one in page["items"]], _COLUMNS, none="Nothing waits for you.")
    if page["items"]:
        click.echo("Look at one and decide: runwarden run approve|reject RUN", err=True)
    if page["next_cursor"]:
        click.echo(f"More: --cursor {page['next_cursor']}", err=True)


@approvals.command()
@click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    required=True,
    help="Decisions, as JSON or JSON lines; - reads standard input.",
)
@talking
def decide(to: Connection, file: Path) -> None:
    """Approve or reject what a file names, each for itself.

    A line each: applied, refused and why, or undecided; the exit code is 6 when some were refused.
    """
    words = _read(file)

    async def work(api: Api) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        for start in range(0, len(words), BATCH):
            batch = words[start : start + BATCH]
            items = (await api.post(f"{INBOX}/decide", {"items": batch})).body["items"]
            told += [word | item for word, item in zip(batch, items, strict=True)]
            _tell(told[start:], as_json=to.as_json)
        return told

    told = to.run(work)
    refused = sum(item["outcome"] == "refused" for item in told)
    undecided = sum(item["outcome"] == "undecided" for item in told)
    if refused:
        hint = "Each line says why. Who only wanted to be quicker than others has nothing to repeat."
        message = f"{refused} of {len(told)} decisions were refused."
        raise Told(message, exit_code=Exit.REFUSED, code="not_all_applied", hint=hint)
    if undecided:
        message = f"{undecided} of {len(told)} decisions are written down, and no node has decided on them yet."
        raise Told(message, exit_code=Exit.UNDECIDED, code="undecided", hint="Nothing is lost; look later.")


def _told(one: dict[str, Any]) -> dict[str, str]:
    """What a table shows of an item beside its own fields."""
    expires = "" if one["expires_at"] is None else card.moment(one["expires_at"])
    return {"age": age(one["age_ms"]), "agreed": f"{len(one['votes'])}/{one['quorum']}", "expires": expires}


def age(ms: int) -> str:
    """How long something has waited, roughly."""
    for size, unit in _UNITS:
        if ms >= size:
            return f"{ms // size} {unit}"
    return f"{ms // 1000} s"


def _tell(items: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    for item in items:
        if as_json:
            show.line(item)
            continue
        why = f": {show.plain(item['message'])}" if item.get("message") else ""
        click.echo(
            f"{show.plain(item['run_id'])} {show.plain(item['step_id'])} {item['decision']} {item['outcome']}{why}"
        )


def _read(file: Path) -> list[dict[str, Any]]:
    """The decisions of a file. Raises Told, saying which of them is none."""
    text = typed.text_of(file)
    words = []
    for number, said in enumerate(_documents(text), 1):
        if not isinstance(said, dict) or said.get("decision") not in ("approve", "reject"):
            hint = 'Each is {"run_id": …, "step_id": …, "decision": "approve" or "reject", "digest": …}.'
            message = f"{typed.named(file)}: number {number} is no decision."
            raise Told(message, exit_code=Exit.INVALID, code="bad_file", hint=hint)
        words.append({name: said[name] for name in _SAID if said.get(name) is not None})
    if not words:
        raise Told(f"{typed.named(file)} names no decision.", exit_code=Exit.INVALID, code="bad_file")
    return words


def _documents(text: str) -> Sequence[Any]:
    """The items of one document, or one of each line; a line that is no JSON is an item that is nothing."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return [_line(line) for line in text.splitlines() if line.strip()]
    if isinstance(whole, dict) and isinstance(whole.get("items"), list):
        return list(whole["items"])
    return whole if isinstance(whole, list) else [whole]


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
