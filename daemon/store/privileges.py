"""What the role that nodes run as may do: what the application needs, and no more. Used by ``runwarden migrate``.

The tables belong to whoever migrates; nodes that run as another role can add to the audit and to the event log, and
neither change nor remove what is there. A new table needs a line here (``tests/store/test_privileges.py`` says so), and
its grant comes with the next ``runwarden migrate --app-role``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.config import mask
from daemon.errors import SetupError
from daemon.store.migrate import connect

if TYPE_CHECKING:
    import psycopg

NEEDS = {
    "workflows": "SELECT, INSERT, UPDATE",
    "workflow_makers": "SELECT, INSERT",
    "workflow_runs": "SELECT, INSERT, UPDATE",
    "workflow_run_heads": "SELECT",
    "workflow_run_specs": "SELECT, INSERT",
    "workflow_run_agents": "SELECT, INSERT",
    "workflow_run_steps": "SELECT, INSERT, UPDATE",
    "workflow_run_attempts": "SELECT, INSERT, UPDATE",
    "workflow_run_pages": "SELECT, INSERT",
    "workflow_run_single_events": "SELECT, INSERT",
    "workflow_run_events": "SELECT, INSERT",  # the view of both; nodes of the release before write to it
    "workflow_run_commands": "SELECT, INSERT, UPDATE",
    "workflow_run_poison": "SELECT, INSERT",
    "workflow_run_approvals": "SELECT, INSERT, UPDATE",
    "idempotency_keys": "SELECT, INSERT, UPDATE, DELETE",
    "authority_version": "SELECT, UPDATE",
    "agent_bindings": "SELECT, INSERT, UPDATE, DELETE",
    "agent_grants": "SELECT, INSERT, UPDATE, DELETE",
    "tool_policies": "SELECT, INSERT, UPDATE, DELETE",
    "holds": "SELECT, INSERT, UPDATE",
    "service_tokens": "SELECT, INSERT, UPDATE, DELETE",
    "signing_keys": "SELECT, INSERT",
    "agent_past_owners": "SELECT, INSERT, UPDATE, DELETE",
    "audit_log": "SELECT, INSERT",
    "_yoyo_migration": "SELECT",
}
"""By table, or view. Rows that are locked are rows that may be updated. Partitions are reached by their table only."""
_LOGS = ("workflow_run_pages", "workflow_run_single_events")
CALLS = (
    "ensure_event_partitions(integer)",
    "uuid_v7_floor(timestamptz)",
    "refuse_commit()",
    "newest_seq(uuid)",
    "agents_of(json)",
    "tool_fits(text, text)",
    "decides_for(text, text, text[])",
    "asked_to_decide(uuid, text[])",
)
"""Granted by name, since in a hardened database functions are not everybody's."""
APPEND_ONLY = ("audit_log", "workflow_run_events", *_LOGS)

_GRANTING = 7277238002
"""The advisory lock of those who grant at once."""
_ROLE = """
SELECT rolsuper, pg_has_role(rolname, (SELECT relowner FROM pg_class WHERE oid = 'audit_log'::regclass), 'MEMBER')
FROM pg_roles WHERE rolname = %s
"""
_PARTITIONS = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = ANY(%s::text[]::regclass[])"
_REWRITES = """
SELECT relation FROM unnest(%s::text[]) AS relation
WHERE has_table_privilege(%s, relation, 'UPDATE, DELETE, TRUNCATE') OR has_any_column_privilege(%s, relation, 'UPDATE')
"""


def grant_to(url: str, role: str) -> None:
    """Give an existing role what nodes need, and take from it what else it was given; safe to repeat. Blocks.

    The schema must be up to date. Raises SetupError, and changes nothing, when there is no such role or when it could
    rewrite the audit all the same.
    """
    import psycopg

    try:
        with connect(url) as connection, connection.transaction():
            _grant(connection, role)
    except psycopg.Error as fault:
        raise SetupError(f"The role {role!r} was given nothing at {mask(url)}: {str(fault).strip()}") from None


def _grant(connection: psycopg.Connection, role: str) -> None:
    from psycopg.sql import SQL, Identifier

    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_GRANTING,))
    known = connection.execute(_ROLE, (role,)).fetchone()
    if known is None:
        raise SetupError(f"There is no role {role!r}: CREATE ROLE {role} LOGIN PASSWORD …, then repeat this.")
    if any(known):
        raise SetupError(
            f"The role {role!r} owns the tables, or may act as who does: it could rewrite the audit. Let nodes run as "
            "one that is no superuser and no member of the owner's role."
        )
    to = Identifier(role)
    ((schema,),) = connection.execute("SELECT current_schema()").fetchall()
    if not _may(connection, role, schema, "USAGE"):
        connection.execute(SQL("GRANT USAGE ON SCHEMA {} TO {}").format(Identifier(schema), to))
    if _may(connection, role, schema, "CREATE"):
        raise SetupError(
            f"The role {role!r} may create tables in the schema {schema!r}, which no node needs: "
            f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {role}; then repeat this."
        )
    partitions = [name for (name,) in connection.execute(_PARTITIONS, (list(_LOGS),)).fetchall()]
    for table in (*NEEDS, *partitions):
        connection.execute(SQL("REVOKE ALL ON TABLE {} FROM {}").format(Identifier(table), to))
    for table, needed in NEEDS.items():
        connection.execute(SQL("GRANT {} ON TABLE {} TO {}").format(SQL(needed), Identifier(table), to))
    for call in CALLS:
        connection.execute(SQL("GRANT EXECUTE ON FUNCTION {} TO {}").format(SQL(call), to))
    rewritable = connection.execute(_REWRITES, ([*APPEND_ONLY, *partitions], role, role)).fetchall()
    if rewritable:
        names = ", ".join(name for (name,) in rewritable)
        raise SetupError(f"By a grant to PUBLIC or to a role that {role!r} is in, it may rewrite {names}: revoke that.")


def _may(connection: psycopg.Connection, role: str, schema: str, privilege: str) -> bool:
    found = connection.execute("SELECT has_schema_privilege(%s, %s, %s)", (role, schema, privilege)).fetchone()
    return found is not None and bool(found[0])
