"""Service tokens over HTTP: made once, held to their scopes, revoked at once; their last use, streams and audit."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from daemon.auth.caller import Role
from daemon.auth.tokens import mint
from daemon.store import service_tokens
from daemon.store.service_tokens import MOST
from tests.api.answers import assert_problem
from tests.api.cuttable import before_postgres
from tests.api.harness import SECRET, Answer, Stack, Watch, stack, step
from tests.patience import eventually, let_pass

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKENS = "/v1/service-tokens"
NOBODY = "01990000-0000-7000-8000-000000000000"


def token_of(sub: str, *roles: Role, groups: tuple[str, ...] = ()) -> str:
    return mint(sub, SECRET, lifetime_s=600, roles=roles or None, groups=groups)


async def ask(stack: Stack, token: str, method: str, path: str, body: Any = None) -> Answer:
    headers = {"Authorization": f"Bearer {token}"}
    return await stack.ask(method, path, headers=headers, **({} if body is None else {"json": body}))


async def made(stack: Stack, maker: str, *scopes: str, **more: Any) -> dict[str, Any]:
    """A service token, as its maker is told of it."""
    answered = await ask(stack, maker, "POST", TOKENS, {"name": "nightly", "scopes": list(scopes)} | more)
    assert answered.status == 200, answered.body
    assert answered.headers["Cache-Control"] == "no-store"
    body: dict[str, Any] = answered.body
    return body


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def test_a_token_is_shown_once_and_kept_as_its_digest_alone(shared: Stack, books: asyncpg.Connection) -> None:
    ann = token_of("ann", groups=("ops", "dev"))
    told = await made(shared, ann, "operator", "viewer", "operator")
    secret = told.pop("token")
    assert (told["user_id"], told["made_by"], told["scopes"]) == ("ann", "ann", ["operator", "viewer"])
    assert (told["groups"], told["last_used_at"], told["revoked_at"]) == (["dev", "ops"], None, None)
    assert (await ask(shared, ann, "GET", f"{TOKENS}/{told['token_id']}")).body == told
    listed = await ask(shared, ann, "GET", TOKENS)
    assert listed.body["items"][0] == told
    dump = await books.fetch("SELECT t::text AS kept FROM service_tokens t UNION ALL SELECT a::text FROM audit_log a")
    assert dump
    assert not any(secret[4:] in row["kept"] or secret in row["kept"] for row in dump)


async def test_it_acts_as_its_user_within_its_scopes(shared: Stack) -> None:
    ann = token_of("ann")
    viewer = (await made(shared, ann, "viewer"))["token"]
    operator = (await made(shared, ann, "operator"))["token"]
    approver = (await made(shared, ann, "approver"))["token"]
    flow = {"title": "By a machine", "spec": {"steps": [step("a", approval_policy="manual")]}}
    assert_problem(await ask(shared, viewer, "POST", "/v1/workflows", flow), 403, "role_required", "viewer")
    assert_problem(await ask(shared, approver, "POST", "/v1/workflows", flow), 403, "role_required")
    workflow = await ask(shared, operator, "POST", "/v1/workflows", flow)
    assert workflow.status == 200
    run = await ask(shared, operator, "POST", "/v1/workflow-runs", {"workflow_id": workflow.body["workflow_id"]})
    place = f"/v1/workflow-runs/{run.body['run_id']}"
    await shared.until(run.body["run_id"], "paused")
    for token in (viewer, operator, approver, ann):
        assert (await ask(shared, token, "GET", place)).status == 200
    for token in (viewer, operator):
        refused = await ask(shared, token, "POST", f"{place}/approve", {"step_id": "a"})
        assert_problem(refused, 403, "role_required", "approver")
    approved = await ask(shared, approver, "POST", f"{place}/approve", {"step_id": "a"})
    assert approved.body["steps_state"]["a"]["approved_by"] == "ann"


NOT_MADE: list[tuple[str, dict[str, Any], int, str]] = [
    ("plain", {"scopes": ["admin"]}, 403, "scope_exceeds_roles"),
    ("viewer", {"scopes": ["operator"]}, 403, "scope_exceeds_roles"),
    ("plain", {"user_id": "ci"}, 403, "role_required"),
    ("admin", {"user_id": "ci", "scopes": ["approver"]}, 403, "scope_exceeds_roles"),
    ("admin", {"user_id": "ci", "scopes": ["operator", "admin"]}, 403, "scope_exceeds_roles"),
    ("plain", {"scopes": []}, 422, "invalid_body"),
    ("plain", {"scopes": ["root"]}, 422, "invalid_body"),
    ("plain", {"scopes": "viewer"}, 422, "invalid_body"),
    ("plain", {"scopes": ["viewer"] * 17}, 422, "invalid_body"),
    ("plain", {"name": ""}, 422, "invalid_body"),
    ("plain", {"name": "x" * 256}, 422, "invalid_body"),
    ("plain", {"name": "a\x00b"}, 422, "invalid_body"),
    ("plain", {"expires_at": "2020-01-01T00:00:00Z"}, 422, "invalid_body"),
    ("plain", {"expires_at": "tomorrow"}, 422, "invalid_body"),
    ("plain", {"expires_in": 60}, 422, "invalid_body"),
    ("admin", {"user_id": ""}, 422, "invalid_body"),
    ("admin", {"user_id": "x" * 256}, 422, "invalid_body"),
]


@pytest.mark.parametrize(("who", "changes", "status", "code"), NOT_MADE)
async def test_what_may_not_be_made_is_refused_and_nothing_kept(
    shared: Stack, books: asyncpg.Connection, who: str, changes: dict[str, Any], status: int, code: str
) -> None:
    roles: dict[str, tuple[Role, ...]] = {"plain": (), "viewer": ("viewer",), "admin": ("admin",)}
    before = await books.fetchval("SELECT count(*) FROM service_tokens")
    body = {"name": "n", "scopes": ["viewer"]} | changes
    assert_problem(await ask(shared, token_of("ann", *roles[who]), "POST", TOKENS, body), status, code)
    assert await books.fetchval("SELECT count(*) FROM service_tokens") == before


async def test_a_service_token_makes_no_other_and_revokes_itself_alone(shared: Stack) -> None:
    admin = token_of("root", "admin")
    one, two = await made(shared, admin, "admin"), await made(shared, admin, "viewer")
    body = {"name": "n", "scopes": ["viewer"]}
    assert_problem(await ask(shared, one["token"], "POST", TOKENS, body), 403, "not_by_service_token")
    for place, other in ((f"{TOKENS}/{two['token_id']}", one), (f"{TOKENS}/{one['token_id']}", two)):
        assert_problem(await ask(shared, other["token"], "DELETE", place), 403, "not_by_service_token")
    assert (await ask(shared, two["token"], "DELETE", f"{TOKENS}/{two['token_id']}")).status == 200
    assert_problem(await ask(shared, two["token"], "GET", TOKENS), 401, "token_revoked")


async def test_an_admin_makes_one_for_somebody_else_who_has_no_groups_of_the_admins(shared: Stack) -> None:
    told = await made(shared, token_of("root", "admin", groups=("admins",)), "operator", user_id="ci")
    assert (told["user_id"], told["made_by"], told["groups"]) == ("ci", "root", [])
    flow = {"title": "Of ci", "spec": {"steps": [step("a")]}}
    assert (await ask(shared, told["token"], "POST", "/v1/workflows", flow)).status == 200
    seen = await ask(shared, token_of("ci"), "GET", "/v1/workflows")
    assert [item["title"] for item in seen.body["items"]] == ["Of ci"]
    assert (await ask(shared, token_of("ci"), "GET", f"{TOKENS}/{told['token_id']}")).status == 200
    assert (await ask(shared, told["token"], "GET", f"{TOKENS}/{told['token_id']}")).status == 200


async def test_a_revoked_token_is_refused_from_that_moment_on(shared: Stack) -> None:
    ann = token_of("ann")
    told = await made(shared, ann, "viewer")
    place = f"{TOKENS}/{told['token_id']}"
    assert (await ask(shared, told["token"], "GET", "/v1/workflow-runs")).status == 200
    revoked = await ask(shared, ann, "DELETE", place)
    assert (revoked.status, revoked.body["revoked_by"]) == (200, "ann")
    assert_problem(await ask(shared, told["token"], "GET", "/v1/workflow-runs"), 401, "token_revoked")
    again = await ask(shared, token_of("root", "admin"), "DELETE", place)
    assert (again.status, again.body) == (200, revoked.body)


async def test_an_expired_token_is_refused(shared: Stack) -> None:
    told = await made(shared, token_of("ann"), "viewer", expires_at=soon(3))

    async def refused() -> Answer | None:
        answered = await ask(shared, told["token"], "GET", "/v1/workflow-runs")
        return answered if answered.status != 200 else None

    answered = await eventually(refused, what="the token's end")
    assert answered is not None
    assert_problem(answered, 401, "token_expired")
    assert time.time() >= datetime.fromisoformat(told["expires_at"]).timestamp() - 0.01


@pytest.mark.parametrize("token", ["rwt_", "rwt_" + "a" * 43, "rwt_" + "a" * 44, "rwt_" + "." * 43, "rwt_a.b.c"])
async def test_what_is_no_service_token_is_401(shared: Stack, token: str) -> None:
    assert_problem(await ask(shared, token, "GET", "/v1/workflows"), 401, "token_invalid")


async def test_tokens_of_others_are_seen_by_admins_alone(shared: Stack) -> None:
    told = await made(shared, token_of("carol"), "viewer")
    for user in ("dave", "erin"):  # so that a page of two is not all
        await made(shared, token_of(user), "viewer")
    place = f"{TOKENS}/{told['token_id']}"
    for method in ("GET", "DELETE"):
        assert_problem(await ask(shared, token_of("bob"), method, place), 404, "not_found")
        assert_problem(await ask(shared, token_of("bob"), method, f"{TOKENS}/{NOBODY}"), 404, "not_found")
    assert (await ask(shared, token_of("bob"), "GET", TOKENS)).body["items"] == []
    assert_problem(await ask(shared, token_of("bob"), "GET", f"{TOKENS}?all=true"), 403, "role_required")
    root = token_of("root", "admin")
    assert (await ask(shared, root, "GET", place)).status == 200
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await ask(shared, root, "GET", f"{TOKENS}?all=true&limit=2{cursor}")).body
        found += page["items"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert told["token_id"] in {item["token_id"] for item in found}
    assert len({item["token_id"] for item in found}) == len(found) > 2
    assert found == sorted(found, key=lambda item: (item["made_at"], item["token_id"]), reverse=True)


async def test_the_last_use_is_shown_and_written_once_a_minute(shared: Stack) -> None:
    told = await made(shared, token_of("ann"), "viewer")
    place = f"{TOKENS}/{told['token_id']}"

    async def seen() -> str | None:
        answered: str | None = (await ask(shared, told["token"], "GET", place)).body["last_used_at"]
        return answered

    first = await eventually(seen, what="the last use")
    written = await shared.sql("SELECT xmin::text FROM service_tokens WHERE id = $1::text::uuid", told["token_id"])
    for _ in range(5):
        assert await seen() == first
    await let_pass(1.2)  # longer than uses are gathered
    again = await shared.sql("SELECT xmin::text FROM service_tokens WHERE id = $1::text::uuid", told["token_id"])
    assert again == written
    old = "UPDATE service_tokens SET last_used_at = now() - interval '2 minutes' WHERE id = $1::text::uuid"
    await shared.sql(old, told["token_id"])

    async def newer() -> bool:
        return (await seen() or "") > (first or "")

    await eventually(newer, what="the next use after a minute")


async def test_making_and_revoking_are_in_the_audit_log(shared: Stack, books: asyncpg.Connection) -> None:
    root, ann = token_of("root", "admin"), token_of("ann")
    told = await made(shared, ann, "viewer", expires_at="2099-01-01T00:00:00Z")
    await ask(shared, root, "DELETE", f"{TOKENS}/{told['token_id']}")
    await ask(shared, root, "DELETE", f"{TOKENS}/{told['token_id']}")
    lines = await books.fetch(
        "SELECT actor, roles, address, action, outcome, owner, detail::text FROM audit_log WHERE target = $1"
        " ORDER BY id",
        told["token_id"],
    )
    assert [(line["actor"], line["action"], line["owner"]) for line in lines] == [
        ("ann", "service_token.made", "ann"),
        ("root", "service_token.revoked", "ann"),
    ]
    assert {(line["address"], line["outcome"]) for line in lines} == {("127.0.0.1", "applied")}
    assert lines[1]["roles"] == ["admin", "viewer"]
    assert '"scopes":["viewer"]' in lines[0]["detail"]


async def test_a_user_has_so_many_and_no_more(shared: Stack, books: asyncpg.Connection) -> None:
    eve = token_of("eve")
    body = {"name": "n", "scopes": ["viewer"]}
    answers = await asyncio.gather(*(ask(shared, eve, "POST", TOKENS, body) for _ in range(MOST + 5)))
    assert sorted(answered.status for answered in answers) == [200] * MOST + [409] * 5
    kept = next(answered.body for answered in answers if answered.status == 200)
    assert_problem(await ask(shared, eve, "POST", TOKENS, body), 409, "too_many_tokens")
    await ask(shared, eve, "DELETE", f"{TOKENS}/{kept['token_id']}")
    await made(shared, eve, "viewer")
    ours = "SELECT count(*) FROM service_tokens WHERE user_id = 'eve' AND revoked_at IS NULL"
    assert await books.fetchval(ours) == MOST


async def test_what_ended_long_ago_is_thrown_away_when_the_next_is_made(
    shared: Stack, books: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same user's, and nothing that is good or ended lately; what was thrown away opens as little as before."""
    fay = token_of("fay")
    told = {name: await made(shared, fay, "viewer") for name in ("good", "old good", "lately", "revoked", "expired")}
    told["gil's"] = await made(shared, token_of("gil"), "viewer")
    for name, change in {
        "old good": "made_at = now() - interval '900 days', expires_at = now() + interval '1 day'",
        "lately": "revoked_at = now() - interval '89 days', expires_at = now() - interval '1 hour'",
        "revoked": "revoked_at = now() - interval '91 days'",
        "expired": "expires_at = now() - interval '91 days'",
        "gil's": "revoked_at = now() - interval '91 days'",
    }.items():
        await books.execute(f"UPDATE service_tokens SET {change} WHERE id = $1::text::uuid", told[name]["token_id"])
    await made(shared, fay, "viewer")
    there = {str(row["id"]) for row in await books.fetch("SELECT id FROM service_tokens")}
    gone = {name for name, one in told.items() if one["token_id"] not in there}
    assert gone == {"revoked", "expired"}
    assert_problem(await ask(shared, told["revoked"]["token"], "GET", "/v1/workflows"), 401, "token_invalid")
    assert (await ask(shared, told["old good"]["token"], "GET", "/v1/workflows")).status == 200
    monkeypatch.setattr(service_tokens, "ENDED_MOST", 2)
    for _ in range(4):
        newest = await made(shared, fay, "viewer")
        await ask(shared, fay, "DELETE", f"{TOKENS}/{newest['token_id']}")
    await made(shared, fay, "viewer")
    ended = "SELECT id FROM service_tokens WHERE user_id = 'fay' AND revoked_at IS NOT NULL ORDER BY made_at DESC"
    kept = [str(row["id"]) for row in await books.fetch(ended)]
    assert (len(kept), kept[0]) == (2, newest["token_id"])


