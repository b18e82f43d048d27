"""``runwarden agent bind|unbind``: whose agents are, for one or for as many as a file names, with a result for each.

A file has an id a line, with its owner behind a comma (CSV), or a JSON object a line: {"agent_id", "owner"}. What was
done already is done again harmlessly, so a bulk that broke off is simply repeated.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from daemon.cli import show, typed
from daemon.cli.connection import Connection, talking
from daemon.cli.decide import segment
from daemon.cli.exits import Exit, Told

if TYPE_CHECKING:
    from daemon.cli.client import Api


class Wanted(NamedTuple):
    """One line: an agent and its owner."""

    agent_id: str
    owner: str


@click.command()
@click.argument("agent_ids", metavar="[AGENT]...", nargs=-1)
@click.option("--owner", metavar="USER", help="Whose they shall be; for lines of a file that name none.")
@click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="Ids and owners: CSV or JSON lines; - reads standard input.",
)
@click.option("--transfer", is_flag=True, help="Also those that are somebody else's now.")
@talking
def bind(to: Connection, agent_ids: tuple[str, ...], owner: str | None, file: Path | None, transfer: bool) -> None:
    """Make somebody the owner of agents: an admin of any, an owner of their own.

    A line each: bound, transferred, unchanged, or why not; the exit code is 6 when some were refused.
    """
    wanted = [_of(agent_id, owner) for agent_id in agent_ids]
    if file is not None:
        wanted += _read(file, owner)
    if not wanted:
        raise click.UsageError("Name agents, or a file of them with --file.")

    async def work(api: Api) -> int:
        return await _bind_all(api, wanted, transfer=transfer, as_json=to.as_json)

    if refused := to.run(work):
        message = f"{refused} of {len(wanted)} agents were not bound."
        hint = "Each line says why. What is done stays done; repeat the command for the rest."
        raise Told(message, exit_code=Exit.REFUSED, code="not_all_bound", hint=hint)


async def _bind_all(api: Api, wanted: Sequence[Wanted], *, transfer: bool, as_json: bool) -> int:
    """How many were refused. Stops at what concerns all of them: no answer, no right, no token."""
    refused = 0
    for one in wanted:
        body = {"owner": one.owner, "free_only": not transfer}
        told: dict[str, Any] = {"agent_id": one.agent_id, "owner": one.owner, "outcome": "refused"}
        try:
            told |= await api.put(f"/v1/bridge/agents/{segment(one.agent_id)}/binding", body, again=True)
        except Told as fault:
            if fault.exit_code in (Exit.UNREACHABLE, Exit.NOT_AUTHORISED):
                raise
            told |= {"code": fault.code, "message": fault.message}
            refused += 1
        _tell(told, as_json=as_json)
    return refused


def _tell(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show.line(told)
        return
    owner = show.plain(told["owner"])
    more = f": {owner} has it" if told["outcome"] == "unchanged" else f" to {owner}"
    if "message" in told:
        more = f": {show.plain(told['message'])}"
    click.echo(f"{show.plain(told['agent_id'])} {told['outcome']}{more}")


@click.command()
@click.argument("agent_ids", metavar="AGENT...", nargs=-1, required=True)
@talking
def unbind(to: Connection, agent_ids: tuple[str, ...]) -> None:
    """Make agents nobody's: only admins use them then. Their grants are gone and their tokens end."""

    async def work(api: Api) -> None:
        for agent_id in agent_ids:
            told = await api.delete(f"/v1/bridge/agents/{segment(agent_id)}/binding")
            show.line(told) if to.as_json else click.echo(f"{show.plain(agent_id)} {told['outcome']}")

    to.run(work)


def _of(agent_id: str, owner: str | None) -> Wanted:
    if not owner:
        raise click.UsageError(f"Whose shall {agent_id} be? Say --owner USER.")
    return Wanted(agent_id, owner)


def _read(file: Path, owner: str | None) -> Iterator[Wanted]:
    """What a file wants, whatever its kind: each line says by itself. Raises Told, naming the line."""
    for number, text in enumerate(typed.text_of(file).splitlines(), 1):
        if not text.strip() or text.startswith("#") or text.replace(" ", "") == "agent_id,owner":
            continue
        found = _line(text)
        if found is None or not (found[0] and (found[1] or owner)):
            hint = 'A line is `agent,owner`, `agent` alone with --owner, or {"agent_id": …, "owner": …}.'
            message = f"{typed.named(file)}, line {number}: {show.plain(text[:80])} names no agent with an owner."
            raise Told(message, exit_code=Exit.INVALID, code="bad_file", hint=hint)
        yield Wanted(found[0], found[1] or owner or "")


def _line(text: str) -> tuple[str, str] | None:
    """(agent, owner or nothing); None for what is neither CSV of two fields nor such an object."""
    if text.lstrip().startswith("{"):
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return None
        pair = said.get("agent_id"), said.get("owner") or ""
        return pair if all(isinstance(one, str) for one in pair) else None
    try:
        fields = [field.strip() for field in next(csv.reader([text]), [])]
    except csv.Error:  # NUL, or a field of more than 128 KiB
        return None
    return (fields[0], fields[1] if len(fields) == 2 else "") if len(fields) in (1, 2) else None


COMMANDS = (bind, unbind)
