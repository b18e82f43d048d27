"""Plays a golden script (``v0/*.json``) through the machine and its wire, for the tests beside it and for ``record``.

A script is a list of moments: ``at_ms`` since the start, and what comes then: ``command`` (a person's), ``letters``
(Gateway envelopes, as in its contract, and ``{"sent": req_id}`` for the 202), or nothing, when only the clock speaks.
Alarms that fall between two moments ring by themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
from msgspec.structs import asdict

from daemon.machine.commands import Letter, ReqId, RunId, Sent
from daemon.machine.spec import parse_spec
from daemon.machine.wire import read_letter
from tests.machine.scenario import Story

HERE = Path(__file__).parent
STORIES = sorted(path.stem for path in (HERE / "v0").glob("*.json"))


def script(name: str) -> dict[str, Any]:
    """The hand-written file of a story."""
    told: dict[str, Any] = json.loads((HERE / "v0" / f"{name}.json").read_text())
    return told


def play(name: str) -> Story:
    """The story, told to its end."""
    told = script(name)
    story = Story(
        workflow=parse_spec(told["spec"]),
        run_id=RunId(UUID(told["run_id"])),
        nonce=bytes.fromhex(told["nonce"]),
        user=told["user"],
        at=told["start_ms"],
        started=False,
    )
    for moment in told["script"]:
        at = told["start_ms"] + moment["at_ms"]
        story.wait(at - story.now)
        assert story.now == at, "a script goes forward"
        asked = [story.command(**moment["command"])] if "command" in moment else []
        refusals = story.turn(letters=[_letter(raw) for raw in moment.get("letters", ())], commands=asked)
        assert refusals == [None] * len(asked)
    return story


def _letter(told: dict[str, Any]) -> Letter:
    if "sent" in told:
        return Sent(req_id=ReqId(told["sent"]))
    letter = read_letter(orjson.dumps(told))
    assert letter is not None, f"no letter: {told}"
    return letter


def frames(story: Story) -> list[dict[str, Any]]:
    """The data of every SSE frame that a watcher of the story received, in order."""
    blocks = b"".join(transition.told().frames for transition in story.transitions).split(b"\n\n")
    return [json.loads(block.split(b"\ndata: ", 1)[1]) for block in blocks if block]


def transcript(story: Story) -> dict[str, Any]:
    """Everything that a story left behind: its frames, and the rows of its turns."""
    return {
        "frames": frames(story),
        "run": {
            "status": story.run.status,
            "paused_reason": story.run.paused_reason,
            "current_step_index": story.run.step_index,
            "error_code": story.run.error_code,
        },
        "steps": [asdict(row) for transition in story.transitions for row in transition.steps],
        "attempts": [
            {
                "index": row.attempt.index,
                "state": row.attempt.state,
                **{k: v for k, v in asdict(row).items() if k != "attempt"},
            }
            for transition in story.transitions
            for row in transition.attempts
        ],
    }
