"""What a real Redis does to us: it forgets scripts, cuts connections, stands still, evicts, is old, is not there."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.dev.embedded import EmbeddedValkey
from daemon.errors import FabricUnavailable, SetupError
from daemon.fabric.client import KEEPALIVE, Client, open_client
from daemon.fabric.inbox import Post
from daemon.fabric.keys import Keys
from daemon.fabric.ready import Ready
from tests.fabric.conftest import NOW_MS, OverRedis, held_by, new_run, over_redis
from tests.fabric.test_bus import SOMETHING, Ear, tell
from tests.patience import PATIENCE_S, eventually


@pytest.fixture
async def fabric(redis_url: str, redis_prefix: str) -> AsyncIterator[OverRedis]:
    async with over_redis(redis_url, redis_prefix) as opened:
        yield opened


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    """A server that a test may stop."""
    with EmbeddedValkey() as server:
        yield server


def closed_this_instant(fabric: OverRedis) -> None:
    """The idle connections end before anybody could notice."""
    for connection in fabric.client.redis.connection_pool._available_connections:
        connection._writer.transport.close()


async def test_a_connection_that_ends_as_it_is_used_is_a_redis_that_does_not_answer(fabric: OverRedis) -> None:
    """Then uvloop raises a RuntimeError, which is no defect of ours."""
    role = fabric.role("n1")
    await role.hold()
    closed_this_instant(fabric)
    with pytest.raises(FabricUnavailable):
        await role.hold()
    assert await role.hold()


@pytest.mark.parametrize("fault", [RuntimeError("the handler is closed"), AttributeError("credential_provider")])
async def test_who_comes_or_leaves_never_hears_that_the_ear_broke(
    fabric: OverRedis, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What redis-py was seen to raise while its listening task found the connection broken too; that is a race."""

    async def broken(*_: object) -> None:
        raise fault

    bus, run_id = fabric.bus("n1"), new_run()
    bus._up.set()
    monkeypatch.setattr(bus._pubsub, "subscribe", broken)
    monkeypatch.setattr(bus._pubsub, "unsubscribe", broken)
    await bus.watch([run_id])
    await bus.unwatch(run_id)


async def test_scripts_survive_a_script_flush(fabric: OverRedis) -> None:
    run_id, inbox, leases, role = new_run(), fabric.inbox(), fabric.leases(), fabric.role("n1")
    held = await held_by(fabric, "n1", run_id)
    await role.hold()

    async def forget() -> None:
        await fabric.client.redis.script_flush()

    await forget()
    await inbox.append([Post(run_id, "h", b"letter")])
    await forget()
    assert await leases.renew([held]) == {run_id: "r"}
    await forget()
    assert await leases.release([held], force=True) == {run_id: "r"}
    await forget()
    await leases.take({run_id: "n1/x"})
    assert await leases.seal([(run_id, "n1/x", held[2])]) == {run_id}
    await forget()
    assert await role.hold()
    await forget()
    await role.leave()
    assert not await role.taken()


async def test_the_bus_hears_again_after_its_connection_was_killed(fabric: OverRedis) -> None:
    """Every watch is confirmed anew, so each watcher reads the log and has no gap."""
    ear, runs = Ear(fabric), [new_run(), new_run()]
    try:
        await ear.bus.watch(runs)
        await ear.confirmed(*runs)
        assert await fabric.client.redis.client_kill_filter(_type="pubsub") == 1
        await ear.confirmed(*runs)
        await tell(fabric, runs[0])
        await ear.hears((runs[0], SOMETHING))
        await ear.bus.watch([late := new_run()])
        await ear.confirmed(late)
    finally:
        await ear.close()


async def test_an_ear_asks_now_and_then_whether_the_server_is_still_there(fabric: OverRedis) -> None:
    """It never speaks: a server that vanished without a word would be listened to for ever."""
    ear, run_id = Ear(fabric), new_run()
    try:
        await ear.bus.watch([run_id])
        await ear.confirmed(run_id)
        wire = ear.bus._pubsub.connection._writer.get_extra_info("socket")
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        asked = {name: wire.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in KEEPALIVE}
        assert asked == KEEPALIVE
    finally:
        await ear.close()


async def test_a_socket_of_this_machine_needs_none_of_that() -> None:
    client = Client("unix:///nobody/listens/here.sock")
    with pytest.raises(FabricUnavailable):
        await Ready(client, Keys("t"), node="n1").backlog()
    await client.close()


