"""Where a command talks to and as whom: options, then the environment, then the profile; and how its errors are told.

``@talking`` gives a command ``--profile --url --token --json`` and a ``Connection`` as its first argument.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from daemon.cli import profiles, typed
from daemon.cli.exits import Exit, Told

if TYPE_CHECKING:
    from daemon.cli.client import Api

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One node, one caller, one way of telling."""

    url: str
    token: str
    as_json: bool

    def run(self, work: Callable[[Api], Coroutine[Any, Any, T]]) -> T:
        """What the work returns, over a session of its own."""

        async def talk() -> T:
            import aiohttp

            from daemon.cli.client import Api

            headers = {"Authorization": f"Bearer {self.token}"}
            async with aiohttp.ClientSession(headers=headers) as session:
                return await work(Api(session, self.url))

        return asyncio.run(talk())


def talking(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that talks to a node."""

    @click.option("--profile", metavar="NAME", help="A profile other than the current one.")
    @click.option("--url", help="Base URL of the API; otherwise RUNWARDEN_URL, the profile's, or this machine's.")
    @click.option("--token", help="Bearer token; better in RUNWARDEN_TOKEN or a profile.")
    @click.option("--json", "as_json", is_flag=True, help="For programs: JSON on standard output and for errors.")
    @wraps(command)
    def told(*, profile: str | None, url: str | None, token: str | None, as_json: bool, **arguments: Any) -> None:
        try:
            command(_connection(profile, url, token, as_json=as_json), **arguments)
        except Told as fault:
            fault.as_json = as_json
            raise
        except KeyboardInterrupt:
            raise SystemExit(Exit.INTERRUPTED) from None
        except click.Abort as fault:  # which is what a question of click makes of Ctrl-C
            if isinstance(fault.__context__, KeyboardInterrupt):
                raise SystemExit(Exit.INTERRUPTED) from None
            raise

    return told


def _connection(profile: str | None, url: str | None, token: str | None, *, as_json: bool) -> Connection:
    from daemon.config import load_group

    given = load_group("client")
    kept: dict[str, str] = {}
    wanted = profile or given.profile
    complete = (url or given.url) and (token or given.token.get_secret_value())
    if wanted or not complete:  # with both said, a damaged file of profiles is nobody's business
        known = profiles.load()
        wanted = wanted or known.current or ""
        kept = profiles.known(known, wanted) if wanted else {}
    insists = profile is not None  # who names one on the command line means it, whatever the environment says
    url, place = _first("url", url, given.url, kept, wanted, insists=insists)
    token, source = _first("token", token, given.token.get_secret_value(), kept, wanted, insists=insists)
    try:
        url = typed.base_url(url or DEFAULT_URL)
    except ValueError as fault:
        raise click.UsageError(f"{place} is no base URL of an API: {fault}.") from None
    hint = "Set one: runwarden profile set NAME --url … --token-stdin, or RUNWARDEN_TOKEN. `runwarden dev` prints one."
    if not token:
        raise Told("There is no token to call the API with.", exit_code=Exit.NOT_AUTHORISED, code="no_token", hint=hint)
    if not token.isascii() or not token.isprintable():
        message = f"{source} has a character that no token has: a line break, or one beyond ASCII."
        raise Told(message, exit_code=Exit.NOT_AUTHORISED, code="bad_token", hint=hint)
    return Connection(url=url, token=token, as_json=as_json)


def _first(
    what: str, option: str | None, environment: str, kept: dict[str, str], profile: str, *, insists: bool
) -> tuple[str, str]:
    """A value, and the place that says it, for people to find it again; both empty when none does."""
    places = [
        (option, f"--{what}"),
        (environment, f"RUNWARDEN_{what.upper()}"),
        (kept.get(what), f"the {what} of profile {profile}"),
    ]
    if insists:
        places[1:] = reversed(places[1:])
    return next(((said, place) for said, place in places if said), ("", ""))
