"""The command line: ``runwarden serve|migrate|config|token|dev|demo``. The one place where errors become exit codes.

What the operator or the machine does wrong is told in a line on standard error, with exit code 1 and no traceback. The
rooms are imported by the commands that need them: all of them together cost seconds, and ``--help`` should not.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import click

from daemon.errors import RunwardenError, SetupError

INTERRUPTED = 130  # as a shell tells that Ctrl-C ended a command

T = TypeVar("T")


class Commands(click.Group):
    """A group whose commands may raise our errors."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RunwardenError as fault:
            raise click.ClickException(str(fault)) from None


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

    Settings are read from the environment (RUNWARDEN_…); `runwarden config` shows them.
    """


@main.command()
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

        _on_signals(asked)
        await serve_node(settings, stop, started)

    _run(run)


@main.command()
@click.option("--rollback-all", is_flag=True, hidden=True, help="Remove every table, and with them every run.")
@click.option("--yes", is_flag=True, hidden=True, help="Do not ask before --rollback-all.")
def migrate(rollback_all: bool, yes: bool) -> None:
    """Bring the schema up to date.

    In the database at RUNWARDEN_POSTGRES_URL; safe to repeat, and to run on several machines at once.
    """
    from daemon.config import load_group, mask
    from daemon.store.migrate import migrate as apply

    url = load_group("store").postgres_url.get_secret_value()
    if rollback_all and not yes:
        click.confirm(f"This removes every workflow and every run in {mask(url)}. Go on?", abort=True)
    moved = apply(url, rollback_all=rollback_all)
    for name in moved:
        click.echo(f"{'rolled back' if rollback_all else 'applied'} {name}")
    if not moved:
        click.echo("Nothing to do: the database has no migrations." if rollback_all else "Nothing to do: up to date.")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def config(as_json: bool) -> None:
    """Show the settings in force, secrets masked."""
    from daemon.config import effective, load

    shown = effective(load())
    click.echo(json.dumps(shown, indent=2) if as_json else "\n".join(f"{name}={shown[name]}" for name in shown))


@main.command()
@click.option("--sub", default="dev", show_default=True, help="The user: 1 to 255 characters.")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), default=24.0, show_default=True, help="Its life.")
def token(sub: str, hours: float) -> None:
    """Print a bearer token, for development.

    It is signed with RUNWARDEN_JWT_SECRET, which must be that of the node it is for.
    """
    from daemon.auth import authenticate, mint
    from daemon.config import load_group

    try:
        secret = load_group("http").jwt_secret.get_secret_value()
    except SetupError as fault:
        raise SetupError(
            f"{fault}\nA token is signed with the secret of the node that shall accept it: give this command the same "
            "RUNWARDEN_JWT_SECRET. (`runwarden dev` prints a token of its own.)"
        ) from None
    made = mint(sub, secret, lifetime_s=max(1, int(hours * 3600)))
    authenticate(f"Bearer {made}", secret)  # refuses a `sub` that the API would refuse
    click.echo(made)


_directory = click.Path(file_okay=False, resolve_path=True, path_type=Path)
_file = click.Path(path_type=Path)
_NAMES = "NAME[,NAME...]"
_WEATHER = "What the Gateway does wrong, by name: docs/weather.md has the list."


@main.command()
@click.option("--data", type=_directory, default=".data", show_default=True, help="Where it keeps everything.")
@click.option("--port", type=click.IntRange(0, 65535), help="Of the API; otherwise RUNWARDEN_PORT, or 8080.")
@click.option("--mcp-config", type=_file, metavar="FILE", help="An mcpServers JSON file, as MCP hosts use it.")
@click.option("--weather", metavar=_NAMES, default="", help=_WEATHER)
def dev(data: Path, port: int | None, mcp_config: Path | None, weather: str) -> None:
    """Run everything here until Ctrl-C.

    A real Postgres and Valkey, a Gateway with an agent over your MCP servers, and a node, with a token to call it.
    """
    from daemon.telemetry import set_up_logging

    click.echo("Starting Postgres, Valkey, the dev Gateway with its MCP servers, and a node …", err=True)
    set_up_logging(level="INFO", style="text")
    with _dev_packages():
        from daemon.dev.foreground import keep_running
    bad = _weather(weather)
    _run(lambda: _until_signal(keep_running(data, mcp_config=mcp_config, port=port, weather=bad)))
    click.echo(f"Ended. The data stay in {data}.", err=True)


@main.command()
@click.option("--data", type=_directory, default=".data/demo", show_default=True, help="Emptied first, kept after.")
@click.option("--seconds", type=click.FloatRange(0, 60), default=4.0, hidden=True, help="Of the streaming step.")
@click.option("--weather", metavar=_NAMES, default="", help=_WEATHER)
def demo(data: Path, seconds: float, weather: str) -> None:
    """Run an example workflow, live in this terminal.

    On a stack of its own: a real Postgres and Valkey, a Gateway with three MCP servers, and a node.
    """
    from rich.console import Console

    from daemon.dev.screen import STARTING, lively, starting

    bad = _weather(weather)
    console = Console(highlight=False, force_terminal=None if sys.stdout.isatty() else False)
    if not lively(console):
        click.echo(STARTING)
    with starting(console), _dev_packages():
        from daemon.dev.demo import Demo

    async def show() -> bool:
        return await _until_signal(Demo(data, console, seconds=seconds, weather=bad).show())

    completed = _run(show)
    if completed is None:
        click.echo("\nInterrupted. Everything that was started has ended.", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(0 if completed else 1)


def _weather(text: str) -> tuple[str, ...]:
    """The names in ``--weather``; an unknown one is told with those that exist."""
    from daemon.dev.weather import parse

    try:
        return parse(text)
    except ValueError as fault:
        raise SetupError(str(fault)) from None


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """What the work returns, on uvloop; None when a signal cancelled it."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(work())
        except (asyncio.CancelledError, KeyboardInterrupt):
            return None


async def _until_signal(work: Coroutine[Any, Any, T]) -> T:
    """The work, cancelled by the first signal, which lets it clean up; a second one cuts the cleaning short."""
    task = asyncio.current_task()
    if task is not None:
        _on_signals(task.cancel)
    return await work


def _on_signals(act: Callable[[], object]) -> None:
    """Call ``act`` for each wish to end: Ctrl-C, SIGTERM, a closed terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, act)


@contextmanager
def _dev_packages() -> Iterator[None]:
    """Around the imports of ``daemon.dev``: its packages are no part of a plain installation."""
    try:
        yield
    except ModuleNotFoundError as fault:
        raise SetupError(
            f"This command needs packages that are not installed ({fault.name}): pip install 'runwarden[dev]'"
        ) from None
