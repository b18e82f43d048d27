"""The Gateway's contract, one test per sentence of its §1 to §4 that any client can show by HTTP.

Runs against the dev Gateway, or against a real one (with a token and in Redis mode) with the same expectations:
GATEWAY_URL=http://... GATEWAY_TOKEN=... GATEWAY_AGENT=... pytest tests/gateway/test_conformance.py.
What only the inside of a Gateway can arrange is in ``test_dev_gateway``.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.gateway.conftest import API, ECHO, Wire, error

# --- §1 HTTP API ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"X-Internal-Token": "wrong"}, {"Authorization": "Bearer internal"}])
@pytest.mark.parametrize("call", ["GET agents", "GET invoke", "POST cancel", "GET results/x", "GET events"])
async def test_a_missing_or_wrong_token_is_401_with_no_body_and_no_type_before_anything_else(
    wire: Wire, given: dict[str, str], call: str
) -> None:
    method, path = call.split()
    answer, body = await wire.ask(method, f"{API}/{path}", headers=given, data=b"{not json")
    assert (answer.status, body) == (401, b"")
    assert "Content-Type" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/health", "/internal", "/internal/bridge/nothing"])
async def test_an_unknown_path_is_404_in_plain_text_and_there_is_no_health_endpoint(wire: Wire, path: str) -> None:
    answer, body = await wire.ask("GET", path)
    assert (answer.status, answer.content_type, body.strip()) == (404, "text/plain", b"404 page not found")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_agents_are_listed_for_any_method_with_unix_seconds_and_a_newline(wire: Wire, method: str) -> None:
    answer, body = await wire.ask(method, f"{API}/agents")
    assert (answer.status, answer.content_type, body[-1:]) == (200, "application/json", b"\n")
    agents = {agent["agent_id"]: agent for agent in json.loads(body)["agents"]}
    mine = agents[wire.agent]
    assert set(mine) == {"agent_id", "status", "last_seen_at", "connected_at"}
    assert mine["status"] == "online"
    assert all(isinstance(mine[key], int) for key in ("last_seen_at", "connected_at"))
    assert abs(mine["last_seen_at"] - time.time()) < 7 * 86400


async def test_tools_are_listed_with_name_description_schema_and_origin(wire: Wire) -> None:
    answer, body = await wire.ask("GET", f"{API}/agents/{wire.agent}/tools")
    listed = json.loads(body)
    assert (answer.status, listed["agent_id"], body[-1:]) == (200, wire.agent, b"\n")
    echo = next(tool for tool in listed["tools"] if tool["name"] == ECHO)
    assert {"name", "description", "input_schema"} <= set(echo)


async def test_tools_of_an_unknown_agent_are_404_in_json(wire: Wire) -> None:
    answer, body = await wire.ask("GET", f"{API}/agents/nobody/tools")
    assert (answer.status, answer.content_type, body) == (404, "application/json", error("agent_offline"))


@pytest.mark.parametrize(("method", "rest"), [("POST", "tools"), ("GET", "tool"), ("GET", "tools/more")])
async def test_another_method_or_path_below_an_agent_is_404_in_plain_text(wire: Wire, method: str, rest: str) -> None:
    answer, body = await wire.ask(method, f"{API}/agents/{wire.agent}/{rest}")
    assert (answer.status, answer.content_type, body.strip()) == (404, "text/plain", b"404 page not found")


INVOKE = {"req_id": "r", "agent_id": "nobody", "tool_name": "t"}
CANCEL = {"req_id": "r", "agent_id": "nobody"}
WRONG_TYPES = [
    {"req_id": 5},
    {"tool_name": ["t"]},
    {"arguments": [1]},
    {"arguments": "text"},
    {"timeout_ms": 1.5},
    {"timeout_ms": "1"},
    {"timeout_ms": True},
    {"stream": "yes"},
]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '"text"', '{"req_id": NaN}', *(INVOKE | wrong for wrong in WRONG_TYPES)]
)
async def test_an_invoke_that_does_not_parse_is_400_invalid_json(wire: Wire, body: Any) -> None:
    answer, said = await wire.ask("POST", f"{API}/invoke", data=body if isinstance(body, str) else json.dumps(body))
    assert (answer.status, answer.content_type, said) == (400, "application/json", error("invalid_json"))


@pytest.mark.parametrize("missing", ["req_id", "agent_id", "tool_name"])
@pytest.mark.parametrize("empty", ["", None])
async def test_an_invoke_without_a_required_field_is_400_missing_fields(
    wire: Wire, missing: str, empty: str | None
) -> None:
    answer, said = await wire.ask("POST", f"{API}/invoke", json=INVOKE | {missing: empty})
    assert (answer.status, said) == (400, error("missing_fields"))


async def test_an_invoke_for_an_unknown_agent_is_404_agent_offline_in_json(wire: Wire) -> None:
    answer, said = await wire.ask("POST", f"{API}/invoke", json=INVOKE)
    assert (answer.status, said) == (404, error("agent_offline"))


@pytest.mark.parametrize("body", ["{", json.dumps({"req_id": 5, "agent_id": "a"}), json.dumps(CANCEL | {"reason": 1})])
async def test_a_cancel_that_does_not_parse_is_400_invalid_json(wire: Wire, body: str) -> None:
    answer, said = await wire.ask("POST", f"{API}/cancel", data=body)
    assert (answer.status, said) == (400, error("invalid_json"))


async def test_a_cancel_without_a_required_field_is_400_and_for_an_unknown_agent_404(wire: Wire) -> None:
    for missing in CANCEL:
        answer, said = await wire.ask("POST", f"{API}/cancel", json=CANCEL | {missing: ""})
        assert (answer.status, said) == (400, error("missing_fields"))
    answer, said = await wire.ask("POST", f"{API}/cancel", json=CANCEL)
    assert (answer.status, said) == (404, error("agent_offline"))


@pytest.mark.parametrize("call", ["GET invoke", "PUT invoke", "GET cancel", "POST results/x"])
async def test_the_wrong_method_is_405_with_no_body(wire: Wire, call: str) -> None:
    method, path = call.split()
    answer, body = await wire.ask(method, f"{API}/{path}")
    assert (answer.status, body) == (405, b"")


async def test_unknown_fields_null_arguments_and_negative_timeouts_are_fine(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke(ECHO, None, timeout_ms=-5, stream=True, surprise={"a": 1})
        assert (await stream.one("RESULT", req_id))["payload"]["ok"] is True


async def test_a_result_is_kept_and_returned_as_the_bytes_that_were_published(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke(ECHO, {"text": "<é>"})
        published = await stream.one("RESULT", req_id)
    answer, body = await wire.ask("GET", f"{API}/results/{req_id}")
    assert (answer.status, answer.content_type, json.loads(body)) == (200, "application/json", published)
    assert body[-1:] == b"}"
    assert "\\u003cé\\u003e".encode() in body


async def test_a_result_that_nobody_gave_is_404_not_found_in_json(wire: Wire) -> None:
    answer, body = await wire.ask("GET", f"{API}/results/never")
    assert (answer.status, body) == (404, error("not_found"))


async def test_an_empty_result_id_is_404_in_plain_text(wire: Wire) -> None:
    answer, body = await wire.ask("GET", f"{API}/results/")
    assert (answer.status, answer.content_type, body.strip()) == (404, "text/plain", b"404 page not found")


async def test_a_plain_get_of_the_tunnel_is_426_in_plain_text(wire: Wire) -> None:
    answer, _ = await wire.ask("GET", "/bridge/tunnel")
    assert (answer.status, answer.content_type) == (426, "text/plain")


# --- §2 SSE stream ----------------------------------------------------------------------------------------------------


async def test_the_stream_has_the_headers_of_an_unbuffered_event_stream(wire: Wire) -> None:
    async with wire.subscribed() as stream:
        headers = stream.response.headers
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Transfer-Encoding"] == "chunked"


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_stream_begins_with_ready_for_any_method(wire: Wire, method: str) -> None:
    async with wire.subscribed(method):
        pass


async def test_frames_are_an_event_line_and_one_data_line_without_id_or_retry(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        await wire.invoke(ECHO, {"text": "a\nb"})
        frame = await stream.frame()
    assert [line.partition(":")[0] for line in frame.split("\n")] == ["event", "data"]


async def test_nothing_is_replayed(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        first = await wire.invoke(ECHO)
        await stream.one("RESULT", first)
        await stream.one("CHUNK", first)
    async with wire.subscribed(agent_id=wire.agent) as stream:
        second = await wire.invoke(ECHO)
        await stream.one("RESULT", second)
    assert {event["req_id"] for event in stream.events} == {second}


async def test_filters_match_exactly_and_both_together(wire: Wire) -> None:
    mine, other = f"mine-{time.time_ns()}", f"mine-{time.time_ns()}-not"
    async with (
        wire.subscribed(req_id=mine) as by_call,
        wire.subscribed(agent_id=wire.agent, req_id=mine) as by_both,
        wire.subscribed(agent_id="somebody-else", req_id=mine) as by_none,
        wire.subscribed(agent_id=wire.agent) as by_agent,
    ):
        await wire.invoke(ECHO, req_id=other)
        await by_agent.one("RESULT", other)
        await wire.invoke(ECHO, req_id=mine)
        await by_call.one("RESULT", mine)
        await by_both.one("RESULT", mine)
        await by_agent.one("RESULT", mine)
        assert {event["req_id"] for event in by_call.events + by_both.events} == {mine}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(by_none.event(), 0.05)


# --- §3 envelope ------------------------------------------------------------------------------------------------------


async def test_an_envelope_has_its_time_in_seconds_and_neither_seq_nor_session(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke(ECHO)
        ack = await stream.one("INVOKE_ACK", req_id)
    assert abs(ack.pop("ts") - time.time()) < 3600
    assert ack == {
        "v": 1,
        "type": "INVOKE_ACK",
        "agent_id": wire.agent,
        "req_id": req_id,
        "payload": {"accepted": True},
    }


async def test_json_is_compact_escapes_what_html_would_read_and_leaves_other_text_raw(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        await wire.invoke(ECHO, {"text": "<b>&\u2028é漢"})
        while '"RESULT"' not in (frame := await stream.frame()):
            pass
    assert '{"echo":{"text":"\\u003cb\\u003e\\u0026\\u2028é漢"}}' in frame


async def test_numbers_go_through_float64(wire: Wire) -> None:
    given = {"big": 9007199254740993, "whole": 1.0, "huge": 10**21, "text": "9007199254740993"}
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke(ECHO, given)
        while '"RESULT"' not in (frame := await stream.frame()):
            pass
    assert req_id in frame
    assert '{"big":9007199254740992,"huge":1e+21,"text":"9007199254740993","whole":1}' in frame


# --- §4 semantics by type ---------------------------------------------------------------------------------------------


async def test_a_call_is_acknowledged_before_its_tool_is_looked_up(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke("nosuch__tool")
        result = await stream.one("RESULT", req_id)
    assert stream.events[0]["type"] == "INVOKE_ACK"
    failure = {"message": "tool not found: nosuch__tool", "code": "tool_call_failed"}
    assert result["payload"] == {"ok": False, "error": failure}


async def test_a_blank_tool_name_is_tool_not_found_and_prints_nothing(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke("   ")
        result = await stream.one("RESULT", req_id)
        after = await wire.invoke(ECHO)
        await stream.one("CHUNK", after)
    assert result["payload"]["error"]["code"] == "tool_not_found"
    assert not [event for event in stream.events if event["type"] == "CHUNK" and event["req_id"] == req_id]


@pytest.mark.parametrize("stream_it", [True, False])
async def test_the_first_chunk_names_the_tool_on_stderr_whatever_stream_says(wire: Wire, stream_it: bool) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke(ECHO, stream=stream_it)
        chunk = await stream.one("CHUNK", req_id)
    assert chunk["payload"] == {"channel": "stderr", "data": f"running tool: {ECHO}\n"}


async def test_the_result_of_a_short_call_overtakes_its_chunks(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke(ECHO)
        await stream.one("CHUNK", req_id)
        await stream.one("RESULT", req_id)
    assert [event["type"] for event in stream.events[:3]] == ["INVOKE_ACK", "RESULT", "CHUNK"]


@pytest.mark.parametrize(("name", "given", "echoed"), [(ECHO, {"a": "b"}, {"a": "b"}), (ECHO, None, None)])
async def test_the_echo_returns_its_arguments_or_null(wire: Wire, name: str, given: Any, echoed: Any) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        result = await stream.one("RESULT", await wire.invoke(name, given))
    assert result["payload"] == {"ok": True, "result_json": {"echo": echoed}}


@pytest.mark.parametrize("name", ["echo", f"  {ECHO} "])
async def test_the_echo_has_an_alias_and_tool_names_are_trimmed(wire: Wire, name: str) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        result = await stream.one("RESULT", await wire.invoke(name, {"a": "b"}))
    assert result["payload"] == {"ok": True, "result_json": {"echo": {"a": "b"}}}


async def test_cancelling_an_unknown_or_a_finished_call_is_answered_alike(wire: Wire) -> None:
    async with wire.subscribed(agent_id=wire.agent) as stream:
        finished = await wire.invoke(ECHO)
        await stream.one("RESULT", finished)
        for req_id in (f"never-{time.time_ns()}", finished):
            await wire.cancel(req_id)
            ack = await stream.one("CANCEL_ACK", req_id)
            assert ack["payload"] == {"will_cancel": False, "reason": "unknown_req_id"}


async def test_a_req_id_sent_twice_runs_twice_and_the_later_result_is_kept(wire: Wire) -> None:
    twice = f"twice-{time.time_ns()}"
    async with wire.subscribed(agent_id=wire.agent) as stream:
        for number in ("1", "2"):
            await wire.invoke(ECHO, {"n": number}, req_id=twice)
        results: list[str] = []
        while len(results) < 2:
            if (event := await stream.event())["type"] == "RESULT":
                results.append(event["payload"]["result_json"]["echo"]["n"])
    acks = [event for event in stream.events if event["type"] == "INVOKE_ACK"]
    assert (len(acks), sorted(results)) == (2, ["1", "2"])
    _, body = await wire.ask("GET", f"{API}/results/{twice}")
    assert json.loads(body)["payload"]["result_json"]["echo"]["n"] == results[-1]