async def waiting(stack: Stack) -> str:
    run_id = await stack.start(step("a", approval_policy="manual"))
    await stack.until(run_id, "paused")
    return run_id


@pytest.mark.parametrize("by", ["token", "ticket"])
async def test_a_stream_ends_with_the_service_token_that_opened_it(shared: Stack, by: str) -> None:
    run_id = await waiting(shared)
    told = await made(shared, token_of("ann"), "viewer", expires_at=soon(5))
    async with shared.http.get(**await _door(shared, run_id, told["token"], by)) as response:
        watch = Watch(response)
        await watch.until("replay.done")
        await watch.rest()
    assert time.time() >= datetime.fromisoformat(told["expires_at"]).timestamp() - 1


@pytest.mark.parametrize("by", ["token", "ticket"])
async def test_a_stream_ends_soon_after_its_service_token_was_revoked(shared: Stack, by: str) -> None:
    run_id = await waiting(shared)
    told = await made(shared, token_of("ann"), "viewer")
    door = await _door(shared, run_id, told["token"], by)
    async with (
        shared.http.get(**door) as response,
        shared.watch(run_id) as others,
    ):
        watch = Watch(response)
        await watch.until("replay.done")
        await others.until("replay.done")
        await ask(shared, token_of("ann"), "DELETE", f"{TOKENS}/{told['token_id']}")
        await watch.rest()
        for _ in range(3):
            assert (await others.frame()).comment == "ping", "streams by other tokens go on"
    async with shared.http.get(**door) as refused:
        assert refused.status == 401


