"""The commands that talk to a node, against a real one: every exit code of docs/cli.md but those of ``test_away``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.harness import AGENT, Stack, stack
from tests.cli.command import UNUSED, at_a_terminal
from tests.cli.talking import Person

SPEC = f"""
title: Café
description: Two steps
steps:
  - id: first
    name: First
    tool_config: {{agent_id: {AGENT}, tool_name: streaming, arguments: {{lines: 3, since: 2026-01-02}}}}
  - id: second
    name: Second
    approval_policy: manual
    tool_config: {{agent_id: {AGENT}, tool_name: ok}}
"""
FAILING = SPEC.replace("tool_name: ok", "tool_name: failing").replace("    approval_policy: manual\n", "")


@pytest.fixture
async def live(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    async with stack(database, redis_url, redis_prefix) as opened:
        yield opened


@pytest.fixture
def ann(live: Stack, tmp_path: Path) -> Person:
    return Person(live.base, live.token(), tmp_path)


async def applied(ann: Person, spec: str) -> str:
    """The id of a workflow made from a file."""
    file = ann.home / "workflow.yaml"
    file.write_text(spec)
    made = await ann.gets("workflow", "apply", str(file))
    workflow_id: str = made["workflow_id"]
    return workflow_id


async def started(ann: Person, spec: str) -> str:
    told = await ann.says("run", "start", await applied(ann, spec))
    assert told.exit_code == 0, told.output
    return told.stdout.strip()


async def test_a_run_is_started_watched_approved_and_shown(ann: Person) -> None:
    run_id = await started(ann, SPEC)
    paused = await ann.says("run", "watch", run_id, "--until-pause")
    assert paused.exit_code == 12, paused.output
    assert "Café" in paused.stdout
    assert "│ 000002" in paused.stdout
    assert "waits for approval" in paused.stdout
    assert f"runwarden run approve|reject|cancel {run_id}" in paused.stdout

    unnamed = await ann.refused("run", "approve", run_id, code=2)
    assert unnamed["hint"] == f"The step that waits is second: runwarden run approve {run_id} --step second"
    wrong = await ann.refused("run", "approve", run_id, "--step", "first", code=6)
    assert wrong["code"] == "wrong_step"
    approved = await ann.gets("run", "approve", run_id, "--step", "second")
    assert approved["steps_state"]["second"]["approved_by"] == "ann"

    watched = await ann.says("run", "watch", run_id)
    assert watched.exit_code == 0, watched.output
    assert "The run is completed" in watched.stdout
    again = await ann.refused("run", "approve", run_id, "--step", "second", code=6)
    assert again["code"] == "not_paused"
    shown = await ann.says("run", "show", run_id)
    assert "✓ 2  Second  (ok)  success" in shown.stdout
    assert (await ann.gets("run", "show", run_id))["status"] == "completed"


async def test_watching_for_programs_is_an_event_a_line(ann: Person) -> None:
    run_id = await started(ann, SPEC)
    told = await ann.says("run", "watch", run_id, "--until-pause", "--json")
    assert told.exit_code == 12
    events = [json.loads(line) for line in told.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    paused = [event for event in events if event["event_type"] != "tool.log"][-1]  # lines of the log may come late
    assert paused["payload"]["paused_reason"] == "awaiting_approval"
    await ann.gets("run", "reject", run_id, "--step", "second", "--reason", "no")
    rest = await ann.says("run", "watch", run_id, "--json", "--after-seq", str(events[-1]["seq"]))
    assert rest.exit_code == 10
    later = [json.loads(line) for line in rest.stdout.splitlines()]
    assert later[0]["seq"] == events[-1]["seq"] + 1
    assert later[-1]["event_type"] == "run.failed"


async def test_a_failed_step_is_resumed_then_skipped_and_a_run_is_canceled(live: Stack, ann: Person) -> None:
    run_id = await started(ann, FAILING)
    failed = await ann.says("run", "watch", run_id, "--until-pause")
    assert failed.exit_code == 12
    assert "! it broke" in failed.stdout
    resumed = await ann.says("run", "resume", run_id)
    assert resumed.exit_code == 0, resumed.output
    await live.until(run_id, "paused")
    assert (await ann.says("run", "skip", run_id, "--step", "second")).exit_code == 0
    skipped = await ann.says("run", "watch", run_id)
    assert skipped.exit_code == 0
    assert "     skipped" in skipped.stdout.splitlines()

    marked = await started(ann, FAILING)
    await live.until(marked, "paused")
    assert (await ann.says("run", "mark-done", marked, "--step", "second")).exit_code == 2
    for blank in ("", "  "):
        refused = await ann.refused("run", "mark-done", marked, "--step", "second", "--note", blank, code=7)
        assert (refused["code"], "/note" in str(refused)) == ("invalid_body", True)
    told = await ann.says("run", "mark-done", marked, "--step", "second", "--note", "seen")
    assert told.exit_code == 0, told.output
    assert "     marked done" in (await ann.says("run", "watch", marked)).stdout.splitlines()

    other = await started(ann, SPEC)
    canceled = await ann.says("run", "cancel", other, "--reason", "enough")
    assert (canceled.exit_code, canceled.stdout) == (0, f"{other} is canceled\n")
    assert (await ann.says("run", "watch", other)).exit_code == 11


async def test_what_is_wrong_is_told_with_what_to_do_next(ann: Person) -> None:
    missing = "00000000-0000-4000-8000-000000000000"
    assert (await ann.refused("run", "show", missing, code=5))["code"] == "not_found"
    assert (await ann.refused("run", "watch", "../x?y", code=5))["code"] == "not_found"
    assert (await ann.refused("run", "start", "no-uuid", code=7))["code"] == "invalid_body"
    assert "RUNWARDEN_TOKEN" in (await ann.refused("run", "show", missing, code=4, token="wrong"))["hint"]
    assert (await ann.refused("run", "show", missing, code=4, token=None))["code"] == "no_token"
    away = await ann.refused("run", "show", missing, code=3, url=f"http://{UNUSED}")
    assert (away["code"], "runwarden dev" in away["hint"]) == ("unreachable", True)
    tls = await ann.refused("run", "show", missing, code=3, url=ann.url.replace("http:", "https:"))
    assert (tls["code"], "http://" in tls["hint"]) == ("unreachable", True)
    assert "no /v1 at its end" in (await ann.refused("run", "list", code=5, url=f"{ann.url}/v1"))["hint"]
    gone = str(ann.home / "gone")
    for words in (
        ("workflow", "apply"),
        ("approvals", "decide", "--file"),
        ("agent", "bind", "--owner", "x", "--file"),
    ):
        unread = (await ann.refused(*words, gone, code=7))["detail"]
        assert unread.endswith(": No such file or directory"), unread
    assert (await ann.says("run", "list", "--limit", "many")).exit_code == 2
    assert (await ann.refused("run", "show", missing, "--profile", "none", code=2))["code"] == "no_such_profile"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title: T\ntitle: U\nsteps: []\n", "twice"),
        ("- a list\n", "no object"),
        ("title: [\n", "cannot be read"),
        ("title: T\nsteps: []\n", "line 2, /steps: must have at least 1 item"),
        ("title: 7\nsteps: []\n", "line 1, /title: must be text, not 7: put it in quotes"),
        ("# mine\nsteps: []\n", "line 2, /title: is required: what people call the workflow"),
        (f"{SPEC}    aproval_policy: manual\n", "line 12, /steps/1/aproval_policy: is not known here: did you mean"),
        (SPEC.replace("id: second", "id: first"), "line 8, /steps/1/id: step id 'first' is already used by step 0"),
        ('{"title": "T",\n "spec": {\n\t"steps": [\n\t{}]}}', "workflow:\n  /spec/steps/0/id: is required"),
        ('{"title": "T",\n "spec": {\n "steps": [\n {}]}}', "line 4, /spec/steps/0/id: is required"),
        ("title: T\nspec: {steps: [{id: a}]}\ndescription: 7\n", "line 3, /description: must be text"),
        ("title: T\nsteps: []\nvariables: {x: !!python/object:os.system {}}\n", "cannot be read"),
    ],
)
async def test_a_file_that_is_no_workflow_is_refused(ann: Person, text: str, says: str) -> None:
    file = ann.home / "bad.yaml"
    file.write_text(text)
    assert says in (await ann.refused("workflow", "apply", str(file), code=7))["detail"]


async def test_a_date_in_a_file_stays_text(live: Stack, ann: Person) -> None:
    run = await live.run(await started(ann, SPEC))
    first = run["workflow_snapshot"]["steps"][0]
    assert first["tool_config"]["arguments"]["since"] == "2026-01-02"


async def test_at_a_terminal_the_decision_is_asked_in_place(live: Stack, ann: Person, home: Path) -> None:
    run_id = await started(ann, SPEC)

    def watch() -> tuple[int, str]:
        with at_a_terminal("run", "watch", run_id, home=home, url=ann.url, token=ann.token) as (command, type_in):
            command.until("or later [y/n/l]")
            type_in("y\n")
            return command.ended(), command.text

    code, told = await asyncio.to_thread(watch)
    assert code == 0, told
    assert "awaiting_approval: Second" in told
    assert "\x1b[" in told
    assert "The run is completed" in told
    second = (await live.run(run_id))["steps_state"]["second"]
    assert second["approved_by"] == "ann"
    assert second["approval"]["votes"][0]["digest"] == second["approval"]["digest"]
    assert second["approval"]["digest"] in told


async def test_a_question_is_taken_back_when_somebody_else_answers(live: Stack, ann: Person, home: Path) -> None:
    run_id = await started(ann, SPEC)
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch() -> tuple[int, str]:
        with at_a_terminal("run", "watch", run_id, home=home, url=ann.url, token=ann.token) as (command, _):
            command.until("or later [y/n/l]")
            loop.call_soon_threadsafe(asked.set)
            return command.ended(), command.text

    watching = asyncio.create_task(asyncio.to_thread(watch))
    await asked.wait()
    assert (await live.decide(run_id, "approve", {"step_id": "second"})).status == 200
    code, told = await watching
    assert code == 0, told
    assert "The run is completed" in told


async def test_a_token_that_expires_ends_the_watching_with_what_to_do(live: Stack, ann: Person) -> None:
    run_id = await started(ann, SPEC)
    await live.until(run_id, "paused")
    ann.token = live.token(lifetime_s=2)
    told = await ann.says("run", "watch", run_id)
    assert told.exit_code == 4, told.output
    assert "RUNWARDEN_TOKEN" in told.stderr


async def test_a_file_renews_its_workflow_and_lists_tell_of_what_there_is(ann: Person) -> None:
    workflow_id = await applied(ann, SPEC)
    file = ann.home / "workflow.yaml"
    file.write_text(f"workflow_id: {workflow_id}\n{SPEC.replace('Two steps', 'Still two')}")
    assert (await ann.gets("workflow", "apply", str(file)))["version"] == 2
    shown = await ann.says("workflow", "show", workflow_id)
    assert "description: Still two" in shown.stdout
    listed = await ann.says("workflow", "list")
    assert listed.stdout.splitlines()[1].startswith(f"{workflow_id}\tCafé\t2\t")

    run_id = (await ann.says("run", "start", workflow_id)).stdout.strip()
    assert (await ann.says("run", "watch", run_id, "--until-pause")).exit_code == 12
    paused = await ann.gets("run", "list", "--status", "paused")
    assert [(one["run_id"], one["title"], one["step_count"]) for one in paused["items"]] == [(run_id, "Café", 2)]
    assert (await ann.gets("run", "list", "--status", "failed"))["items"] == []


async def test_an_archived_workflow_starts_nothing(ann: Person) -> None:
    workflow_id = await applied(ann, SPEC)
    gone = await ann.says("workflow", "archive", workflow_id)
    assert (gone.exit_code, gone.stdout) == (0, f"Archived {workflow_id} (Café)\n")
    assert (await ann.gets("workflow", "archive", workflow_id))["archived_at"]
    assert (await ann.refused("run", "start", workflow_id, code=6))["code"] == "workflow_archived"
    assert (await ann.gets("workflow", "list"))["items"] == []
    assert (await ann.refused("workflow", "archive", "none", code=5))["code"] == "not_found"


async def test_at_a_terminal_an_archive_is_confirmed(ann: Person, home: Path) -> None:
    workflow_id = await applied(ann, SPEC)

    def archive() -> int:
        with at_a_terminal("workflow", "archive", workflow_id, home=home, url=ann.url, token=ann.token) as (
            command,
            type_in,
        ):
            command.until("cannot be taken back. [y/N]")
            type_in("n\n")
            return command.ended()

    assert await asyncio.to_thread(archive) == 1
    assert (await ann.gets("workflow", "show", workflow_id))["archived_at"] is None


async def test_the_same_key_starts_one_run(ann: Person) -> None:
    workflow_id = await applied(ann, SPEC)
    runs = {(await ann.says("run", "start", workflow_id, "--key", "once")).stdout.strip() for _ in range(2)}
    assert len(runs) == 1
    assert len((await ann.gets("run", "list"))["items"]) == 1