async def test_commands_go_on_after_all_connections_were_killed(fabric: OverRedis) -> None:
    ready, run_id = fabric.ready(), new_run()
    await ready.mark([run_id])
    await ready.take(1, NOW_MS)
    await fabric.client.redis.client_kill_filter(_type="normal", skipme=True)
    assert [taken for _, taken in await eventually(lambda: ready.take(1, NOW_MS))] == [run_id]
    assert await fabric.leases().take({run_id: "n1/a"}) == {run_id}


async def test_a_server_that_stands_still_is_unavailable_within_the_time_limit(own_valkey: EmbeddedValkey) -> None:
    """Also for who waits patiently: a connection whose other end has vanished would be waited on for ever."""
    client, keys = Client(own_valkey.url, timeout_s=1.0), Keys("t")
    fabric = OverRedis(client, keys)
    asks: list[Any] = [
        lambda: fabric.leases().take({new_run(): "n1/a"}),
        lambda: fabric.inbox().append([Post(new_run(), "h", b"x")]),
        lambda: fabric.inbox().read([new_run()]),
        lambda: fabric.inbox().listen("n1", 50),
        lambda: fabric.ready().take(1, 50),
        lambda: fabric.ready().reclaim(0, 1),
        lambda: fabric.role("n1").hold(),
    ]
    for ask in asks:
        await eventually(lambda ask=ask: _works(ask))
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE_S):
            found = await asyncio.gather(*(ask() for ask in asks), return_exceptions=True)
        assert [type(one) for one in found] == [FabricUnavailable] * len(asks)
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    for ask in asks:
        await eventually(lambda ask=ask: _works(ask))
    await client.close()


async def _works(ask: Any) -> bool:
    try:
        await ask()
    except FabricUnavailable:
        return False
    return True


async def test_a_server_that_is_gone_is_unavailable_and_works_again_when_it_is_back(own_valkey: EmbeddedValkey) -> None:
    client = await open_client(own_valkey.url, patience_s=5)
    ready = Ready(client, Keys("t"), node="n1")
    await ready.take(1, NOW_MS)
    await asyncio.to_thread(own_valkey.stop)
    with pytest.raises(FabricUnavailable, match="nothing was lost"):
        await ready.mark([new_run()])
    with pytest.raises(FabricUnavailable):
        await ready.take(1, NOW_MS)
    await asyncio.to_thread(own_valkey.start)
    await ready.mark([run_id := new_run()])
    await ready.take(1, NOW_MS)
    assert [taken for _, taken in await ready.take(1, NOW_MS)] == [run_id]
    await client.close()


async def test_a_server_that_comes_late_is_waited_for(own_valkey: EmbeddedValkey) -> None:
    await asyncio.to_thread(own_valkey.stop)
    opening = asyncio.create_task(open_client(own_valkey.url, patience_s=20))
    await asyncio.to_thread(own_valkey.start)
    client = await opening
    assert await client.redis.ping()
    await client.close()


async def test_a_server_that_may_evict_is_refused_with_the_reason_unless_it_is_accepted(
    own_valkey: EmbeddedValkey,
) -> None:
    client = await open_client(own_valkey.url, patience_s=5)
    await client.redis.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(SetupError) as told:
        await open_client(own_valkey.url, patience_s=5)
    for word in ("allkeys-lru", "noeviction", "RUNWARDEN_REDIS_ALLOW_EVICTION"):
        assert word in str(told.value)
    accepted = await open_client(own_valkey.url, patience_s=5, allow_eviction=True)
    assert await accepted.redis.ping()
    await accepted.close()
    await client.close()


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    with pytest.raises(SetupError) as told:
        await open_client("redis://rw:geheim@127.0.0.1:1/0", patience_s=0)
    assert "redis://rw:****@127.0.0.1:1/0" in str(told.value)
    assert "geheim" not in str(told.value)


async def test_a_url_that_makes_no_sense_is_named_without_its_password() -> None:
    with pytest.raises(SetupError) as told:
        await open_client("http://rw:geheim@nowhere/0", patience_s=0)
    assert "http://rw:****@nowhere/0" in str(told.value)
    assert "geheim" not in str(told.value)


