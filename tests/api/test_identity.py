"""Tokens of an identity provider at a real node: keys read with bounds, rotated, removed, kept; 503 when unknown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from daemon import issuer
from daemon.api.callers import Callers
from daemon.config import load_group
from daemon.errors import SetupError
from tests.api.answers import assert_problem
from tests.api.harness import SECRET, Answer, Stack, Watch, stack, step
from tests.api.provider import Provider, provider
from tests.auth.signers import ALGORITHMS, key_set, signer
from tests.auth.test_tokens import by_hand
from tests.patience import eventually, let_pass

NOBODY = "01990000-0000-7000-8000-000000000000"
RUN = f"/v1/workflow-runs/{NOBODY}"
ONE, TWO = signer("RS256", "one"), signer("ES256", "two")
SLOW = {"jwks_refresh_s": 3600, "jwks_pause_s": 3600}
"""Nothing is read in the background, nor twice for unknown keys."""
QUICK = {"jwks_refresh_s": 1, "jwks_pause_s": 0.05}


@pytest.fixture
async def idp() -> AsyncIterator[Provider]:
    async with provider(ONE) as opened:
        yield opened


@pytest.fixture
def place(database: str, redis_url: str, redis_prefix: str) -> tuple[str, str, str]:
    return database, redis_url, redis_prefix


@asynccontextmanager
async def node(place: tuple[str, str, str], idp: Provider, **settings: Any) -> AsyncIterator[Stack]:
    """A node that trusts this provider and, unless settings say otherwise, no secret."""
    given = {"jwt_secret": "", "jwks_url": idp.url} | settings
    async with stack(*place, **given) as opened:
        yield opened


async def ask(stack: Stack, token: str, method: str = "GET", path: str = RUN, body: Any = None) -> Answer:
    headers = {"Authorization": f"Bearer {token}"}
    return await stack.ask(method, path, headers=headers, **({} if body is None else {"json": body}))


async def accepted(stack: Stack, token: str) -> bool:
    return (await ask(stack, token)).status == 404


async def ready(stack: Stack) -> str:
    answered = await stack.ask("GET", "/readyz")
    return str(answered.body["checks"]["issuer"])


async def test_tokens_of_each_algorithm_are_accepted_and_the_set_is_read_once(
    place: tuple[str, str, str], idp: Provider
) -> None:
    idp.keys = [signer(algorithm, algorithm) for algorithm in ALGORITHMS]
    async with node(place, idp, **SLOW) as opened:
        for algorithm in ALGORITHMS:
            assert await accepted(opened, signer(algorithm, algorithm).sign("ann"))
        assert await ready(opened) == "ok"
        assert idp.asked == 1


async def test_a_secret_and_keys_side_by_side_are_not_confused(place: tuple[str, str, str], idp: Provider) -> None:
    async with node(place, idp, jwt_secret=SECRET, **SLOW) as opened:
        assert await accepted(opened, ONE.sign("ann"))
        assert await accepted(opened, opened.token("ann"))
        claims = {"sub": "ann", "exp": int(time.time()) + 600}
        for forged in (
            by_hand({"alg": "HS256", "kid": "one"}, claims, ONE.pem()),
            by_hand({"alg": "HS256"}, claims, ONE.pem()),
            by_hand({"alg": "RS256", "kid": "one"}, claims, SECRET.encode()),
            by_hand({"alg": "none", "kid": "one"}, claims, b"").rpartition(".")[0] + ".",
        ):
            assert_problem(await ask(opened, forged), 401, "token_invalid")
        assert idp.asked == 1


async def test_issuer_audience_leeway_and_claims_are_held_to_the_settings(
    place: tuple[str, str, str], idp: Provider
) -> None:
    rules = {"jwt_issuer": "https://idp.example", "jwt_audience": "runwarden", "jwt_leeway_s": 30}
    good = {"iss": "https://idp.example", "aud": ["runwarden", "account"], "email": "ann@example"}
    async with node(place, idp, jwt_required_claims="exp, email", **rules, **SLOW) as opened:
        assert await accepted(opened, ONE.sign("ann", **good))
        assert await accepted(opened, ONE.sign("ann", **good, exp=int(time.time()) - 10))
        late = await ask(opened, ONE.sign("ann", **good, exp=int(time.time()) - 40))
        assert_problem(late, 401, "token_expired")
        for wrong in ({"iss": "https://evil"}, {"aud": "other"}, {"aud": None}, {"exp": None}, {"email": None}):
            assert_problem(await ask(opened, ONE.sign("ann", **good | wrong)), 401, "token_invalid")


async def test_a_new_key_is_found_by_those_who_use_it_first_with_one_reading(
    place: tuple[str, str, str], idp: Provider
) -> None:
    pause_s = 0.05
    async with node(place, idp, jwks_refresh_s=3600, jwks_pause_s=pause_s) as opened:
        assert await accepted(opened, ONE.sign("ann"))
        await asyncio.sleep(pause_s)  # so soon after the reading at the start there is no other
        asked = idp.asked
        idp.keys = [TWO, ONE]
        idp.held.clear()
        first = [asyncio.create_task(ask(opened, TWO.sign(f"user {number}"))) for number in range(20)]
        await eventually(lambda: idp.asked > asked, what="a reading for the new key")
        assert await accepted(opened, ONE.sign("bob")), "whose key is known waits for nobody"
        idp.held.set()
        assert {answered.status for answered in await asyncio.gather(*first)} == {404}
        assert idp.asked == asked + 1


async def test_unknown_keys_lead_to_one_reading_in_a_while(place: tuple[str, str, str], idp: Provider) -> None:
    async with node(place, idp, jwks_refresh_s=3600, jwks_pause_s=3600) as opened:
        assert await accepted(opened, ONE.sign("ann"))
        for number in range(30):
            forged = TWO.sign("mallory", header={"kid": f"made up {number}"})
            assert_problem(await ask(opened, forged), 401, "token_invalid", "key")
        assert idp.asked == 1


async def test_a_key_that_is_removed_opens_nothing_after_the_next_reading(
    place: tuple[str, str, str], idp: Provider
) -> None:
    """Not even for a token whose signature was verified before."""
    idp.keys = [ONE, TWO]
    async with node(place, idp, **QUICK) as opened:
        leaked, other = ONE.sign("ann"), TWO.sign("ann")
        assert await accepted(opened, leaked)
        assert await accepted(opened, other)
        idp.keys = [TWO]

        async def refused() -> bool:
            return (await ask(opened, leaked)).status == 401

        await eventually(refused, what="the end of the key that was removed")
        assert await accepted(opened, other)


@pytest.mark.parametrize("by", ["token", "ticket"])
async def test_streams_end_soon_after_the_key_of_their_token_was_removed(
    place: tuple[str, str, str], idp: Provider, by: str
) -> None:
    """And they alone; nobody comes back by it, nor by a ticket that was given before."""
    idp.keys = [ONE, TWO]
    async with node(place, idp, **QUICK) as opened:
        opened.tokens |= {"ann": TWO.sign("ann"), "leaked": ONE.sign("ann")}
        run_id = await opened.start(step("a", approval_policy="manual"))
        await opened.until(run_id, "paused")
        url = f"{opened.base}/v1/workflow-runs/{run_id}/events"
        door: dict[str, Any] = {"url": url, "headers": opened.headers("leaked")}
        if by == "ticket":
            given = await opened.post(f"/v1/workflow-runs/{run_id}/events-ticket", sub="leaked")
            door = {"url": f"{url}?ticket={given.body['ticket']}"}
        async with opened.http.get(**door) as response, opened.watch(run_id) as others:
            leaked = Watch(response)
            await leaked.until("replay.done")
            await others.until("replay.done")
            idp.keys = [TWO]
            await leaked.rest()
            for _ in range(3):
                assert (await others.frame()).comment == "ping", "streams by other keys go on"
        async with opened.http.get(**door) as refused:
            assert refused.status == 401


async def test_a_ticket_by_a_key_that_this_node_has_not_read_yet_makes_it_read(
    place: tuple[str, str, str], idp: Provider
) -> None:
    async with node(place, idp, jwks_refresh_s=3600, jwks_pause_s=0.05) as opened:
        opened.tokens["ann"] = ONE.sign("ann")
        run_id = await opened.start(step("a", approval_policy="manual"))
        idp.keys = [ONE, TWO]
        where = {"node_name": "node-2", "gateway_url": opened.gateway.url, "role": "front"}
        async with node(place, idp, **SLOW, **where) as other:
            ticket = f"/v1/workflow-runs/{run_id}/events-ticket"
            given = await ask(other, TWO.sign("ann"), "POST", ticket)
            assert given.status == 200
        url = f"{opened.base}{ticket.removesuffix('-ticket')}?ticket={given.body['ticket']}"
        async with opened.http.get(url) as told:
            assert told.status == 200
            await Watch(told).until("replay.done")


async def test_streams_stay_while_nobody_knows_the_keys_any_more(
    place: tuple[str, str, str], idp: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[int] = []
    real = Callers.withdrawn

    def withdrawn(callers: Callers, keys: Collection[str]) -> set[str]:
        known.append(len(callers._keyring._published))
        return real(callers, keys)

    monkeypatch.setattr(Callers, "withdrawn", withdrawn)
    async with node(place, idp, jwks_keep_s=2, **QUICK) as opened:
        opened.tokens["ann"] = ONE.sign("ann")
        run_id = await opened.start(step("a", approval_policy="manual"))
        async with opened.watch(run_id) as watch:
            await watch.until("replay.done")
            await idp.stop()
            await eventually(lambda: known[-3:] == [0, 0, 0], what="heartbeats without keys")
            assert opened.context.feed.clients == 1


async def test_keys_are_kept_for_a_while_when_the_provider_is_away_and_503_follows(
    place: tuple[str, str, str], idp: Provider
) -> None:
    async with node(place, idp, jwks_keep_s=6, **QUICK) as opened:
        token = ONE.sign("ann")
        assert await accepted(opened, token)
        await idp.stop()
        await opened_fails(opened, TWO.sign("ann"))
        assert await accepted(opened, token), "the last keys stand"
        assert await ready(opened) == "ok"

        async def unknown() -> Answer | None:
            answered = await ask(opened, token)
            return answered if answered.status != 404 else None

        answered = await eventually(unknown, what="the end of the last keys")
        assert answered is not None
        assert_problem(answered, 503, "issuer_unavailable", "cannot be read")
        assert answered.headers["Retry-After"] == "1"
        assert idp.url in await ready(opened)
        await idp.start()

        async def good_again() -> bool:
            return await accepted(opened, token)

        await eventually(good_again, what="the provider's return")
        assert await ready(opened) == "ok"


async def opened_fails(stack: Stack, token: str) -> None:
    """Whether this token is good nobody knows now: 503, so that its client keeps it."""

    async def told() -> Answer | None:
        answered = await ask(stack, token)
        return answered if answered.status == 503 else None

    answered = await eventually(told, what="503 for a key that nobody can ask for")
    assert answered is not None
    assert_problem(answered, 503, "issuer_unavailable")


async def _html(_: web.Request) -> web.Response:
    return web.Response(text="<html>sign in</html>", content_type="text/html")


async def _nothing(_: web.Request) -> web.Response:
    return web.Response(body=b'{"keys": []}')


async def _elsewhere(request: web.Request) -> web.Response:
    raise web.HTTPFound(f"{request.url.origin()}/other")


async def _broken(_: web.Request) -> web.Response:
    raise web.HTTPInternalServerError


async def _large(_: web.Request) -> web.Response:
    return web.Response(body=key_set(ONE) + b" " * issuer.MAX_BYTES)


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65536)


async def _dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await let_pass(0.02)


async def _zipped(_: web.Request) -> web.Response:
    answer = web.Response(body=key_set(ONE))
    answer.enable_compression(web.ContentCoding.gzip, strategy=0)
    answer.headers["Vary"] = "Accept-Encoding"
    return answer


BAD: dict[str, tuple[Any, str]] = {
    "a page for people": (_html, "no JSON"),
    "no keys": (_nothing, "none of its 0 keys"),
    "a redirect": (_elsewhere, "redirects are not followed"),
    "an error": (_broken, "the answer is 500"),
    "a large document": (_large, "larger than"),
    "a document without end": (_endless, "larger than"),
    "a document that drips": (_dripping, "does not come within"),
    "compressed unasked": (_zipped, "no JSON"),
}


@pytest.mark.parametrize("name", BAD)
async def test_an_answer_that_is_no_key_set_is_a_bounded_503_that_says_why(
    place: tuple[str, str, str], idp: Provider, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    idp.answer, says = BAD[name]
    if idp.answer is _dripping:  # whatever else comes is not to be cut off because this machine is busy
        monkeypatch.setattr(issuer, "FETCH_TIMEOUT", issuer.aiohttp.ClientTimeout(total=0.5))
    async with node(place, idp, **QUICK) as opened:
        answered = await ask(opened, ONE.sign("ann"))
        assert_problem(answered, 503, "issuer_unavailable", says)
        assert says in await ready(opened)
        idp.answer = None

        async def good() -> bool:
            return await accepted(opened, ONE.sign("ann"))

        await eventually(good, what="the provider's return")


async def test_a_provider_that_never_answers_holds_nobody_longer_than_its_time(
    place: tuple[str, str, str], idp: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "FETCH_TIMEOUT", issuer.aiohttp.ClientTimeout(total=0.5))
    idp.held.clear()
    async with node(place, idp, jwt_secret=SECRET, **QUICK) as opened:
        began = time.monotonic()
        assert_problem(await ask(opened, ONE.sign("ann")), 503, "issuer_unavailable", "does not come within")
        assert time.monotonic() - began < 15
        assert await accepted(opened, opened.token("ann")), "the secret needs nobody"


async def test_roles_come_from_the_claim_that_the_settings_name(place: tuple[str, str, str], idp: Provider) -> None:
    body = {"title": "T", "spec": {"steps": [step("a")]}}
    async with node(place, idp, jwt_roles_claim="realm_access.roles", **SLOW) as opened:
        plain = ONE.sign("ann")
        viewer = ONE.sign("ann", realm_access={"roles": ["offline_access"]})
        operator = ONE.sign("ann", realm_access={"roles": ["operator"]})
        assert (await ask(opened, plain, "POST", "/v1/workflows", body)).status == 200
        assert (await ask(opened, operator, "POST", "/v1/workflows", body)).status == 200
        refused = await ask(opened, viewer, "POST", "/v1/workflows", body)
        assert_problem(refused, 403, "role_required", "'operator'")
        approve = f"{RUN}/approve"
        assert_problem(await ask(opened, operator, "POST", approve, {"step_id": "a"}), 403, "role_required", "approver")
        assert (await ask(opened, plain, "POST", approve, {"step_id": "a"})).status == 404
        assert (await ask(opened, viewer, "GET", "/v1/workflows")).status == 200


async def test_tickets_need_no_secret_and_are_good_at_every_node(place: tuple[str, str, str], idp: Provider) -> None:
    async with node(place, idp, **SLOW) as opened:
        opened.tokens["ann"] = ONE.sign("ann")
        run_id = await opened.start(step("a", approval_policy="manual"))
        given = await opened.post(f"/v1/workflow-runs/{run_id}/events-ticket")
        assert given.status == 200
        database, redis_url, prefix = place
        where = {"node_name": "node-2", "gateway_url": opened.gateway.url, "role": "front"}
        async with node((database, redis_url, prefix), idp, **SLOW, **where) as other:
            url = f"{other.base}/v1/workflow-runs/{run_id}/events?ticket={given.body['ticket']}"
            async with other.http.get(url) as response:
                assert response.status == 200
                await Watch(response).until("replay.done")


NO_PLACE = ["http://idp.example/jwks", "ftp://idp.example", "https://", "https://user:hush@idp.example/jwks", "jwks"]
NO_PLACE += ["http://127.0.0.1.evil.example/jwks", "http://0.0.0.0/jwks", "https://idp.example:0/jwks", "file:///jwks"]


@pytest.mark.parametrize("url", NO_PLACE)
def test_keys_come_by_https_or_from_this_machine(url: str) -> None:
    with pytest.raises(SetupError, match="RUNWARDEN_JWKS_URL: must be https://"):
        load_group("identity", jwks_url=url)


@pytest.mark.parametrize(
    "url", ["https://idp.example/jwks", "http://127.0.0.1:9/jwks", "http://localhost/jwks", "http://[::1]:9/jwks"]
)
def test_a_jwks_url_takes_the_place_of_the_secret(url: str) -> None:
    assert load_group("identity", jwks_url=url).jwt_secret.get_secret_value() == ""


def test_without_secret_and_url_the_settings_say_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNWARDEN_JWT_SECRET", raising=False)
    with pytest.raises(SetupError, match=r"RUNWARDEN_JWT_SECRET: is required, or RUNWARDEN_JWKS_URL"):
        load_group("identity")
    with pytest.raises(SetupError, match="RUNWARDEN_JWT_SECRET: must have at least 16 characters"):
        load_group("identity", jwt_secret="short", jwks_url="https://idp.example/jwks")
