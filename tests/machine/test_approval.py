"""What the machine makes of people's words on a call that waits: cases that stories found, each told once."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from daemon.machine.approval import UNREADABLE, hash_of_schema
from daemon.machine.commands import Who
from daemon.machine.effects import effects
from daemon.machine.ground import Ground, Traits
from tests.machine.grounds import Said
from tests.machine.scenario import Story, step


def policed(*deciders: str, **traits: Any) -> Ground:
    """Policy requires approval by these."""
    return Ground(traits=Traits(requires_approval=True, **traits), deciders=frozenset(deciders))


def waiting(ground: Ground, **terms: Any) -> Story:
    """ann's run, which waits for approval; ``grounds.say`` may be changed."""
    return Story(step(manual=True, **terms), grounds=Said(lambda agent_id, tool_name: ground))


def approve(story: Story, by: str, *groups: str, digest: bool = True) -> str | None:
    """The code of the refusal, if it was refused."""
    assert story.run.approval is not None
    given = story.run.approval.digest if digest else None
    refusal = story.say("approve", by=by, digest=given, who=Who(groups=groups))
    return refusal.code if refusal is not None else None


def test_whoever_votes_under_two_names_is_one_person() -> None:
    """bob agrees as one of g, which may approve; then as one of h, when that may and g may not; then both may."""
    story = waiting(policed("group:g", "user:cat"), quorum=3)
    assert approve(story, "bob", "g") is None
    story.grounds.say = lambda agent_id, tool_name: policed("group:h", "user:cat")
    assert approve(story, "bob", "h") is None
    story.grounds.say = lambda agent_id, tool_name: policed("group:g", "group:h", "user:cat", "user:dan")
    assert approve(story, "cat") is None
    assert story.run.status == "paused", "two people are not three"
    assert approve(story, "dan") is None
    assert story.run.in_flight


@pytest.mark.parametrize(("roles", "code"), [(("operator", "viewer"), "role_required"), (("approver", "viewer"), None)])
def test_who_resumes_what_waits_for_approval_must_be_one_to_approve(roles: tuple[str, ...], code: str | None) -> None:
    story = waiting(Ground())
    refusal = story.say("resume", who=Who(roles=roles))
    assert (refusal.code if refusal is not None else None) == code
    assert story.run.in_flight == (code is None)


def test_a_manual_step_that_was_never_asked_about_owes_no_call_that_passes_for_approved() -> None:
    """Whatever lost the revision: the dispatch path must not take its absence for "needed no approval"."""
    story = waiting(Ground())
    assert approve(story, "ann") is None
    (call,) = story.owed
    assert call.as_approved
    bare = replace(story.run, revision=None)
    (forged,) = effects(bare, story.epoch, story.now)
    assert not forged.as_approved


@pytest.mark.parametrize(
    ("today", "why"),
    [
        (policed("user:cat"), "policy has come to require approval"),
        (Ground(traits=Traits(risk="high")), "from medium to high"),
        (Ground(schema_hash="b"), "schema has changed"),
    ],
)
def test_what_waits_is_asked_anew_where_others_decide_or_it_became_worse(today: Ground, why: str) -> None:
    story = waiting(Ground(schema_hash="a"), quorum=2, approvers=["user:ann", "user:cat"])
    assert approve(story, "ann") is None
    story.grounds.say = lambda agent_id, tool_name: today
    story.turn()
    *_, told = story.rows("step.paused")
    assert why in told["voids"]
    assert (told["revision"], told["votes"]) == (2, [])
    assert story.run.approval is not None
    assert story.run.approval.state == "open"


@pytest.mark.parametrize(
    "today", [Ground(traits=Traits(risk="low", writes=False)), Ground(schema_hash="a"), Ground(held="held")]
)
def test_what_waits_goes_on_waiting_where_nothing_became_worse(today: Ground) -> None:
    story = waiting(Ground())
    story.grounds.say = lambda agent_id, tool_name: today
    story.turn()
    assert story.types.count("step.paused") == 1


def test_a_quorum_that_is_there_again_needs_no_other_voice() -> None:
    """ann agrees and may not any more; bob agrees; ann may again: two agree, and one of them only has to say so."""
    story = waiting(policed("user:ann", "user:bob"), quorum=2)
    assert approve(story, "ann") is None
    story.grounds.say = lambda agent_id, tool_name: policed("user:bob")
    assert approve(story, "bob") is None
    story.grounds.say = lambda agent_id, tool_name: policed("user:ann", "user:bob")
    assert story.run.status == "paused"
    assert approve(story, "bob") is None
    assert story.run.in_flight
    assert story.types.count("step.voted") == 2


def test_what_was_asked_once_is_not_made_without_an_answer() -> None:
    """Policy asked, somebody edited, the run was parked, and policy asks no more: the edit still waits for a yes."""
    story = Story(step(), grounds=Said(lambda agent_id, tool_name: policed("user:cat")))
    story.park()
    story.grounds.say = lambda agent_id, tool_name: Ground()
    assert story.say("resume") is None
    assert (story.run.status, story.run.paused_reason) == ("paused", "awaiting_approval")
    assert approve(story, "ann") is None
    assert story.run.in_flight


def test_whatever_an_agent_says_of_its_schema_is_hashed_in_no_time_or_not_at_all() -> None:
    small = {"b": {"type": "integer", "maximum": 1.0}, "a": []}
    assert hash_of_schema(small) == hash_of_schema(dict(reversed(small.items())))
    assert hash_of_schema(small) != hash_of_schema(small | {"c": 1})
    deep: dict[str, object] = {}
    for _ in range(600):
        deep = {"a": deep}
    assert hash_of_schema(deep) == UNREADABLE
    big = {f"p{number}": "x" * 100 for number in range(5_000)}
    assert hash_of_schema(big) == hashlib.sha256(orjson.dumps(big, option=orjson.OPT_SORT_KEYS)).hexdigest()
