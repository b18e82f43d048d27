"""The golden v0 stories over the whole stack: what the frontend reads from HTTP is what ``tests/golden/v0`` promises.

The stories' people are POSTs, their letters are published by the Gateway word for word; only run ids and req_ids are
those of the real run, and durations are what the clock says.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson
import pytest

from daemon.dev.envelope import Json
from daemon.dev.weather import Weather
from daemon.machine.commands import ReqId, RunId, Sent
from daemon.machine.spec import parse_spec
from daemon.machine.wire import read_letter
from tests.api.harness import Stack, Tools, Watch
from tests.golden.replay import frames, script
from tests.golden.test_v0 import v0_view
from tests.machine.scenario import Story
from tests.patience import eventually

STORIES = ["success", "manual", "fail_and_resume", "continue", "cancel", "cancel_running", "reject"]


class Puppet(Weather):
    """The agents do nothing by themselves: calls are noted, and only what the story says is heard."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.said: list[Json] = []

    def reaches_agent(self, invoke: Json) -> bool:
        self.calls.append(invoke["req_id"])
        return False

    def reaches_subscribers(self, event: Json) -> bool:
        return event in self.said


def events_after_each_moment(told: dict[str, Any]) -> list[int]:
    """How many events of v0 there are after each moment of a script, as the machine alone tells the story."""
    story = Story(
        workflow=parse_spec(told["spec"]),
        run_id=RunId(UUID(told["run_id"])),
        nonce=bytes.fromhex(told["nonce"]),
        user=told["user"],
        at=told["start_ms"],
        started=False,
    )
    counts = []
    for moment in told["script"]:
        story.wait(told["start_ms"] + moment["at_ms"] - story.now)
        letters = [
            Sent(req_id=ReqId(raw["sent"])) if "sent" in raw else read_letter(orjson.dumps(raw))
            for raw in moment.get("letters", ())
        ]
        story.turn(letters=letters, commands=[story.command(**moment["command"])] if "command" in moment else [])
        counts.append(len(v0_view(frames(story))))
    return counts


def req_ids_of(told: dict[str, Any]) -> list[str]:
    """The story's own req_ids, in the order of their calls."""
    letters = [raw for moment in told["script"] for raw in moment.get("letters", ())]
    return list(dict.fromkeys(raw.get("sent") or raw["req_id"] for raw in letters))


async def perform(live: Stack, told: dict[str, Any], puppet: Puppet) -> tuple[str, Watch]:
    """Tell the story through HTTP and the Gateway; the run and everything a watcher saw of it."""
    made = await live.post("/v1/workflows", {"title": told["spec"]["title"], "spec": told["spec"]})
    run = await live.post("/v1/workflow-runs", {"workflow_id": made.body["workflow_id"]})
    run_id = run.body["run_id"]
    theirs = req_ids_of(told)
    async with live.watch(run_id) as watch:
        for moment, count in zip(told["script"], events_after_each_moment(told), strict=True):
            match moment:
                case {"command": {"kind": "start"}}:
                    pass
                case {"command": {"kind": str(verb), **body}}:
                    answered = await live.decide(run_id, verb, body)
                    assert answered.status == 200, answered.body
                case {"letters": letters}:
                    for raw in (raw for raw in letters if "sent" not in raw):
                        number = theirs.index(raw["req_id"])
                        await eventually(lambda number=number: len(puppet.calls) > number, what="the call")
                        puppet.said.append(raw | {"req_id": puppet.calls[number]})
                        live.gateway.publish(puppet.said[-1])
            while len(v0_view(watch.events)) < count:
                await watch.frame()
        if (await live.run(run_id))["status"] != "paused":
            await watch.rest()
        return run_id, watch


@pytest.mark.parametrize("name", STORIES)
async def test_a_watcher_sees_the_story_of_v0(live: Stack, name: str) -> None:
    told, puppet = script(name), Puppet()
    await live.gateway.connect(Tools("agent-2"))
    live.gateway.weather = puppet
    run_id, watch = await perform(live, told, puppet)
    mine = dict(zip(req_ids_of(told), puppet.calls, strict=False))

    def as_here(payload: dict[str, Any]) -> dict[str, Any]:
        known = payload | {"run_id": run_id}
        if "req_id" in known:
            known["req_id"] = mine[known["req_id"]]
        return known

    def timeless(payload: dict[str, Any]) -> dict[str, Any]:
        return payload | {"duration_ms": "any"} if "duration_ms" in payload else payload

    seen = v0_view(watch.events)
    assert [timeless(payload) for payload in seen] == [timeless(as_here(payload)) for payload in told["expected"]]
    assert all(payload["duration_ms"] >= 0 for payload in seen if "duration_ms" in payload)
    assert watch.seqs == list(range(1, len(watch.events) + 1))
    for event in watch.events:
        assert list(event) == ["type", "run_id", "seq", "event_type", "created_at", "payload"]
        assert (event["type"], event["run_id"], event["payload"]["type"]) == ("run.event", run_id, event["event_type"])
