"""How votes are counted."""

from __future__ import annotations

from daemon.machine.commands import Who
from daemon.machine.ground import Ground, Traits
from tests.machine.grounds import Said
from tests.machine.scenario import Story, step


def decided_by(*groups: str) -> Said:
    """Policy asks for approval by these groups."""
    deciders = frozenset(f"group:{group}" for group in groups)
    return Said(lambda agent_id, tool_name: Ground(traits=Traits(requires_approval=True), deciders=deciders))


def test_who_made_the_token_that_started_the_run_counts_as_who_started_it() -> None:
    terms = {"approvers": ["user:ghost", "user:root", "user:ned"], "forbid_self": True, "quorum": 1}
    story = Story(step("a", manual=True, **terms), user="ghost", token_maker="root")
    for by in ("ghost", "root"):
        refused = story.say("approve", by=by)
        assert refused is not None, by
        assert refused.code == "not_an_approver"
    assert story.say("approve", by="ned") is None


def test_who_made_the_token_that_the_workflow_was_saved_with_counts_as_well_and_so_do_votes_of_theirs() -> None:
    terms = {"approvers": ["user:root", "user:ned", "user:ada"], "forbid_self": True}
    story = Story(step("a", manual=True, **terms), user="ghost", token_maker="ada", spec_maker="root")
    for by, why in (("root", "saved with"), ("ada", "started the run")):
        refused = story.say("approve", by=by)
        assert refused is not None, by
        assert (refused.code, why in refused.message) == ("not_an_approver", True)
    assert story.say("approve", by="ned") is None


def test_nobody_counts_twice_however_their_groups_change() -> None:
    """A vote that did not count any more, given anew by another group of the same person, and then both count again."""
    story = Story(step("a", manual=True, quorum=3), grounds=decided_by("reviewers"))
    assert story.run.approval is not None
    digest = story.run.approval.digest
    assert story.say("approve", by="cyd", digest=digest, who=Who(groups=("reviewers",))) is None
    story.grounds = decided_by("leads")
    assert story.say("approve", by="cyd", digest=digest, who=Who(groups=("leads",))) is None
    story.grounds = decided_by("leads", "reviewers")
    assert story.say("approve", by="bob", digest=digest, who=Who(groups=("leads",))) is None
    assert story.run.status == "paused"
    assert story.say("approve", by="dan", digest=digest, who=Who(groups=("leads",))) is None
    assert story.run.status == "running"
