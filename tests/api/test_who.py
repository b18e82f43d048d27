"""Who is asking: every kind of bad token is a 401 and nothing else, and what is another user's is not there."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import asyncpg
import jwt
import pytest
import pytest_asyncio
import yarl

from daemon.auth.tokens import mint
from tests.api.answers import assert_problem, stored
from tests.api.harness import SECRET, Answer, Stack, step
from tests.patience import PATIENCE_S, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOW = int(time.time())
NOBODY = "01990000-0000-7000-8000-000000000000"


def signed(claims: Any, *, secret: str = SECRET, header: Any = None) -> str:
    """A token made by hand, whatever is in it: HS256 over any header and claims (RFC 7515); text goes as it is."""
    given = (header or {"alg": "HS256", "typ": "JWT"}, claims)
    parts = [(part if isinstance(part, str) else json.dumps(part)).encode() for part in given]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    proof = hmac.new(secret.encode(), text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(proof).rstrip(b"=")).decode()


def bearer(claims: Any, **how: Any) -> str:
    return "Bearer " + signed(claims, **how)


GOOD = signed({"sub": "ann"})
DEEP = '{"alg": "HS256", "sub": "ann", "x": ' + "[" * 2000 + "]" * 2000 + "}"

REFUSED: dict[str, tuple[str | None, str]] = {
    "none": (None, "unauthenticated"),
    "an empty header": ("", "unauthenticated"),
    "the wrong scheme": (f"Basic {GOOD}", "unauthenticated"),
    "the token alone": (GOOD, "unauthenticated"),
    "a scheme alone": ("Bearer", "unauthenticated"),
    "a scheme and a space": ("Bearer ", "unauthenticated"),
    "garbage": ("Bearer garbage", "token_invalid"),
    "dots": ("Bearer ..", "token_invalid"),
    "two tokens": (f"Bearer {GOOD} {GOOD}", "token_invalid"),
    "letters beyond ASCII": ("Bearer żółć", "token_invalid"),
    "a header that nests deep": (bearer({"sub": "ann"}, header=DEEP), "token_invalid"),
    "claims that nest deep": (bearer(DEEP), "token_invalid"),
    "a header that is a list": ("Bearer " + signed({"sub": "ann"}, header=["HS256"]), "token_invalid"),
    "claims that are a list": (bearer(["ann"]), "token_invalid"),
    "alg none": ("Bearer " + jwt.encode({"sub": "ann"}, None, algorithm="none"), "token_invalid"),
    "alg None, signed": (bearer({"sub": "ann"}, header={"alg": "None"}), "token_invalid"),
    "no alg": (bearer({"sub": "ann"}, header={"typ": "JWT"}), "token_invalid"),
    "RS256 by name, HS256 by key": (bearer({"sub": "ann"}, header={"alg": "RS256", "typ": "JWT"}), "token_invalid"),
    "another HMAC": ("Bearer " + jwt.encode({"sub": "ann"}, SECRET * 2, algorithm="HS512"), "token_invalid"),
    "the wrong secret": (bearer({"sub": "ann"}, secret="another secret, long enough as well"), "token_invalid"),
    "an empty secret": (bearer({"sub": "ann"}, secret=""), "token_invalid"),
    "a signature cut off": (f"Bearer {GOOD[:-1]}", "token_invalid"),
    "no signature": (f"Bearer {GOOD.rpartition('.')[0]}.", "token_invalid"),
    "claims changed after signing": (f"Bearer {GOOD.split('.')[0]}.e30.{GOOD.split('.')[2]}", "token_invalid"),
    "expired": (bearer({"sub": "ann", "exp": NOW - 1}), "token_expired"),
    "expired long ago": (bearer({"sub": "ann", "exp": 0}), "token_expired"),
    "not yet valid": (bearer({"sub": "ann", "nbf": NOW + 3600}), "token_invalid"),
    "an exp of words": (bearer({"sub": "ann", "exp": "tomorrow"}), "token_invalid"),
    "an exp of null": (bearer({"sub": "ann", "exp": None}), "token_invalid"),
    "an exp of lists": (bearer({"sub": "ann", "exp": [NOW + 60]}), "token_invalid"),
    "an exp without end": (bearer({"sub": "ann", "exp": float("inf")}), "token_invalid"),
    "an exp of no number": (bearer({"sub": "ann", "exp": float("nan")}), "token_invalid"),
    "an nbf of lists": (bearer({"sub": "ann", "nbf": [1]}), "token_invalid"),
    "an iat of objects": (bearer({"sub": "ann", "iat": {}}), "token_invalid"),
    "no sub": (bearer({"exp": NOW + 600}), "token_invalid"),
    "a sub of null": (bearer({"sub": None}), "token_invalid"),
    "a numeric sub": (bearer({"sub": 7}), "token_invalid"),
    "a sub of lists": (bearer({"sub": ["ann"]}), "token_invalid"),
    "an empty sub": (bearer({"sub": ""}), "token_invalid"),
    "a sub of 256 characters": (bearer({"sub": "x" * 256}), "token_invalid"),
    "NUL in the sub": (bearer({"sub": "ann\x00"}), "token_invalid"),
    "a lone surrogate in the sub": (bearer({"sub": "ann\ud800"}), "token_invalid"),
}


async def ask(stack: Stack, method: str, path: str, authorization: str | None, body: Any = None) -> Answer:
    """One exchange with exactly this Authorization header."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with stack.http.request(method, yarl.URL(stack.base + path), json=body, headers=headers) as response:
        return Answer(response.status, response.headers, await response.json(content_type=None))


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_token_is_401_and_stores_nothing(shared: Stack, books: asyncpg.Connection, name: str) -> None:
    authorization, code = REFUSED[name]
    before = await stored(books)
    body = {"title": "T", "spec": {"steps": [step("a")]}}
    answered = await ask(shared, "POST", "/v1/workflows", authorization, body)
    assert_problem(answered, 401, code)
    assert answered.headers["WWW-Authenticate"].startswith("Bearer")
    assert await stored(books) == before


