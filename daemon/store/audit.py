"""The audit log: who did or decided what, when and from where, also what was refused. Append-only, for ever.

Whoever changes something writes its line in the same transaction (``note``); decisions about runs are noted by the
journal, with their verdicts. Nothing here is read by the engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

import orjson

from daemon.auth.caller import Origin
from daemon.store.pool import Connection

_NOTE = """
INSERT INTO audit_log (actor, roles, via, address, client, action, outcome, code, run_id, owner, step_id, agent_id,
    target, digest, comment, detail)
VALUES ($1, $2::text[], $3, $4, $5, $6, $7, $8, $9::uuid, coalesce($10::text,
        (SELECT user_id FROM workflow_runs WHERE id = $9::uuid),
        (SELECT owner FROM agent_bindings WHERE agent_id = $12::text)),
    $11, $12::text, $13, $14, $15, $16::text::json)
"""


def kept(origin: Origin) -> str:
    """As a command's row keeps it; who it was stands there as ``issued_by``."""
    return orjson.dumps(
        {
            "roles": origin.roles,
            "groups": origin.groups,
            "via": origin.via,
            "address": origin.address,
            "client": origin.client,
        }
    ).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One line: what was done or refused. ``action`` is ``noun.verb``, such as ``grant.added`` or ``hold.released``."""

    action: str
    outcome: Literal["applied", "refused"] = "applied"
    code: str | None = None
    run_id: UUID | None = None
    owner: str | None = None
    """Whose thing it is, so that they may read of it: unless said, the owner of ``run_id``, else of ``agent_id``."""
    step_id: str | None = None
    agent_id: str | None = None
    target: str | None = None
    """What else it is about: a grant's, policy's, token's or workflow's id, a user."""
    digest: str | None = None
    comment: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


async def note(connection: Connection, origin: Origin, deed: Deed) -> None:
    """Write a line, in the transaction of what it tells of."""
    await connection.execute(
        _NOTE,
        origin.actor,
        list(origin.roles),
        origin.via,
        origin.address,
        origin.client,
        deed.action,
        deed.outcome,
        deed.code,
        deed.run_id,
        deed.owner,
        deed.step_id,
        deed.agent_id,
        deed.target,
        deed.digest,
        deed.comment,
        orjson.dumps(deed.detail).decode(),
    )
