"""Bad requests by the table of ``bad_requests``: the exact answer, a problem that names the fault, nothing stored."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import asyncpg
import orjson
import pytest
import pytest_asyncio
import yarl
from multidict import CIMultiDict, CIMultiDictProxy

from daemon import telemetry
from daemon.api.server import SERVER_LOG
from tests.api import bad_requests
from tests.api.answers import assert_problem, stored
from tests.api.bad_requests import TABLE, Bad, as_bytes
from tests.api.harness import Answer, Stack, stack, step
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def places(shared: Stack) -> dict[str, str]:
    """Ann's run, which waits for approval, and its workflow."""
    workflow_id = await shared.workflow(step("a", approval_policy="manual"))
    made = await shared.post("/v1/workflow-runs", {"workflow_id": workflow_id})
    await shared.until(made.body["run_id"], "paused")
    return {"run": made.body["run_id"], "workflow": workflow_id}


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
async def test_a_bad_request_is_answered_by_its_fault_and_stores_nothing(
    shared: Stack, books: asyncpg.Connection, places: dict[str, str], row: Bad
) -> None:
    before = await stored(books)
    path = yarl.URL(shared.base + row.path.format(**places), encoded=True)
    body = as_bytes(row.body, **places)
    headers = shared.headers(**dict(row.headers))
    async with shared.http.request(row.method, path, data=body, headers=headers) as response:
        answered = Answer(response.status, response.headers, orjson.loads(await response.read()))
    assert_problem(answered, row.status, row.code, row.says)
    assert await stored(books) == before


@pytest.mark.parametrize(
    "body",
    [
        bad_requests.workflow(title="x" * 255),
        bad_requests.workflow(*(bad_requests.one(id=f"s{n}") for n in range(1000))),
        bad_requests.workflow(bad_requests.one(tool_config=bad_requests.tool(arguments={"n": [2**53, -(2**53)]}))),
        bad_requests.workflow(bad_requests.one(tool_config=bad_requests.tool(arguments={"a": bad_requests.deep(190)}))),
        bad_requests.workflow(bad_requests.one(tool_config=bad_requests.tool(arguments={"a": "\\u0000"}))),
        bad_requests.workflow(bad_requests.one(tool_config=bad_requests.tool(arguments={"a": "9" * 30}))),
        bad_requests.workflow(bad_requests.one(tool_config=bad_requests.tool(timeout_ms=604_800_000))),
        bad_requests.workflow(bad_requests.one(id="\U0001f600/~ '\";--")),
    ],
    ids=["255 characters", "1000 steps", "53 bits", "190 deep", "NUL spelt out", "digits as text", "a week", "odd id"],
)
async def test_what_is_just_within_the_limits_is_kept_as_it_came(shared: Stack, body: dict[str, Any]) -> None:
    made = await shared.post("/v1/workflows", body)
    assert made.status == 200, made.body
    sent, kept = body["spec"]["steps"], made.body["spec"]["steps"]
    assert [step["id"] for step in kept] == [step["id"] for step in sent]
    assert kept[0]["tool_config"].get("arguments") == sent[0]["tool_config"].get("arguments", {})


async def test_a_workflow_just_within_the_limits_can_be_run_and_read(shared: Stack) -> None:
    """What is accepted can be carried: 190 levels and 53 bits go through the store, the machine and back."""
    arguments = {"deep": bad_requests.deep(190), "number": -(2**53)}
    run_id = await shared.start(step("a", approval_policy="manual", arguments=arguments))
    run = await shared.until(run_id, "paused")
    assert run["workflow_snapshot"]["steps"][0]["tool_config"]["arguments"] == arguments
    await shared.decide(run_id, "approve", {"step_id": "a"})
    await shared.at_rest(run_id, "completed", "a")


async def test_at_most_twenty_faults_of_a_body_are_told(shared: Stack) -> None:
    answered = await shared.post("/v1/workflows", bad_requests.workflow(ignored=["\x00"] * 1000))
    assert len(answered.body["errors"]) == 20
    steps = [bad_requests.one(id=7) for _ in range(1000)]
    answered = await shared.post("/v1/workflows", bad_requests.workflow(*steps))
    assert len(answered.body["errors"]) == 20


async def test_every_fault_of_a_body_is_told_with_its_path(shared: Stack) -> None:
    answered = await shared.post("/v1/workflows", {"title": "", "spec": []})
    assert [fault["path"] for fault in answered.body["errors"]] == ["/title", "/spec"]


HEAD = "POST /v1/workflows HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
GET = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
BROKEN_HTTP = {
    "no HTTP at all": ("hello\r\n\r\n", "is not HTTP/1.1"),
    "TLS": ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "HTTP, not HTTPS"),
    "HTTP/2": ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1, not HTTP/2"),
    "a body by brotli": (HEAD + "Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", "gzip, deflate"),
    "a made-up method": ("BREW / HTTP/1.1\r\nHost: x\r\n\r\n", "is not HTTP/1.1"),
    "a path with a blank": ("GET / a HTTP/1.1\r\nHost: x\r\n\r\n", "is not HTTP/1.1"),
    "a port of letters": ("GET http://x:y/ HTTP/1.1\r\nHost: x\r\n\r\n", "is not HTTP/1.1"),
    "a header without a colon": (GET + "X\r\n\r\n", "is not HTTP/1.1"),
    "a NUL in a header": (GET + "X: \x00\r\n\r\n", "is not HTTP/1.1"),
    "a header of a megabyte": (GET + "X: " + "x" * 1_000_000 + "\r\n\r\n", "at most 8190 bytes"),
    "a token of 9,000 characters": (GET + "Authorization: Bearer " + "x" * 9_000 + "\r\n\r\n", "at most 8190 bytes"),
    "a long URL": ("GET /" + "x" * 9_000 + " HTTP/1.1\r\nHost: x\r\n\r\n", "at most 8190 bytes"),
    "too many headers": (GET + "X: y\r\n" * 200 + "\r\n", "at most 128"),
    "a chunk of no size": (HEAD + "Transfer-Encoding: chunked\r\n\r\nzz\r\nrubbish\r\n0\r\n\r\n", "is not HTTP/1.1"),
    "a body of another encoding": (HEAD + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", "its headers say"),
    "a deflated nothing": (
        HEAD + "Content-Encoding: deflate\r\nContent-Length: 4\r\n\r\n\xff\xff\xff\xff",
        "its headers say",
    ),
    "a negative length": (HEAD + "Content-Length: -1\r\n\r\n", "is not HTTP/1.1"),
    "two lengths": (HEAD + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "is not HTTP/1.1"),
}


