"""For whoever runs nodes: ``serve``, ``migrate``, ``quarantine``, ``config``, ``token``. Reads the node's settings."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from daemon.cli import typed
from daemon.cli.exits import Exit
from daemon.cli.process import on_signals, run_loop
from daemon.errors import SetupError

if TYPE_CHECKING:
    from daemon.auth.caller import Role

_as_json = click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
_LIFE = typed.Number(0, 876_000, min_open=True)


@click.command()
@click.option("--role", type=click.Choice(["front", "runner", "both"]), help="Otherwise RUNWARDEN_ROLE, or both.")
def serve(role: str | None) -> None:
    """Run a node until SIGTERM or Ctrl-C, then drain it."""
    from daemon.config import load
    from daemon.node import serve as serve_node
    from daemon.telemetry import set_up_logging, set_up_tracing

    settings = load(**({} if role is None else {"role": role}))
    set_up_logging(level=settings.telemetry.log_level, style=settings.telemetry.log_format)
    set_up_tracing(settings.telemetry.trace, node=settings.runtime.node_name)

    async def run() -> None:
        stop, started = asyncio.Event(), asyncio.Event()
        task = asyncio.current_task()

        def asked() -> None:
            """Drain; a second time, or before there is anything to drain: end at once."""
            if task is not None and (stop.is_set() or not started.is_set()):
                task.cancel()
            stop.set()

        on_signals(asked)
        await serve_node(settings, stop, started)

    run_loop(run)


@click.command()
@click.option("--rollback-all", is_flag=True, hidden=True, help="Remove every table, and with them every run.")
@click.option("--yes", is_flag=True, hidden=True, help="Do not ask before --rollback-all.")
@click.option(
    "--app-role",
    metavar="NAME",
    help="Then give this role, which must exist, what nodes need and no more: as NAME they cannot rewrite the audit.",
)
@_as_json
def migrate(rollback_all: bool, yes: bool, app_role: str | None, as_json: bool) -> None:
    """Bring the schema up to date.

    In the database at RUNWARDEN_POSTGRES_URL; safe to repeat, and to run on several machines at once.
    """
    from daemon.config import load_group, mask
    from daemon.store.migrate import migrate as apply

    url = load_group("store").postgres_url.get_secret_value()
    if rollback_all and app_role is not None:
        raise click.UsageError("--app-role needs the tables that --rollback-all removes.")
    if rollback_all and not yes:
        click.confirm(f"This removes every workflow and every run in {mask(url)}. Go on?", abort=True)
    moved = apply(url, rollback_all=rollback_all)
    if app_role is not None:
        from daemon.store.privileges import grant_to

        grant_to(url, app_role)
    if as_json:
        role = {} if app_role is None else {"app_role": app_role}
        click.echo(json.dumps({"rolled_back" if rollback_all else "applied": moved} | role))
        return
    for name in moved:
        click.echo(f"{'rolled back' if rollback_all else 'applied'} {name}")
    if not moved:
        click.echo("Nothing to do: the database has no migrations." if rollback_all else "Nothing to do: up to date.")
    if app_role is not None:
        click.echo(f"{app_role} may do what nodes need, and no more.")


@click.command()
@click.option("--yes", is_flag=True, help="Do it; without this it only counts.")
@_as_json
def quarantine(yes: bool, as_json: bool) -> None:
    """Park every unfinished run after a restore.

    For a database (at RUNWARDEN_POSTGRES_URL) that was restored from a backup or lost commits in a failover: before the
    nodes start again, so that nothing goes on from a state that the world has left behind. Each parked run waits for a
    person to look at what was done and to resume or cancel it. Safe to repeat, and while nodes run.
    """
    from daemon.config import load_group
    from daemon.store.quarantine import quarantine as park

    url = load_group("store").postgres_url.get_secret_value()
    census = run_loop(lambda: park(url, really=yes))
    if census is None:
        sys.exit(Exit.INTERRUPTED)
    counted = sorted(census.runs.items(), key=str)
    if as_json:
        told = [{"status": status, "paused_reason": reason, "runs": runs} for (status, reason), runs in counted]
        click.echo(json.dumps({"parked": yes, "unfinished": told, "unreadable": census.unreadable}))
        sys.exit(1 if census.unreadable else 0)
    for (status, reason), runs in counted:
        click.echo(f"{runs:6}  {status}" + (f", {reason}" if reason else ""))
    click.echo(f"{sum(census.runs.values())} unfinished runs {'were' if yes else 'would be'} parked.")
    if census.unreadable:
        click.echo(f"{census.unreadable} more cannot be read, by no node either; the log names them.", err=True)
        sys.exit(1)
    if census.runs and not yes:
        click.echo("Nothing was changed: repeat it with --yes.")


@click.command()
@_as_json
def config(as_json: bool) -> None:
    """Show the settings in force, secrets masked."""
    from daemon.config import effective, load

    shown = effective(load())
    click.echo(json.dumps(shown, indent=2) if as_json else "\n".join(f"{name}={shown[name]}" for name in shown))


@click.command()
@click.option("--sub", default="dev", show_default=True, help="The user: 1 to 255 characters.")
@click.option("--hours", type=_LIFE, default=24.0, show_default=True, help="Its life.")
@click.option(
    "--role",
    "roles",
    type=click.Choice(["viewer", "operator", "approver", "admin"]),
    multiple=True,
    help="A role, repeatable; without any it is a plain user's: operator and approver.",
)
@click.option("--group", "groups", metavar="GROUP", multiple=True, help="A group of theirs, repeatable.")
@_as_json
def token(sub: str, hours: float, roles: tuple[Role, ...], groups: tuple[str, ...], as_json: bool) -> None:
    """Print a bearer token, for development.

    It is signed with RUNWARDEN_JWT_SECRET, which must be that of the node it is for, as must the other settings of
    identity: they say which issuer, audience and claims it names.
    """
    from daemon.auth.claims import rules_of
    from daemon.auth.keys import Keyring
    from daemon.auth.tokens import Tokens, mint
    from daemon.config import load_group

    try:
        settings = load_group("identity")
        secret = settings.jwt_secret.get_secret_value()
    except SetupError as fault:
        raise SetupError(
            f"{fault}\nA token is signed with the secret of the node that shall accept it: give this command the same "
            "RUNWARDEN_JWT_SECRET. (`runwarden dev` prints a token of its own.)"
        ) from None
    if not secret:
        raise SetupError("RUNWARDEN_JWT_SECRET: is required to sign; an identity provider's keys only verify.")
    rules = rules_of(settings)
    tokens = Tokens(Keyring(secret), rules)
    life = max(1, int(hours * 3600))
    made = mint(sub, secret, lifetime_s=life, roles=roles or None, groups=groups, rules=rules)
    caller = tokens.authenticate(made)  # refuses what the API would refuse
    shown: dict[str, Any] = {"token": made, "sub": caller.user_id, "expires_at": caller.expires_at}
    shown |= {"roles": sorted(caller.roles), "groups": sorted(caller.groups)}
    click.echo(json.dumps(shown) if as_json else made)


COMMANDS = (serve, migrate, quarantine, config, token)
