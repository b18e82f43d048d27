"""What travels, parsed with tolerance: nothing raises, nothing is converted, and doubt is on the safe side."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_client import AgentInfo, Envelope, ToolInfo

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_an_envelope_is_read_whole():
    raw = (
        '{"v":1,"type":"RESULT","agent_id":"agent-1","req_id":"e1","ts":1795359759,"extra":[],'
        '"payload":{"ok":true,"result_json":{"n":"9007199254740993","t":"还\\u003c"}}}'
    )
    read = Envelope(
        type="RESULT",
        agent_id="agent-1",
        req_id="e1",
        ts=1795359759,
        payload={"ok": True, "result_json": {"n": "9007199254740993", "t": "还<"}},
    )
    assert Envelope.parse(raw) == Envelope.parse(raw.encode()) == read


@pytest.mark.parametrize(
    "raw",
    [
        '{"v":1,"type":"T"}',
        '{"v":1,"type":"T","agent_id":null,"req_id":7,"ts":"now","payload":[1]}',
        '{"v":1,"type":"T","agent_id":{},"req_id":[],"ts":true,"payload":"text"}',
        '{"v":1,"type":"T","ts":1.5,"payload":null}',
    ],
)
def test_what_is_missing_or_of_the_wrong_type_in_an_envelope_is_empty(raw):
    assert Envelope.parse(raw) == Envelope(type="T", agent_id="", req_id="", ts=0, payload={})


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "not json",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"type":"T"}',
        '{"v":0,"type":"T"}',
        '{"v":-1,"type":"T"}',
        '{"v":true,"type":"T"}',
        '{"v":"1","type":"T"}',
        '{"v":1}',
        '{"v":1,"type":""}',
        '{"v":1,"type":7}',
        '{"v":1,"type":"T","payload":NaN}',
        '{"v":1,"type":"T"} {}',
        '{"v":1,"type":"T","payload":' + "[" * 100_000,
        '{"v":1,"type":"T","payload":' + "[" * 3000 + "]" * 3000 + "}",
    ],
)
def test_what_is_no_envelope_is_none(raw):
    assert Envelope.parse(raw) is None
    assert Envelope.parse(raw.encode()) is None


@pytest.mark.parametrize("broken", [b"a\\ud800b", b"a\xffb", b"a\\udc00b"])
def test_text_that_is_no_unicode_is_mended_rather_than_lost_with_its_result(broken):
    envelope = Envelope.parse(b'{"v":1,"type":"RESULT","payload":{"ok":true,"x":"%b","y":"\\ud83d\\ude00"}}' % broken)
    assert envelope.payload == {"ok": True, "x": "a\ufffdb", "y": "\U0001f600"}
    orjson.dumps(envelope.payload)


@given(JSON)
def test_no_json_makes_parsing_raise(value):
    for told in (value, {"v": 1, "type": "T", "payload": value}, {"v": value, "type": value, "ts": value}):
        Envelope.parse(json.dumps(told))
    AgentInfo.from_wire(value)
    ToolInfo.from_wire(value)


@given(st.binary())
def test_no_bytes_make_parsing_raise(raw):
    assert Envelope.parse(raw) is None


def test_only_a_real_boolean_is_a_hint_about_a_tool():
    hints = {"readOnlyHint": "true", "destructiveHint": False, "idempotentHint": 1, "openWorldHint": True, "title": "T"}
    tool = ToolInfo.from_wire({"name": "t", "annotations": hints, "meta": None, "input_schema": []})
    assert tool == ToolInfo(name="t", annotations={"destructiveHint": False, "openWorldHint": True})


def test_a_tool_without_a_name_and_an_agent_without_an_id_are_none():
    assert ToolInfo.from_wire({"description": "d"}) is None
    assert AgentInfo.from_wire({"status": "online"}) is None
