"""What a standby remembers is what was said, and it costs no more than the text of it."""

from __future__ import annotations

import tracemalloc

from daemon.runtime.memory import KEPT_BYTES, KEPT_S, Memory
from gateway_client import Envelope


def _result(number: int, told: bytes = b"1") -> Envelope:
    text = b'{"v":1,"type":"RESULT","agent_id":"a","req_id":"r%d","payload":{"ok":true,"result_json":%b}}'
    envelope = Envelope.parse(text % (number, told))
    assert envelope is not None
    return envelope


def test_what_is_recalled_is_what_was_kept_in_its_order_and_once() -> None:
    memory, kept = Memory(lambda: 0.0), [_result(number) for number in range(5)]
    memory.keep(kept)
    assert memory.recall() == kept
    assert memory.recall() == []


def test_what_is_old_or_too_much_is_forgotten_the_oldest_first() -> None:
    now = [0.0]
    memory = Memory(lambda: now[0])
    memory.keep([_result(0)])
    now[0] = KEPT_S + 1
    large = b'"' + b"x" * (KEPT_BYTES // 4) + b'"'
    memory.keep(_result(number, large) for number in range(1, 6))
    assert [envelope.req_id for envelope in memory.recall()] == ["r3", "r4", "r5"]


def test_a_result_that_is_large_once_it_is_read_is_kept_as_its_text() -> None:
    told = b"[%b]" % b",".join([b"[]"] * 100_000)
    memory = Memory(lambda: 0.0)
    tracemalloc.start()
    try:
        memory.keep(_result(number, told) for number in range(5))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * 5 * len(told)
