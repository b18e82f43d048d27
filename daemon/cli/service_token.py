"""``runwarden service-token create|list|revoke``: tokens for automation, made and taken back by people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from daemon.cli import show, typed
from daemon.cli.connection import Connection, talking
from daemon.cli.decide import segment

if TYPE_CHECKING:
    from daemon.cli.client import Api

_PLACE = "/v1/service-tokens"
_SCOPES = click.Choice(["viewer", "operator", "approver", "admin"])
_COLUMNS = {"token_id": "token", "name": "name", "user_id": "user", "scopes": "scopes", "state": "state"}
_COLUMNS |= {"last_used_at": "last used", "expires_at": "expires"}


@click.group("service-token")
def service_token() -> None:
    """Make and revoke tokens for automation."""


@service_token.command()
@click.argument("name")
@click.option("--scope", "scopes", type=_SCOPES, multiple=True, required=True, help="A role that it gives; repeatable.")
@click.option("--days", type=typed.Number(0, 36_500, min_open=True), help="Its life; otherwise until revoked.")
@click.option("--user", "user_id", metavar="USER", help="Whom it speaks for, if not you; for admins.")
@talking
def create(to: Connection, name: str, scopes: tuple[str, ...], days: float | None, user_id: str | None) -> None:
    """Make a service token called NAME and print it: nobody can show it again."""
    body: dict[str, Any] = {"name": name, "scopes": list(scopes)}
    if days is not None:
        body["expires_at"] = (datetime.now(UTC) + timedelta(days=days)).isoformat()
    if user_id is not None:
        body["user_id"] = user_id

    async def work(api: Api) -> dict[str, Any]:
        return (await api.post(_PLACE, body)).body

    made = to.run(work)
    if to.as_json:
        show.document(made)
        return
    click.echo(made["token"])
    click.echo(f"Keep it now. To take it back: runwarden service-token revoke {made['token_id']}", err=True)


@service_token.command("list")
@click.option("--all", "everybodys", is_flag=True, help="Everybody's; for admins.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="Where the page before ended (its next_cursor).")
@talking
def list_(to: Connection, everybodys: bool, limit: int, cursor: str | None) -> None:
    """List your service tokens, newest first."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(_PLACE, limit=limit, cursor=cursor, all="true" if everybodys else None)

    page = to.run(work)
    if to.as_json:
        show.document(page)
        return
    rows = [item | {"scopes": " ".join(item["scopes"]), "state": _state(item)} for item in page["items"]]
    show.table(rows, _COLUMNS, none="No service token yet. Make one: runwarden service-token create NAME --scope ROLE")
    if page.get("next_cursor"):
        click.echo(f"More: --cursor {page['next_cursor']}", err=True)


@service_token.command()
@click.argument("token_id", metavar="TOKEN")
@talking
def revoke(to: Connection, token_id: str) -> None:
    """Revoke the service token with the id TOKEN: from now on it opens nothing."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.delete(f"{_PLACE}/{segment(token_id)}")

    revoked = to.run(work)
    if to.as_json:
        show.document(revoked)
        return
    click.echo(f"Revoked {revoked['token_id']} ({show.plain(revoked['name'])})")


def _state(token: dict[str, Any]) -> str:
    if token["revoked_at"] is not None:
        return "revoked"
    ends = token["expires_at"]
    return "expired" if ends is not None and datetime.fromisoformat(ends) <= datetime.now(UTC) else "good"
