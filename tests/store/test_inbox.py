"""The inbox of approvals: the same as asking of each open call who is asked, and no walk past what others are asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import orjson
import pytest

from daemon.auth.caller import Caller
from daemon.store import approvals
from daemon.store.approvals import FEW, Approvals
from daemon.store.pool import Pool
from tests.store.test_lists import MODES, executed, rows_of

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
FLOW = UUID(int=1)
NOBODY = UUID(int=0)
PEOPLE = {"ann": {"ops"}, "bob": set(), "cyd": {"ops", "sec"}, "dan": set()}
OWNERS = {"agent-1": "ann", "agent-2": "bob"}
GRANTED = {("agent-1", "group:sec"): ["read*"], ("agent-2", "user:ann"): ["*"]}
RUN = """
INSERT INTO workflow_runs (id, workflow_id, user_id, status, paused_reason, current_step_index, nonce, created_at)
VALUES ($1, $2, $3, $4, $5, $6, '', $7)
"""
SPEC = """
INSERT INTO workflow_run_specs (run_id, snapshot, principal)
VALUES ($1, '{"steps":[{},{}]}', $2::text::json)
"""
ASKED = """
INSERT INTO workflow_run_approvals (run_id, step_index, revision, state, agent_id, tool_name, digest, risk,
    requires_approval, approvers, terms, votes, opened_at_ms)
VALUES ($1, 1, $2, $3, $4, $5, 'd', 'low', $6, $7, $8::text::json, $9::text::json, $10)
"""

Call = dict[str, Any]


def any_call(dice: Random, number: int) -> Call:
    """A call that waits, most of them, and the run that it is of."""
    return {
        "run_id": UUID(int=dice.getrandbits(128)),
        "user": dice.choice(list(PEOPLE)),
        "standing": dice.choice(
            [("paused", "awaiting_approval", 1)] * 5 + [("paused", "held", 1), ("running", None, 1)]
        ),
        "made": dice.choice(({}, {"token_maker": "cyd"}, {"spec_maker": "cyd"})),
        "revision": dice.randrange(3),
        "state": "open" if dice.random() < 0.9 else "approved",
        "agent": dice.choice(list(OWNERS)),
        "tool": dice.choice(("read_all", "write")),
        "forced": dice.random() < 0.3,
        "approvers": dice.choice(([], [], ["user:bob"], ["group:ops"], ["group:sec", "user:dan"])),
        "forbid_self": dice.random() < 0.3,
        "voted": dice.choice((None, None, "ann")),
        "opened_at_ms": dice.randrange(number + 1),
    }


async def write(pool: Pool, call: Call) -> None:
    run_id, (status, reason, step) = call["run_id"], call["standing"]
    await pool.execute(RUN, run_id, FLOW, call["user"], status, reason, step, BEGAN + timedelta(seconds=1))
    await pool.execute(SPEC, run_id, orjson.dumps(call["made"]).decode())
    votes = [] if call["voted"] is None else [{"by": call["voted"]}]
    about = (call["state"], call["agent"], call["tool"], call["forced"], call["approvers"])
    texts = (orjson.dumps(one).decode() for one in ({"forbid_self": call["forbid_self"]}, votes))
    await pool.execute(ASKED, run_id, call["revision"], *about, *texts, call["opened_at_ms"])


def waits_for(call: Call, who: str) -> bool:
    """Whether who is asked, has not answered, and may answer."""
    subjects = {f"user:{who}", *(f"group:{group}" for group in PEOPLE[who])}
    named = bool(subjects & set(call["approvers"]))
    patterns = [
        p for (agent, subject), ps in GRANTED.items() if agent == call["agent"] and subject in subjects for p in ps
    ]
    granted = any(pattern == "*" or call["tool"].startswith(pattern.rstrip("*")) for pattern in patterns)
    if call["forced"]:
        asked = (named or not call["approvers"]) and (OWNERS[call["agent"]] == who or granted)
    else:
        asked = named if call["approvers"] else call["user"] == who
    stands = call["state"] == "open" and call["standing"] == ("paused", "awaiting_approval", 1)
    barred = call["forbid_self"] and who in (call["user"], *call["made"].values())
    return stands and asked and not barred and call["voted"] != who


async def bind(pool: Pool) -> None:
    """The agents to their owners, and to nobody else."""
    await pool.execute("DROP TRIGGER tests_free_agents ON workflow_run_specs")
    for agent, owner in OWNERS.items():
        await pool.execute("INSERT INTO agent_bindings (agent_id, owner, bound_by) VALUES ($1, $2, $2)", agent, owner)
    for (agent, subject), tools in GRANTED.items():
        await pool.execute(
            "INSERT INTO agent_grants (id, agent_id, subject, permission, tools, granted_by)"
            " VALUES (gen_random_uuid(), $1, $2, 'approve', $3, 'ann')",
            *(agent, subject, tools),
        )


@pytest.mark.parametrize("few", [FEW, 3])
async def test_an_inbox_is_what_each_open_call_says_of_whom_it_asks(pool: Pool, few: int) -> None:
    """``few``: how many calls of a kind are looked at all."""
    dice = Random(few)
    await bind(pool)
    calls = [any_call(dice, number) for number in range(250)]
    for call in calls:
        await write(pool, call)
    calls.sort(key=lambda call: (call["opened_at_ms"], call["run_id"]))
    query = approvals._INBOX.replace(str(FEW), str(few))
    for who, groups in PEOPLE.items():
        mine = [call for call in calls if waits_for(call, who)]
        assert len(mine) > 10
        subjects = sorted(Caller(who, groups=frozenset(groups)).subjects)
        for after in (None, mine[4], *mine[6::7], mine[-1]):
            place = (-1, NOBODY) if after is None else (after["opened_at_ms"], after["run_id"])
            found = await pool.fetch(query, who, subjects, *place, 7)
            expected = [call for call in mine if (call["opened_at_ms"], call["run_id"]) > place][:7]
            assert [row["run_id"] for row in found] == [call["run_id"] for call in expected], who


FILL = """
WITH run AS (
    INSERT INTO workflow_runs (id, workflow_id, user_id, status, paused_reason, current_step_index, nonce)
    SELECT gen_random_uuid(), $1, 'bob', 'paused', 'awaiting_approval', 1, '' FROM generate_series(1, 5000) RETURNING id
)
INSERT INTO workflow_run_approvals (run_id, step_index, revision, state, agent_id, tool_name, digest, risk,
    requires_approval, approvers, terms, opened_at_ms)
SELECT id, 1, 0, 'open', 'agent-2', 'write', 'd', 'low', $3, $2, '{}', n FROM (
    SELECT id, row_number() OVER () AS n FROM run) numbered
"""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("approvers", "forced"), [([], False), (["group:ops"], False), ([], True)])
async def test_what_others_are_asked_is_not_read_for_who_is_asked_little(
    pool: Pool, mode: str, approvers: list[str], forced: bool
) -> None:
    await bind(pool)
    await pool.execute(FILL, FLOW, approvers, forced)
    await write(
        pool,
        any_call(Random(1), 1)
        | {"standing": ("paused", "awaiting_approval", 1), "user": "dan"}
        | {"state": "open", "forced": False, "approvers": [], "forbid_self": False, "opened_at_ms": 9999},
    )
    await pool.execute("VACUUM ANALYZE")
    dan = Caller("dan")
    assert len((await Approvals(pool).waiting_for(dan, after=None, limit=50)).requests) == 1
    read = await executed(pool, mode, approvals._INBOX, ["dan", sorted(dan.subjects), -1, NOBODY, 51])
    assert sum(rows_of(scan) for scan in read) < 20, read
