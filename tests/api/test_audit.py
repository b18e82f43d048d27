"""Who did what, from where: lines of decisions, templates and refusals; who reads which; pages and filters."""

from __future__ import annotations

import re
from typing import Any

import pytest
from aiohttp import web

from daemon.api import gate, refusals
from daemon.api.context import ATTEMPT
from daemon.api.refusals import Refusals
from daemon.auth.caller import Caller
from daemon.errors import StoreUnavailable
from daemon.store.audit import Deed
from daemon.store.trail import Trail
from tests.api.answers import assert_problem
from tests.api.auditing import AUDIT, lines, paused
from tests.api.harness import AGENT, Stack, step
from tests.api.people import introduce
from tests.patience import eventually

CLIENT = "a test's client/1"


@pytest.fixture(autouse=True)
def people(live: Stack) -> None:
    introduce(live)


# --- what is written ------------------------------------------------------------------------------------------------

WORDS: dict[str, dict[str, Any]] = {
    "approve": {"step_id": "a"},
    "reject": {"step_id": "a", "reason": "why"},
    "resume": {},
    "cancel": {"reason": "why"},
}


@pytest.mark.parametrize("verb", WORDS)
async def test_a_word_keeps_who_said_it_from_where_and_with_what(live: Stack, verb: str) -> None:
    run_id = await paused(live)
    body = WORDS[verb] | {"issued_by": "eve", "roles": ["admin"], "address": "1.2.3.4", "client": "a lie"}
    told = await live.ask("POST", f"/v1/workflow-runs/{run_id}/{verb}", json=body, headers={"User-Agent": CLIENT})
    assert told.status == 200, told.body
    start, line = await lines(live, f"?run_id={run_id}")
    assert (start["action"], start["actor"], start["outcome"]) == ("run.start", "ann", "applied")
    assert (line["action"], line["actor"], line["outcome"], line["owner"]) == (f"run.{verb}", "ann", "applied", "ann")
    assert (line["address"], line["client"], line["via"]) == ("127.0.0.1", CLIENT, None)
    assert line["roles"] == ["approver", "operator", "viewer"]
    asked = verb != "cancel"  # a cancel is no word about the call
    assert (line["step_id"], line["comment"]) == ("a" if asked else None, WORDS[verb].get("reason"))
    digest = (await live.run(run_id))["steps_state"]["a"]["approval"]["digest"]
    assert (line["agent_id"], line["digest"]) == ((AGENT, digest) if asked else (None, None))


async def test_a_resume_that_approves_nothing_names_no_call(live: Stack) -> None:
    run_id = await live.start(step("a", "failing", approval_policy="manual"))
    await live.until(run_id, "paused")
    assert (await live.decide(run_id, "resume")).status == 200
    await eventually(lambda: _failed(live, run_id), what="the failure")
    assert (await live.decide(run_id, "resume")).status == 200
    first, second = await lines(live, f"?run_id={run_id}&action=run.resume")
    assert (first["step_id"], first["agent_id"]) == ("a", AGENT)
    assert (second["step_id"], second["agent_id"], second["digest"]) == (None, None, None)


async def _failed(stack: Stack, run_id: str) -> bool:
    return bool((await stack.run(run_id))["paused_reason"] == "step_failed")


@pytest.mark.parametrize("verb", ["skip", "mark-done"])
async def test_so_do_words_about_failures(live: Stack, verb: str) -> None:
    run_id = await live.start(step("a", "failing"))
    await live.until(run_id, "paused")
    assert (await live.decide(run_id, verb, {"step_id": "a", "note": "seen", "reason": "seen"})).status == 200
    *_, line = await lines(live, f"?run_id={run_id}")
    assert (line["action"], line["step_id"], line["comment"]) == (f"run.{verb.replace('-', '_')}", "a", "seen")


async def test_bulk_words_are_lines_each(live: Stack) -> None:
    runs = [await paused(live) for _ in range(3)]
    body = {"action": "cancel", "filter": {"status": ["paused"]}, "reason": "all of them"}
    assert (await live.post("/v1/workflow-runs/bulk", body)).status == 200
    told = await lines(live, "?action=run.cancel")
    assert sorted(line["run_id"] for line in told) == sorted(runs)
    assert {(line["actor"], line["address"], line["comment"]) for line in told} == {("ann", "127.0.0.1", "all of them")}


