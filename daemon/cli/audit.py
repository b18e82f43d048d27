"""``runwarden audit``: who did or decided what, when and from where; for people as a table, for programs as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from daemon.cli import show
from daemon.cli.connection import Connection, talking

if TYPE_CHECKING:
    from daemon.cli.client import Api

_COLUMNS = {"at": "when", "actor": "who", "action": "what", "told": "outcome", "about": "about", "said": "said"}
_COLUMNS |= {"address": "from"}
_MOST = 200


@click.command()
@click.option("--since", metavar="TIME", help="Then or later, as 2026-11-26T08:00:00Z.")
@click.option("--until", metavar="TIME", help="Earlier.")
@click.option("--actor", metavar="USER", help="Whose word it was.")
@click.option("--action", metavar="NAME", help="How the action begins: run., run.approve, workflow.")
@click.option("--outcome", type=click.Choice(["applied", "refused"]))
@click.option("--run", "run_id", metavar="ID")
@click.option("--agent", "agent_id", metavar="ID")
@click.option("--search", "q", metavar="WORDS", help="In what was said.")
@click.option("--limit", type=click.IntRange(1, _MOST), default=50, show_default=True)
@click.option("--cursor", help="Where the page before ended (its next_cursor).")
@click.option("--export", "whole", is_flag=True, help="Everything that matches, a line of JSON each (NDJSON).")
@talking
def audit(to: Connection, whole: bool, **wanted: Any) -> None:
    """List who did or decided what, newest first.

    An admin sees everything; others what is about their runs and agents, and what they did themselves.
    """

    async def page(api: Api) -> dict[str, Any]:
        return await api.get("/v1/audit", **wanted)

    async def export(api: Api) -> None:
        cursor: str | None = wanted["cursor"]
        while True:
            found = await api.get("/v1/audit", **wanted | {"limit": _MOST, "cursor": cursor})
            for item in found["items"]:
                show.line(item)
            cursor = found["next_cursor"]
            if cursor is None:
                return

    if whole:
        to.run(export)
        return
    found = to.run(page)
    if to.as_json:
        show.document(found)
        return
    rows = [item | {"told": _told(item), "about": _about(item), "said": item["comment"]} for item in found["items"]]
    show.table(rows, _COLUMNS, none="Nothing of this is in the audit.")
    if found["next_cursor"]:
        click.echo(f"More: --cursor {found['next_cursor']}", err=True)


def _told(item: dict[str, Any]) -> str:
    return f"{item['outcome']} ({item['code']})" if item["code"] else str(item["outcome"])


def _about(item: dict[str, Any]) -> str:
    """What the line is about, the nearest first."""
    named = (item["step_id"], item["run_id"], item["agent_id"], item["target"])
    return " of ".join(str(one) for one in named if one is not None)
