"""What every refusal must look like, and whether anything was stored. Used by the tests of bad input."""

from __future__ import annotations

import re

import asyncpg

from tests.api.harness import Answer

LIBRARY = re.compile(r"(?i)input should|field required|(string|list|tuple|value) should|extra inputs|value error")
"""How pydantic speaks, which nobody who writes workflows should have to know."""

TABLES = ("workflows", "workflow_runs", "workflow_run_specs", "workflow_run_steps", "workflow_run_attempts")
TABLES += ("workflow_run_events", "workflow_run_commands", "idempotency_keys")
COUNT = " UNION ALL ".join(f"SELECT '{name}' AS name, count(*) AS rows FROM {name}" for name in TABLES)


async def stored(books: asyncpg.Connection) -> dict[str, int]:
    """How many rows each table has."""
    return {row["name"]: row["rows"] for row in await books.fetch(COUNT)}


def assert_problem(answered: Answer, status: int, code: str, says: str = "") -> None:
    """RFC 9457, with our ``code`` and a ``detail`` that says what is wrong."""
    assert answered.status == status, answered.body
    assert answered.headers["Content-Type"] == "application/problem+json"
    problem = answered.body
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["type"] == f"urn:runwarden:problem:{code}"
    assert problem["title"]
    assert problem["detail"]
    told = problem["detail"] + "".join(fault["path"] for fault in problem.get("errors", ()))
    assert says in told, problem
    assert not LIBRARY.search(problem["detail"]), problem
    assert len(problem["detail"]) < 5000
