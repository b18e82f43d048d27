"""Where and as whom to talk, by name: a TOML file that only its owner may read, and ``profile set|list|use|remove``.

``current = "work"`` and a table ``[profiles.work]`` with ``url`` and ``token`` for each. On Linux it is
``$XDG_CONFIG_HOME/runwarden/config.toml`` or ``~/.config/runwarden/config.toml``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import click

from daemon.cli import show, typed
from daemon.cli.exits import Exit, Told

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]*")


@dataclass(slots=True)
class Profiles:
    """The file's content; ``entries`` is name → {url, token}."""

    current: str | None = None
    entries: dict[str, dict[str, str]] = field(default_factory=dict)


def path() -> Path:
    """Where the profiles are kept."""
    return Path(click.get_app_dir("runwarden")) / "config.toml"


def load() -> Profiles:
    """The profiles; none where there is no file. Raises Told for a file that says something else."""
    where = path()
    try:
        told = tomllib.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Profiles()
    except (OSError, ValueError) as fault:
        raise _unreadable(where, str(fault)) from None
    entries, current = told.get("profiles", {}), told.get("current")
    sound = isinstance(entries, dict) and all(
        isinstance(entry, dict) and all(isinstance(value, str) for value in entry.values())
        for entry in entries.values()
    )
    if not sound or not isinstance(current, str | None):
        raise _unreadable(where, "it has not the shape of profiles")
    return Profiles(current, entries)


def save(profiles: Profiles) -> None:
    """Replace the file, whole or not at all, with mode 0600: a token is a password."""
    where = path()
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lines = [f"current = {json.dumps(profiles.current)}"] if profiles.current else []
    for name, entry in sorted(profiles.entries.items()):
        lines += ["", f"[profiles.{name}]"]
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(entry.items())]
    handle, made = tempfile.mkstemp(dir=where.parent, prefix=".config-")  # which makes it 0600
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    Path(made).replace(where)


def _unreadable(where: Path, why: str) -> Told:
    hint = "Mend or remove that file; `runwarden profile set` writes a new one."
    return Told(f"{where} cannot be read: {why}", exit_code=Exit.USAGE, code="bad_profiles", hint=hint)


def _named(_ctx: click.Context, _option: click.Parameter, name: str) -> str:
    if not NAME.fullmatch(name):
        raise click.BadParameter("1 to 64 letters, digits, - and _")
    return name


def _tell(profiles: Profiles, name: str, said: str, *, as_json: bool) -> None:
    """What became of a profile."""
    if as_json:
        show.document({"name": name, "current": profiles.current == name, "path": str(path())})
    else:
        click.echo(said)


_name = click.argument("name", callback=_named)
_as_json = click.option("--json", "as_json", is_flag=True, help="As one JSON document.")


@click.group()
def profile() -> None:
    """Remember where a node is and who you are there."""


@profile.command("set")
@_name
@click.option("--url", help="Base URL of the API, such as https://runwarden.example.")
@click.option("--token", help="Bearer token. Other people on this machine can see it while the command runs.")
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input instead.")
@_as_json
def set_(name: str, url: str | None, token: str | None, token_stdin: bool, as_json: bool) -> None:
    """Make or change a profile; the first one becomes the current one. Asks for the token where it can."""
    profiles = load()
    entry = dict(profiles.entries.get(name, {}))
    if token_stdin:
        token = sys.stdin.readline().strip()
    elif token is None and "token" not in entry and sys.stdin.isatty():
        token = click.prompt("Token", hide_input=True)
    try:
        given = {"url": typed.base_url(url) if url else None, "token": token}
    except ValueError as fault:
        raise click.BadParameter(f"{fault}.", param_hint="--url") from None
    for key, value in given.items():
        if value is not None and not _PRINTABLE.fullmatch(value):
            raise click.BadParameter(f"the {key} has characters that no {key} has")
        entry |= {key: value} if value is not None else {}
    profiles.entries[name] = entry
    profiles.current = profiles.current or name
    save(profiles)
    _tell(profiles, name, f"Saved {name} in {path()}", as_json=as_json)


@profile.command()
@_name
@_as_json
def use(name: str, as_json: bool) -> None:
    """Make a profile the current one."""
    profiles = load()
    known(profiles, name)
    profiles.current = name
    save(profiles)
    _tell(profiles, name, f"Using {name} from now on.", as_json=as_json)


@profile.command()
@_name
@_as_json
def remove(name: str, as_json: bool) -> None:
    """Forget a profile."""
    profiles = load()
    known(profiles, name)
    del profiles.entries[name]
    profiles.current = None if profiles.current == name else profiles.current
    save(profiles)
    _tell(profiles, name, f"Removed {name}.", as_json=as_json)


@profile.command("list")
@_as_json
def list_(as_json: bool) -> None:
    """Show the profiles; tokens are not shown."""
    profiles = load()
    rows = [
        {"name": name, "url": entry.get("url"), "token": bool(entry.get("token")), "current": name == profiles.current}
        for name, entry in sorted(profiles.entries.items())
    ]
    if as_json:
        show.document({"items": rows, "path": str(path())})
    else:
        marked = [row | {"name": f"* {row['name']}" if row["current"] else row["name"]} for row in rows]
        show.table(marked, {"name": "name", "url": "url", "token": "token"}, none="There is no profile yet.")


def known(profiles: Profiles, name: str) -> dict[str, str]:
    """The profile of this name. Raises Told when there is none."""
    entry = profiles.entries.get(name)
    if entry is None:
        hint = (
            f"There are: {', '.join(sorted(profiles.entries)) or 'none'}. Make it: runwarden profile set {name} --url …"
        )
        raise Told(f"There is no profile {name!r}.", exit_code=Exit.USAGE, code="no_such_profile", hint=hint)
    return entry
