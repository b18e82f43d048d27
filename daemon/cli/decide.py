"""``runwarden run skip|mark-done|resume|cancel``: what people say to a run, one word each; ``approve`` has the others.

A step is named with ``--step``, or shown and confirmed at a terminal. What is sent names the step, and the API refuses
it once the run has moved on.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from daemon.cli import show
from daemon.cli.connection import Connection, talking
from daemon.cli.exits import Exit, Told

if TYPE_CHECKING:
    from daemon.cli.client import Answer, Api

run_id_argument = click.argument("run_id", metavar="RUN")
step_option = click.option(
    "--step", metavar="ID", help="The step that is meant; at a terminal it is shown and asked for."
)
reason_option = click.option("--reason", metavar="TEXT", help="Stands in the log.")


def segment(text: str) -> str:
    """An id as a part of a path, whatever was typed. Raises for what would name another path."""
    if text in ("", ".", ".."):
        raise click.UsageError(f"{text!r} is no id. Is a variable empty?")
    return quote(text, safe="")


@click.command()
@run_id_argument
@step_option
@reason_option
@talking
def skip(to: Connection, run_id: str, step: str | None, reason: str | None) -> None:
    """Leave a failed step behind and go on with the next."""
    _about_a_step(to, run_id, "skip", step, {"reason": reason})


@click.command("mark-done")
@run_id_argument
@step_option
@click.option("--note", metavar="TEXT", required=True, help="What you saw: it stands in the log as the evidence.")
@talking
def mark_done(to: Connection, run_id: str, step: str | None, note: str) -> None:
    """Say that the work of a failed step is done, whatever the engine knows of it."""
    _about_a_step(to, run_id, "mark-done", step, {"note": note})


@click.command()
@run_id_argument
@click.option("--run-again", is_flag=True, help="You have looked: the tool may run again, though it may have run.")
@talking
def resume(to: Connection, run_id: str, run_again: bool) -> None:
    """Let a paused run go on: try the failed step again."""
    body = {"confirm": "run_again"} if run_again else {}

    async def work(api: Api) -> Answer:
        return await api.decide(segment(run_id), "resume", body)

    tell(to, "resume", to.run(work))


@click.command()
@run_id_argument
@reason_option
@talking
def cancel(to: Connection, run_id: str, reason: str | None) -> None:
    """End a run; a finished one is left as it is."""

    async def work(api: Api) -> Answer:
        return await api.decide(segment(run_id), "cancel", {"reason": reason} if reason else {})

    tell(to, "cancel", to.run(work))


def _about_a_step(to: Connection, run_id: str, verb: str, step: str | None, said: dict[str, Any]) -> None:
    words = {key: value for key, value in said.items() if value is not None}

    async def look(api: Api) -> dict[str, Any]:
        return await api.get(f"/v1/workflow-runs/{segment(run_id)}")

    async def work(api: Api) -> Answer:
        return await api.decide(segment(run_id), verb, {"step_id": step, **words})

    if step is None:
        step = _confirmed(to, verb, to.run(look))
    tell(to, verb, to.run(work))


def _confirmed(to: Connection, verb: str, run: dict[str, Any]) -> str:
    """The step that waits, once the person has seen it and said yes. Raises Told, or Abort for a no."""
    step = step_that_waits(run)
    step_id: str = step["id"]
    if not asks(to):
        raise unnamed(verb, run, step_id)
    tool = step["tool_config"]
    click.echo(f"{show.plain(step['name'])}: {show.plain(tool['tool_name'])} on {show.plain(tool['agent_id'])}")
    for name, value in tool["arguments"].items():
        click.echo(f"  {show.plain(name)} = {show.plain(value)}")
    click.confirm(f"{verb.capitalize()} it?", abort=True)
    return step_id


def asks(to: Connection) -> bool:
    """Whether there is a person to ask."""
    return not to.as_json and sys.stdin.isatty() and sys.stdout.isatty()


def step_that_waits(run: dict[str, Any]) -> dict[str, Any]:
    """The spec of the step that a paused run stands at. Raises Told where none waits."""
    steps, index = run["workflow_snapshot"]["steps"], run["current_step_index"]
    if run["status"] != "paused" or index >= len(steps):
        hint = f"Look: runwarden run show {run['run_id']}"
        raise Told(f"The run is {run['status']}: no step waits.", exit_code=Exit.REFUSED, code="not_paused", hint=hint)
    step: dict[str, Any] = steps[index]
    return step


def unnamed(verb: str, run: dict[str, Any], step_id: str) -> Told:
    """That nobody can be asked which step is meant."""
    hint = f"The step that waits is {step_id}: runwarden run {verb} {run['run_id']} --step {step_id}"
    return Told("Without a terminal the step must be named.", exit_code=Exit.USAGE, code="step_required", hint=hint)


def tell(to: Connection, verb: str, answer: Answer) -> None:
    """Where the run stands after the word; that it is only written down raises Told."""
    run = answer.body
    if to.as_json:
        show.document(run)
    elif answer.status != 202:
        click.echo(f"{run['run_id']} is {show.state(run)}")
    if answer.status == 202:
        hint = f"Nothing is lost; look later: runwarden run show {run['run_id']}"
        message = f"Your {verb} is written down, and no node has decided on it yet."
        raise Told(message, exit_code=Exit.UNDECIDED, code="undecided", hint=hint)


COMMANDS = (skip, mark_done, resume, cancel)
