"""The audit of decisions: one line for each verdict, with where the word came from, however often it is committed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest
import uuid_utils.compat as uuid7
from msgspec.structs import replace

from daemon.auth.caller import Caller, Origin
from daemon.machine.commands import Command, CommandId, CommandKind, RunId, Who
from daemon.store import quarantine, trail
from daemon.store.audit import Deed, note
from daemon.store.commands import Commands, NewCommand
from daemon.store.pool import Pool
from daemon.store.trail import Search, Spot, Trail
from tests.machine.scenario import WORKFLOW_ID, Story, acked, done, failed, step
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
    story = await book.open(step("a", manual=True, approvers=["user:eve"]))
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
        by=Caller("ann"),
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
    "approve": {"step_id": "a", "comment": "looked at it"},
    "reject": {"step_id": "a", "reason": "looked at it"},
    "resume": {},
    "skip": {"step_id": "a", "reason": "looked at it"},
    "mark_done": {"step_id": "a", "note": "looked at it"},
    "cancel": {"reason": "looked at it"},
}


@pytest.mark.parametrize("kind", WORDS)
async def test_each_verdict_is_one_line_with_all_that_was_said(book: Book, kind: CommandKind) -> None:
    asked = {"manual": True, "approvers": ["user:eve"]} if kind in ("approve", "reject") else {}
    story = await book.open(step("a", **asked))
    await book.write(story)
    digest = story.run.revision.digest if story.run.revision is not None else None
    if not story.run.paused_reason:
        story.hear(acked(story.req), failed(story.req, "broken", "why"))
        await book.write(story)
    given = {"digest": digest} if kind == "approve" else {}
    word = await said(book, story, kind, **WORDS[kind], **given)
    story.turn(commands=[word])
    await book.write(story)
    (line,) = await lines(book, "run.start")
    assert {name: line[name] for name in SPOKEN} == SPOKEN
    assert (line["action"], line["outcome"], line["code"]) == (f"run.{kind}", "applied", None)
    assert (line["run_id"], line["owner"]) == (story.run.id, "ann")
    assert line["step_id"] == WORDS[kind].get("step_id")
    assert line["digest"] == digest
    assert line["agent_id"] == ("agent-1" if digest is not None else None)
    assert line["comment"] == ("looked at it" if kind != "resume" else None)
    seen = {"seen_seq": word.seen_seq} if word.seen_seq is not None else {}
    assert orjson.loads(line["detail"]) == {"command_id": str(word.id), "applied_seq": story.run.last_seq} | seen
    (command,) = [row for row in await book.rows("workflow_run_commands") if row["id"] == word.id]
    assert line["at"] > command["created_at"]


async def test_a_refused_word_is_a_line_with_its_code(book: Book) -> None:
    story = await book.open(step("a", manual=True, approvers=["user:eve"]))
    await book.write(story)
    first, second = [await said(book, story, kind, step_id="a") for kind in ("approve", "reject")]
    story.turn(commands=[first, second])
    await book.write(story)
    applied, refused = await lines(book, "run.start")
    assert (applied["action"], applied["outcome"], applied["code"]) == ("run.approve", "applied", None)
    assert (refused["action"], refused["outcome"], refused["code"]) == ("run.reject", "refused", "not_paused")


async def test_a_commit_that_is_repeated_leaves_no_second_line(book: Book) -> None:
    story = await book.open(step("a", manual=True, approvers=["user:eve"]))
    await book.write(story)
    word = await said(book, story, "resume")
    story.turn(commands=[replace(word, seen_seq=99)])  # refused: it moves nothing, so a lost reply leads to a repeat
    (told,) = book.told(story)
    await book.lane.commit([told])
    await book.lane.commit([told])
    (line,) = await lines(book, "run.start")
    assert (line["outcome"], line["code"]) == ("refused", "pause_changed")


async def test_what_does_not_pass_the_fence_leaves_no_line(book: Book) -> None:
    story, other = (
        await book.open(step("a", manual=True, approvers=["user:eve"])),
        await book.open(step("a", manual=True, approvers=["user:eve"])),
    )
    await book.write(story, other)
    before = await lines(book)
    for one in (story, other):
        one.turn(commands=[await said(book, one, "approve", step_id="a")])
    (lost,), (kept,) = book.told(story), book.told(other)
    await book.lane.commit([replace(lost, owner="thief", epoch=0), kept])
    (line,) = (await lines(book))[len(before) :]
    assert line["run_id"] == other.run.id


async def test_a_line_is_its_run_s_or_its_agent_s_owner_s_unless_it_says_whose(book: Book) -> None:
    story = await book.open(user="ann")
    await book.pool.execute("INSERT INTO agent_bindings (agent_id, owner, bound_by) VALUES ('desk', 'bob', 'root')")
    deeds = [
        Deed(action="of.a.run", run_id=story.run.id, agent_id="desk"),
        Deed(action="of.an.agent", agent_id="desk"),
        Deed(action="of.nothing", run_id=RunId(uuid7.uuid7()), agent_id="none"),
        Deed(action="of.whom.it.says", run_id=story.run.id, owner="joe"),
    ]
    async with book.pool.acquire() as connection:
        for deed in deeds:
            await note(connection, EVE, deed)
    assert [line["owner"] for line in await lines(book)] == ["ann", "bob", None, "joe"]


async def test_each_attempt_keeps_the_arguments_that_it_was_made_with(book: Book) -> None:
    told = {"path": "/srv/é", "depth": 2.0, "deep": {"list": [1, None, True]}}
    first, second = step("a"), step("b")
    first["tool_config"]["arguments"], second["tool_config"]["arguments"] = told, {}
    story = await book.open(first, second)
    story.hear(acked(story.req), failed(story.req, "broken", "why"))
    story.say("resume")
    story.hear(acked(story.req), done(story.req, {"n": 1}))
    await book.write(story)
    kept = [
        (row["step_index"], row["attempt"], row["state"], orjson.loads(row["arguments"]))
        for row in await book.rows("workflow_run_attempts", story.run.id)
    ]
    assert sorted(kept, key=lambda one: one[:2]) == [
        (0, 0, "failed", told),
        (0, 1, "done", told),
        (1, 0, "intent", {}),
    ]


LIMIT = 50
SEARCHES = {
    "everything": Search(),
    "a while": Search(since=datetime(2026, 1, 3, tzinfo=UTC), until=datetime(2026, 1, 4, tzinfo=UTC)),
    "somebody's": Search(actor="user-7"),
    "of a run": Search(run_id=UUID(int=7)),
    "of an agent": Search(agent_id="agent-7"),
    "further back": Search(after=Spot(datetime(2026, 1, 3, tzinfo=UTC), 5000)),
    "kinds that are common": Search(action="run.", outcome="applied"),
}


@pytest.mark.parametrize("user", [None, "user-7"])
async def test_a_page_is_read_by_an_index_and_costs_no_more_the_longer_the_log(pool: Pool, user: str | None) -> None:
    await pool.execute(
        "INSERT INTO audit_log (at, actor, owner, action, outcome, run_id, agent_id)"
        " SELECT timestamptz '2026-01-01Z' + make_interval(secs => n * 20), 'user-' || n % 40, 'user-' || n % 41,"
        " 'run.start', 'applied', lpad(to_hex(n % 100), 32, '0')::uuid, 'agent-' || n % 100"
        " FROM generate_series(1, 20000) AS n"
    )
    await pool.execute("ANALYZE audit_log")
    for name, wanted in SEARCHES.items():
        assert await Trail(pool).listed(wanted, user_id=user, limit=LIMIT), name
        query, arguments = trail._query(wanted, user, LIMIT)
        ((told,),) = await pool.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *arguments)
        scans = [node for node in nodes(orjson.loads(told)[0]["Plan"]) if node.get("Relation Name") == "audit_log"]
        assert scans
        assert "Seq Scan" not in {scan["Node Type"] for scan in scans}, (name, told)
        if user is None or name not in ("of a run", "of an agent"):  # of one user there are few of these anyway
            read = sum(scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0) for scan in scans)
            assert read <= 3 * LIMIT, (name, told)


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """A plan's nodes, flat."""
    return [plan, *(node for part in plan.get("Plans", ()) for node in nodes(part))]
