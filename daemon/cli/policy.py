"""``runwarden policy list|set|delete``: what admins say about tools, whatever they say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from daemon.cli import show
from daemon.cli.connection import Connection, talking
from daemon.cli.decide import segment

if TYPE_CHECKING:
    from daemon.cli.client import Api

POLICIES = "/v1/tool-policies"
_FLAGS = ("writes", "open_world", "idempotent", "requires_approval", "denied")
_COLUMNS = {"policy_id": "policy", "agents": "agents", "tools": "tools", "says": "says", "note": "note"}


@click.group()
def policy() -> None:
    """Say how risky tools are, and which need an approval or are denied (admins only)."""


@policy.command("list")
@talking
def list_(to: Connection) -> None:
    """List every policy."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(POLICIES)

    found = to.run(work)
    if to.as_json:
        show.document(found)
    else:
        show.table([one | {"says": _says(one)} for one in found["items"]], _COLUMNS, none="There is no policy.")


def _flag(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(f"--{name.replace('_', '-')}/--no-{name.replace('_', '-')}", name, default=None)


@policy.command("set")
@click.argument("tools", metavar="TOOLS")
@click.option("--agents", metavar="PATTERN", default="*", show_default=True, help="Of these agents only.")
@click.option("--risk", type=click.Choice(["low", "medium", "high"]))
@_flag("writes")
@_flag("open_world")
@_flag("idempotent")
@_flag("requires_approval")
@_flag("denied")
@click.option("--note", metavar="TEXT", help="Why.")
@talking
def set_(to: Connection, tools: str, agents: str, **said: Any) -> None:
    """Say it of TOOLS, a pattern in which * stands for any text, in the place of what was said of the same pattern.

    What is left out says nothing. Of the policies that fit, the most specific one that speaks of a trait is heard.
    """
    body = {"tools": tools, "agents": agents, **said}

    async def work(api: Api) -> dict[str, Any]:
        for one in (await api.get(POLICIES))["items"]:
            if (one["agents"], one["tools"]) == (agents, tools):
                return await api.put(f"{POLICIES}/{one['policy_id']}", body, again=True)
        return (await api.post(POLICIES, body)).body

    made = to.run(work)
    if to.as_json:
        show.document(made)
    else:
        click.echo(f"{show.plain(made['tools'])} of {show.plain(made['agents'])}: {_says(made)} ({made['policy_id']})")


@policy.command()
@click.argument("policy_id", metavar="POLICY")
@talking
def delete(to: Connection, policy_id: str) -> None:
    """Take a policy back."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.delete(f"{POLICIES}/{segment(policy_id)}")

    gone = to.run(work)
    if to.as_json:
        show.document(gone)
    else:
        click.echo(f"Deleted: {show.plain(gone['tools'])} of {show.plain(gone['agents'])}, {_says(gone)}")


def _says(one: dict[str, Any]) -> str:
    words = [f"risk {one['risk']}"] if one["risk"] else []
    words += [
        name.replace("_", " ") if one[name] else f"not {name.replace('_', ' ')}"
        for name in _FLAGS
        if one[name] is not None
    ]
    return ", ".join(words)
