"""A peer that vanishes without a word: the machine is gone, or a router forgot the connection, and nothing says so."""

import asyncio
import contextlib
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


async def test_an_address_that_swallows_everything_keeps_no_call_from_the_other_address_of_its_host(serve, monkeypatch):
    gateway = await serve()
    port = int(gateway.url.rpartition(":")[2])
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo
    with socket.create_server(("127.0.0.2", port), backlog=0) as hole, contextlib.ExitStack() as queued:
        for _ in range(3):  # its queue is full: what comes now is not even refused
            one = queued.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(hole.getsockname())

        async def both(host, port, **hints):  # uvloop asks for addresses, too
            if host != "gateway.invalid":
                return await resolve(host, port, **hints)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in ("127.0.0.2", "127.0.0.1")]

        monkeypatch.setattr(loop, "getaddrinfo", both)
        async with GatewayClient(gateway.url.replace("127.0.0.1", "gateway.invalid")) as client:
            await client.invoke(CALL)
    assert len(gateway.requests) == 1
