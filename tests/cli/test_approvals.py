"""``runwarden approvals …`` and ``run approve|reject|edit`` beside a real node: nothing is approved unseen."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.api.harness import AGENT, Stack, Tools, stack, step
from tests.api.people import introduce
from tests.cli.command import at_a_terminal
from tests.cli.talking import Person
from tests.patience import eventually, wait_until

TWO = {"approvers": ["user:bob", "group:team"], "quorum": 2, "instructions": "Look twice.\nsha256:no"}
SCHEMA = {"type": "object", "properties": {"lines": {"type": "integer", "maximum": 9}}, "additionalProperties": False}


@pytest.fixture
async def live(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    async with stack(database, redis_url, redis_prefix) as opened:
        yield introduce(opened)


@pytest.fixture
def people(live: Stack, tmp_path: Path) -> dict[str, Person]:
    return {
        sub: Person(live.base, live.tokens.get(sub) or live.token(sub), tmp_path)
        for sub in ("ann", "bob", "gus", "otto")
    }


async def waiting(live: Stack, *, lines: int = 3, agent: str = AGENT, **approval: Any) -> tuple[str, str]:
    """A run of ann's that waits for approval, and the digest of what waits."""
    made = step("tidy", "streaming", agent=agent, arguments={"lines": lines}, approval_policy="manual")
    run_id = await live.start(made | ({"approval": approval} if approval else {}))
    return run_id, await digest(live, run_id)


async def digest(live: Stack, run_id: str) -> str:
    run = await live.until(run_id, "paused")
    assert run["paused_reason"] == "awaiting_approval", run
    found: str = run["steps_state"]["tidy"]["approval"]["digest"]
    return found


async def test_the_inbox_lists_what_waits_for_you_and_a_run_shows_all_of_it(
    live: Stack, people: dict[str, Person]
) -> None:
    first, seen = await waiting(live, **TWO, expires_in_ms=3_600_000)
    second, _ = await waiting(live)
    listed = (await people["bob"].says("approvals", "list")).stdout.splitlines()
    assert listed[0] == "age\trisk\tagent\ttool\trun\tstep\tagreed\tdecide by"
    (row,) = (line.split("\t") for line in listed[1:])
    assert row[0].endswith(" s")
    assert row[1:7] == ["medium", AGENT, "streaming", first, "tidy", "0/2"]
    assert row[7].endswith("UTC")
    assert [one["run_id"] for one in (await people["gus"].gets("approvals", "list"))["items"]] == [first]
    assert [one["run_id"] for one in (await people["ann"].gets("approvals", "list"))["items"]] == [second]
    third, _ = await waiting(live)
    page = await people["ann"].gets("approvals", "list", "--limit", "1")
    rest = await people["ann"].gets("approvals", "list", "--cursor", page["next_cursor"])
    assert [one["run_id"] for one in (*page["items"], *rest["items"])] == [second, third]
    assert '"approval"' not in json.dumps(await people["ann"].gets("run", "list"))
    nobody = await people["otto"].says("approvals", "list")
    assert (nobody.stdout, nobody.stderr) == ("", "Nothing waits for you.\n")
    shown = (await people["bob"].says("run", "show", first)).stdout
    card = [line.strip() for line in shown.splitlines()]
    assert f"streaming on {AGENT}   medium risk, writes, open world" in card
    assert "asked: user:bob or group:team" in card
    assert "0 of 2 have agreed" in card
    assert "│ sha256:no" in card
    assert seen in card


async def test_without_a_terminal_the_digest_is_asked_for_and_named(live: Stack, people: dict[str, Person]) -> None:
    run_id, seen = await waiting(live, **TWO)
    bob, gus, ann = people["bob"], people["gus"], people["ann"]
    named = ("run", "approve", run_id, "--step", "tidy")
    missing = await bob.refused(*named, code=6)
    assert missing["code"] == "digest_required"
    assert "--digest" in missing["hint"]
    assert "run show" in missing["hint"]
    assert (await bob.refused(*named, "--digest", "sha256:" + "0" * 64, code=6))["code"] == "digest_mismatch"
    assert (await ann.refused(*named, "--digest", seen, code=4))["code"] == "not_an_approver"
    told = await bob.says(*named, "--digest", seen, "--comment", "fine by me")
    assert (told.exit_code, told.stdout) == (0, f"{run_id} is paused (awaiting_approval)\n")
    assert "1 of 2 have agreed: bob" in (await gus.says("run", "show", run_id)).stdout
    approved = await gus.gets(*named, "--digest", seen)
    votes = approved["steps_state"]["tidy"]["approval"]["votes"]
    assert [(vote["by"], vote["comment"]) for vote in votes] == [("bob", "fine by me"), ("gus", None)]
    await live.until(run_id, "completed")
    watched = await ann.says("run", "watch", run_id)
    assert "     bob agrees (1 of 2)" in watched.stdout.splitlines()
    assert f"     {seen}" in watched.stdout.splitlines()
    assert f"approval approved by bob, gus: {seen}" in (await ann.says("run", "show", run_id)).stdout


