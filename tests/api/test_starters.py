"""``forbid_self`` is about all who started the run: its user, and who made the service tokens that spoke for them when
it was started, and when its workflow was saved.
"""

from __future__ import annotations

from typing import Any

import pytest

from daemon.api import rights
from tests.api.case import Case, outcome
from tests.api.test_inbox import who_sees

pytestmark = pytest.mark.asyncio(loop_scope="module")
FORBIDDEN = (403, "not_an_approver")
WRONG = "sha256:" + "0" * 64
PEOPLE = ("ann", "bob", "olga", "ada", "ned", "gus", "root", "otto")
NAMED = {"approvers": ["user:root", "user:ned"], "forbid_self": True}


async def with_token(case: Case, maker: str, user_id: str) -> str:
    """As whom to ask with a token to start runs, made by ``maker`` for ``user_id``, who may use the agent."""
    if (user_id, "use") not in case.grants:
        await case.grant(user_id, "use")
    body = {"name": "robot", "scopes": ["operator"]} | ({"user_id": user_id} if user_id != maker else {})
    name = f"token of {maker} for {user_id}"
    case.stack.tokens[name] = (await case.ok("POST", "/v1/service-tokens", maker, body))["token"]
    return name


async def waiting(case: Case, sub: str, **terms: Any) -> tuple[str, Any]:
    """A run that this caller started, which waits, and its approval."""
    run_id = await case.stack.start(case.manual(**terms), sub=sub)
    run = await case.until(run_id, "paused", "awaiting_approval", sub=sub)
    return run_id, run["steps_state"]["a"]["approval"]


async def test_whoever_made_the_token_of_a_run_decides_nothing_of_it_and_is_told_who_does(case: Case) -> None:
    run_id, approval = await waiting(case, await with_token(case, "root", "ghost"), **NAMED, allow_edit=True)
    digest = {"digest": approval["digest"]}
    for verb, said in (("approve", digest), ("reject", {}), ("edit", {"arguments": {"n": 2}}), ("approve", {})):
        refused = await case.say(run_id, verb, "root", **said)
        assert outcome(refused) == FORBIDDEN, verb
        assert "You made the service token" in refused.body["detail"]
        assert "somebody else must" in refused.body["detail"]
    items = [{"run_id": run_id, "step_id": "a", "decision": "approve", **digest}]
    (told,) = (await case.ok("POST", "/v1/approvals/decide", "root", {"items": items}))["items"]
    assert (told["outcome"], told["code"]) == ("refused", "not_an_approver")
    assert outcome(await case.say(run_id, "resume", "root")) == (409, "use_approve")
    assert (await case.say(run_id, "approve", "ned", **digest)).status == 200
    await case.until(run_id, "completed", sub="root")


async def test_what_one_may_not_decide_is_not_in_ones_inbox(case: Case) -> None:
    theirs, _ = await waiting(case, await with_token(case, "root", "ghost"), **NAMED)
    others, _ = await waiting(case, "ann", **NAMED)
    assert await who_sees(case, theirs) == {"ned"}
    assert await who_sees(case, others) == {"ned", "root"}


