"""Settings: read once at the edge from the environment into frozen groups.

The only reader of the environment. Each field carries its unit in its name and its reason in its description;
``catalogue()`` lists them for ``docs/settings.md`` and the test that keeps that page true. Not for ``machine``.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from daemon.errors import SetupError

Networks: TypeAlias = tuple[IPv4Network | IPv6Network, ...]

PREFIX = "RUNWARDEN_"
DEFAULT_GATEWAY = "default"
"""The name of a Gateway that is alone and was given none."""
GATEWAY_URL = re.compile(r"((?P<id>[A-Za-z0-9._-]{1,100})=)?(?P<url>https?://[^,\s]+)")


def _postgres_url(secret: SecretStr) -> SecretStr:
    """Refused here, because the drivers would each find other words for it, one of them a traceback."""
    url = urlsplit(secret.get_secret_value())
    if url.scheme not in ("postgresql", "postgres") or url.port == 0:  # reading an impossible port is a ValueError
        raise ValueError("must be postgresql://user:password@host:port/database")
    return secret


def gateways_of(text: str) -> dict[str, str]:
    """Base URLs by name, of `url`, `url,url` or `id=url,id=url`. Raises ValueError for what is none of them."""
    parts = [GATEWAY_URL.fullmatch(part.strip()) for part in text.split(",")]
    if None in parts:
        raise ValueError("must be http(s)://host:port, or several as id=url,id=url (ids of letters, digits, . _ -)")
    found = [(match["id"], match["url"].rstrip("/")) for match in parts if match]
    if len(found) == 1:
        return {found[0][0] or DEFAULT_GATEWAY: found[0][1]}
    names = [name or urlsplit(url).netloc.rpartition("@")[2] for name, url in found]
    urls = [url for _, url in found]
    if len(set(names)) < len(names) or len(set(urls)) < len(urls):
        raise ValueError("names a Gateway twice")
    return dict(zip(names, urls, strict=True))


def _gateway_urls(text: str) -> str:
    gateways_of(text)
    return text


def _redis_url(secret: SecretStr) -> SecretStr:
    if secret.get_secret_value() and urlsplit(secret.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must be redis://host:port/db, rediss:// for TLS")
    return secret


class Group(BaseSettings):
    """One frozen group; a field ``lease_ttl_s`` is read from ``RUNWARDEN_LEASE_TTL_S``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)


def networks_of(text: str) -> Networks:
    """Addresses and networks behind commas. Raises ValueError for what is none of them."""
    return tuple(ip_network(part.strip()) for part in text.split(",")) if text.strip() else ()


def _networks(text: str) -> str:
    networks_of(text)
    return text


