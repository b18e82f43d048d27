"""What commands ask of routes by their contract, and do when answers are lost or late: a stand-in answers.

``test_lists_…`` and ``test_workflows_…`` need nothing of it that a real node would not give.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.stand_in import RUN, StandIn
from tests.cli.talking import Person

WORKFLOW = "01990000-0000-7000-8000-0000000000aa"


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
async def ann(stand_in: StandIn, tmp_path: Path) -> AsyncIterator[Person]:
    server = stand_in.server()
    await server.start_server()
    yield Person(str(server.make_url("/")).rstrip("/"), "a-token", tmp_path)
    await server.close()


async def test_lists_of_runs_are_filtered_by_the_api_and_shown_harmlessly(stand_in: StandIn, ann: Person) -> None:
    asked = (
        "run",
        "list",
        "--status",
        "paused",
        "--status",
        "failed",
        "--paused-reason",
        "awaiting_approval",
        "--workflow",
        WORKFLOW,
    )
    asked += ("--agent", "a", "--search", "tidy up", "--after", "2026-01-01T00:00:00Z", "--limit", "7")
    told = await ann.says(*asked)
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines() == [
        "run\ttitle\tstatus\tstep\tstarted",
        f"{RUN['run_id']}\tTidy up[2J\tpaused (awaiting_approval)\t2/3\t{RUN['created_at']}",
    ]
    assert "More: --cursor abc" in told.stderr
    assert stand_in.queries == [
        [
            ("status", "paused"),
            ("status", "failed"),
            ("paused_reason", "awaiting_approval"),
            ("workflow_id", WORKFLOW),
            ("agent_id", "a"),
            ("q", "tidy up"),
            ("created_after", "2026-01-01T00:00:00Z"),
            ("limit", "7"),
        ]
    ]
    assert (await ann.gets("run", "list", "--cursor", "abc"))["items"] == [RUN]


async def test_workflows_are_changed_by_the_id_that_their_file_remembers(stand_in: StandIn, ann: Person) -> None:
    file = ann.home / "flow.yaml"
    file.write_text(f"workflow_id: {WORKFLOW}\ntitle: One\nsteps: []\n")
    changed = await ann.says("workflow", "apply", str(file))
    assert changed.stdout == f"Changed {WORKFLOW} (One, version 1)\n", changed.output
    again = await ann.gets("workflow", "apply", "--id", WORKFLOW, str(file))
    assert (again["version"], again["spec"]) == (2, {"title": "One", "steps": []})

    listed = await ann.says("workflow", "list", "--archived")
    assert listed.stdout.splitlines()[1].startswith(f"{WORKFLOW}\tOne\t2\t")
    assert stand_in.queries == [[("limit", "50"), ("archived", "true")]]
    shown = await ann.says("workflow", "show", WORKFLOW)
    assert shown.stdout == f"workflow_id: {WORKFLOW}\ntitle: One\nsteps: []\n"
    file.write_text(shown.stdout)
    assert (await ann.gets("workflow", "apply", str(file)))["version"] == 3
    assert (await ann.refused("workflow", "show", "none", code=5))["code"] == "not_found"


async def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_started_twice(
    stand_in: StandIn, ann: Person
) -> None:
    stand_in.lose_answers = 2
    made = await ann.gets("run", "start", WORKFLOW)
    assert made == {"run_id": "run-0"}
    assert len(stand_in.keys) == 3
    assert len(set(stand_in.keys)) == 1
    assert await ann.gets("run", "start", WORKFLOW, "--key", "mine") == {"run_id": "run-1"}
    assert await ann.gets("run", "start", WORKFLOW, "--key", "mine") == {"run_id": "run-1"}


async def test_a_token_whose_answer_is_lost_is_made_once_and_one_is_told_what_to_do(
    stand_in: StandIn, ann: Person
) -> None:
    assert (await ann.gets("service-token", "create", "ci", "--scope", "viewer"))["token"] == "rwt_0"
    stand_in.lose_answers, before = 1, len(stand_in.keys)
    refused = await ann.says("service-token", "create", "ci", "--scope", "viewer", "--json")
    error = json.loads(refused.stderr)["error"]
    assert (refused.exit_code, refused.stdout, error["code"]) == (6, "", "token_already_made")
    assert "service-token revoke" in error["hint"]
    assert len(stand_in.keys) == before + 2
    assert len(set(stand_in.keys[before:])) == 1
    assert len(stand_in.made) == 2


async def test_a_verdict_that_comes_late_is_waited_for(stand_in: StandIn, ann: Person) -> None:
    stand_in.verdicts = [None, "applied"]
    approved = await ann.says("run", "approve", "r", "--step", "s")
    assert approved.exit_code == 0, approved.output
    stand_in.verdicts = [None, "refused", "refused"]
    assert (await ann.refused("run", "approve", "r", "--step", "s", code=6))["code"] == "pause_changed"


async def test_a_word_without_a_verdict_has_an_exit_code_of_its_own(stand_in: StandIn, ann: Person) -> None:
    told = await ann.says("run", "approve", "r", "--step", "s")
    assert told.exit_code == 8
    assert "written down" in told.stderr
    assert "run show" in told.stderr
