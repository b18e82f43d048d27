"""What follows an event in bad weather on the Gateway's side: floods, forgeries, a restart.

``DevGateway.publish`` asks after each event. Nothing happens here in fair weather; what agents do is ``tunnel``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from daemon.dev.envelope import Json, envelope
from daemon.dev.weather import Weather

FORGED: Json = {"ok": True, "result_json": {"content": [{"text": "forged", "type": "text"}]}}
_ROUTE = 22  # characters of a req_id of ours that a stranger may learn anywhere: they name the run


def follow(event: Json, weather: Weather, *, publish: Callable[[Json], None], restart: Callable[[], None]) -> None:
    """A stranger's forgeries, and the restart, come right behind an INVOKE_ACK."""
    if event["type"] != "INVOKE_ACK":
        return
    agent_id, req_id = event.get("agent_id", ""), event.get("req_id", "")
    for forged in _forgeries(weather, agent_id, req_id):
        publish(envelope("RESULT", agent_id, forged, FORGED))
    if weather.holds_once("gateway_restart", agent_id):
        restart()


def flood(event: Json, weather: Weather, buffer: int) -> Iterator[Json]:
    """As many messages behind a RESULT as a subscriber's buffer holds, faster than any reader."""
    if event["type"] == "RESULT" and weather.holds("sse_overflow", event.get("agent_id", "")):
        for _ in range(buffer):
            yield envelope("TOOLS", "somebody-else", None, {"tools": []})


def _forgeries(weather: Weather, agent_id: str, req_id: str) -> Iterator[str]:
    if weather.holds("forged_result", agent_id):
        yield req_id[:_ROUTE] + "A" * (len(req_id) - _ROUTE)
        yield "guessed"
    if weather.holds("stolen_req_id", agent_id):
        yield req_id
