"""``runwarden hold …`` and ``agent hold|release``: the emergency stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from daemon.cli import show
from daemon.cli.connection import Connection, talking
from daemon.cli.decide import segment
from daemon.cli.exits import Exit, Told

if TYPE_CHECKING:
    from daemon.cli.client import Api

HOLDS = "/v1/holds"
_COLUMNS = {"hold_id": "hold", "what": "what", "reason": "reason", "held_by": "by", "held_at": "since"}
_COLUMNS |= {"released_by": "released by"}
_PAGE = 200

_reason = click.option("--reason", metavar="TEXT", required=True, help="Those who wait read it.")


@click.group()
def hold() -> None:
    """Stop every call of an agent, a user or everything, until it is released."""


@hold.command("list")
@click.option("--released", is_flag=True, help="Those that were released too.")
@click.option("--cursor", help="Where the page before ended (its next_cursor).")
@talking
def list_(to: Connection, released: bool, cursor: str | None) -> None:
    """List what is held, as far as it concerns you."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(HOLDS, released="true" if released else None, cursor=cursor)

    page = to.run(work)
    if to.as_json:
        show.document(page)
        return
    show.table([one | {"what": _what(one)} for one in page["items"]], _COLUMNS, none="Nothing is held.")
    if page["next_cursor"]:
        click.echo(f"More: --cursor {page['next_cursor']}", err=True)


@hold.command()
@_reason
@talking
def everything(to: Connection, reason: str) -> None:
    """Stop all calls of all runs (admins only)."""
    _hold(to, "everything", None, reason)


@hold.command()
@click.argument("user_id", metavar="USER")
@_reason
@talking
def user(to: Connection, user_id: str, reason: str) -> None:
    """Stop the calls of all runs of USER (admins only)."""
    _hold(to, "user", user_id, reason)


@hold.command("agent")
@click.argument("agent_id", metavar="AGENT")
@_reason
@talking
def agent_(to: Connection, agent_id: str, reason: str) -> None:
    """Stop all calls to AGENT: as `agent hold`."""
    _hold(to, "agent", agent_id, reason)


@hold.command()
@click.argument("hold_id", metavar="HOLD")
@talking
def release(to: Connection, hold_id: str) -> None:
    """Let go on what HOLD stops."""
    _release(to, hold_id)


@click.command("hold")
@click.argument("agent_id", metavar="AGENT")
@_reason
@talking
def hold_agent(to: Connection, agent_id: str, reason: str) -> None:
    """Stop all calls to AGENT, until `agent release`: its owner or an admin."""
    _hold(to, "agent", agent_id, reason)


@click.command("release")
@click.argument("agent_id", metavar="AGENT")
@talking
def release_agent(to: Connection, agent_id: str) -> None:
    """Let calls to AGENT go on."""

    async def work(api: Api) -> str | None:
        cursor = None
        while True:
            page = await api.get(HOLDS, limit=_PAGE, cursor=cursor)
            for one in page["items"]:
                if (one["scope"], one["target"]) == ("agent", agent_id):
                    return str(one["hold_id"])
            cursor = page["next_cursor"]
            if cursor is None:
                return None

    found = to.run(work)
    if found is None:
        hint = "What is held: runwarden hold list"
        raise Told(f"{agent_id} is not held.", exit_code=Exit.NOT_FOUND, code="not_held", hint=hint)
    _release(to, found)


def _hold(to: Connection, scope: str, target: str | None, reason: str) -> None:
    said = {"scope": scope, "target": target, "reason": reason}

    async def work(api: Api) -> dict[str, Any]:
        return (await api.post(HOLDS, said)).body

    made = to.run(work)
    if to.as_json:
        show.document(made)
        return
    click.echo(f"Held {_what(made)} since {made['held_at']}: {show.plain(made['reason'])}")
    click.echo(f"Let it go on: runwarden hold release {made['hold_id']}", err=True)


def _release(to: Connection, hold_id: str) -> None:
    async def work(api: Api) -> dict[str, Any]:
        return (await api.post(f"{HOLDS}/{segment(hold_id)}/release", {})).body

    released = to.run(work)
    if to.as_json:
        show.document(released)
    else:
        click.echo(f"Released {_what(released)}.")


def _what(hold: dict[str, Any]) -> str:
    return hold["scope"] if hold["target"] is None else f"{hold['scope']} {show.plain(hold['target'])}"


OF_AGENT = (hold_agent, release_agent)
