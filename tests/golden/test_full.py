"""The full transcripts of the golden stories, replayed exactly; ``tests.golden.record`` says how to make them again."""

from __future__ import annotations

import json

import pytest

from tests.golden.replay import HERE, STORIES, play, transcript


@pytest.mark.parametrize("name", STORIES)
def test_a_story_leaves_exactly_what_was_recorded(name: str) -> None:
    recorded = json.loads((HERE / "full" / f"{name}.json").read_text())
    assert transcript(play(name)) == recorded


def test_every_story_is_recorded_and_no_other() -> None:
    assert sorted(path.stem for path in (HERE / "full").glob("*.json")) == STORIES


@pytest.mark.parametrize("name", STORIES)
def test_the_same_story_told_twice_is_the_same(name: str) -> None:
    assert play(name).transitions == play(name).transitions
