"""``runwarden service-token …`` against a real node, and ``runwarden token`` with roles and groups."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest

from daemon.auth.tokens import mint
from tests.api.harness import SECRET, Stack, stack
from tests.cli.talking import Person


@pytest.fixture
async def live(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    async with stack(database, redis_url, redis_prefix) as opened:
        yield opened


@pytest.fixture
def ann(live: Stack, tmp_path: Path) -> Person:
    return Person(live.base, live.token(), tmp_path)


@pytest.fixture
def root(live: Stack, tmp_path: Path) -> Person:
    return Person(live.base, mint("root", SECRET, lifetime_s=600, roles=["admin"]), tmp_path)


async def test_a_token_is_made_used_listed_and_revoked(ann: Person, live: Stack, tmp_path: Path) -> None:
    empty = await ann.says("service-token", "list")
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert "service-token create" in empty.stderr
    made = await ann.says("service-token", "create", "nightly build", "--scope", "operator", "--days", "30")
    assert made.exit_code == 0, made.output
    assert "service-token revoke" in made.stderr
    machine = Person(live.base, made.stdout.strip(), tmp_path)
    assert (await machine.gets("run", "list"))["items"] == []
    (item,) = (await ann.gets("service-token", "list"))["items"]
    ends = datetime.fromisoformat(item["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=29) < ends < timedelta(days=30)
    assert (item["name"], item["scopes"], "token" in item) == ("nightly build", ["operator"], False)
    listed = await ann.says("service-token", "list")
    row = listed.stdout.splitlines()[1].split("\t")
    assert row[:5] == [item["token_id"], "nightly build", "ann", "operator", "good"]

    revoked = await ann.says("service-token", "revoke", item["token_id"])
    assert revoked.stdout == f"Revoked {item['token_id']} (nightly build)\n"
    refused = await machine.refused("run", "list", code=4)
    assert refused["code"] == "token_revoked"
    assert "\trevoked\t" in (await ann.says("service-token", "list")).stdout


async def test_admins_make_tokens_for_others_and_see_them_all(ann: Person, root: Person) -> None:
    made = await root.gets(
        "service-token", "create", "deploy", "--scope", "operator", "--scope", "viewer", "--user", "ci"
    )
    assert (made["user_id"], made["made_by"], made["scopes"]) == ("ci", "root", ["operator", "viewer"])
    assert made["token"].startswith("rwt_")
    assert (await root.gets("service-token", "list"))["items"] == []
    assert [item["user_id"] for item in (await root.gets("service-token", "list", "--all"))["items"]] == ["ci"]
    refused = await ann.refused("service-token", "list", "--all", code=4)
    assert refused["code"] == "role_required"
    gone = await ann.refused("service-token", "revoke", made["token_id"], code=5)
    assert gone["code"] == "not_found"
    beyond = await ann.refused("service-token", "create", "x", "--scope", "admin", code=4)
    assert beyond["code"] == "scope_exceeds_roles"
    wrong = await ann.says("service-token", "create", "x", "--scope", "root")
    assert wrong.exit_code == 2


async def test_a_development_token_has_the_roles_and_groups_it_is_given(ann: Person) -> None:
    names: dict[str, str | None] = {
        "jwt_secret": SECRET,
        "jwt_roles_claim": "realm_access.roles",
        "jwt_issuer": "https://idp.example",
    }
    told = await ann.says("token", "--role", "approver", "--group", "ops", "--group", "dev", "--json", **names)
    assert told.exit_code == 0, told.output
    made = json.loads(told.stdout)
    assert (made["roles"], made["groups"]) == (["approver", "viewer"], ["dev", "ops"])
    claims = jwt.decode(made["token"], SECRET, algorithms=["HS256"], issuer="https://idp.example")
    assert (claims["realm_access"], claims["groups"]) == ({"roles": ["approver"]}, ["dev", "ops"])
    plain = json.loads((await ann.says("token", "--json", jwt_secret=SECRET)).stdout)
    assert (plain["roles"], plain["groups"]) == (["approver", "operator", "viewer"], [])


async def test_a_development_token_needs_a_secret_even_where_keys_are_read(ann: Person) -> None:
    told = await ann.says("token", jwt_secret=None, jwks_url="https://idp.example/jwks")
    assert (told.exit_code, told.stdout) == (1, "")
    assert "RUNWARDEN_JWT_SECRET: is required" in told.stderr
