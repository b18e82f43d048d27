"""No sequence of requests makes a tool run whose exact call was not approved by a quorum of those who may.

As ``tests/machine/test_approval_property``, over the real API and the dev Gateway, which says what really ran; with the
same rules, told from nothing in the daemon. Each seed is a run that everybody talks to.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import Any

import pytest

from tests.api.case import Case, digest_of
from tests.api.people import GROUPS
from tests.machine.rules import Standing, may_decide

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("hasty_holds")]
PEOPLE = ("ann", "ned", "gus", "ada", "olga", "bob", "root", "otto")
SUBJECTS = ("user:ann", "user:ned", "group:team", "user:ada", "user:olga")


class Crowd:
    """Everybody, talking to one run; ``said`` is each yes that was not refused, by revision."""

    def __init__(self, case: Case, chance: Random, *, policed: bool) -> None:
        self.case = case
        self.chance = chance
        self.standing = Standing(requires=policed, deciders=frozenset({"user:olga", "user:ada"}))
        self.terms: dict[str, Any] = {
            "approvers": chance.sample(SUBJECTS, chance.randint(1, 4)),
            "quorum": chance.choice([1, 2, 2, 3]),
            "forbid_self": chance.random() < 0.3,
            "allow_edit": chance.random() < 0.6,
        }
        self.run_id = ""
        self.said: dict[int, list[tuple[str, str]]] = defaultdict(list)
        self.editor: dict[int, str] = {}

    async def begin(self) -> None:
        self.run_id, _ = await self.case.waiting(self.case.manual(**self.terms))

    async def approval(self) -> Any:
        return (await self.case.stack.run(self.run_id, sub="ann"))["steps_state"]["a"]["approval"]

    async def act(self) -> None:
        verb = self.chance.choices(
            ["approve", "batch", "resume", "edit", "skip", "mark-done", "hold", "look"], [24, 6, 3, 3, 1, 1, 1, 1]
        )[0]
        by = self.chance.choice(PEOPLE)
        revision = await self.approval()
        if verb in ("approve", "batch"):
            await self._approve(by, revision, in_a_batch=verb == "batch")
        elif verb == "resume":
            if (await self.case.say(self.run_id, "resume", by)).status == 200:
                self.said[revision["revision"]].append((by, "bare"))
        elif verb == "edit":
            told = await self.case.say(self.run_id, "edit", by, arguments={"n": self.chance.randint(1, 3)})
            if told.status == 200:
                self.editor[told.body["steps_state"]["a"]["approval"]["revision"]] = by
        elif verb == "hold":
            hold_id = await self.case.hold()
            await self._approve(by, revision, in_a_batch=False)
            await self.case.release(hold_id)
        elif verb == "look":
            path = f"/v1/workflow-runs/{self.run_id}/approve"
            body = {"step_id": "a", "digest": revision["digest"]}
            looked = await self.case.stack.ask(
                "GET", path, sub=by, json=body, headers={"X-HTTP-Method-Override": "POST"}
            )
            assert looked.status == 405
        else:
            assert (await self.case.say(self.run_id, verb, by, note="done")).status != 200

    async def _approve(self, by: str, revision: Any, *, in_a_batch: bool) -> None:
        digest = self.chance.choices([revision["digest"], None, "sha256:" + "0" * 64], [8, 1, 1])[0]
        said = {"step_id": "a"} | ({"digest": digest} if digest else {})
        if in_a_batch:
            body = {"items": [{"run_id": self.run_id, "decision": "approve", **said}]}
            told = await self.case.stack.post("/v1/approvals/decide", body, sub=by)
            heard = told.status == 200 and told.body["items"][0]["outcome"] == "applied"
        else:
            heard = (await self.case.say(self.run_id, "approve", by, **said)).status == 200
        if heard:
            self.said[revision["revision"]].append((by, digest or "none"))

    def agreed(self, revision: Any, digest: str) -> set[str]:
        """Who has agreed to this call, of those who may."""
        strict = self.terms["quorum"] > 1 or self.terms["allow_edit"]
        return {
            by
            for by, named in self.said[revision["revision"]]
            if may_decide(self.terms, self.standing, by, GROUPS.get(by, ()))
            and (named == digest or (not strict and (named == "none" or not self.terms["forbid_self"])))
            and not (self.terms["forbid_self"] and by == self.editor.get(revision["revision"]))
        }


@pytest.mark.parametrize("policed", [False, True])
async def test_nothing_runs_that_a_quorum_of_those_who_may_has_not_approved(case: Case, policed: bool) -> None:
    if policed:
        await case.policy("counted", requires_approval=True)
    ran = waited = 0
    for seed in range(12):
        crowd = Crowd(case, Random(f"{seed} {policed}"), policed=policed)
        await crowd.begin()
        before = len(case.given)
        for _ in range(14):
            await crowd.act()
            run = await case.stack.run(crowd.run_id, sub="ann")
            if run["paused_reason"] != "awaiting_approval":
                break
        if run["paused_reason"] == "awaiting_approval":
            assert case.given[before:] == [], seed
            waited += 1
            continue
        await case.until(crowd.run_id, "completed")
        (arguments,) = case.given[before:]
        revision = await crowd.approval()
        assert digest_of(revision, arguments) == revision["digest"], seed
        agreed = crowd.agreed(revision, revision["digest"])
        assert len(agreed) >= crowd.terms["quorum"], (seed, crowd.terms, crowd.said)
        assert {vote["by"] for vote in revision["votes"]} == agreed
        ran += 1
    assert ran >= 3
    assert waited >= 1
