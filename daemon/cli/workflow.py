"""``runwarden workflow apply|list|show|archive``: templates, kept in files of YAML or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli import show, typed
from daemon.cli.connection import Connection, talking
from daemon.cli.decide import asks, segment
from daemon.cli.document import Document, bad, read
from daemon.cli.exits import Told

if TYPE_CHECKING:
    from daemon.cli.client import Api

_COLUMNS = {"workflow_id": "workflow", "title": "title", "version": "version", "updated_at": "updated"}


@click.group()
def workflow() -> None:
    """Keep workflows: what runs are made of."""


@workflow.command()
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option(
    "--id", "workflow_id", metavar="ID", help="Change this workflow; otherwise the file's `workflow_id`, if any."
)
@click.option(
    "--key", metavar="KEY", callback=typed.key, help="Idempotency key: the same key never creates a second one."
)
@talking
def apply(to: Connection, file: Path, workflow_id: str | None, key: str | None) -> None:
    """Create a workflow from FILE (YAML or JSON; - reads standard input), or change one.

    FILE is a spec (title, steps …), or {title, description, spec}. A `workflow_id` at its top, or --id, changes that
    workflow: a new version, which later runs use; those under way keep theirs.
    """
    document = read(file)
    body, kept_id = _parts(document)
    target = kept_id if workflow_id is None else workflow_id
    if target is not None and (not isinstance(target, str) or not target):
        raise bad(file, "the workflow_id is no text; without one leave it out")

    async def work(api: Api) -> dict[str, Any]:
        if target:
            return await api.put(f"/v1/workflows/{segment(target)}", body)
        return (await api.post("/v1/workflows", body, key=key)).body

    try:
        made = to.run(work)
    except Told as fault:
        raise document.told(fault) from None
    if to.as_json:
        show.document(made)
        return
    version = f", version {made['version']}" if "version" in made else ""
    click.echo(f"{'Changed' if target else 'Created'} {made['workflow_id']} ({show.plain(made['title'])}{version})")
    if not target:
        click.echo(f"To change it later, put `workflow_id: {made['workflow_id']}` at the top of the file.", err=True)
    click.echo(f"Start it: runwarden run start {made['workflow_id']}", err=True)


@workflow.command("list")
@click.option("--archived", is_flag=True, help="The archived ones too.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="Where the page before ended (its next_cursor).")
@talking
def list_(to: Connection, archived: bool, limit: int, cursor: str | None) -> None:
    """List your workflows, newest first."""

    async def work(api: Api) -> dict[str, Any]:
        wanted = "true" if archived else None
        return await api.get("/v1/workflows", limit=limit, cursor=cursor, archived=wanted)

    page = to.run(work)
    if to.as_json:
        show.document(page)
        return
    show.table(page["items"], _COLUMNS, none="No workflow yet. Make one: runwarden workflow apply FILE")
    if page.get("next_cursor"):
        click.echo(f"More: --cursor {page['next_cursor']}", err=True)


@workflow.command("show")
@click.argument("workflow_id", metavar="WORKFLOW")
@talking
def show_(to: Connection, workflow_id: str) -> None:
    """Show a workflow, as a file that `apply` takes."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(f"/v1/workflows/{segment(workflow_id)}")

    found = to.run(work)
    if to.as_json:
        show.document(found)
        return
    import yaml

    kept = {"workflow_id": found["workflow_id"]} | found["spec"]
    click.echo(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), nl=False)


@workflow.command()
@click.argument("workflow_id", metavar="WORKFLOW")
@click.option("--yes", is_flag=True, help="Do not ask at a terminal.")
@talking
def archive(to: Connection, workflow_id: str, yes: bool) -> None:
    """Let a workflow start nothing any more, for good; it stays readable, and runs under way go on."""
    if not yes and asks(to):
        click.confirm(f"Archive {show.plain(workflow_id)}? It cannot be taken back.", abort=True)

    async def work(api: Api) -> dict[str, Any]:
        return await api.delete(f"/v1/workflows/{segment(workflow_id)}")

    gone = to.run(work)
    if to.as_json:
        show.document(gone)
    else:
        click.echo(f"Archived {gone['workflow_id']} ({show.plain(gone['title'])})")


def _parts(document: Document) -> tuple[dict[str, Any], Any]:
    """The body of the API's call and the id that the file remembers."""
    given = {name: value for name, value in document.value.items() if name != "workflow_id"}
    kept_id = document.value.get("workflow_id")
    if not document.flat:
        return given, kept_id
    outer = {name: given[name] for name in ("title", "description") if given.get(name) is not None}
    return outer | {"spec": given}, kept_id