async def _door(stack: Stack, run_id: str, token: str, by: str) -> dict[str, Any]:
    """How to open the stream: by the token itself, or by a ticket for it."""
    url = f"{stack.base}/v1/workflow-runs/{run_id}/events"
    if by == "token":
        return {"url": url, "headers": {"Authorization": f"Bearer {token}"}}
    given = await ask(stack, token, "POST", f"/v1/workflow-runs/{run_id}/events-ticket")
    assert given.status == 200
    return {"url": f"{url}?ticket={given.body['ticket']}"}


async def test_while_postgres_is_away_nobody_is_told_that_their_token_is_bad(
    database: str, redis_url: str, redis_prefix: str, servers_dir: Path
) -> None:
    folder = servers_dir / "cut"
    folder.mkdir(exist_ok=True)
    async with before_postgres(database, folder) as (relay, url), stack(url, redis_url, redis_prefix) as opened:
        token = (await made(opened, token_of("ann"), "viewer"))["token"]
        assert (await ask(opened, token, "GET", "/v1/workflows")).status == 200
        await relay.cut()
        assert_problem(await ask(opened, token, "GET", "/v1/workflows"), 503, "store_unavailable")
        await relay.mend()

        async def good() -> bool:
            return (await ask(opened, token, "GET", "/v1/workflows")).status == 200

        await eventually(good, what="Postgres' return")