class Http(Group):
    """The front: where it listens and what it accepts."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one and logs it.")
    jwt_secret: Annotated[SecretStr, Field(min_length=16)] = Field(
        description="Shared secret of the HS256 bearer tokens; `sub` is the user. At least 16 characters."
    )
    trusted_proxies: Annotated[str, AfterValidator(_networks)] = Field(
        "",
        description="Addresses or networks (10.0.0.0/8), behind commas, of proxies whose `X-Forwarded-For` is believed:"
        " the audit then names the address behind them. Empty: the peer of the connection is named.",
    )
    body_limit_bytes: int = Field(1_048_576, ge=1024, description="Largest accepted request body; a larger one is 413.")
    verdict_wait_s: float = Field(
        5.0, ge=0, le=60, description="How long a command's handler waits for its verdict before it answers 202."
    )
    sse_heartbeat_s: float = Field(
        15.0, gt=0, description="Pause between SSE heartbeat comments; at each, watched runs are compared with the log."
    )
    sse_clients: int = Field(5000, ge=1, description="Most SSE clients of one node; one more is 503 with Retry-After.")
    sse_queue: int = Field(
        256, ge=4, description="Messages kept for a slow SSE client before it is cut off; it resumes by Last-Event-ID."
    )
    sse_page: int = Field(500, ge=1, le=5000, description="Events read from the log at once during a replay.")
    sse_close_s: float = Field(
        2.0, ge=0, description="A finished run's stream stays open this long for late log lines, then closes."
    )


class Store(Group):
    """Postgres."""

    postgres_url: Annotated[SecretStr, AfterValidator(_postgres_url)] = Field(
        description="postgresql://user:password@host:port/database (PostgreSQL 15 or newer)."
    )
    postgres_pool: int = Field(10, ge=2, description="Connections for reads, claims and commands.")
    postgres_pooled: bool = Field(
        False,
        description="A pooler in transaction mode (PgBouncer) stands before Postgres, so no statement stays prepared. "
        "Without one, leave it off: preparing spares time.",
    )
    journal_lanes: int = Field(
        1, ge=1, le=16, description="Connections that carry grouped commits; one was enough in every measurement."
    )
    journal_batch: int = Field(200, ge=1, le=2000, description="Most runs in one grouped commit.")
    start_patience_s: float = Field(
        15.0, ge=0, description="How long a start waits for Postgres and Redis before it gives up with exit code 1."
    )


class Fabric(Group):
    """Redis."""

    redis_url: SecretStr = Field(
        description="redis://host:port/db (Redis 6.2, 7, 8 or Valkey), rediss:// for TLS; "
        "redis+sentinel://host:port,host:port/service[/db] for the primary that Sentinels name."
    )
    redis_prefix: str = Field(
        "rw", min_length=1, description="First part of every key; deployments may share one Redis."
    )
    redis_allow_eviction: bool = Field(
        False,
        description="Start although the server's maxmemory-policy may evict keys. Leases could then vanish early.",
    )
    inbox_bound: int = Field(
        10_000, ge=100, description="Letters kept for one run; past it CHUNKs are dropped and counted, a RESULT never."
    )


class Runtime(Group):
    """How runs are owned and carried."""

    node_name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Name of this process in leases and logs, unique among the nodes. Default: host name and pid.",
    )
    role: str = Field(
        "both",
        pattern="^(front|runner|both)$",
        description="front serves the API, runner carries runs, both does both.",
    )
    lease_ttl_s: float = Field(
        10.0, gt=0.2, description="A node silent for longer loses its runs; a takeover takes this plus two sweeps."
    )
    sweep_period_s: float = Field(
        2.0, gt=0.05, description="Pause between two looks for due, orphaned and commanded runs."
    )
    stale_after_s: float = Field(
        1.0,
        ge=0,
        description="A command unapplied for longer is the sweep's business; it never touches a live neighbour's run.",
    )
    linger_s: float = Field(
        1.0,
        ge=0,
        description="A run that waits keeps its place in memory this long, then becomes passive and costs nothing.",
    )
    log_hold_s: float = Field(
        0.5, ge=0, le=5, description="ACKs and log chunks wait this long for company before a commit."
    )
    residents: int = Field(
        12_000, ge=1, description="Most runs a node keeps in memory; it claims only what it has room for."
    )
    step_patience_s: float = Field(
        15.0, ge=0, description="A call that was surely not sent is repeated this long before its step fails."
    )
    ack_timeout_s: float = Field(
        10.0, gt=0, description="An agent that does not acknowledge a call for this long is taken for frozen."
    )
    drain_s: float = Field(10.0, ge=0, description="At SIGTERM, how long open calls to the Gateway may take to finish.")


class Gateway(Group):
    """The tunnel Gateway, or several."""

    gateway_url: Annotated[str, AfterValidator(_gateway_urls)] = Field(
        description="Base URL of the Gateway's internal HTTP side. Several: `id=url,id=url` with the `--gateway-id` of "
        "each, or plain URLs; the same on every node."
    )
    gateway_token: SecretStr = Field(SecretStr(""), description="Sent as X-Internal-Token, to each of them.")
    gateway_redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = Field(
        SecretStr(""),
        description="The Gateways' own Redis (their `--redis-url`), if they have one; only read: who holds an agent, "
        "stored results, events. Empty: the Gateways are asked by HTTP.",
    )
    gateway_connections: int = Field(
        256, ge=1, description="Most keep-alive connections to one Gateway for invoke, and as many for cancel."
    )
    gateway_agent_calls: int = Field(
        128,
        ge=1,
        description="Most calls to one agent whose answer is still owed; a blocked agent holds no more connections.",
    )
    gateway_retry_s: float = Field(
        1.0, gt=0, description="Pause before the event stream is opened again; doubles up to 5 s."
    )

    @property
    def urls(self) -> dict[str, str]:
        """The Gateways' base URLs by name: the id that was given, else the URL's host and port; `default` alone."""
        return gateways_of(self.gateway_url)


class Telemetry(Group):
    """Logs and traces."""

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that is written.")
    log_format: str = Field("json", pattern="^(json|text)$", description="json, one object a line, or text for people.")
    trace: str = Field(
        "off", pattern="^(off|console)$", description="off, or console: OpenTelemetry spans as JSON on standard error."
    )


class Client(Group):
    """The command line as a client of the API. No node reads these."""

    url: str = Field("", description="Base URL of the API that `runwarden workflow` and `runwarden run` talk to.")
    token: SecretStr = Field(SecretStr(""), description="Bearer token for it.")
    profile: str = Field("", description="The profile to use instead of the current one (`runwarden profile list`).")


@dataclass(frozen=True, slots=True)
class Settings:
    """All groups together; what ``node.py`` is given."""

    http: Http
    store: Store
    fabric: Fabric
    runtime: Runtime
    gateway: Gateway
    telemetry: Telemetry


GROUPS: Mapping[str, type[Group]] = {
    "http": Http,
    "store": Store,
    "fabric": Fabric,
    "runtime": Runtime,
    "gateway": Gateway,
    "telemetry": Telemetry,
}
"""What a node is made of."""

EVERY_GROUP: Mapping[str, type[Group]] = {**GROUPS, "client": Client}


def load(**overrides: Any) -> Settings:
    """Read every group; ``overrides`` (by field name) win over the environment.

    Raises SetupError naming all problems at once, a line each.
    """
    groups: dict[str, Group] = {}
    problems: list[str] = []
    for name, group in GROUPS.items():
        mine = {key: value for key, value in overrides.items() if key in group.model_fields}
        try:
            groups[name] = group(**mine)
        except ValidationError as fault:
            problems += [f"{PREFIX}{str(e['loc'][0]).upper()}: {_plain(e)}" for e in fault.errors()]
    if problems:
        raise SetupError("The settings cannot work:\n  " + "\n  ".join(sorted(problems)))
    return Settings(**groups)  # type: ignore[arg-type] # each name was built by its own class above


def load_group(name: str, **overrides: Any) -> Any:
    """One group alone, for commands that need no more (``migrate``, ``token``). Errors as ``load``."""
    try:
        return EVERY_GROUP[name](**overrides)
    except ValidationError as fault:
        lines = [f"{PREFIX}{str(e['loc'][0]).upper()}: {_plain(e)}" for e in fault.errors()]
        raise SetupError("The settings cannot work:\n  " + "\n  ".join(sorted(lines))) from None


def _plain(error: Any) -> str:
    return "is required" if error["type"] == "missing" else str(error["msg"]).removeprefix("Value error, ")


class Entry(BaseModel):
    """One setting as the reference shows it."""

    model_config = ConfigDict(frozen=True)

    group: str
    field: str
    env: str
    default: str
    doc: str
    secret: bool


def catalogue() -> list[Entry]:
    """Every setting, in the order of the groups."""
    return list(_entries())


def _entries() -> Iterator[Entry]:
    for name, group in EVERY_GROUP.items():
        for field, info in group.model_fields.items():
            default = "required" if info.is_required() else str(info.default)
            if info.default_factory is not None:
                default = "computed"
            yield Entry(
                group=name,
                field=field,
                env=PREFIX + field.upper(),
                default=default or "empty",
                doc=info.description or "",
                secret="SecretStr" in str(info.annotation),
            )


def effective(settings: Settings) -> dict[str, str]:
    """Environment name → value in force, with secrets masked; a URL keeps all but its password."""
    shown: dict[str, str] = {}
    for entry in catalogue():
        if entry.group not in GROUPS:
            continue
        value = getattr(getattr(settings, entry.group), entry.field)
        if isinstance(value, SecretStr):
            plain = value.get_secret_value()
            value = plain if "://" in plain else ("****" if plain else "")
        shown[entry.env] = mask(str(value))
    return shown


def mask(url: str) -> str:
    """A URL, or several behind commas, fit for logs: passwords are replaced by ``****``."""
    if len(several := re.split(r",(?=(?:[\w.-]+=)?https?://)", url)) > 1:
        return ",".join(map(mask, several))
    url = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:****@", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1****", url)


def reference_markdown() -> str:
    """The text of ``docs/settings.md``."""
    lines = ["# Settings", "", "Read from the environment at start. Made by `make docs`; do not edit by hand.", ""]
    for name, group in EVERY_GROUP.items():
        lines += [
            f"## {name}",
            "",
            (group.__doc__ or "").strip(),
            "",
            "| setting | default | meaning |",
            "|---|---|---|",
        ]
        lines += [f"| `{e.env}` | `{e.default}` | {e.doc} |" for e in catalogue() if e.group == name]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(reference_markdown(), end="")  # noqa: T201 - this is the generator of docs/settings.md