async def test_at_a_terminal_the_call_is_shown_and_its_digest_goes_with_the_yes(
    live: Stack, people: dict[str, Person], home: Path
) -> None:
    run_id, seen = await waiting(live, allow_edit=True)
    ann = people["ann"]

    def approve() -> tuple[int, str]:
        with at_a_terminal("run", "approve", run_id, "--step", "tidy", home=home, url=ann.url, token=ann.token) as (
            command,
            type_in,
        ):
            command.until("Approve it? [y/N]")
            type_in("y\n")
            return command.ended(), command.text

    code, told = await asyncio.to_thread(approve)
    assert code == 0, told
    assert f"streaming on {AGENT}" in told
    assert "asked: whoever started the run" in told
    assert seen in told
    (vote,) = (await live.until(run_id, "completed"))["steps_state"]["tidy"]["approval"]["votes"]
    assert vote["digest"] == seen


async def test_a_question_is_asked_anew_about_what_somebody_edited(
    live: Stack, people: dict[str, Person], home: Path
) -> None:
    run_id, seen = await waiting(live, allow_edit=True)
    ann, loop = people["ann"], asyncio.get_running_loop()
    asked = asyncio.Event()

    def watch() -> tuple[int, str]:
        with at_a_terminal("run", "watch", run_id, home=home, url=ann.url, token=ann.token) as (command, type_in):
            command.until("or later [y/n/l]")
            loop.call_soon_threadsafe(asked.set)
            wait_until(lambda: command.text.count("or later [y/n/l]") == 2, what=lambda: command.text)
            type_in("y\n")
            return command.ended(), command.text

    watching = asyncio.create_task(asyncio.to_thread(watch))
    await asked.wait()
    edited = await live.decide(run_id, "edit", {"step_id": "tidy", "digest": seen, "arguments": {"lines": 1}})
    assert edited.status == 200, edited.body
    code, told = await watching
    assert code == 0, told
    approval = (await live.run(run_id))["steps_state"]["tidy"]["approval"]
    assert [vote["digest"] for vote in approval["votes"]] == [approval["digest"]]
    assert approval["digest"] != seen
    assert "[y/n/l] \r\n" in told, "what is told stands on a line of its own"


async def test_who_is_not_asked_may_go_on_watching(live: Stack, people: dict[str, Person], home: Path) -> None:
    run_id, seen = await waiting(live, approvers=["user:bob"])
    ann, loop = people["ann"], asyncio.get_running_loop()
    refused = asyncio.Event()

    def watch() -> tuple[int, str]:
        with at_a_terminal("run", "watch", run_id, home=home, url=ann.url, token=ann.token) as (command, type_in):
            command.until("or later [y/n/l]")
            type_in("y\n")
            command.until("you are none of them")
            loop.call_soon_threadsafe(refused.set)
            return command.ended(), command.text

    watching = asyncio.create_task(asyncio.to_thread(watch))
    await refused.wait()
    said = await live.decide(run_id, "approve", {"step_id": "tidy", "digest": seen}, sub="bob")
    assert said.status == 200, said.body
    code, told = await watching
    assert code == 0, told


async def test_who_says_no_to_the_card_has_decided_nothing(live: Stack, people: dict[str, Person], home: Path) -> None:
    run_id, _ = await waiting(live)
    ann = people["ann"]

    def reject() -> int:
        with at_a_terminal("run", "reject", run_id, home=home, url=ann.url, token=ann.token) as (command, type_in):
            command.until("Reject it? [y/N]")
            type_in("n\n")
            return command.ended()

    assert await asyncio.to_thread(reject) == 1
    assert (await live.run(run_id))["status"] == "paused"