async def test_the_actor_goes_by_the_same_rule_also_where_it_reads_the_run_anew(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, _ = await waiting(case, await with_token(case, "root", "ghost"), **NAMED)
    await case.passive(run_id)
    monkeypatch.setattr(rights, "who_may_not", lambda *_, **__: None)  # the door stands open
    refused = await case.say(run_id, "approve", "root")
    assert outcome(refused) == FORBIDDEN
    assert "You made the service token" in refused.body["detail"]
    assert (await case.say(run_id, "approve", "ned")).status == 200


async def test_a_quorum_is_of_people_who_did_not_start_it(case: Case) -> None:
    terms = {"approvers": ["user:root", "user:ned", "user:ada"], "forbid_self": True, "quorum": 2}
    run_id, approval = await waiting(case, await with_token(case, "root", "ghost"), **terms)
    assert (await case.say(run_id, "approve", "ned", digest=approval["digest"])).status == 200
    assert outcome(await case.say(run_id, "approve", "root", digest=approval["digest"])) == FORBIDDEN
    assert (await case.say(run_id, "approve", "ada", digest=approval["digest"])).status == 200
    await case.until(run_id, "completed", sub="root")


async def test_it_is_the_run_that_counts_however_often_its_step_is_tried_again(case: Case) -> None:
    """And that named approvers are asked anew, though a bare word of theirs is enough."""
    robot = await with_token(case, "root", "ghost")
    run_id = await case.stack.start(case.manual("failing", **NAMED), sub=robot)
    for _ in range(2):
        run = await case.until(run_id, "paused", "awaiting_approval", sub=robot)
        digest = run["steps_state"]["a"]["approval"]["digest"]
        assert outcome(await case.say(run_id, "approve", "root", digest=digest)) == FORBIDDEN
        assert (await case.say(run_id, "approve", "ned", digest=digest)).status == 200
        await case.until(run_id, "paused", "step_failed", sub=robot)
        assert (await case.stack.decide(run_id, "resume", {}, sub="root")).status == 200


async def test_a_token_of_ones_own_has_no_other_starter_and_neither_has_a_token_of_the_identity_provider(
    case: Case,
) -> None:
    terms = {"approvers": ["user:ann", "user:root", "user:ned"], "forbid_self": True}
    for sub in (await with_token(case, "ann", "ann"), "ann"):
        run_id, _ = await waiting(case, sub, **terms)
        assert outcome(await case.say(run_id, "approve", "ann")) == FORBIDDEN
        assert (await case.say(run_id, "approve", "root")).status == 200


async def test_only_forbid_self_asks_who_made_the_token(case: Case) -> None:
    """And a token's maker is no more than that: where whoever started the run decides, it is its user."""
    robot = await with_token(case, "root", "ghost")
    run_id, _ = await waiting(case, robot, approvers=["user:root"])
    assert (await case.say(run_id, "approve", "root")).status == 200
    run_id, _ = await waiting(case, robot)
    assert outcome(await case.say(run_id, "approve", "root")) == FORBIDDEN


async def test_a_run_from_before_makers_were_kept_is_decided_as_before(case: Case) -> None:
    run_id, _ = await waiting(case, await with_token(case, "root", "ghost"), **NAMED)
    await case.passive(run_id)
    older = """UPDATE workflow_run_specs SET principal = (principal::jsonb - 'token_maker' - 'spec_maker')::json
        WHERE run_id = $1::text::uuid AND principal ->> 'token_maker' = 'root' RETURNING 1"""
    assert await case.stack.sql(older, run_id), "it was kept"
    assert await who_sees(case, run_id) == {"ned", "root"}
    assert (await case.say(run_id, "approve", "root")).status == 200


async def test_it_is_who_made_the_token_whatever_became_of_it(case: Case) -> None:
    run_id, _ = await waiting(case, await with_token(case, "root", "ghost"), **NAMED)
    newest, *_ = (await case.ok("GET", "/v1/service-tokens?all=true", "root"))["items"]
    assert newest["user_id"] == "ghost"
    await case.ok("DELETE", f"/v1/service-tokens/{newest['token_id']}", "root")
    assert outcome(await case.say(run_id, "approve", "root")) == FORBIDDEN


@pytest.mark.parametrize("starter", ["ann", "token of ann for ann", "token of root for ghost", "token of root for ned"])
@pytest.mark.parametrize("policy", [False, True])
@pytest.mark.parametrize(
    "approvers", [["user:root", "user:ned", "user:ann"], ["group:team", "user:ada", "user:olga", "user:root"]]
)
async def test_the_inbox_is_of_those_whom_the_door_lets_in(
    case: Case, starter: str, policy: bool, approvers: list[str]
) -> None:
    if " for " in starter:
        _, _, maker, _, user_id = starter.split()
        await with_token(case, maker, user_id)
    if policy:
        await case.policy(requires_approval=True)
        await case.grant("root", "approve")
        await case.grant("ned", "approve")
    run_id, _ = await waiting(case, starter, approvers=approvers, forbid_self=True)
    let_in = set()
    for sub in PEOPLE:
        told = outcome(await case.say(run_id, "approve", sub, digest=WRONG))
        assert told in (FORBIDDEN, (404, "not_found"), (409, "digest_mismatch"), (403, "role_required")), (sub, told)
        if told == (409, "digest_mismatch"):
            let_in.add(sub)
    assert let_in == await who_sees(case, run_id)
    assert not let_in & set(starter.split())
    assert let_in or starter.endswith("root for ned"), "both whom all of it would leave have started it"


async def renewed(case: Case, workflow_id: str, sub: str) -> None:
    """The next version of it, saved by ``sub``."""
    spec = {"steps": [case.manual(**NAMED)]}
    await case.ok("PUT", f"/v1/workflows/{workflow_id}", sub, {"title": "T", "spec": spec})


async def started(case: Case, workflow_id: str, **more: Any) -> str:
    """A run of it that ghost started with a token of the identity provider, and that waits."""
    body = {"workflow_id": workflow_id, **more}
    run_id: str = (await case.ok("POST", "/v1/workflow-runs", "ghost", body))["run_id"]
    await case.until(run_id, "paused", "awaiting_approval", sub="ghost")
    return run_id


async def test_whoever_made_the_token_that_the_workflow_was_saved_with_decides_nothing_of_it(case: Case) -> None:
    robot = await with_token(case, "root", "ghost")
    workflow_id = await case.stack.workflow(case.manual(**NAMED, allow_edit=True), sub=robot)
    for more in ({}, {"run_timeout_ms": 600_000}):
        run_id = await started(case, workflow_id, **more)
        approval = (await case.stack.run(run_id, sub="ghost"))["steps_state"]["a"]["approval"]
        digest = {"digest": approval["digest"]}
        for verb, said in (("approve", digest), ("reject", {}), ("edit", {"arguments": {"n": 2}}), ("approve", {})):
            refused = await case.say(run_id, verb, "root", **said)
            assert outcome(refused) == FORBIDDEN, verb
            assert "the workflow was saved with" in refused.body["detail"]
        assert await who_sees(case, run_id) == {"ned"}
        assert (await case.say(run_id, "approve", "ned", **digest)).status == 200
        await case.until(run_id, "completed", sub="ghost")


async def test_it_is_the_version_that_was_started_that_counts(case: Case) -> None:
    robot = await with_token(case, "root", "ghost")
    workflow_id = await case.stack.workflow(case.manual(**NAMED), sub="ghost")
    first = await started(case, workflow_id)
    await renewed(case, workflow_id, robot)
    second = await started(case, workflow_id)
    await renewed(case, workflow_id, "ghost")
    third = await started(case, workflow_id)
    assert outcome(await case.say(second, "approve", "root")) == FORBIDDEN
    for run_id in (first, third):
        assert (await case.say(run_id, "approve", "root")).status == 200


async def test_the_actor_knows_who_wrote_it_also_where_it_reads_the_run_anew(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    robot = await with_token(case, "root", "ghost")
    run_id = await started(case, await case.stack.workflow(case.manual(**NAMED), sub=robot))
    await case.passive(run_id)
    monkeypatch.setattr(rights, "who_may_not", lambda *_, **__: None)  # the door stands open
    assert outcome(await case.say(run_id, "approve", "root")) == FORBIDDEN
    assert (await case.say(run_id, "approve", "ned")).status == 200


async def test_a_version_that_a_node_of_the_release_before_saved_has_no_other_author(case: Case) -> None:
    robot = await with_token(case, "root", "ghost")
    workflow_id = await case.stack.workflow(case.manual(**NAMED), sub=robot)
    by_then = "UPDATE workflows SET version = version + 1 WHERE id = $1::text::uuid AND version = 1 RETURNING 1"
    assert await case.stack.sql(by_then, workflow_id)
    run_id = await started(case, workflow_id)
    assert (await case.say(run_id, "approve", "root")).status == 200
