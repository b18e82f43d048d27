"""What a filter means: the same as asking each run, in the same order, whichever way the query goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, get_args
from uuid import UUID

import orjson
import pytest

from daemon.machine.state import RunStatus
from daemon.store.matching import FAR, Filter, matching
from daemon.store.pool import Pool
from daemon.store.workflows import Place

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
STATUSES = get_args(RunStatus)
REASONS = ("awaiting_approval", "step_failed", "held", "user_cancel")
AGENTS = ("agent-1", "ägent 2", "rare")
FLOWS = (UUID(int=1), UUID(int=2))
TITLES = ("Deploy", "Tidy up", "deploy it all")
RUNS, FILTERS = 300, 250
INSERT = """
INSERT INTO workflow_runs (id, workflow_id, user_id, status, paused_reason, nonce, created_at, title)
VALUES ($1, $2, $3, $4, $5, '', $6, $7)
"""
SPEC = "INSERT INTO workflow_run_specs (run_id, snapshot) VALUES ($1, $2::text::json)"

Run = Mapping[str, Any]


async def filled(pool: Pool, dice: Random) -> list[Run]:
    """Runs of every kind, some of another's, some of the same moment, some as copied: without title or snapshot."""
    made: list[Run] = []
    for _ in range(RUNS):
        status = dice.choice(STATUSES)
        reasons = {"paused": REASONS[:3], "canceled": REASONS[3:]}.get(status, (None,))
        run = {
            "id": UUID(int=dice.getrandbits(128)),
            "workflow_id": dice.choice(FLOWS),
            "user_id": dice.choice(("ann", "ann", "ann", "bob")),
            "status": status,
            "paused_reason": dice.choice(reasons),
            "created_at": BEGAN + timedelta(hours=dice.randrange(100)),
            "title": dice.choice(TITLES),
            "agents": dice.choices(AGENTS, weights=(9, 3, 1), k=dice.randrange(1, 4)) if dice.random() < 0.9 else None,
        }
        told = run["title"] if dice.random() < 0.8 or run["agents"] is None else None
        await pool.execute(INSERT, *list(run.values())[:6], told)
        if run["agents"] is not None:
            steps = [{"tool_config": {"agent_id": agent}} for agent in run["agents"]]
            await pool.execute(SPEC, run["id"], orjson.dumps({"title": run["title"], "steps": steps}).decode())
        made.append(run)
    return sorted(made, key=lambda run: (run["created_at"], run["id"]), reverse=True)


def any_filter(dice: Random, runs: list[Run]) -> Filter:
    def perhaps(make: Callable[[], Any]) -> Any:
        return make() if dice.random() < 0.35 else None

    def some(among: tuple[Any, ...]) -> list[Any]:
        return dice.choices(among, k=dice.randrange(1, 4))

    at = dice.choice(runs)
    return Filter(
        run_ids=[run["id"] for run in dice.choices(runs, k=40)] if dice.random() < 0.15 else None,
        statuses=perhaps(lambda: some(STATUSES)),
        paused_reasons=perhaps(lambda: some(REASONS)),
        workflow_id=perhaps(lambda: dice.choice((*FLOWS, UUID(int=3)))),
        agent_id=perhaps(lambda: dice.choice((*AGENTS, "nobody"))),
        created_after=perhaps(lambda: dice.choice(runs)["created_at"]),
        created_before=perhaps(lambda: dice.choice(runs)["created_at"]),
        title_has=perhaps(lambda: dice.choice(("DEPLOY", "i", "%"))),
        after=perhaps(lambda: Place(at["created_at"], at["id"])),
    )


def meant(run: Run, wanted: Filter) -> bool:
    """Whether ann's list has it."""
    reasons, at = wanted.paused_reasons, run["created_at"]
    return (
        run["user_id"] == "ann"
        and (wanted.run_ids is None or run["id"] in wanted.run_ids)
        and (wanted.statuses is None or run["status"] in wanted.statuses)
        and (reasons is None or run["paused_reason"] in reasons)
        and (wanted.workflow_id is None or run["workflow_id"] == wanted.workflow_id)
        and (wanted.agent_id is None or wanted.agent_id in (run["agents"] or ()))
        and (wanted.created_after is None or at >= wanted.created_after)
        and (wanted.created_before is None or at < wanted.created_before)
        and (wanted.title_has is None or wanted.title_has.lower() in run["title"].lower())
        and (wanted.after is None or (at, run["id"]) < wanted.after)
    )


@pytest.mark.parametrize("far", [FAR, 5])
async def test_a_filter_means_what_each_run_says_of_itself(pool: Pool, far: int) -> None:
    """``far``: how much the query counts before it takes a walk to be long."""
    dice = Random(far)
    runs = await filled(pool, dice)
    walks = 0
    for _ in range(FILTERS):
        wanted, limit = any_filter(dice, runs), dice.choice((1, 7, 500))
        query, arguments = matching("id", wanted, "ann", limit)
        assert f"LIMIT {FAR}" in query or "shortest" not in query
        found = await pool.fetch(query.replace(f"LIMIT {FAR}", f"LIMIT {far}"), *arguments)
        expected = [run["id"] for run in runs if meant(run, wanted)][:limit]
        assert [row["id"] for row in found] == expected, wanted
        walks += "shortest" in query
    assert walks > FILTERS // 5, "several ways were to be chosen from"