@pytest.mark.parametrize("name", BROKEN_HTTP)
async def test_broken_http_is_a_400_in_our_form_and_the_node_goes_on(
    shared: Stack, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent, says = BROKEN_HTTP[name]
    answered = await _of_bytes(shared, sent)
    assert_problem(answered, 400, "bad_request", says)
    assert "message:" not in answered.body["detail"], "told in words, not as aiohttp prints its exceptions"
    assert (await shared.ask("GET", "/healthz")).status == 200
    logged = [record for record in caplog.records if record.name in ("aiohttp.server", SERVER_LOG.name)]
    assert logged == []  # else anybody could fill the log


async def test_what_was_sent_is_not_told_again(shared: Stack) -> None:
    """There may be a token in it."""
    for sent in (
        GET + "Authorization: Bearer s3cret\x00\r\n\r\n",
        "GET /?ticket=s3cret\x7f HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        assert "s3cret" not in str((await _of_bytes(shared, sent)).body)


async def test_broken_http_ends_its_connection_and_is_counted(shared: Stack) -> None:
    counted = telemetry.requests.labels("none", 400)
    before = counted.value
    reader, writer = await _connected(shared)
    try:
        writer.write(b"hello\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            answered = await reader.read()
    finally:
        writer.transport.abort()
    assert answered.count(b"Content-Length:") == 1
    assert counted.value == before + 1


async def test_what_is_no_http_after_a_good_request_is_told_so_too(shared: Stack) -> None:
    reader, writer = await _connected(shared)
    try:
        writer.write(GET.encode() + b"\r\n")
        async with asyncio.timeout(PATIENCE_S):
            assert (await _answer(reader)).status == 200
            writer.write(b"hello\r\n\r\n")
            assert_problem(await _answer(reader), 400, "bad_request", "is not HTTP/1.1")
    finally:
        writer.transport.abort()


async def _connected(shared: Stack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = yarl.URL(shared.base)
    return await asyncio.open_connection(url.host, url.port)


async def _of_bytes(shared: Stack, sent: str) -> Answer:
    """What is answered to bytes that may be no HTTP."""
    reader, writer = await _connected(shared)
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write(sent.replace("{token}", shared.headers()["Authorization"]).encode("latin-1"))
            return await _answer(reader)
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader) -> Answer:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = CIMultiDict(line.split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers["Content-Length"]))
    return Answer(int(status.split(" ")[1]), CIMultiDictProxy(headers), orjson.loads(body))


async def test_a_client_that_asks_before_it_sends_its_body_is_told_to_go_on(shared: Stack) -> None:
    url = yarl.URL(shared.base)
    head = HEAD.replace("{token}", shared.headers()["Authorization"])
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            writer.write((head + "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n").encode())
            assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
            writer.write(b"[]")
            assert await reader.readline() == b"\r\n"
            assert (await reader.readline()).startswith(b"HTTP/1.1 422 ")
    finally:
        writer.transport.abort()


async def test_a_client_that_hangs_up_in_the_middle_of_its_body_stores_nothing(
    shared: Stack, books: asyncpg.Connection
) -> None:
    before = await stored(books)
    url = yarl.URL(shared.base)
    head = HEAD.replace("{token}", shared.headers()["Authorization"])
    _, writer = await asyncio.open_connection(url.host, url.port)
    writer.write((head + 'Content-Length: 5000\r\n\r\n{"title": "T", ').encode())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await shared.ask("GET", "/readyz")).status == 200
    assert await stored(books) == before


async def test_a_body_that_does_not_come_in_time_is_408_and_ends_the_connection(
    database: str, redis_url: str, redis_prefix: str, books: asyncpg.Connection
) -> None:
    async with stack(database, redis_url, redis_prefix, body_timeout_s=0.2) as live:
        before = await stored(books)
        url = yarl.URL(live.base)
        head = HEAD.replace("{token}", live.headers()["Authorization"])
        reader, writer = await asyncio.open_connection(url.host, url.port)
        try:
            writer.write((head + 'Content-Length: 5000\r\n\r\n{"title": "T", ').encode())
            async with asyncio.timeout(PATIENCE_S):
                answered = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readuntil(b"}")
        finally:
            writer.transport.abort()
        assert answered.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nConnection: close\r\n" in answered
        assert orjson.loads(body)["code"] == "request_timeout"
        assert await stored(books) == before


async def test_a_small_body_that_unpacks_to_a_huge_one_is_413(shared: Stack) -> None:
    bomb = gzip.compress(b'{"title": "' + b"x" * 50_000_000 + b'"}')
    answered = await shared.ask("POST", "/v1/workflows", data=bomb, headers={"Content-Encoding": "gzip"})
    assert (answered.status, answered.body["code"]) == (413, "body_too_large")
