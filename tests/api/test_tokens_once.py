"""``Idempotency-Key`` where the answer is a secret, shown once: a repeat makes no other token, and shows none."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from tests.api.answers import assert_problem
from tests.api.harness import Answer, Stack
from tests.api.test_service_tokens import TOKENS, ask, token_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
BODY = {"name": "nightly", "scopes": ["viewer"]}


async def post(stack: Stack, token: str, key: str, body: Any = BODY) -> Answer:
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
    return await stack.ask("POST", TOKENS, headers=headers, json=body)


async def live_of(books: asyncpg.Connection, user_id: str) -> int:
    found: int = await books.fetchval("SELECT count(*) FROM service_tokens WHERE user_id = $1", user_id)
    return found


async def test_a_request_sent_again_makes_no_other_and_says_which_was_made_and_what_to_do(
    shared: Stack, books: asyncpg.Connection
) -> None:
    ann = token_of("ann-once")
    first = await post(shared, ann, "k")
    assert first.status == 200
    token_id, secret = first.body["token_id"], first.body["token"]
    for _ in range(2):
        again = await post(shared, ann, "k")
        assert_problem(again, 409, "token_already_made", token_id)
        assert "revoke" in again.body["detail"]
        place = again.headers["Location"]
        assert place == f"{TOKENS}/{token_id}"
        assert secret not in str(again.body)
        known = await ask(shared, ann, "GET", place)
        assert (known.status, known.body["token_id"]) == (200, token_id)
        await ask(shared, ann, "DELETE", place)  # what became of it changes nothing: it was made
    assert await live_of(books, "ann-once") == 1
    kept = await books.fetch("SELECT k::text AS kept FROM idempotency_keys k WHERE user_id = 'ann-once'")
    assert len(kept) == 1
    assert secret not in str(kept)
    assert secret.removeprefix("rwt_") not in str(kept)


async def test_of_many_at_once_one_is_told_the_token(shared: Stack, books: asyncpg.Connection) -> None:
    said = await asyncio.gather(*(post(shared, token_of("bob-once"), "k") for _ in range(10)))
    assert sorted(answer.status for answer in said) == [200] + [409] * 9
    (made,) = [answer.body["token_id"] for answer in said if answer.status == 200]
    assert {answer.headers["Location"] for answer in said if answer.status == 409} == {f"{TOKENS}/{made}"}
    assert await live_of(books, "bob-once") == 1
    lines = "SELECT count(*) FROM audit_log WHERE action = 'service_token.made' AND owner = 'bob-once'"
    assert await books.fetchval(lines) == 1


async def test_a_key_is_its_users_and_for_one_request(shared: Stack, books: asyncpg.Connection) -> None:
    cyd, dan = token_of("cyd-once"), token_of("dan-once")
    assert (await post(shared, cyd, "k")).status == 200
    assert_problem(await post(shared, cyd, "k", BODY | {"name": "other"}), 422, "idempotency_key_reused")
    assert (await post(shared, dan, "k")).status == 200
    assert (await post(shared, cyd, "other")).status == 200
    assert (await ask(shared, cyd, "POST", TOKENS, BODY)).status == 200, "without a key each makes one, as before"
    assert await live_of(books, "cyd-once") == 3


async def test_a_refused_request_keeps_no_key(shared: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    eve = token_of("eve-once")
    assert_problem(await post(shared, eve, "k", BODY | {"scopes": ["admin"]}), 403, "scope_exceeds_roles")
    first = await post(shared, eve, "k")
    assert first.status == 200
    monkeypatch.setattr("daemon.store.service_tokens.MOST", 1)
    assert_problem(await post(shared, eve, "new"), 409, "too_many_tokens")
    await ask(shared, eve, "DELETE", f"{TOKENS}/{first.body['token_id']}")
    assert (await post(shared, eve, "new")).status == 200