async def test_a_word_that_was_refused_is_a_line_with_its_code(live: Stack) -> None:
    run_id = await paused(live)
    assert_problem(await live.decide(run_id, "approve", {"step_id": "b"}), 409, "wrong_step")
    *_, line = await lines(live, f"?run_id={run_id}")
    assert (line["action"], line["outcome"], line["code"]) == ("run.approve", "refused", "wrong_step")


async def test_so_is_one_that_was_refused_before_it_was_a_command(live: Stack) -> None:
    run_id = await live.start(step("a"))
    await live.until(run_id, "completed")
    assert_problem(await live.decide(run_id, "reject", {"step_id": "a", "reason": "late"}), 409, "not_paused")
    assert (await live.decide(run_id, "cancel")).status == 200, "there is nothing to do, so nothing was decided"
    *_, line = await lines(live, f"?run_id={run_id}")
    assert (line["action"], line["outcome"], line["code"]) == ("run.reject", "refused", "not_paused")
    assert (line["step_id"], line["comment"], line["owner"]) == ("a", "late", "ann")


async def test_so_are_those_of_a_batch_whether_they_became_commands_or_not(live: Stack) -> None:
    over, waits = await live.start(step("a")), await paused(live)
    await live.until(over, "completed")
    strange, digest = await paused(live, sub="bob"), "sha256:" + "0" * 64
    words = [
        {"run_id": over, "step_id": "a", "decision": "reject", "digest": digest, "comment": "late"},
        {"run_id": waits, "step_id": "a", "decision": "approve", "digest": digest},
        {"run_id": waits, "step_id": "a", "decision": "reject", "comment": "twice"},
        {"run_id": strange, "step_id": "a", "decision": "approve"},
    ]
    for _ in range(2):  # the second is a repeat, and does nothing
        keyed = {"Idempotency-Key": "once"}
        told = await live.ask("POST", "/v1/approvals/decide", json={"items": words}, headers=keyed)
        assert [item["code"] for item in told.body["items"]] == [
            *("not_paused", "digest_mismatch"),
            *("named_twice", "not_found"),
        ]
    alone = await live.decide(over, "reject", {"step_id": "a", "digest": digest, "reason": "late"})
    assert_problem(alone, 409, "not_paused")
    told_of = await lines(live, "?outcome=refused")
    found = [(line["run_id"], line["action"], line["code"], line["comment"]) for line in told_of]
    assert sorted(found[:-1]) == sorted(
        [
            (over, "run.reject", "not_paused", "late"),
            (waits, "run.approve", "digest_mismatch", None),
            (waits, "run.reject", "named_twice", "twice"),
        ]
    )
    (of_batch,) = [line for line in told_of[:-1] if line["run_id"] == over]
    of_its_own = {"id", "at"}
    assert {name: of_batch[name] for name in of_batch.keys() - of_its_own} == {
        name: told_of[-1][name] for name in told_of[-1].keys() - of_its_own
    }, "the same line as if it had been said alone"
    assert of_batch["digest"] == digest


