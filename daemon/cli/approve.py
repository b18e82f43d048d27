"""``runwarden run approve|reject|edit``: what people say of a call that waits for approval.

Nothing is approved unseen: at a terminal the call is shown and confirmed, and the digest of what was shown goes with
the word; elsewhere the step is named with ``--step``, and the call, where that is asked for, with ``--digest``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli import show, typed
from daemon.cli.connection import Connection, talking
from daemon.cli.decide import (
    asks,
    reason_option,
    run_id_argument,
    segment,
    step_option,
    step_that_waits,
    tell,
    unnamed,
)
from daemon.cli.exits import Exit, Told
from daemon.dev import card

if TYPE_CHECKING:
    from daemon.cli.client import Answer, Api

_digest = click.option(
    "--digest", metavar="SHA256", help="Of the call that you saw (`run show`); any other is refused."
)
_comment = click.option("--comment", metavar="TEXT", help="Stands in the log and in the audit.")


@click.command()
@run_id_argument
@step_option
@_digest
@_comment
@talking
def approve(to: Connection, run_id: str, step: str | None, digest: str | None, comment: str | None) -> None:
    """Agree to the call that waits.

    At a terminal it is shown first. With the last of the quorum it is made.
    """
    _decide(to, run_id, "approve", step, digest, {"comment": comment})


@click.command()
@run_id_argument
@step_option
@_digest
@reason_option
@talking
def reject(to: Connection, run_id: str, step: str | None, digest: str | None, reason: str | None) -> None:
    """Refuse the call that waits; the run fails, or goes on where on_error is continue."""
    _decide(to, run_id, "reject", step, digest, {"reason": reason})


@click.command()
@run_id_argument
@step_option
@click.option(
    "--arguments",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="A JSON object in the place of all the arguments; - reads standard input. At a terminal: your $EDITOR.",
)
@_digest
@_comment
@talking
def edit(
    to: Connection, run_id: str, step: str | None, file: Path | None, digest: str | None, comment: str | None
) -> None:
    """Change the arguments of the call that waits, where its step allows it: all must agree anew."""
    if file is None or step is None:
        run = _looked_at(to, run_id)
        waits = step_that_waits(run)["id"]
        if file is None and not asks(to):
            hint = f"Say what they shall be: runwarden run edit {run['run_id']} --step {waits} --arguments FILE"
            message = "Without a terminal the arguments must be given."
            raise Told(message, exit_code=Exit.USAGE, code="arguments_required", hint=hint)
        if step is None and not asks(to):
            raise unnamed("edit", run, waits)
        step = step or waits
    if file is None:
        shown = _shown(run, step)
        given, digest = _written(shown), digest or shown["digest"]
    else:
        given = _read(file)
    words = {"step_id": step, "arguments": given, "digest": digest, "comment": comment}
    answer = _send(to, run_id, "edit", words)
    tell(to, "edit", answer)
    now = None if to.as_json else card.of_run(answer.body)
    if now is not None:
        click.echo(f"What waits now is revision {now['revision']}: {now['digest']}", err=True)


def _decide(
    to: Connection, run_id: str, verb: str, step: str | None, digest: str | None, said: dict[str, str | None]
) -> None:
    """Show what is decided unless it was named in full, and say so with its digest."""
    if asks(to) and (step is None or digest is None):
        run = _looked_at(to, run_id)
        waits = step_that_waits(run)
        step = step or waits["id"]
        shown = _shown(run, step)
        click.echo(f"{show.plain(waits['name'])}:")
        for line in card.lines(shown):
            click.echo(line)
        click.confirm(f"{verb.capitalize()} it?", abort=True)
        digest = digest or shown["digest"]
    elif step is None:
        run = _looked_at(to, run_id)
        raise unnamed(verb, run, step_that_waits(run)["id"])
    tell(to, verb, _send(to, run_id, verb, {"step_id": step, "digest": digest, **said}))


def _looked_at(to: Connection, run_id: str) -> dict[str, Any]:
    async def look(api: Api) -> dict[str, Any]:
        return await api.get(f"/v1/workflow-runs/{segment(run_id)}")

    return to.run(look)


def _shown(run: dict[str, Any], step: str) -> card.Card:
    """The card of the step that is meant. Raises Told where it does not wait for approval."""
    waits, shown = step_that_waits(run)["id"], card.of_run(run)
    hint = f"Look: runwarden run show {run['run_id']}"
    if waits != step:
        message = f"The step that waits is {waits}, not {step}."
        raise Told(message, exit_code=Exit.REFUSED, code="wrong_step", hint=hint)
    if shown is None and run["paused_reason"] == "awaiting_approval":
        message = "What exactly waits for approval is only being found out; look again in a moment."
        raise Told(message, exit_code=Exit.REFUSED, code="pause_changed", hint=hint)
    if shown is None:
        message = f"The run is {show.state(run)}: no call is there to be decided."
        raise Told(message, exit_code=Exit.REFUSED, code="not_awaiting_approval", hint=hint)
    return shown


def _send(to: Connection, run_id: str, verb: str, words: dict[str, Any]) -> Answer:
    said = {name: word for name, word in words.items() if word is not None}

    async def work(api: Api) -> Answer:
        return await api.decide(segment(run_id), verb, said)

    return to.run(work)


def _written(shown: card.Card) -> dict[str, Any]:
    """The arguments as the person leaves them in their editor. Raises Told, or Abort where nothing was changed."""
    before = dict(shown["arguments"])
    text = click.edit(json.dumps(before, ensure_ascii=False, indent=2) + "\n", extension=".json")
    given = before if text is None else _object(text, "What you wrote")
    if given == before:
        click.echo("Nothing was changed.", err=True)
        raise click.Abort
    return given


def _read(file: Path) -> dict[str, Any]:
    return _object(typed.text_of(file), typed.named(file))


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise Told(f"{what} is no JSON: {fault}", exit_code=Exit.INVALID, code="bad_file") from None
    if not isinstance(given, dict):
        hint = 'The arguments of a call are an object: {"name": value}.'
        raise Told(f"{what} is no JSON object.", exit_code=Exit.INVALID, code="bad_file", hint=hint)
    return given


COMMANDS = (approve, reject, edit)
