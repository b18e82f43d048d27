"""``runwarden import-v0``: v0's data, brought over; the work is ``store/import_v0``'s."""

from __future__ import annotations

import json
import sys

import click

from daemon.cli.exits import Exit, needs_ascii
from daemon.cli.process import run_loop


@click.command("import-v0")
@click.option("--from", "source", metavar="POSTGRES_URL", required=True, help="The v0 database; it is only read.")
@click.option("--yes", is_flag=True, help="Do it; without this it only looks.")
@click.option("--batch", type=click.IntRange(1, 1000), default=50, show_default=True, help="Runs in one transaction.")
@click.option("--json", "as_json", is_flag=True, help="The report as one JSON document.")
def import_v0(source: str, yes: bool, batch: int, as_json: bool) -> None:
    """Copy v0's workflows, runs and events into the database at RUNWARDEN_POSTGRES_URL.

    Without --yes it tells what it would take and each row that it cannot take, and why. Ids stay. What v0 was running
    arrives paused as engine_interrupted, for a person to look at. Repeat it as often as you like: what is there already
    is left as it is, so it also goes on where it was stopped.
    """
    from daemon.config import load_group
    from daemon.store.import_v0 import import_v0 as bring

    target = load_group("store").postgres_url.get_secret_value()

    def progress(done: int) -> None:
        click.echo(f"{done} runs looked at …", err=True)

    report = run_loop(lambda: bring(source, target, really=yes, batch=batch, progress=progress))
    if report is None:
        click.echo("Interrupted. What was copied is whole; the same command goes on from there.", err=True)
        sys.exit(Exit.INTERRUPTED)
    if as_json:
        click.echo(json.dumps(report.as_json(), ensure_ascii=needs_ascii(sys.stdout), indent=2))
    else:
        click.echo("\n".join(report.lines(really=yes)))
    if report.refused:
        sys.exit(Exit.FAILED)
