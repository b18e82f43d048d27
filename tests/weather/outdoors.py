"""How tests make the weather of a whole stack and look at what a run makes of it: API, log, ledger.

Used by this room only. It asserts one thing by itself: that no call ever ran twice.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from msgspec.structs import replace

from daemon import telemetry
from tests.api.harness import Stack
from tests.patience import eventually

BRIEFLY = {"timeout_ms": 1_000}
"""For a step whose deadline shall pass in the test."""
ANSWERED_MS = 20_000
"""Patience with an agent that answers."""
ONE_STEP = ("step.progress", "tool.status", "tool.result", "step.completed")
"""What a log tells of a step that goes well, in this order."""


class Outdoors:
    """``live`` is the stack; the weather is its Gateway's."""

    def __init__(self, live: Stack) -> None:
        self.live = live
        self.gateway = live.gateway
        self.tools = live.tools
        self.weather = live.gateway.weather
        self.patience(cancel_grace_ms=1_000)

    def patience(self, **limits: int) -> None:
        """The machine's own limits in milliseconds, where the test shall not wait for those of production."""
        assert self.live.node is not None
        assert self.live.node._runner is not None
        host = self.live.node._runner._host
        host._limits = replace(host._limits, **limits)

    async def paused(self, run_id: str) -> dict[str, Any]:
        """The run, once it is paused as ``outcome_unknown``: that is what a person sees and must decide."""
        run = await self.live.until(run_id, "paused", "completed", "failed")
        assert (run["status"], run["paused_reason"]) == ("paused", "outcome_unknown")
        self.once()
        return run

    async def completed(self, run_id: str) -> dict[str, Any]:
        """The run, once it is completed."""
        run = await self.live.until(run_id, "paused", "completed", "failed")
        assert run["status"] == "completed", run["paused_reason"]
        self.once()
        return run

    async def events(self, run_id: str, event_type: str) -> list[dict[str, Any]]:
        """The payloads of one type in the run's log, which is dense."""
        log = await self.live.log(run_id)
        assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
        return [event["payload"] for event in log if event["event_type"] == event_type]

    async def story(self, run_id: str) -> list[str]:
        """The types of a run's events, but those of which timing decides whether and where they stand."""
        types = [event["event_type"] for event in await self.live.log(run_id)]
        return [one for one in types if one not in ("tool.sent", "tool.log")]

    async def verdict(self, run_id: str) -> dict[str, Any]:
        """The one ``tool.result`` of a run of one call."""
        (result,) = await self.events(run_id, "tool.result")
        return result

    async def settled(self, run_id: str) -> dict[str, Any]:
        """The run, completed by a RESULT that came while it stood still for it."""
        run = await self.live.until(run_id, "completed")
        assert [told["settles"] for told in await self.events(run_id, "tool.evidence")] == ["done"]
        assert attempt_of(run)["ok"] is True
        self.once()
        return run

    async def kept(self, run_id: str, *, preview: str) -> None:
        """What came after the verdict stands in the log, with this in its result."""

        async def there() -> bool:
            told = [event["payload"] for event in await self.live.log(run_id)]
            return any(preview in (one.get("result_preview") or "") and one["ok"] for one in told)

        await eventually(there, what=f"{preview} in the log of {run_id}")
        self.once()

    async def begun(self, calls: int = 1) -> None:
        """Wait until so many calls run at the tool side."""
        await eventually(lambda: len(self.tools.running) == calls, what=f"{calls} tools running")

    def once(self) -> None:
        """No call ran twice."""
        times = Counter(execution.req_id for execution in self.gateway.ledger)
        assert set(times.values()) <= {1}

    @property
    def ran(self) -> list[str]:
        """The tools that really ran, in order."""
        self.once()
        return [execution.tool_name for execution in self.gateway.ledger]


def attempt_of(run: dict[str, Any], step_id: str = "a") -> dict[str, Any]:
    """The only attempt of a step, as the API tells it."""
    (attempt,) = run["steps_state"][step_id]["attempts"]
    told: dict[str, Any] = attempt
    return told


def count(name: str, **labels: str) -> float:
    """A metric's value."""
    return telemetry.registry.get_sample_value(name, labels) or 0.0
