"""The table of commands. Adding one: its function in the module of its kind, and a line here."""

from __future__ import annotations

from importlib import metadata

import click
from click.shell_completion import get_completion_class

from daemon.cli import (
    agent,
    approvals,
    audit,
    hold,
    importing,
    operate,
    policy,
    pretend,
    profiles,
    run,
    service_token,
    workflow,
)
from daemon.cli.exits import Commands


def _version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        try:
            click.echo(f"runwarden {metadata.version('runwarden')}")
        except metadata.PackageNotFoundError:
            click.echo("runwarden, not installed: run from its sources")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Say which it is.")
def main() -> None:
    """Durable, approval-gated tool workflows on other people's machines.

    Nodes read their settings from the environment (RUNWARDEN_…); `runwarden config` shows them. `workflow`, `run`,
    `approvals`, `agent`, `policy`, `hold` and `audit` talk to a node over HTTP; `runwarden profile set` tells them
    which, and as whom.
    """


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands in your shell.

    bash: eval "$(runwarden completion bash)" in ~/.bashrc; zsh: the same in ~/.zshrc; fish: runwarden completion fish >
    ~/.config/fish/completions/runwarden.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click knows the shells of the choice above
    click.echo(kind(main, {}, "runwarden", "_RUNWARDEN_COMPLETE").source())


for _command in (*operate.COMMANDS, *pretend.COMMANDS, importing.import_v0, workflow.workflow, run.run, audit.audit):
    main.add_command(_command)
for _command in (approvals.approvals, agent.agent, policy.policy, hold.hold):
    main.add_command(_command)
main.add_command(profiles.profile)
main.add_command(service_token.service_token)