async def test_those_of_a_batch_are_bounded_as_all_are(live: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST", 3)
    over = await live.start(step("a"))
    await live.until(over, "completed")
    words = [{"run_id": over, "step_id": "a", "decision": "approve"}] * 5
    assert (await live.post("/v1/approvals/decide", {"items": words})).status == 200
    assert len(await lines(live, "?outcome=refused")) == 3


async def test_a_client_s_name_of_any_bytes_is_kept_as_far_as_it_can_be(live: Stack) -> None:
    run_id = await paused(live)
    url = f"{live.base}/v1/workflow-runs/{run_id}/cancel"
    strange = b"caf\xe9 \xf0\x9f\x92\xa1".decode("utf-8", "surrogateescape")
    headers = live.headers() | {"User-Agent": strange + "x" * 500}
    async with live.http.post(url, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
    *_, line = await lines(live, f"?run_id={run_id}")
    assert line["client"].startswith("caf")
    assert len(line["client"]) == 300


async def test_templates_are_lines_when_they_change(live: Stack) -> None:
    body = {"title": "One", "spec": {"steps": [step("a")]}}
    keyed = {"Idempotency-Key": "once"}
    for _ in range(2):
        made = await live.ask("POST", "/v1/workflows", json=body, headers=keyed)
    place = f"/v1/workflows/{made.body['workflow_id']}"
    assert (await live.ask("PUT", place, json=body | {"title": "Two", "version": 1})).status == 200
    assert (await live.ask("PUT", place, json=body | {"title": "Late", "version": 1})).status == 412
    for _ in range(2):
        assert (await live.ask("DELETE", place)).status == 200
    told = await lines(live, "?action=workflow.", sub="ann")
    assert [(line["action"], line["detail"]) for line in told] == [
        ("workflow.created", {"title": "One", "version": 1}),
        ("workflow.renewed", {"title": "Two", "version": 2}),
        ("workflow.archived", {"title": "Two", "version": 2}),
    ]
    ((actor, owner, target),) = {(line["actor"], line["owner"], line["target"]) for line in told}
    assert (actor, owner, target) == ("ann", "ann", made.body["workflow_id"])


# --- what was refused -----------------------------------------------------------------------------------------------


async def test_what_a_role_does_not_allow_is_a_line_that_the_owner_reads_too(live: Stack) -> None:
    run_id = await paused(live)
    assert_problem(await live.decide(run_id, "approve", {"step_id": "a"}, sub="vera"), 403, "role_required")
    assert_problem(await live.post("/v1/workflows", {}, sub="vera"), 403, "role_required")
    about_run, about_flows = await lines(live, "?outcome=refused")
    assert (about_run["action"], about_run["actor"], about_run["code"]) == (
        *("decisions_approve", "vera"),
        "role_required",
    )
    assert (about_run["run_id"], about_run["owner"], about_run["roles"]) == (run_id, "ann", ["viewer"])
    assert "approver" in about_run["detail"]["message"]
    assert (about_flows["action"], about_flows["run_id"], about_flows["owner"]) == ("workflows_create", None, None)
    assert await lines(live, "?outcome=refused", sub="ann") == [about_run]
    hers = await lines(live, sub="vera")
    assert [line["id"] for line in hers] == [about_run["id"], about_flows["id"]]
    assert hers[0]["owner"] is None, "she asked about a run that is not hers: whose it is is not hers to know"


async def test_what_is_not_there_or_another_s_is_no_line(live: Stack) -> None:
    run_id = await paused(live)
    before = await lines(live)
    assert_problem(await live.decide(run_id, "cancel", sub="bob"), 404, "not_found")
    assert_problem(await live.ask("GET", "/v1/nothing", sub="bob"), 404, "no_such_route")
    async with live.http.post(f"{live.base}/v1/workflow-runs/{run_id}/cancel") as anonymous:
        assert anonymous.status == 401
    assert await lines(live) == before


async def test_nobody_floods_the_audit(live: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST", 3)
    for _ in range(6):
        assert_problem(await live.post("/v1/workflows", {}, sub="vera"), 403, "role_required")
    assert len(await lines(live, "?actor=vera")) == 3
    metrics = (await live.ask("GET", "/metrics")).body
    assert re.search(r"runwarden_audit_withheld_total [3-9]", metrics)


def test_the_bound_is_of_each_caller_and_minute_and_says_what_it_withheld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MOST", 2)
    monkeypatch.setattr(refusals, "CALLERS", 2)
    bound = Refusals()
    assert [bound.admit("eve", now) for now in (0, 1, 2, 59)] == [0, 0, None, None]
    assert bound.admit("bob", 3) == 0
    assert bound.admit("eve", 60) == 2
    assert bound.admit("eve", 61) == 0
    assert bound.admit("eve", 62) is None
    assert bound.admit("joe", 62) == 0
    assert set(bound._windows) == {"eve", "joe"}, "whoever was refused first is forgotten first"


async def test_a_caller_is_refused_also_while_the_audit_is_away(live: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(Trail, "note", away)
    assert_problem(await live.post("/v1/workflows", {}, sub="vera"), 403, "role_required")


async def test_a_handler_may_say_what_was_attempted(live: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gate._origin

    def attempting(request: web.Request, caller: Caller) -> Any:
        request[ATTEMPT] = Deed(action="thing.taken", target="x", owner="bob", detail={"how": "boldly"})
        return real(request, caller)

    monkeypatch.setattr(gate, "_origin", attempting)
    assert_problem(await live.ask("GET", "/v1/workflows/" + "0" * 32, sub="ann"), 404, "not_found")
    monkeypatch.setattr(gate, "_origin", real)
    (line,) = await lines(live)
    assert (line["action"], line["target"], line["owner"], line["code"]) == ("thing.taken", "x", "bob", "not_found")
    assert line["detail"] == {"how": "boldly", "message": "There is no such workflow, or it is not yours."}


# --- who reads what, and how ----------------------------------------------------------------------------------------


async def test_an_admin_reads_all_and_others_what_is_theirs_or_what_they_did(live: Stack) -> None:
    await paused(live), await paused(live, sub="bob")
    await live.sql(
        "INSERT INTO audit_log (actor, action, outcome, owner, agent_id) VALUES"
        " ('bob', 'grant.added', 'applied', 'ann', 'agent-7'), ('root', 'policy.set', 'applied', NULL, NULL)"
    )
    everything = [line["action"] for line in await lines(live)]
    assert everything == ["workflow.created", "run.start"] * 2 + ["grant.added", "policy.set"]
    hers = [(line["actor"], line["action"]) for line in await lines(live, sub="ann")]
    assert hers == [("ann", "workflow.created"), ("ann", "run.start"), ("bob", "grant.added")]
    his = [(line["actor"], line["action"], line["owner"]) for line in await lines(live, sub="bob")]
    assert his == [("bob", "workflow.created", "bob"), ("bob", "run.start", "bob"), ("bob", "grant.added", None)]
    assert await lines(live, sub="eve") == []


async def test_filters_are_of_every_kind_and_together(live: Stack) -> None:
    one, two = await paused(live), await paused(live)
    await live.decide(one, "cancel", {"reason": "Because of the Moon"})
    await live.decide(two, "approve", {"step_id": "nowhere"})
    await live.sql(
        "INSERT INTO audit_log (actor, action, outcome, owner, agent_id) VALUES"
        " ('bob', 'grant.added', 'applied', 'ann', 'agent-7')"
    )
    whole = await lines(live)

    async def found(query: str, **more: Any) -> list[str]:
        return [line["action"] for line in await lines(live, query, **more)]

    assert await found("?action=run.c") == ["run.cancel"]
    assert await found("?outcome=refused") == ["run.approve"]
    assert await found(f"?run_id={one}") == ["run.start", "run.cancel"]
    assert await found("?agent_id=agent-7") == ["grant.added"]
    assert await found("?actor=bob") == ["grant.added"]
    assert await found("?q=the%20mOOn") == ["run.cancel"]
    assert await found("?q=%25") == []
    assert await found(f"?run_id={two}&outcome=applied") == ["run.start"]
    assert await found("?actor=bob", sub="ann") == ["grant.added"]
    assert await found("?agent_id=agent-7&action=run.", sub="ann") == []
    assert await found(f"?run_id={one}", sub="bob") == []
    cut = whole[3]["at"]
    assert [line["id"] for line in await lines(live, f"?until={cut}")] == [
        line["id"] for line in whole if line["at"] < cut
    ]
    since = [line["id"] for line in await lines(live, f"?since={cut}")]
    assert since == [line["id"] for line in whole if line["at"] >= cut]


@pytest.mark.parametrize("sub", ["root", "ann"])
async def test_pages_go_back_in_time_and_what_is_new_moves_nothing(live: Stack, sub: str) -> None:
    for _ in range(3):
        await paused(live)
    newest_first = [line["id"] for line in await lines(live, sub=sub)][::-1]
    seen: list[int] = []
    cursor = ""
    for expected in (4, 2):
        page = (await live.ask("GET", f"{AUDIT}?limit=4{cursor}", sub=sub)).body
        assert len(page["items"]) == expected
        seen += [line["id"] for line in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"
        await paused(live)
    assert page["next_cursor"] is None
    assert seen == newest_first
    for any_cursor in ("_" * 32, "A" * 32):
        assert (await live.ask("GET", f"{AUDIT}?cursor={any_cursor}", sub=sub)).status == 200


@pytest.mark.parametrize(
    "query", ["outcome=maybe", "who=ann", "since=yesterday", "run_id=1", "format=csv", "limit=0", "actor="]
)
async def test_what_nobody_understands_is_refused(live: Stack, query: str) -> None:
    assert_problem(await live.ask("GET", f"{AUDIT}?{query}"), 422, "invalid_parameter")
