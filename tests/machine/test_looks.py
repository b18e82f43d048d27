"""A look needs no holder: what is said of a run by its rows alone agrees with what the whole run owes."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.machine.commands import Epoch
from daemon.machine.effects import FIRST_LOOK_MS, LAST_LOOK_MS, Inquire, deadline, effects, next_alarm, only_looks
from daemon.machine.needs import Facts
from daemon.machine.settle import settle
from daemon.machine.state import Limits, Run
from tests.machine.scenario import Story, acked, passive, step
from tests.machine.test_properties import Act, acts, flags, limits, steps, story_of

AGES = st.sampled_from([0, 1, FIRST_LOOK_MS - 1, FIRST_LOOK_MS, 60_000, 119_999, 3_600_000, LAST_LOOK_MS, 2**40])
SOMEBODY_ELSE = Epoch(1_000)


def _waits_for_an_answer_alone(run: Run, now: int) -> bool:
    """Said anew, by the run itself: its tool runs in time, or a person must decide what became of it."""
    attempt = run.attempt
    if attempt is None or run.terminal:
        return False
    if run.spec.run_timeout_ms is not None and now >= (run.started_at or 0) + run.spec.run_timeout_ms:
        return False
    if attempt.in_flight:
        return attempt.state == "acked" and attempt.canceling is None and now < attempt.deadline_at
    return run.unsettled is not None and run.status == "paused"


@settings(max_examples=300, deadline=None)
@given(steps, limits, flags, st.sampled_from([None, 20_000, 10**9]), st.lists(acts, max_size=15), AGES)
def test_a_run_that_only_looks_owes_an_inquiry_and_has_the_alarm_that_its_rows_tell(
    shape: list[dict[str, Any]], bounds: Limits, heard: bool, run_timeout_ms: int | None, tale: list[Act], later: int
) -> None:
    story = story_of(shape, bounds, listening=heard, run_timeout_ms=run_timeout_ms)
    for act in (lambda _: None, *tale):
        act(story)
        facts, now = passive(story.run), story.now + later
        looks = facts is not None and only_looks(facts, now)
        assert looks == _waits_for_an_answer_alone(story.run, now)
        if facts is None or not looks:
            continue
        assert next_alarm(facts, now) == deadline(story.run, now)
        assert all(isinstance(effect, Inquire) for effect in effects(story.run, SOMEBODY_ELSE, now))
        assert facts.req_id in {effect.req_id for effect in effects(story.run, SOMEBODY_ELSE, now)}
        unheard = frozenset({"agent-1"})
        deaf = Facts(epoch=SOMEBODY_ELSE, gateway_ready=heard, limits=bounds, grounds=story.grounds, unheard=unheard)
        assert settle(story.run, now, deaf) == (story.run, [])


def test_a_call_that_runs_is_looked_at_until_its_deadline() -> None:
    story = Story(step(timeout_ms=100_000))
    story.hear(acked(story.req))
    facts, began = passive(story.run), story.now
    assert facts is not None
    assert next_alarm(facts, began) == began + 30_000
    assert next_alarm(facts, began + 30_000) == began + 60_000
    assert next_alarm(facts, began + 61_000) == began + 100_000
    assert [only_looks(facts, began + age) for age in (0, 99_999, 100_000)] == [True, True, False]


def test_an_unknown_outcome_is_looked_at_for_a_day() -> None:
    story = Story(step(timeout_ms=1_000))
    story.hear(acked(story.req))
    began = story.now
    story.wait(20_000)
    facts = passive(story.run)
    assert facts is not None
    assert facts.paused_reason == "outcome_unknown"
    assert only_looks(facts, story.now)
    assert next_alarm(facts, began + LAST_LOOK_MS // 2) == began + FIRST_LOOK_MS * 2**11
    assert next_alarm(facts, began + LAST_LOOK_MS) is None
    assert only_looks(facts, began + LAST_LOOK_MS)


def test_a_call_that_nobody_acknowledged_needs_a_holder() -> None:
    facts = passive(Story(step()).run)
    assert facts is not None
    assert not only_looks(facts, 0)