async def test_a_token_of_bytes_that_are_no_text_is_401(shared: Stack) -> None:
    url = yarl.URL(shared.base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe.\xff.\xff\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        line = await reader.readline()
    writer.transport.abort()
    assert line.startswith(b"HTTP/1.1 401 ")


async def test_a_token_that_was_good_is_refused_once_it_has_expired(shared: Stack) -> None:
    """Its signature is remembered, its end is not forgotten."""
    ends = int(time.time()) + 4
    token = bearer({"sub": "ann", "exp": ends})
    first = await ask(shared, "GET", f"/v1/workflow-runs/{NOBODY}", token)
    assert_problem(first, 404, "not_found")
    await eventually(lambda: time.time() >= ends)
    after = await ask(shared, "GET", f"/v1/workflow-runs/{NOBODY}", token)
    assert_problem(after, 401, "token_expired")


@pytest.mark.parametrize("exp", [10**400, 2**64, 1e300])
async def test_a_token_that_expires_after_the_end_of_time_can_watch_as_well(shared: Stack, exp: float) -> None:
    run_id = await shared.start(step("a"))
    await shared.at_rest(run_id, "completed", "a")
    shared.tokens["ann"] = signed({"sub": "ann", "exp": exp})
    async with shared.watch(run_id) as watch:
        await watch.rest()
    assert "run.completed" in watch.types
    del shared.tokens["ann"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/workflows"),
        ("POST", "/v1/workflow-runs"),
        ("GET", f"/v1/workflow-runs/{NOBODY}"),
        ("GET", f"/v1/workflow-runs/{NOBODY}/events"),
        ("GET", f"/v1/workflow-runs/{NOBODY}/commands/{NOBODY}"),
        ("POST", f"/v1/workflow-runs/{NOBODY}/resume"),
        ("POST", f"/v1/workflow-runs/{NOBODY}/skip"),
        ("POST", f"/v1/workflow-runs/{NOBODY}/mark-done"),
        ("POST", "/v1/workflow-runs/bulk"),
        ("POST", f"/v1/workflow-runs/{NOBODY}/cancel"),
        ("POST", f"/v1/workflow-runs/{NOBODY}/approve"),
        ("POST", f"/v1/workflow-runs/{NOBODY}/reject"),
        ("GET", "/v1/nothing"),
        ("PUT", "/v1/workflows"),
    ],
)
async def test_every_route_wants_a_token_before_anything_else(shared: Stack, method: str, path: str) -> None:
    assert_problem(await ask(shared, method, path, None), 401, "unauthenticated", "Authorization")
    assert_problem(await ask(shared, method, path, "Bearer x"), 401, "token_invalid")


USERS: dict[str, str] = {
    "255 characters": "x" * 255,
    "255 characters of four bytes": "\U0001f600" * 255,
    "unicode": "żółć@例え.jp",
    "a provider's": "auth0|65f1c2",
    "blanks": " ",
    "an injection": "'; DROP TABLE workflows; --",
    "one letter": "a",
}


