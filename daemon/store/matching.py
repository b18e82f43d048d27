"""Which runs a list or a bulk decision means: the filter, and the query that finds them without reading all others.

Each thing that is asked for is a *walk* down one index, newest first, past the runs that have it: those of an agent, of
a status, of a reason, of a workflow, or all of the user's. What else is asked for is looked up run by run. Of several
walks the shortest is taken. Postgres counts them as it is asked (up to ``FAR``), since neither its statistics (users
and their agents depend on each other) nor a plan that it keeps for all values would know: a wrong guess reads 100,000
runs. So a page costs at most ``FAR`` runs where a walk is no longer than that, and else as many as are passed until it
is full: few, unless what is asked for excludes each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, get_args
from uuid import UUID

from daemon.machine.state import RunStatus
from daemon.store.workflows import Place

FAR = 4000
"""Runs of a walk that are counted, 0.1 ms a thousand; to look at them takes ten times that."""

SNAPSHOT = "(SELECT s.snapshot FROM workflow_run_specs s WHERE s.run_id = r.id)"
TITLE = f"coalesce(r.title, {SNAPSHOT} ->> 'title')"
"""Runs that were copied from elsewhere may lack the columns that creation fills."""

_STATUSES = get_args(RunStatus)
_ORDER = "ORDER BY r.created_at DESC, r.id DESC"
_OF_AGENT = """EXISTS (
    SELECT FROM workflow_run_agents a WHERE a.user_id = r.user_id AND a.agent_id = {} AND a.created_at = r.created_at
        AND a.run_id = r.id OFFSET 0)"""
# OFFSET 0 keeps what is looked up out of the choice of what is walked: Postgres would go down another index.
_PASSED = f"""
SELECT r.created_at FROM {{keys}} CROSS JOIN LATERAL (
    SELECT r.created_at FROM workflow_runs r WHERE {{walk}} {_ORDER} LIMIT {FAR}
) r ORDER BY r.created_at DESC LIMIT {FAR}
"""  # noqa: S608 - only our own words
_FOUND = f"""
SELECT r.id, r.created_at FROM {{keys}} CROSS JOIN LATERAL (
    SELECT r.id, r.created_at FROM workflow_runs r CROSS JOIN LATERAL (SELECT WHERE {{meant}} OFFSET 0) meant
    WHERE {{walk}} {_ORDER} LIMIT {{limit}}
) r WHERE {{chosen}} {_ORDER} LIMIT {{limit}}
"""  # noqa: S608 - as above
_PASSED_OF_AGENT = f"""
SELECT a.created_at FROM workflow_run_agents a WHERE {{walk}} ORDER BY a.created_at DESC, a.run_id DESC LIMIT {FAR}
"""  # noqa: S608 - as above
_FOUND_OF_AGENT = """
SELECT r.id, r.created_at FROM workflow_run_agents a CROSS JOIN LATERAL (
    SELECT r.id, r.created_at FROM workflow_runs r WHERE r.id = a.run_id AND {meant} OFFSET 0
) r WHERE {walk} AND {chosen} ORDER BY a.created_at DESC, a.run_id DESC LIMIT {limit}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which runs are meant; None asks nothing of that kind. ``agent_id``: some step calls this agent.

    ``title_has``, whatever its case, is looked for in one run after the other of those that the rest means: as long as
    it is rare, in all of them. ``after``: what follows this place in the order of lists.
    """

    run_ids: Sequence[UUID] | None = None
    statuses: Sequence[str] | None = None
    paused_reasons: Sequence[str] | None = None
    workflow_id: UUID | None = None
    agent_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    title_has: str | None = None
    after: Place | None = None


class _Walk(NamedTuple):
    """One way to the runs. ``covers``: what is asked for that all of them have."""

    covers: frozenset[str]
    passed: str
    """A SELECT of them, as far as FAR."""
    found: str
    """A SELECT of those that are meant."""


def matching(columns: str, wanted: Filter, user_id: str, limit: int) -> tuple[str, list[object]]:
    """The query and its arguments: the user's runs that the filter means, newest first, at most ``limit``.

    Nothing that is asked for, and no order, is ahead of a run's row. So the rows are searched, and the newest pages are
    looked up for those of the answer alone.
    """
    asked = _Asked(wanted, user_id, limit)
    walks, found = asked.walks(), []
    for number, walk in enumerate(walks):
        meant = " AND ".join(one for name, one in asked.conditions.items() if name not in walk.covers) or "true"
        chosen = f"(SELECT walk FROM shortest) = {number}" if len(walks) > 1 else "true"  # noqa: S608 - as above
        found.append(f"({walk.found.format(meant=meant, chosen=chosen, limit=asked.limit)})")
    ids = f"SELECT id FROM ({' UNION ALL '.join(found)}) AS found"  # noqa: S608 - as above
    if len(walks) > 1:
        ids = f"WITH shortest AS MATERIALIZED ({_shortest(walks)}) {ids}"
    heads = f"SELECT {columns} FROM workflow_run_heads r WHERE id = ANY(ARRAY({ids}))"  # noqa: S608 - as above
    return f"{heads} {_ORDER}", asked.arguments


def _shortest(walks: Sequence[_Walk]) -> str:
    """Its number. Of walks that are all longer than FAR the one whose runs reach back furthest: they are the rarest."""
    measure = "SELECT {} AS walk, count(*) AS length, min(created_at) AS reach FROM ({}) AS passed"
    measured = [measure.format(number, walk.passed) for number, walk in enumerate(walks)]
    return f"{' UNION ALL '.join(measured)} ORDER BY length, reach, walk LIMIT 1"


class _Asked:
    """What a filter asks of a run ``r``, by name, and the arguments of that."""

    def __init__(self, wanted: Filter, user_id: str, limit: int) -> None:
        self.arguments: list[object] = []
        self._wanted = wanted
        self._user, self.limit = self._given(user_id, "text"), self._given(limit, "bigint")
        self.conditions = {"user": f"r.user_id = {self._user}"}
        statuses = _statuses(wanted)
        if wanted.run_ids is not None:
            self._ids = self._given(sorted(set(wanted.run_ids)), "uuid[]")
        if statuses is not None:
            given = self._ask("status", "r.status = ANY({})", sorted(set(statuses)), "text[]")
            self._one_status = f"unnest({given}) AS one"
        elif wanted.workflow_id is not None and wanted.run_ids is None:
            self._one_status = f"unnest({self._given(_STATUSES, 'text[]')}) AS one"
        if wanted.paused_reasons is not None:
            reasons = sorted(set(wanted.paused_reasons))
            self._reasons = self._ask("reason", "r.paused_reason = ANY({})", reasons, "text[]")
        if wanted.workflow_id is not None:
            self._workflow = self._ask("workflow", "r.workflow_id = {}", wanted.workflow_id, "uuid")
        if wanted.agent_id is not None:
            self._agent = self._ask("agent", _OF_AGENT, wanted.agent_id, "text")
        if wanted.title_has is not None:
            self._ask("title", f"strpos(lower({TITLE}), lower({{}})) > 0", wanted.title_has, "text")
        self._within = self._bounds()

    def _given(self, value: object, kind: str) -> str:
        self.arguments.append(value)
        return f"${len(self.arguments)}::{kind}"

    def _bounds(self) -> str:
        """Of the walks: how new and how old, by ``{at}`` and ``{id}``."""
        wanted, bounds = self._wanted, ""
        if wanted.created_after is not None:
            bounds += f" AND {{at}} >= {self._given(wanted.created_after, 'timestamptz')}"
        if wanted.created_before is not None:
            bounds += f" AND {{at}} < {self._given(wanted.created_before, 'timestamptz')}"
        if wanted.after is not None:
            at, last = self._given(wanted.after.created_at, "timestamptz"), self._given(wanted.after.id, "uuid")
            bounds += f" AND ({{at}}, {{id}}) < ({at}, {last})"
        return bounds

    def _ask(self, name: str, condition: str, value: object, kind: str) -> str:
        given = self._given(value, kind)
        self.conditions[name] = condition.format(given)
        return given

    def walks(self) -> list[_Walk]:
        """Those that there are; runs that are named are few."""
        wanted, mine = self._wanted, f"user_id = {self._user}"
        if wanted.run_ids is not None:
            return [self._walk(f"unnest({self._ids}) AS one", "r.id = one")]
        found = []
        if wanted.workflow_id is not None:
            walk = f"workflow_id = {self._workflow} AND status = one"
            found.append(self._walk(self._one_status, walk, "workflow", "status"))
        if wanted.paused_reasons is not None:
            keys = f"{self._one_status} CROSS JOIN unnest({self._reasons}) AS why"
            walk = f"{mine} AND status = one AND paused_reason = why"
            found.append(self._walk(keys, walk, "user", "status", "reason"))
        elif wanted.statuses is not None and not found:
            found.append(self._walk(self._one_status, f"{mine} AND status = one", "user", "status"))
        if wanted.agent_id is not None:
            within = self._within.format(at="a.created_at", id="a.run_id")
            walk = f"a.user_id = {self._user} AND a.agent_id = {self._agent}{within}"
            passed = _PASSED_OF_AGENT.format(walk=walk)
            found.append(_Walk(frozenset({"agent"}), passed, _FOUND_OF_AGENT.replace("{walk}", walk)))
        return found or [self._walk("(VALUES (1)) AS once", mine, "user")]

    def _walk(self, keys: str, walk: str, *covers: str) -> _Walk:
        """Past the runs that have one of the keys."""
        walk += self._within.format(at="r.created_at", id="r.id")
        found = _FOUND.replace("{keys}", keys).replace("{walk}", walk)
        return _Walk(frozenset(covers), _PASSED.format(keys=keys, walk=walk), found)


def _statuses(wanted: Filter) -> Sequence[str] | None:
    """Those that are asked for, or follow from the reasons."""
    if wanted.statuses is not None or wanted.paused_reasons is None:
        return wanted.statuses
    return ["canceled" if reason == "user_cancel" else "paused" for reason in wanted.paused_reasons]