async def test_arguments_are_edited_from_a_file_and_the_tools_schema_is_asked(
    live: Stack, people: dict[str, Person]
) -> None:
    strict = Tools("strict-1")
    strict.tool("streaming", strict._timed(strict._streaming), input_schema=SCHEMA)
    await live.gateway.connect(strict)
    run_id, seen = await waiting(live, agent="strict-1", allow_edit=True)
    ann = people["ann"]
    edit = ("run", "edit", run_id, "--step", "tidy", "--arguments")
    assert (await ann.refused("run", "edit", run_id, "--step", "tidy", code=2))["code"] == "arguments_required"
    file = ann.home / "arguments.json"
    file.write_text('{"lines": 99}')
    too_many = await ann.refused(*edit, str(file), code=7)
    assert (too_many["code"], "/arguments/lines" in too_many["detail"]) == ("invalid_arguments", True)
    file.write_text("[]")
    assert (await ann.refused(*edit, str(file), code=7))["code"] == "bad_file"
    told = await ann.says(*edit, "-", "--digest", seen, "--comment", "fewer", answer='{"lines": 2}')
    assert told.exit_code == 0, told.output
    now = await digest(live, run_id)
    assert f"What waits now is revision 2: {now}" in told.stderr
    assert (await ann.refused(*edit, str(file), "--digest", seen, code=7))["code"] == "bad_file"
    stale = await ann.refused("run", "approve", run_id, "--step", "tidy", "--digest", seen, code=6)
    assert stale["code"] == "digest_mismatch"
    assert (await ann.says("run", "approve", run_id, "--step", "tidy", "--digest", now)).exit_code == 0
    done = await live.until(run_id, "completed")
    assert done["steps_state"]["tidy"]["attempts"][0]["result_json"]["content"][0]["text"] == "2 lines"
    watched = (await ann.says("run", "watch", run_id)).stdout
    assert "ann changed its arguments; whoever had agreed must agree anew" in watched


async def test_at_a_terminal_the_editor_is_opened_on_what_waits(
    live: Stack, people: dict[str, Person], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, _ = await waiting(live, lines=7, allow_edit=True)
    ann = people["ann"]
    editor = home / "editor"
    editor.write_text('#!/bin/sh\nsed -i.old "s/7/2/" "$1"\n')
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("VISUAL", str(editor))

    def edit() -> tuple[int, str]:
        with at_a_terminal("run", "edit", run_id, home=home, url=ann.url, token=ann.token) as (command, _):
            return command.ended(), command.text

    code, told = await asyncio.to_thread(edit)
    assert code == 0, told
    approval = (await live.run(run_id))["steps_state"]["tidy"]["approval"]
    assert (approval["revision"], approval["arguments"], approval["edited_by"]) == (2, {"lines": 2}, "ann")


async def test_many_are_decided_by_a_file_with_a_line_each(live: Stack, people: dict[str, Person]) -> None:
    ann = people["ann"]
    (yes, seen), (no, _), (changed, _) = [await waiting(live, lines=n) for n in (1, 2, 3)]
    file = ann.home / "words.ndjson"
    words: list[dict[str, Any]] = [
        {"run_id": yes, "step_id": "tidy", "decision": "approve", "digest": seen, "age_ms": 5},
        {"run_id": no, "step_id": "tidy", "decision": "reject", "comment": "not today"},
        {"run_id": changed, "step_id": "tidy", "decision": "approve", "digest": seen},
    ]
    file.write_text("".join(json.dumps(word) + "\n" for word in words))
    told = await ann.says("approvals", "decide", "--file", str(file))
    assert told.exit_code == 6, told.output
    lines = told.stdout.splitlines()
    assert lines[:2] == [f"{yes} tidy approve applied", f"{no} tidy reject applied"]
    assert lines[2].startswith(f"{changed} tidy approve refused: ")
    assert "1 of 3 decisions were refused" in told.stderr
    assert (await live.until(yes, "completed"))["steps_state"]["tidy"]["approved_by"] == "ann"
    assert (await live.run(no))["error_code"] == "approval_rejected"

    inbox = await ann.gets("approvals", "list")
    decided = {"items": [one | {"decision": "approve"} for one in inbox["items"]]}
    again = await ann.says("approvals", "decide", "--file", "-", "--json", answer=json.dumps(decided))
    assert again.exit_code == 0, again.output
    assert [json.loads(line)["outcome"] for line in again.stdout.splitlines()] == ["applied"]
    for bad in ("", "nonsense", '[{"run_id": "x"}]'):
        file.write_text(bad)
        assert (await ann.refused("approvals", "decide", "--file", str(file), code=7))["code"] == "bad_file"


async def test_what_forbids_a_call_is_told_with_what_to_do(live: Stack, people: dict[str, Person]) -> None:
    ann = people["ann"]
    held = await live.post("/v1/holds", {"scope": "agent", "target": AGENT, "reason": "it smokes"}, sub="root")
    assert held.status == 200, held.body
    run_id = await live.start(step("s"))

    async def paused() -> bool:
        return (await live.run(run_id))["paused_reason"] == "held"

    await eventually(paused, what="the run being held")
    shown = await ann.says("run", "show", run_id)
    assert "it smokes" in shown.stdout
    assert "runwarden hold list" in shown.stderr
    assert (await ann.refused("run", "resume", run_id, code=6))["code"] == "held"
    watched = (await ann.says("run", "watch", run_id, "--until-pause")).stdout
    assert "     paused: held " in watched
    await live.post(f"/v1/holds/{held.body['hold_id']}/release", sub="root")
    await live.until(run_id, "completed")
    assert "     released: the run goes on" in (await ann.says("run", "watch", run_id)).stdout.splitlines()