@pytest.mark.parametrize("name", USERS)
async def test_any_text_up_to_255_characters_is_a_user(shared: Stack, name: str) -> None:
    sub = USERS[name]
    workflow_id = await shared.workflow(step("a", approval_policy="manual"), sub=sub)
    made = await shared.post("/v1/workflow-runs", {"workflow_id": workflow_id}, sub=sub)
    assert made.status == 200
    run_id = made.body["run_id"]
    canceled = await shared.decide(run_id, "cancel", sub=sub)
    assert canceled.status == 200
    assert (await shared.ask("GET", f"/v1/workflow-runs/{run_id}", sub="ann")).status == 404
    rows = await shared.sql("SELECT issued_by FROM workflow_run_commands WHERE run_id = $1::text::uuid", run_id)
    assert {row["issued_by"] for row in rows} == {sub}


@pytest.mark.parametrize(
    "claims",
    [{"sub": "ann"}, {"sub": "ann", "exp": NOW + 600, "iat": NOW, "role": "x", "email": 7}, {"sub": "ann", "exp": 9e9}],
    ids=["without an end", "with more claims", "with a float for its end"],
)
async def test_a_token_needs_a_sub_and_may_have_more(shared: Stack, claims: dict[str, Any]) -> None:
    answered = await ask(shared, "GET", f"/v1/workflow-runs/{NOBODY}", bearer(claims))
    assert answered.status == 404


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer  "])
async def test_the_scheme_is_read_whatever_its_case(shared: Stack, scheme: str) -> None:
    assert (await ask(shared, "GET", f"/v1/workflow-runs/{NOBODY}", f"{scheme} {GOOD}")).status == 404


async def test_what_the_cli_mints_is_accepted(shared: Stack) -> None:
    token = mint("ann", SECRET, lifetime_s=60)
    assert (await ask(shared, "GET", f"/v1/workflow-runs/{NOBODY}", f"Bearer {token}")).status == 404


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def anns(shared: Stack) -> dict[str, str]:
    """Ann's workflow, her run that waits, and the command that canceled another of hers."""
    workflow_id = await shared.workflow(step("a", approval_policy="manual"))
    run_id = (await shared.post("/v1/workflow-runs", {"workflow_id": workflow_id})).body["run_id"]
    await shared.until(run_id, "paused")
    rows = await shared.sql("SELECT id FROM workflow_run_commands WHERE run_id = $1::text::uuid", run_id)
    return {"workflow": workflow_id, "run": run_id, "command": str(rows[0]["id"])}


OTHERS: dict[str, Callable[[dict[str, str]], tuple[str, str, Any]]] = {
    "a run of her workflow": lambda its: ("POST", "/v1/workflow-runs", {"workflow_id": its["workflow"]}),
    "reading": lambda its: ("GET", f"/v1/workflow-runs/{its['run']}", None),
    "watching": lambda its: ("GET", f"/v1/workflow-runs/{its['run']}/events", None),
    "a command": lambda its: ("GET", f"/v1/workflow-runs/{its['run']}/commands/{its['command']}", None),
    "resume": lambda its: ("POST", f"/v1/workflow-runs/{its['run']}/resume", None),
    "cancel": lambda its: ("POST", f"/v1/workflow-runs/{its['run']}/cancel", {"reason": "mine now"}),
    "approve": lambda its: ("POST", f"/v1/workflow-runs/{its['run']}/approve", {"step_id": "a"}),
    "reject": lambda its: ("POST", f"/v1/workflow-runs/{its['run']}/reject", {"step_id": "a"}),
    "skip": lambda its: ("POST", f"/v1/workflow-runs/{its['run']}/skip", {"step_id": "a"}),
    "mark-done": lambda its: ("POST", f"/v1/workflow-runs/{its['run']}/mark-done", {"step_id": "a", "note": "n"}),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("sub", ["bob", "Ann", "ann ", "%", "ann\u200b"])
async def test_anothers_resource_is_a_404_that_tells_nothing(
    shared: Stack, books: asyncpg.Connection, anns: dict[str, str], name: str, sub: str
) -> None:
    method, path, body = OTHERS[name](anns)
    before = await stored(books)
    answered = await shared.ask(method, path, sub=sub, json=body)
    assert_problem(answered, 404, "not_found")
    unknown = await shared.ask(method, path.replace(anns["run"], NOBODY), sub=sub, json=_unknown(body))
    assert unknown.body == answered.body
    assert await stored(books) == before
    assert (await shared.run(anns["run"]))["status"] == "paused"


def _unknown(body: Any) -> Any:
    return {"workflow_id": NOBODY} if body and "workflow_id" in body else body


async def test_two_users_with_the_same_requests_see_their_own(shared: Stack) -> None:
    mine = await shared.start(step("a"), sub="ann")
    hers = await shared.start(step("a"), sub="bob")
    assert (await shared.run(mine, sub="ann"))["run_id"] == mine
    assert (await shared.run(hers, sub="bob"))["run_id"] == hers
