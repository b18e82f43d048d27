"""``dev`` and ``demo``: everything on this machine, to try things out. Only these need the packages of ``dev``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from daemon.cli import typed
from daemon.cli.exits import Exit
from daemon.cli.process import run_loop, until_signal
from daemon.errors import SetupError

_directory = click.Path(file_okay=False, resolve_path=True, path_type=Path)
_file = click.Path(path_type=Path)
_NAMES = "NAME[,NAME...]"
_WEATHER = "What the Gateway does wrong, by name: docs/weather.md has the list."


@click.command()
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
    run_loop(lambda: until_signal(keep_running(data, mcp_config=mcp_config, port=port, weather=bad)))
    click.echo(f"Ended. The data stay in {data}.", err=True)


@click.command()
@click.option("--data", type=_directory, default=".data/demo", show_default=True, help="Emptied first, kept after.")
@click.option("--seconds", type=typed.Number(0, 60), default=4.0, hidden=True, help="Of the streaming step.")
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
        return await until_signal(Demo(data, console, seconds=seconds, weather=bad).show())

    completed = run_loop(show)
    if completed is None:
        click.echo("\nInterrupted. Everything that was started has ended.", err=True)
        sys.exit(Exit.INTERRUPTED)
    sys.exit(0 if completed else 1)


def _weather(text: str) -> tuple[str, ...]:
    """The names in ``--weather``; an unknown one is told with those that exist."""
    from daemon.dev.weather import parse

    try:
        return parse(text)
    except ValueError as fault:
        raise SetupError(str(fault)) from None


@contextmanager
def _dev_packages() -> Iterator[None]:
    """Around the imports of ``daemon.dev``: its packages are no part of a plain installation."""
    try:
        yield
    except ModuleNotFoundError as fault:
        raise SetupError(
            f"This command needs packages that are not installed ({fault.name}): pip install 'runwarden[dev]'"
        ) from None


COMMANDS = (dev, demo)
