"""``runwarden run start|list|show|watch`` and, from ``approve`` and ``decide``, what people say to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from daemon.cli import approve, decide, show, typed
from daemon.cli.connection import Connection, talking
from daemon.cli.exits import Exit

if TYPE_CHECKING:
    from daemon.cli.client import Api

_COLUMNS = {"run_id": "run", "title": "title", "state": "status", "progress": "step", "created_at": "started"}
_STATUSES = click.Choice(["running", "paused", "completed", "failed", "canceled"])


@click.group()
def run() -> None:
    """Start, follow and decide runs."""


def _watching(command: Any) -> Any:
    """The options of following a run."""
    for option in (
        click.option("--until-pause", is_flag=True, help="End (exit code 12) when it waits for somebody."),
        click.option("--no-ask", is_flag=True, help="Ask nothing in the terminal; only show."),
    ):
        command = option(command)
    return command


@run.command()
@click.argument("workflow_id", metavar="WORKFLOW")
@click.option("--timeout", "timeout_s", type=typed.Number(0.001, 365 * 86400), help="The run's deadline, in seconds.")
@click.option(
    "--key",
    metavar="KEY",
    callback=typed.key,
    help="Idempotency key: the same key never starts a second run within a day.",
)
@click.option("--watch", "watching", is_flag=True, help="Follow it at once, as `run watch`.")
@_watching
@talking
def start(
    to: Connection,
    workflow_id: str,
    timeout_s: float | None,
    key: str | None,
    watching: bool,
    until_pause: bool,
    no_ask: bool,
) -> None:
    """Start a run of WORKFLOW."""
    body: dict[str, Any] = {"workflow_id": workflow_id}
    if timeout_s is not None:
        body["run_timeout_ms"] = int(timeout_s * 1000)

    async def work(api: Api) -> Exit:
        made = (await api.post("/v1/workflow-runs", body, key=key)).body
        if watching:
            from daemon.cli.watch import watch as follow

            return await follow(api, made["run_id"], as_json=to.as_json, until_pause=until_pause, ask=not no_ask)
        if to.as_json:
            show.document(made)
        else:
            click.echo(made["run_id"])
            click.echo(f"Started. Follow it: runwarden run watch {made['run_id']}", err=True)
        return Exit.OK

    raise SystemExit(to.run(work))


@run.command("list")
@click.option("--status", type=_STATUSES, multiple=True)
@click.option("--paused-reason", multiple=True, metavar="REASON", help="Such as awaiting_approval or step_failed.")
@click.option("--workflow", "workflow_id", metavar="ID")
@click.option("--agent", "agent_id", metavar="ID", help="Runs with a step on this agent.")
@click.option("--search", "q", metavar="WORDS", help="In titles.")
@click.option("--after", "created_after", metavar="TIME", help="Created since, as 2026-11-26T08:00:00Z.")
@click.option("--before", "created_before", metavar="TIME", help="Created before.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended (its next_cursor).")
@talking
def list_(to: Connection, status: tuple[str, ...], paused_reason: tuple[str, ...], **wanted: Any) -> None:
    """List your runs, newest first."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get("/v1/workflow-runs", status=status, paused_reason=paused_reason, **wanted)

    page = to.run(work)
    if to.as_json:
        show.document(page)
        return
    rows = [item | {"state": show.state(item), "progress": _progress(item)} for item in page["items"]]
    show.table(rows, _COLUMNS, none="No such run.")
    if page.get("next_cursor"):
        click.echo(f"More: --cursor {page['next_cursor']}", err=True)


def _progress(item: dict[str, Any]) -> str:
    steps = item.get("step_count", item.get("steps"))
    if steps is None:
        return str(item["current_step_index"] + 1)
    return f"{min(item['current_step_index'] + 1, steps)}/{steps}"


@run.command("show")
@click.argument("run_id", metavar="RUN")
@talking
def show_(to: Connection, run_id: str) -> None:
    """Show where a run stands."""

    async def work(api: Api) -> dict[str, Any]:
        return await api.get(f"/v1/workflow-runs/{decide.segment(run_id)}")

    found = to.run(work)
    if to.as_json:
        show.document(found)
        return
    show.run(found)
    if words := show.next_words(found):
        click.echo(words, err=True)


@run.command()
@click.argument("run_id", metavar="RUN")
@click.option("--after-seq", type=click.IntRange(0), default=0, help="With --json: only events after this one.")
@_watching
@talking
def watch(to: Connection, run_id: str, after_seq: int, until_pause: bool, no_ask: bool) -> None:
    """Follow a run until it ends, from its beginning.

    At a terminal: live, and what must be decided is asked. Elsewhere plain lines; with --json an event a line. The exit
    code tells the end: 0 completed, 10 failed, 11 canceled, 12 waits for somebody (--until-pause, or left waiting).
    """

    async def work(api: Api) -> Exit:
        from daemon.cli.watch import watch as follow

        named = decide.segment(run_id)
        return await follow(
            api, named, as_json=to.as_json, until_pause=until_pause, ask=not no_ask, after_seq=after_seq
        )

    raise SystemExit(to.run(work))


for _command in (*approve.COMMANDS, *decide.COMMANDS):
    run.add_command(_command)
