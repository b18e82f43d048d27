"""Settings: read once at the edge from the environment into frozen groups.

The only reader of the environment. Each field carries its unit in its name and its reason in its description;
``catalogue()`` lists them for ``docs/settings.md`` and the test that keeps that page true. Not for ``machine``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from daemon import addresses
from daemon.addresses import mask as mask
from daemon.errors import SetupError
from daemon.faults import worded

PREFIX = "RUNWARDEN_"


class Group(BaseSettings):
    """One frozen group; a field ``lease_ttl_s`` is read from ``RUNWARDEN_LEASE_TTL_S``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)


class Http(Group):
    """The front: where it listens and what it accepts."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one and logs it.")
    trusted_proxies: Annotated[str, AfterValidator(addresses.networks)] = Field(
        "",
        description="Addresses or networks (10.0.0.0/8), behind commas, of proxies whose `X-Forwarded-For` is believed:"
        " the audit then names the address behind them. Empty: the peer of the connection is named.",
    )
    body_limit_bytes: int = Field(1_048_576, ge=1024, description="Largest accepted request body; a larger one is 413.")
    body_timeout_s: float = Field(30.0, gt=0, description="How long a request may take to send its body; else 408.")
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


class Identity(Group):
    """Whose word is taken: tokens signed with a shared secret, with an identity provider's keys, or with either."""

    jwks_url: Annotated[str, AfterValidator(addresses.jwks_url)] = Field(
        "",
        description="Where the identity provider publishes its keys (a JWK Set), for RS256, ES256 and EdDSA tokens. "
        "https, or http on this machine; redirects are not followed.",
    )
    jwt_secret: SecretStr = Field(
        SecretStr(""),
        validate_default=True,
        description="Shared secret of HS256 bearer tokens, at least 16 characters. Needed unless there is a JWKS URL.",
    )
    jwt_issuer: str = Field("", description="A token's `iss` must be this; several behind commas. Empty: any or none.")
    jwt_audience: str = Field(
        "",
        description="A token's `aud` must name this, or one of several behind commas. Empty: a token that has an "
        "audience is for somebody else, and refused.",
    )
    jwt_leeway_s: float = Field(
        0.0, ge=0, le=300, description="How far the issuer's clock may differ from ours, for `exp`, `nbf` and `iat`."
    )
    jwt_required_claims: str = Field(
        "sub", description="Claims that every token must have, behind commas; `sub`, the user, always."
    )
    jwt_roles_claim: str = Field(
        "roles", min_length=1, description="The claim with the user's roles; a path such as `realm_access.roles` too."
    )
    jwt_groups_claim: str = Field(
        "groups", min_length=1, description="The claim with the groups that grants may name; a path too."
    )
    jwks_refresh_s: float = Field(
        300.0, ge=1, description="Pause between two readings of the JWKS; a key that was removed is trusted so long."
    )
    jwks_keep_s: float = Field(
        3600.0, ge=1, description="How long keys are trusted while the JWKS cannot be read; then 503 until it can."
    )
    jwks_pause_s: float = Field(
        10.0, gt=0, description="At least so long between two readings, however many unknown keys tokens name."
    )

    @field_validator("jwt_secret")
    @classmethod
    def _enough(cls, secret: SecretStr, info: ValidationInfo) -> SecretStr:
        if not secret.get_secret_value() and info.data.get("jwks_url") == "":
            raise ValueError("is required, or RUNWARDEN_JWKS_URL in its place")
        if 0 < len(secret.get_secret_value()) < 16:
            raise ValueError("must have at least 16 characters")
        return secret


class Store(Group):
    """Postgres."""

    postgres_url: Annotated[SecretStr, AfterValidator(addresses.postgres_url)] = Field(
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
    journal_batch: int = Field(
        50, ge=1, le=2000, description="Most runs in a grouped commit. More cost CPU, and help where it is slow."
    )
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
    busy_poll_ms: float = Field(1.5, ge=0, le=10, description="A lone quick run's commit is awaited awake. 0: not.")
    step_patience_s: float = Field(
        15.0, ge=0, description="A call that was surely not sent is repeated this long before its step fails."
    )
    ack_timeout_s: float = Field(
        10.0, gt=0, description="An agent that does not acknowledge a call for this long is taken for frozen."
    )
    drain_s: float = Field(10.0, ge=0, description="At SIGTERM, how long open calls to the Gateway may take to finish.")


def _agent_token_secret(secret: SecretStr) -> SecretStr:
    if 0 < len(secret.get_secret_value()) < 16:
        raise ValueError("must have at least 16 characters, or be empty")
    return secret


class Gateway(Group):
    """The tunnel Gateway, or several."""

    gateway_url: Annotated[str, AfterValidator(addresses.gateway_urls)] = Field(
        description="Base URL of the Gateway's internal HTTP side. Several: `id=url,id=url` with the `--gateway-id` of "
        "each, or plain URLs; the same on every node."
    )
    gateway_token: SecretStr = Field(SecretStr(""), description="Sent as X-Internal-Token, to each of them.")
    gateway_redis_url: Annotated[SecretStr, AfterValidator(addresses.redis_url)] = Field(
        SecretStr(""),
        description="The Gateways' own Redis (their `--redis-url`), if they have one: who holds an agent, stored "
        "results, events; only versions of agents' tokens are written there. Empty: the Gateways are asked by HTTP.",
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

    agent_token_secret: Annotated[SecretStr, AfterValidator(_agent_token_secret)] = Field(
        SecretStr(""),
        description="Shared secret of the tokens that agents present to the Gateway (its `--agent-token-secret`), at "
        "least 16 characters. Empty: `POST /v1/bridge/agent-token` makes none.",
    )
    agent_token_issuer: str = Field("runwarden", description="`iss` of agents' tokens; empty for none.")
    agent_token_ttl_s: int = Field(
        30 * 24 * 3600,
        ge=60,
        le=10 * 365 * 24 * 3600,
        description="Life of an agent's token. It is looked at when the agent connects, so an expired one is only "
        "noticed at the next connection.",
    )

    @property
    def urls(self) -> dict[str, str]:
        """The Gateways' base URLs by name: the id that was given, else the URL's host and port; `default` alone."""
        return addresses.gateways_of(self.gateway_url)


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
    identity: Identity
    store: Store
    fabric: Fabric
    runtime: Runtime
    gateway: Gateway
    telemetry: Telemetry


GROUPS: Mapping[str, type[Group]] = {
    "http": Http,
    "identity": Identity,
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
            problems += [f"{PREFIX}{str(e['loc'][0]).upper()}: {worded(e)}" for e in fault.errors()]
    if problems:
        raise SetupError("The settings cannot work:\n  " + "\n  ".join(sorted(problems)))
    return Settings(**groups)  # type: ignore[arg-type] # each name was built by its own class above


def load_group(name: str, **overrides: Any) -> Any:
    """One group alone, for commands that need no more (``migrate``, ``token``). Errors as ``load``."""
    try:
        return EVERY_GROUP[name](**overrides)
    except ValidationError as fault:
        lines = [f"{PREFIX}{str(e['loc'][0]).upper()}: {worded(e)}" for e in fault.errors()]
        raise SetupError("The settings cannot work:\n  " + "\n  ".join(sorted(lines))) from None


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
