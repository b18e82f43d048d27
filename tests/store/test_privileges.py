"""What the nodes' own role may do to the database, and what not even its owner may do to the audit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import count

import asyncpg
import psycopg
import pytest

from daemon.errors import SetupError
from daemon.store.claims import Claims
from daemon.store.migrate import migrate, missing
from daemon.store.pool import open_pool
from daemon.store.privileges import NEEDS, grant_to
from tests.store.conftest import Book

_numbers = count(1)
LINE = "INSERT INTO audit_log (actor, action, outcome) VALUES ('ann', 'thing.done', 'applied')"
TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
    AND relname !~ '^pg_stat'
"""


@pytest.fixture
def role(admin: psycopg.Connection, database: str) -> Iterator[str]:
    """A role that may log in and nothing else."""
    name = f"node {next(_numbers)}"  # a name that must be quoted
    admin.execute(f'CREATE ROLE "{name}" LOGIN')
    yield name
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(f'DROP OWNED BY "{name}"')
    admin.execute(f'DROP ROLE "{name}"')


@pytest.fixture
async def nobody(role: str, database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A session of the role, once it was given what nodes need."""
    grant_to(database, role)
    connection = await asyncpg.connect(as_role(database, role))
    yield connection
    await connection.close()


def as_role(url: str, role: str) -> str:
    return url.replace("://postgres@", f"://{role.replace(' ', '%20')}@")


async def test_every_table_says_what_nodes_need_of_it(database: str) -> None:
    with psycopg.connect(database) as owner:
        tables = {name for (name,) in owner.execute(TABLES)}
    ours = {name for name in tables if "yoyo" not in name}
    assert ours == NEEDS.keys() - {"_yoyo_migration"}


FORBIDDEN = {
    "change": "UPDATE audit_log SET actor = 'bob'",
    "change a little": "UPDATE audit_log SET comment = NULL WHERE false",
    "delete": "DELETE FROM audit_log",
    "truncate": "TRUNCATE audit_log",
    "truncate with others": "TRUNCATE workflow_run_poison, audit_log",
    "take the trigger off": "ALTER TABLE audit_log DISABLE TRIGGER audit_log_append_only",
    "drop the trigger": "DROP TRIGGER audit_log_append_only ON audit_log",
    "teach the trigger": "CREATE OR REPLACE FUNCTION refuse_to_rewrite_the_audit() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN RETURN NULL; END'",
    "go without triggers": "SET session_replication_role = replica",
    "add a trigger": "CREATE TRIGGER mine BEFORE INSERT ON audit_log FOR EACH ROW"
    " EXECUTE FUNCTION refuse_to_rewrite_the_audit()",
    "add a rule": "CREATE RULE mine AS ON INSERT TO audit_log DO INSTEAD NOTHING",
    "drop the table": "DROP TABLE audit_log",
    "own the table": "ALTER TABLE audit_log OWNER TO CURRENT_USER",
    "be the owner": "SET ROLE postgres",
    "make a table": "CREATE TABLE mine (n int)",
    "change the log": "UPDATE workflow_run_pages SET events = '[]'",
    "delete of the log": "DELETE FROM workflow_run_pages",
    "truncate the log": "TRUNCATE workflow_run_pages",
    "delete of a partition": "DELETE FROM workflow_run_pages_default",
    "truncate a partition": "TRUNCATE workflow_run_pages_default",
    "change single events": "UPDATE workflow_run_single_events SET event_type = 'x'",
    "delete of a partition of single events": "DELETE FROM workflow_run_single_events_default",
    "change the log by its view": "UPDATE workflow_run_events SET event_type = 'x'",
    "delete of the log by its view": "DELETE FROM workflow_run_events",
    "delete a run": "DELETE FROM workflow_runs",
    "change a snapshot": "UPDATE workflow_run_specs SET snapshot = '{}'",
}


@pytest.mark.parametrize("how", FORBIDDEN)
async def test_the_nodes_role_cannot(nobody: asyncpg.Connection[asyncpg.Record], how: str) -> None:
    await nobody.execute(LINE)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await nobody.execute(FORBIDDEN[how])
    assert await nobody.fetchval("SELECT count(*) FROM audit_log") == 1


@pytest.mark.parametrize("how", ["change", "delete", "truncate"])
async def test_nor_can_the_owner_rewrite_the_audit(book: Book, how: str) -> None:
    await book.pool.execute(LINE)
    before = await book.rows("audit_log")
    with pytest.raises(asyncpg.CheckViolationError, match="append-only"):
        await book.pool.execute(FORBIDDEN[how])
    assert await book.rows("audit_log") == before


async def test_the_nodes_role_makes_partitions_of_the_log_that_belong_to_its_owner(role: str, database: str) -> None:
    grant_to(database, role)
    pool = await open_pool(as_role(database, role), size=1, patience_s=5)
    try:
        async with pool.acquire() as session:
            await session.execute("CREATE TEMPORARY TABLE workflow_run_pages (run_id uuid) PARTITION BY RANGE (run_id)")
        assert await Claims(pool).ensure_partitions(5) == 2
        parents = "SELECT inhparent::regclass::text, count(*) FROM pg_inherits WHERE inhparent::regclass::text LIKE"
        found = await pool.fetch(parents + " '%workflow_run_pages' GROUP BY 1")
        assert [tuple(row) for row in found] == [("public.workflow_run_pages", 7)], "not of the table of their own"
        owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relname LIKE 'workflow_run_pages_2%'"
        assert [row[0] for row in await pool.fetch(owners)] == ["postgres"]
    finally:
        await pool.close()


CLOSED = """
SELECT p.oid::regprocedure::text FROM pg_proc p
WHERE p.pronamespace = 'public'::regnamespace AND p.prorettype <> 'trigger'::regtype
    AND p.proname NOT LIKE 'tests%%' AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')
    AND NOT has_function_privilege(%s, p.oid, 'EXECUTE') ORDER BY 1
"""


def test_functions_are_granted_by_name_where_they_are_not_everybody_s(role: str, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC")
        assert len(owner.execute(CLOSED, (role,)).fetchall()) == 8
        grant_to(database, role)
        assert owner.execute(CLOSED, (role,)).fetchall() == []


async def test_nobody_else_makes_partitions(role: str, database: str) -> None:
    connection = await asyncpg.connect(as_role(database, role))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("SELECT ensure_event_partitions(3)")
    await connection.close()


async def test_granting_again_takes_away_what_is_too_much(
    role: str, database: str, nobody: asyncpg.Connection[asyncpg.Record]
) -> None:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{role}"')
    await nobody.execute("DELETE FROM workflow_run_steps")
    grant_to(database, role)
    for statement in (
        "DELETE FROM workflow_run_steps",
        "TRUNCATE workflow_run_single_events_default",
        "TRUNCATE workflow_run_pages_default",
        "DELETE FROM audit_log",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await nobody.execute(statement)


def test_a_role_that_could_rewrite_the_audit_all_the_same_is_given_nothing(role: str, database: str) -> None:
    def refused(match: str, name: str = role) -> None:
        with pytest.raises(SetupError, match=match):
            grant_to(database, name)

    refused("There is no role 'nobody'", "nobody")
    refused("owns the tables", "postgres")
    with psycopg.connect(database, autocommit=True) as owner:
        for grant, match in (
            ("UPDATE (comment) ON audit_log", "may rewrite audit_log"),
            ("DELETE ON workflow_run_single_events_default", "may rewrite workflow_run_single_events_default"),
            ("DELETE ON workflow_run_pages_default", "may rewrite workflow_run_pages_default"),
            ("DELETE ON workflow_run_events", "may rewrite workflow_run_events"),
            ("CREATE ON SCHEMA public", "may create tables"),
        ):
            owner.execute(f"GRANT {grant} TO PUBLIC")
            refused(match)
            owner.execute(f"REVOKE {grant} FROM PUBLIC")
        owner.execute(f'GRANT pg_write_all_data TO "{role}"')
        refused("may rewrite audit_log")
        owner.execute(f'REVOKE pg_write_all_data FROM "{role}"')
        assert not owner.execute("SELECT has_table_privilege(%s, 'audit_log', 'SELECT')", (role,)).fetchall()[0][0]
    grant_to(database, role)


def test_which_migrations_are_missing_is_asked_without_making_anything(role: str, database: str) -> None:
    with pytest.raises(SetupError, match="--app-role"):
        missing(as_role(database, role))
    grant_to(database, role)
    assert missing(as_role(database, role)) == []
    moved = migrate(database, rollback_all=True)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("DROP TABLE _yoyo_migration, _yoyo_log, _yoyo_version, yoyo_lock")
    assert missing(as_role(database, role)) == moved[::-1]
