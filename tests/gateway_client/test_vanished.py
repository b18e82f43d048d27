"""A peer that vanishes without a word: the machine is gone, or a router forgot the connection, and nothing says so."""

import asyncio
import ctypes
import socket
import struct

import pytest

from gateway_client import GatewayClient, Invocation, MaybeSent, invoker

CALL = Invocation(req_id="r1", agent_id="agent-1", tool_name="demo__add", arguments={}, timeout_ms=0, stream=True)
_SO_ATTACH_FILTER = 26
_RETURN = 0x06


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


def _hear_nothing_more(peer):
    """The kernel drops every segment of this connection, acknowledges none, and tells nobody (on Linux)."""
    drop_all = _Instruction(_RETURN, 0, 0, 0)
    program = struct.pack("HP", 1, ctypes.addressof(drop_all))
    peer._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _hasten(monkeypatch):
    """Every second of the kernel's patience becomes a short one; only the order of magnitude changes."""
    quick = {"SO_KEEPALIVE": 1, "TCP_USER_TIMEOUT": 1_000}
    table = [(level, option, quick.get(option, 1)) for level, option, _ in invoker._KEEPALIVE]
    monkeypatch.setattr(invoker, "_KEEPALIVE", table)


async def test_a_call_written_to_a_peer_that_acknowledges_nothing_ends_as_maybe_sent(serve, monkeypatch):
    """Keep-alive probes do not see it: none are sent while a request waits to be acknowledged."""
    _hasten(monkeypatch)
    gateway = await serve()
    async with GatewayClient(gateway.url) as client:
        await client.invoke(CALL)
        _hear_nothing_more(gateway.peers[0])
        async with asyncio.timeout(15):
            with pytest.raises(MaybeSent) as caught:
                await client.invoke(CALL)
    assert caught.value.code == "connection_lost"
    assert len(gateway.requests) == 1
