"""The audit of decisions: one line for each verdict, with where the word came from, however often it is committed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import uuid_utils.compat as uuid7
from msgspec.structs import replace

from daemon.auth.caller import Origin
from daemon.machine.commands import Command, CommandId, CommandKind, RunId, Who
from daemon.store import quarantine
from daemon.store.commands import Commands, NewCommand
from tests.machine.scenario import WORKFLOW_ID, Story, acked, failed, step
from tests.store.conftest import Book

EVE = Origin(
    actor="eve",
    roles=("approver", "viewer"),
    groups=("ops",),
    via="token:0190",
    address="192.0.2.7",
    client="curl/8 (é)",
)
SPOKEN = {"actor": "eve", "roles": ["approver", "viewer"], "via": "token:0190", "address": "192.0.2.7"} | {
    "client": "curl/8 (é)"
}


async def said(book: Book, story: Story, kind: CommandKind, **payload: Any) -> Command:
    """A word of Eve's as a committed row, and as the run's owner will read it."""
    number = CommandId(uuid7.uuid7())
    seen = None if kind == "cancel" else story.run.paused_seq
    await Commands(book.pool).add(
        NewCommand(id=number, run_id=story.run.id, kind=kind, payload=payload, seen_seq=seen, origin=EVE)
    )
    found = (await book.claims.open_commands([story.run.id]))[story.run.id]
    return next(one for one in found if one.id == number)


async def lines(book: Book, *but: str) -> list[dict[str, Any]]:
    """The audit log, oldest first, without the actions ``but``."""
    return [line for line in await book.rows("audit_log") if line["action"] not in but]


async def test_an_owner_reads_with_which_roles_and_groups_a_word_was_said(book: Book) -> None:
    story = await book.open(step("a", manual=True))
    await book.write(story)
    told = Who(
        roles=EVE.roles, groups=EVE.groups, via="token:0190", address="192.0.2.7", client="curl/8 (é)"
    )  # all but who it was
    word = await said(book, story, "approve", step_id="a")
    assert (word.issued_by, word.who) == ("eve", told)

    await Commands(book.pool).say(
        CommandId(uuid7.uuid7()),
        "reject",
        {"step_id": "a"},
        run_id=story.run.id,
        user_id="ann",
        origin=EVE,
        of=("paused",),
        sees_pause=True,
    )
    words = (await book.claims.open_commands([story.run.id]))[story.run.id]
    assert [(one.kind, one.issued_by, one.who) for one in words[-2:]] == [
        ("approve", "eve", told),
        ("reject", "eve", told),
    ]


async def test_a_run_s_start_is_in_the_audit_with_who_began_it(book: Book) -> None:
    run_id = RunId(uuid7.uuid7())
    story, start = Story(step("a"), run_id=run_id, started=False), uuid7.uuid7()
    await book.runs.create(
        run_id=run_id,
        workflow_id=WORKFLOW_ID,
        user_id="ann",
        nonce=bytes(16),
        snapshot=story.run.spec.model_dump_json(),
        command_id=start,
        origin=EVE,
    )
    assert await lines(book) == [], "nobody has decided on it yet"
    await quarantine.quarantine(book_url(book), really=True)  # which begins what has not begun
    (line,) = await lines(book)
    assert (line["action"], line["outcome"], line["run_id"], line["owner"]) == ("run.start", "applied", run_id, "ann")
    assert {name: line[name] for name in SPOKEN} == SPOKEN


def book_url(book: Book) -> str:
    return book.lane._url


WORDS: dict[CommandKind, dict[str, Any]] = {
    "approve": {"step_id": "a", "digest": "sha256:12", "comment": "looked at it"},
    "reject": {"step_id": "a", "reason": "looked at it"},
    "resume": {},
    "skip": {"step_id": "a", "reason": "looked at it"},
    "mark_done": {"step_id": "a", "note": "looked at it"},
    "cancel": {"reason": "looked at it"},
}


@pytest.mark.parametrize("kind", WORDS)
async def test_each_verdict_is_one_line_with_all_that_was_said(book: Book, kind: CommandKind) -> None:
    story = await book.open(step("a", manual=kind in ("approve", "reject")))
    await book.write(story)
    if not story.run.paused_reason:
        story.hear(acked(story.req), failed(story.req, "broken", "why"))
        await book.write(story)
    word = await said(book, story, kind, **WORDS[kind])
    story.turn(commands=[word])
    await book.write(story)
    (line,) = await lines(book, "run.start")
    assert {name: line[name] for name in SPOKEN} == SPOKEN
    assert (line["action"], line["outcome"], line["code"]) == (f"run.{kind}", "applied", None)
    assert (line["run_id"], line["owner"]) == (story.run.id, "ann")
    assert line["step_id"] == WORDS[kind].get("step_id")
    assert line["digest"] == WORDS[kind].get("digest")
    assert line["comment"] == ("looked at it" if kind != "resume" else None)
    seen = {"seen_seq": word.seen_seq} if word.seen_seq is not None else {}
    assert orjson.loads(line["detail"]) == {"command_id": str(word.id), "applied_seq": story.run.last_seq} | seen
    (command,) = [row for row in await book.rows("workflow_run_commands") if row["id"] == word.id]
    assert line["at"] > command["created_at"]


async def test_a_refused_word_is_a_line_with_its_code(book: Book) -> None:
    story = await book.open(step("a", manual=True))
    await book.write(story)
    first, second = [await said(book, story, kind, step_id="a") for kind in ("approve", "reject")]
    story.turn(commands=[first, second])
    await book.write(story)
    applied, refused = await lines(book, "run.start")
    assert (applied["action"], applied["outcome"], applied["code"]) == ("run.approve", "applied", None)
    assert (refused["action"], refused["outcome"], refused["code"]) == ("run.reject", "refused", "not_paused")


async def test_a_commit_that_is_repeated_leaves_no_second_line(book: Book) -> None:
    story = await book.open(step("a", manual=True))
    await book.write(story)
    word = await said(book, story, "resume")
    story.turn(commands=[replace(word, seen_seq=99)])  # refused: it moves nothing, so a lost reply leads to a repeat
    (told,) = book.told(story)
    await book.lane.commit([told])
    await book.lane.commit([told])
    (line,) = await lines(book, "run.start")
    assert (line["outcome"], line["code"]) == ("refused", "pause_changed")


async def test_what_does_not_pass_the_fence_leaves_no_line(book: Book) -> None:
    story, other = await book.open(step("a", manual=True)), await book.open(step("a", manual=True))
    await book.write(story, other)
    before = await lines(book)
    for one in (story, other):
        one.turn(commands=[await said(book, one, "approve", step_id="a")])
    (lost,), (kept,) = book.told(story), book.told(other)
    await book.lane.commit([replace(lost, owner="thief", epoch=0), kept])
    (line,) = (await lines(book))[len(before) :]
    assert line["run_id"] == other.run.id
