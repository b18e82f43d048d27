"""The line: many questions on one connection, each with its own answers; and every way in which it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Connection, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from daemon.dev.embedded import EmbeddedValkey
from daemon.fabric.line import Line, Script

SUM = Script("return tonumber(ARGV[1]) + redis.call('INCR', KEYS[1])")


def line_to(redis: Redis, timeout_s: float = 5.0) -> Line:
    return Line(redis.connection_pool.make_connection, timeout_s=timeout_s)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def line(redis: Redis) -> AsyncIterator[Line]:
    opened = line_to(redis)
    yield opened
    opened.close()


async def clients(redis: Redis) -> set[str]:
    return {one["id"] for one in await redis.client_list()}


async def test_everybody_gets_their_own_answers_over_one_connection(line: Line, redis: Redis) -> None:
    before = await clients(redis)
    answers = await asyncio.gather(
        *(line.ask(("ECHO", f"a{n}"), ("ECHO", n), ("ECHO", b"\x00\xff")) for n in range(200))
    )
    assert answers == [[f"a{n}".encode(), str(n).encode(), b"\x00\xff"] for n in range(200)]
    assert len(await clients(redis) - before) == 1


async def test_who_gives_up_does_not_shift_the_answers_of_the_others(line: Line) -> None:
    await line.ask(("PING",))
    tasks = [asyncio.create_task(line.ask(("ECHO", str(n)))) for n in range(3)]
    await asyncio.sleep(0)  # all three are written
    tasks[1].cancel()
    assert await tasks[0] == [b"0"]
    assert await tasks[2] == [b"2"]
    assert await line.ask(("ECHO", "after")) == [b"after"]


async def test_no_question_has_no_answer_and_holds_nobody_up(line: Line) -> None:
    assert await line.ask() == []
    assert await line.ask(("ECHO", "after")) == [b"after"]


async def test_a_script_is_loaded_when_the_server_does_not_know_it(line: Line, redis: Redis, redis_prefix: str) -> None:
    key = f"{redis_prefix}sum"
    for expected in (11, 12):
        await redis.script_flush()
        assert await line.run(SUM, [key], ["10"]) == expected
    assert await line.run(SUM, [key], ["10"]) == 13


async def test_a_refusal_ends_the_line_and_the_next_question_opens_another(line: Line, redis: Redis) -> None:
    """It may lead to a server that was demoted: whoever comes next asks who the primary is."""
    await line.ask(("PING",))
    before = await clients(redis)
    beside = asyncio.create_task(line.ask(("BLPOP", "nothing", 30), within_s=30))
    refused = asyncio.create_task(line.ask(("NO-SUCH-COMMAND",), ("PING",)))
    await asyncio.sleep(0)
    await redis.client_unblock(await _blocked(redis))
    assert await beside == [None]
    with pytest.raises(ResponseError, match="unknown command"):
        await refused
    assert [type(answer) for answer in await line.ask(("PING",))] == [bytes]
    assert before != await clients(redis)


async def test_what_was_answered_behind_a_refusal_is_not_looked_at(line: Line) -> None:
    """It came with the refusal, and whoever asked has been told by then that the line is over."""
    await line.ask(("PING",))
    strange: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: strange.append(context))
    refused, *others = [asyncio.create_task(line.ask((word,))) for word in ("NO-SUCH-COMMAND", *["PING"] * 20)]
    answers = await asyncio.gather(refused, *others, return_exceptions=True)
    assert isinstance(answers[0], ResponseError)
    assert {type(answer) for answer in answers[1:]} == {RedisConnectionError}
    assert strange == []


async def _blocked(redis: Redis) -> int:
    while True:
        for one in await redis.client_list():
            if one["cmd"] == "blpop":
                return int(one["id"])


async def test_a_line_that_breaks_fails_what_was_asked_and_opens_again(line: Line, redis: Redis) -> None:
    await line.ask(("PING",))
    waiting = asyncio.create_task(line.ask(("BLPOP", "nothing", 30), within_s=30))
    await redis.client_kill_filter(_id=str(await _blocked(redis)))
    with pytest.raises(RedisConnectionError):
        await waiting
    assert await line.ask(("ECHO", "again")) == [b"again"]


async def test_a_server_that_owes_an_answer_for_too_long_is_given_up(redis: Redis) -> None:
    line = line_to(redis, timeout_s=1.0)
    with pytest.raises(RedisConnectionError, match="does not answer"):
        await line.ask(("BLPOP", "nothing", 30))
    assert await line.ask(("BLPOP", "nothing", 1.2), within_s=30) == [None]
    line.close()


async def test_a_line_to_nobody_says_so_and_finds_the_server_when_it_comes() -> None:
    with EmbeddedValkey() as server:
        async with Redis.from_url(server.url) as redis:
            line = line_to(redis)
            await line.ask(("PING",))
            server.stop()
            with pytest.raises(RedisConnectionError):
                await line.ask(("PING",))
            server.start()
            assert await line.ask(("ECHO", "back")) == [b"back"]
            line.close()


async def test_where_nobody_answers_all_who_ask_at_once_wait_for_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that vanished without a word: each try takes as long as it may."""
    tries, given_up = list[Connection](), asyncio.Event()

    async def connect(self: Connection) -> None:
        tries.append(self)
        await given_up.wait()
        raise RedisTimeoutError("nobody")

    monkeypatch.setattr(Connection, "connect", connect)
    line = Line(Connection, timeout_s=5.0)
    asking = [asyncio.create_task(line.ask(("PING",))) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()  # whoever gives up says nothing about the server: the next one tries
    await asyncio.sleep(0)
    given_up.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(answer) for answer in answers[:2]] == [asyncio.CancelledError, RedisTimeoutError]
    assert {type(answer) for answer in answers[2:]} == {RedisConnectionError}
    assert len(tries) == 2
    with pytest.raises(RedisTimeoutError):
        await line.ask(("PING",))
    assert len(tries) == 3


async def test_a_closed_line_fails_what_waits(line: Line) -> None:
    await line.ask(("PING",))
    waiting = asyncio.create_task(line.ask(("BLPOP", "nothing", 30), within_s=30))
    await asyncio.sleep(0)
    line.close()
    with pytest.raises(RedisConnectionError, match="closed on this side"):
        await waiting
