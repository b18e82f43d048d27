"""Tickets: one run's stream for one who can send no headers, within a minute, and no longer than their token."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from daemon.auth.caller import Caller
from daemon.auth.tickets import TICKET_S, ticket_for, ticket_key
from tests.api.answers import assert_problem
from tests.api.harness import SECRET, Answer, Stack, Watch, step

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def waiting(stack: Stack) -> str:
    run_id = await stack.start(step("a", approval_policy="manual"))
    await stack.until(run_id, "paused")
    return run_id


async def ticket(stack: Stack, run_id: str, token: str | None = None) -> Answer:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return await stack.ask("POST", f"/v1/workflow-runs/{run_id}/events-ticket", headers=headers)


async def knock(stack: Stack, path: str, **headers: str) -> Answer:
    async with stack.http.get(stack.base + path, headers=headers) as answer:
        return Answer(answer.status, answer.headers, await answer.json(content_type=None))


async def test_a_ticket_opens_the_stream_of_its_run_and_nothing_else(shared: Stack) -> None:
    run_id, other = await waiting(shared), await waiting(shared)
    given = await ticket(shared, run_id)
    assert (given.status, given.headers["Cache-Control"]) == (200, "no-store")
    place = f"/v1/workflow-runs/{run_id}"
    query = f"?ticket={given.body['ticket']}"
    async with shared.http.get(f"{shared.base}{place}/events{query}") as response:
        assert response.status == 200
        watch = Watch(response)
        await watch.until("replay.done")
        assert watch.types[0] == "run.created"
    refused = await knock(shared, f"/v1/workflow-runs/{other}/events{query}")
    assert_problem(refused, 401, "ticket_invalid", "events-ticket")
    for path in (place, f"{place}/history", "/v1/workflow-runs"):
        assert_problem(await knock(shared, path + query), 401, "unauthenticated")
    bearer = {"Authorization": f"Bearer {given.body['ticket']}"}
    for path in (place, f"{place}/events"):
        assert_problem(await knock(shared, path, **bearer), 401, "token_invalid")


async def test_a_ticket_opens_the_stream_however_the_id_of_its_run_is_written(shared: Stack) -> None:
    run_id = await waiting(shared)
    query = f"?ticket={(await ticket(shared, run_id)).body['ticket']}"
    for written in (run_id.upper(), run_id.replace("-", "")):
        async with shared.http.get(f"{shared.base}/v1/workflow-runs/{written}/events{query}") as response:
            assert response.status == 200, await response.text()


async def test_a_token_is_no_ticket(shared: Stack) -> None:
    run_id = await waiting(shared)
    place = f"/v1/workflow-runs/{run_id}/events?ticket="
    claims: dict[str, Any] = {"sub": "ann", "run": run_id, "aud": "runwarden:events", "exp": int(time.time()) + 60}
    for forged in (
        shared.token(),
        jwt.encode(claims, SECRET, algorithm="HS256"),
        jwt.encode({name: claims[name] for name in ("sub", "run", "exp")}, ticket_key(SECRET), algorithm="HS256"),
        jwt.encode({name: claims[name] for name in ("sub", "run", "aud")}, ticket_key(SECRET), algorithm="HS256"),
        jwt.encode(claims, None, algorithm="none"),
        "x",
        "",
        "%C3%A9",
    ):
        assert_problem(await knock(shared, place + forged), 401, "ticket_invalid", "events-ticket")
    late = jwt.encode(claims | {"exp": int(time.time()) - 1}, ticket_key(SECRET), algorithm="HS256")
    assert_problem(await knock(shared, place + late), 401, "ticket_expired")


async def test_a_ticket_is_for_a_minute_and_never_outlives_the_token(shared: Stack) -> None:
    now = int(time.time())
    assert now + TICKET_S <= ticket_for(Caller("ann", None), "r", ticket_key(SECRET))[1] <= now + TICKET_S + 10
    assert ticket_for(Caller("ann", now + 5), "r", ticket_key(SECRET))[1] == now + 5
    assert now + TICKET_S <= ticket_for(Caller("ann", now + 5000), "r", ticket_key(SECRET))[1] <= now + TICKET_S + 10


async def test_a_stream_opened_by_ticket_ends_with_the_callers_token(shared: Stack) -> None:
    run_id = await waiting(shared)
    began = time.time()
    given = await ticket(shared, run_id, shared.token(lifetime_s=4))
    url = f"{shared.base}/v1/workflow-runs/{run_id}/events?ticket={given.body['ticket']}"
    async with shared.http.get(url) as response:
        assert response.status == 200
        await Watch(response).rest()
    assert int(began) + 4 <= time.time() + 0.05


async def test_a_ticket_is_not_in_the_log(shared: Stack, caplog: pytest.LogCaptureFixture) -> None:
    """Not even when the stream cannot be served: the warning names the path, never the query."""
    run_id = await waiting(shared)
    given = (await ticket(shared, run_id)).body["ticket"]
    object.__setattr__(shared.context.settings, "sse_clients", 0)
    try:
        refused = await knock(shared, f"/v1/workflow-runs/{run_id}/events?ticket={given}")
    finally:
        object.__setattr__(shared.context.settings, "sse_clients", 5000)
    assert_problem(refused, 503, "too_many_streams")
    told = "".join(str(vars(record)) for record in caplog.records)
    assert "a request could not be served" in told
    assert given not in told + str(refused.body)


async def test_anothers_run_has_no_ticket(shared: Stack) -> None:
    run_id = await waiting(shared)
    assert_problem(await ticket(shared, run_id, shared.token("bob")), 404, "not_found")
