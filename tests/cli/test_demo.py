"""``runwarden demo`` as its users meet it: in a pipe, and at a terminal where they say no."""

from __future__ import annotations

import io
import re
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from daemon.dev.demo import Demo, Unfinished
from daemon.dev.example import demo_workflow
from tests.cli.command import at_a_terminal, running


def test_without_a_terminal_the_demo_approves_by_itself_and_tells_every_step_and_the_result(home: Path) -> None:
    with running("demo", "--seconds", "0.5", home=home) as demo:
        assert demo.ended() == 0, demo.text
        told = demo.text
    steps = demo_workflow("any", home)["steps"]
    headings = [f"{n}/{len(steps)}  {step['name']}  (" for n, step in enumerate(steps, 1)]
    places = [told.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "│ read " in told
    assert "(6 of 6)" in told
    assert "failed after" in told
    assert "the run goes on (on_error: continue)" in told
    assert "no section '## Upgrading'" in told
    assert "no terminal to ask at: the demo approves by itself" in told
    assert re.search(r"The run completed in [\d.]+ s: 4 steps done, 1 failed and the run went on\.", told)
    notes = home / ".data" / "demo" / "out" / "RELEASE_NOTES.md"
    assert f"wrote {notes} " in told
    assert notes.read_text().startswith("# Release notes\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", told), "control codes"
    assert "Warning" not in told


def test_at_a_terminal_the_demo_asks_and_a_no_rejects_the_step_and_fails(home: Path) -> None:
    with at_a_terminal("demo", "--seconds", "0.5", home=home) as (demo, type_in):
        demo.until("Let it run? [y/n] ")
        assert "Approval needed" in demo.text
        assert "destructive" in demo.text
        type_in("perhaps\n")
        demo.until("perhaps\r\nLet it run? [y/n] ")
        type_in("n\n")
        assert demo.ended() == 1
        assert "You rejected the step, so the run has failed and nothing was published." in demo.text
    assert not (home / ".data" / "demo" / "out" / "RELEASE_NOTES.md").exists()
    assert "node ready" in (home / ".data" / "demo" / "node.log").read_text()


async def test_a_demo_that_takes_too_long_says_so_and_ends_what_it_started(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    before = set(psutil.Process().children())
    with pytest.raises(Unfinished, match=r"not over after 0\.5 s.*node\.log"):
        await Demo(home / "data", Console(file=io.StringIO()), seconds=0, limit_s=0.5).show()
    assert set(psutil.Process().children()) <= before
