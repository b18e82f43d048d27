"""``runwarden agent …``: agents that you may see, whose they are, who may do what with them, and their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from daemon.cli import binding, hold, show
from daemon.cli.connection import Connection, talking
from daemon.cli.decide import segment

if TYPE_CHECKING:
    from daemon.cli.client import Api

AGENTS = "/v1/bridge/agents"
_COLUMNS = {"agent_id": "agent", "owner": "owner", "may": "yours to", "online": "state", "held": "held"}
_COLUMNS |= {"last_seen_at": "last seen"}
_TOOLS = {"name": "tool", "risk": "risk", "writes": "writes", "approval": "approval", "may_use": "may use"}
_GRANTS = {"grant_id": "grant", "subject": "to", "permission": "may", "tools": "tools", "expires_at": "until"}

_agent_id = click.argument("agent_id", metavar="AGENT")


@click.group()
def agent() -> None:
    """See agents, and say who may do what with them."""


@agent.command("list")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="Where the page before ended (its next_cursor).")
@talking
def list_(to: Connection, limit: int, cursor: str | None) -> None:
    """List the agents that you may see; an admin sees all."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(AGENTS, limit=limit, cursor=cursor)

    page = to.run(work)
    if to.as_json:
        show.document(page)
        return
    rows = [one | {"may": ", ".join(one["may"])} for one in page["items"]]
    show.table(rows, _COLUMNS, none="No agent that you may see. Make one yours: runwarden agent token AGENT")
    if page["next_cursor"]:
        click.echo(f"More: --cursor {page['next_cursor']}", err=True)


@agent.command("show")
@_agent_id
@talking
def show_(to: Connection, agent_id: str) -> None:
    """Show an agent and, if you own it, what is granted on it."""

    async def work(api: Api) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
        found = await api.get(f"{AGENTS}/{segment(agent_id)}")
        if "owner" not in found["may"]:
            return found, None
        return found, (await api.get(f"{AGENTS}/{segment(agent_id)}/grants"))["items"]

    found, grants = to.run(work)
    if to.as_json:
        show.document(found | ({} if grants is None else {"grants": grants}))
        return
    for key, value in (found | {"may": ", ".join(found["may"])}).items():
        click.echo(f"{key:<13} {show.plain(value)}")
    if grants is not None:
        _tell_grants(grants)


@agent.command()
@_agent_id
@talking
def tools(to: Connection, agent_id: str) -> None:
    """List what an agent offers now, with the risk of each tool."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(f"{AGENTS}/{segment(agent_id)}/tools")

    found = to.run(work)
    if to.as_json:
        show.document(found)
        return
    rows = [one | {"approval": _approval(one)} for one in found["tools"]]
    show.table(rows, _TOOLS, none="It offers no tool.")


def _approval(tool: dict[str, Any]) -> str:
    if tool["denied"]:
        return "denied"
    return "required" if tool["requires_approval"] else ""


@agent.command()
@_agent_id
@talking
def grants(to: Connection, agent_id: str) -> None:
    """List what is granted on an agent of yours."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(f"{AGENTS}/{segment(agent_id)}/grants")

    found = to.run(work)
    if to.as_json:
        show.document(found)
    else:
        _tell_grants(found["items"])


def _tell_grants(items: list[dict[str, Any]]) -> None:
    rows = [one | {"tools": " ".join(one["tools"])} for one in items]
    show.table(rows, _GRANTS, none="Nothing is granted on it.")


@agent.command()
@_agent_id
@click.argument("permission", type=click.Choice(["use", "approve", "view"]))
@click.option("--user", "users", metavar="ID", multiple=True, help="To this user; several times for several.")
@click.option("--group", "groups", metavar="NAME", multiple=True, help="To this group of your tokens' claim.")
@click.option("--tool", "patterns", metavar="PATTERN", multiple=True, help="Only these tools; * stands for any text.")
@click.option("--until", metavar="TIME", help="It ends then: RFC 3339, such as 2030-01-31T12:00:00Z.")
@talking
def grant(
    to: Connection,
    agent_id: str,
    permission: str,
    users: tuple[str, ...],
    groups: tuple[str, ...],
    patterns: tuple[str, ...],
    until: str | None,
) -> None:
    """Let users or groups use AGENT, approve calls of it, or see it. The same grant twice is one."""
    subjects = [*(f"user:{one}" for one in users), *(f"group:{one}" for one in groups)]
    if not subjects:
        raise click.UsageError("Name whom it is granted to: --user ID or --group NAME.")
    said: dict[str, Any] = {"permission": permission, "tools": list(patterns) or ["*"]}
    if until is not None:
        said["expires_at"] = until

    async def work(api: Api) -> list[dict[str, Any]]:
        place = f"{AGENTS}/{segment(agent_id)}/grants"
        return [(await api.post(place, said | {"subject": subject})).body for subject in subjects]

    made = to.run(work)
    if to.as_json:
        show.document({"items": made})
        return
    for one in made:
        click.echo(f"{show.plain(one['subject'])} may {one['permission']} {show.plain(agent_id)}: {one['grant_id']}")


@agent.command()
@_agent_id
@click.argument("grant_id", metavar="GRANT")
@talking
def revoke(to: Connection, agent_id: str, grant_id: str) -> None:
    """Take a grant back: from the next call on, in runs under way too."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.delete(f"{AGENTS}/{segment(agent_id)}/grants/{segment(grant_id)}")

    gone = to.run(work)
    if to.as_json:
        show.document(gone)
    else:
        click.echo(f"{show.plain(gone['subject'])} may not {gone['permission']} {show.plain(agent_id)} any more.")


@agent.command()
@click.argument("agent_id", metavar="[AGENT]", required=False)
@click.option("--reset", is_flag=True, help="Every older token of the agent ends, at its next connection.")
@talking
def token(to: Connection, agent_id: str | None, reset: bool) -> None:
    """Print a token that AGENT shows the Gateway. A new id becomes yours by it; without one, one is made."""
    said = {"reset": reset} | ({} if agent_id is None else {"agent_id": agent_id})

    async def work(api: Api) -> dict[str, Any]:
        return (await api.post("/v1/bridge/agent-token", said)).body

    made = to.run(work)
    if to.as_json:
        show.document(made)
        return
    click.echo(made["token"])
    click.echo(f"Of {made['agent_id']}, version {made['version']}, until {made['expires_at']}.", err=True)


for _command in (*binding.COMMANDS, *hold.OF_AGENT):
    agent.add_command(_command)