async def test_a_wrong_password_is_told_and_not_repeated(own_valkey: EmbeddedValkey) -> None:
    client = await open_client(own_valkey.url, patience_s=5)
    await client.redis.config_set("requirepass", "richtig")
    with pytest.raises(SetupError) as told:
        await open_client(own_valkey.url.replace("//", "//:geheim@"), patience_s=0)
    assert "geheim" not in str(told.value)
    await client.close()


@pytest.mark.parametrize(("version", "fit"), [("6.0.16", False), ("6.1.240", False), ("6.2.0", True), ("7.2.4", True)])
async def test_a_server_older_than_6_2_is_refused(version: str, fit: bool) -> None:
    """No such server comes from PyPI, so this one only says what it is."""
    async with asyncio.timeout(PATIENCE_S):
        server = await asyncio.start_server(lambda r, w: _pretend(r, w, version), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            opening = open_client(f"redis://127.0.0.1:{port}/0", patience_s=0)
            if fit:
                await (await opening).close()
            else:
                with pytest.raises(SetupError, match=rf"version {version}.*6\.2 or newer"):
                    await opening


async def _pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: str) -> None:
    """Enough of RESP3 (redis.io/docs/latest/develop/reference/protocol-spec) for a client to ask INFO."""
    info = f"# Server\r\nredis_version:{version}\r\nmaxmemory_policy:noeviction\r\n".encode()
    while count := await reader.readline():
        words = []
        for _ in range(int(count[1:])):
            size = int((await reader.readline())[1:])
            words.append((await reader.readexactly(size + 2))[:-2].upper())
        if words[0] == b"INFO":
            writer.write(b"$%d\r\n%s\r\n" % (len(info), info))
        elif words[0] == b"HELLO":
            writer.write(b"%1\r\n+proto\r\n:3\r\n")
        else:
            writer.write(b"+OK\r\n")
        await writer.drain()
    writer.close()


async def test_a_server_that_forgot_is_known_until_what_follows_was_done(fabric: OverRedis) -> None:
    mine, other = fabric.generation(), fabric.generation()
    assert await mine.changed(), "an empty server may have been a full one"
    assert await other.changed(), "nothing was done about it yet"
    await mine.seen()
    assert not await mine.changed()
    assert not await other.changed()
    await fabric.flush()
    assert await other.changed()


async def test_a_flush_while_something_is_done_about_the_last_one_is_not_overlooked(fabric: OverRedis) -> None:
    generation = fabric.generation()
    assert await generation.changed()
    await fabric.flush()
    await generation.seen()
    assert await generation.changed()
    await generation.seen()
    assert not await generation.changed()


async def test_a_restarted_server_may_have_lost_its_last_writes(tmp_path: Path) -> None:
    """It reads its file back, but the last second may not have been in it yet."""
    with EmbeddedValkey(tmp_path) as server:
        async with over_redis(server.url, "t") as fabric:
            generation = fabric.generation()
            await generation.changed()
            await generation.seen()
            assert not await generation.moved()
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            assert await generation.moved()
            assert not await generation.moved()
            assert await generation.changed()
            await generation.seen()
            assert not await generation.changed()


async def test_every_key_has_the_prefix_and_one_hash_tag(fabric: OverRedis) -> None:
    """So deployments may share a server, and all keys of one partition a cluster's slot."""
    run_id, inbox = new_run(), fabric.inbox()
    await inbox.append([Post(run_id, "h", b"offered")])
    await held_by(fabric, "n1", run_id)
    await inbox.append([Post(run_id, "h", b"rung")])
    await fabric.role("n1").hold()
    await fabric.beacon("b", "n1").shine()
    found = [key.decode() for key in await fabric.client.redis.keys("*")]
    assert len(found) == 6
    root = fabric.keys.root
    assert all(key.startswith(root) for key in found)
    assert (root.count("{"), root[-3:]) == (1, "0}:")


async def test_runs_that_are_let_go_leave_no_key(fabric: OverRedis) -> None:
    """Ten thousand runs that wait for people cost Redis nothing."""
    run_id, inbox = new_run(), fabric.inbox()
    held = await held_by(fabric, "n1", run_id)
    await inbox.append([Post(run_id, "h", b"letter")])
    ((entry, *_),) = (await inbox.read([run_id]))[run_id]
    await inbox.delete({run_id: [entry]})
    assert await fabric.leases().release([held]) == {run_id: "r"}
    found = [key.decode() for key in await fabric.client.redis.keys("*")]
    assert [key for key in found if run_id.hex in key] == []
