"""``runwarden agent|policy|hold`` beside a real node: what people type, and what programs read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.conftest import AGENT_SECRET
from tests.api.harness import AGENT, Stack, stack
from tests.api.people import introduce
from tests.cli.talking import Person


@pytest.fixture
async def node(strict_database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    async with stack(strict_database, redis_url, redis_prefix, agent_token_secret=AGENT_SECRET) as opened:
        yield introduce(opened)


@pytest.fixture
def people(node: Stack, tmp_path: Path) -> dict[str, Person]:
    """An admin, two plain users and one who is in groups."""
    tokens = {sub: node.tokens.get(sub) or node.token(sub) for sub in ("root", "ann", "bob", "gus")}
    return {sub: Person(node.base, token, tmp_path) for sub, token in tokens.items()}


async def test_agents_are_bound_granted_shown_and_unbound(people: dict[str, Person]) -> None:
    root, ann, gus = people["root"], people["ann"], people["gus"]
    told = await root.says("agent", "bind", AGENT, "--owner", "ann")
    assert (told.exit_code, told.stdout) == (0, f"{AGENT} bound to ann\n")
    (listed,) = (await ann.gets("agent", "list"))["items"]
    assert (listed["agent_id"], listed["may"], listed["online"]) == (AGENT, ["owner"], "online")
    told = await ann.says("agent", "list")
    assert told.stdout.splitlines()[1].split("\t")[:5] == [AGENT, "ann", "owner", "online", "no"]
    assert (await gus.says("agent", "list")).exit_code == 0
    made = await ann.gets("agent", "grant", AGENT, "use", "--group", "team", "--user", "bob", "--tool", "o*")
    assert [(one["subject"], one["tools"]) for one in made["items"]] == [("user:bob", ["o*"]), ("group:team", ["o*"])]
    shown = await ann.gets("agent", "show", AGENT)
    assert [one["grant_id"] for one in shown["grants"]] == [one["grant_id"] for one in made["items"]]
    assert "user:bob\tuse\to*" in (await ann.says("agent", "show", AGENT)).stdout
    assert "grants" not in await gus.gets("agent", "show", AGENT)
    tools = {tool["name"]: tool["may_use"] for tool in (await gus.gets("agent", "tools", AGENT))["tools"]}
    assert (tools["ok"], tools["slow"]) == (True, False)
    assert "ok\tmedium\tyes\t\tyes" in (await gus.says("agent", "tools", AGENT)).stdout
    error = await gus.refused("agent", "grants", AGENT, code=4)
    assert error["code"] == "not_the_owner"
    gone = await ann.says("agent", "revoke", AGENT, made["items"][1]["grant_id"])
    assert gone.stdout == f"group:team may not use {AGENT} any more.\n"
    assert (await gus.refused("agent", "show", AGENT, code=5))["code"] == "not_found"
    assert "group:team" not in (await ann.says("agent", "grants", AGENT)).stdout
    assert (await ann.refused("agent", "unbind", AGENT, code=4))["code"] == "role_required"
    assert (await root.says("agent", "unbind", AGENT)).stdout == f"{AGENT} unbound\n"
    assert (await ann.says("agent", "grant", AGENT, "use")).exit_code == 2


async def test_many_agents_are_bound_at_once_and_again(people: dict[str, Person], tmp_path: Path) -> None:
    root = people["root"]
    file = tmp_path / "agents.csv"
    file.write_text('agent_id,owner\n# a comment\nlaptop,ann\n\n"desk, top",bob\nphone\n')
    told = await root.says("agent", "bind", "--file", str(file), "--owner", "gus")
    assert told.stdout.splitlines() == ["laptop bound to ann", "desk, top bound to bob", "phone bound to gus"]
    lines = '{"agent_id": "laptop", "owner": "ann"}\n{"agent_id": "tablet"}\n{"agent_id": "phone", "owner": "ann"}\n'
    told = await root.says("agent", "bind", "--file", "-", "--owner", "bob", "--json", answer=lines)
    assert told.exit_code == 6
    items = [json.loads(line) for line in told.stdout.splitlines()]
    assert [(one["agent_id"], one["outcome"], one.get("code")) for one in items] == [
        ("laptop", "unchanged", None),
        ("tablet", "bound", None),
        ("phone", "refused", "agent_taken"),
    ]
    assert json.loads(told.stderr)["error"]["code"] == "not_all_bound"
    told = await root.says("agent", "bind", "--file", "-", "--owner", "bob", "--transfer", answer=lines)
    assert told.stdout.splitlines() == [
        "laptop unchanged: ann has it",
        "tablet unchanged: bob has it",
        "phone transferred to ann",
    ]
    owners = {one["agent_id"]: one["owner"] for one in (await root.gets("agent", "list"))["items"]}
    assert owners == {AGENT: None, "desk, top": "bob", "laptop": "ann", "phone": "ann", "tablet": "bob"}


@pytest.mark.parametrize("text", ["a,b,c", '{"agent_id": 7, "owner": "x"}', "{oops", ",ann", "nobodys"])
async def test_a_line_that_says_nothing_is_named_before_anything_is_done(people: dict[str, Person], text: str) -> None:
    told = await people["root"].says("agent", "bind", "--file", "-", answer=f"laptop,ann\n{text}\n")
    assert told.exit_code == 7
    assert "line 2" in told.stderr
    assert await people["ann"].gets("agent", "list") == {"items": [], "next_cursor": None}


async def test_who_may_not_bind_is_told_once(people: dict[str, Person]) -> None:
    told = await people["bob"].says("agent", "bind", "laptop", "phone", "--owner", "bob")
    assert (told.exit_code, told.stdout.count("refused")) == (6, 2)
    assert (await people["bob"].says("agent", "bind", "laptop")).exit_code == 2
    assert (await people["bob"].says("agent", "bind", "--owner", "bob")).exit_code == 2


async def test_a_token_is_printed_alone_and_reset(people: dict[str, Person]) -> None:
    told = await people["ann"].says("agent", "token", "laptop")
    assert (told.exit_code, told.stdout.count("\n"), told.stdout.count(".")) == (0, 1, 2)
    assert "version 1" in told.stderr
    assert (await people["ann"].gets("agent", "token", "laptop", "--reset"))["version"] == 2
    assert (await people["ann"].gets("agent", "token"))["agent_id"].startswith("agent-")
    assert (await people["bob"].refused("agent", "token", "laptop", code=6))["code"] == "agent_taken"
    assert (await people["bob"].refused("agent", "token", "x", code=7))["code"] == "invalid_body"


async def test_an_agent_a_user_and_everything_are_held_and_released(people: dict[str, Person]) -> None:
    root, ann = people["root"], people["ann"]
    await root.says("agent", "bind", AGENT, "--owner", "ann")
    told = await ann.says("agent", "hold", AGENT, "--reason", "it smokes")
    assert told.stdout.startswith(f"Held agent {AGENT} since ")
    listed = await ann.says("hold", "list")
    assert listed.stdout.splitlines()[1].split("\t")[1:4] == [f"agent {AGENT}", "it smokes", "ann"]
    assert (await ann.says("agent", "release", AGENT)).stdout == f"Released agent {AGENT}.\n"
    assert (await ann.refused("agent", "release", AGENT, code=5))["code"] == "not_held"
    assert (await ann.refused("hold", "everything", "--reason", "r", code=4))["code"] == "role_required"
    assert (await ann.says("hold", "everything")).exit_code == 2
    made = await root.gets("hold", "user", "bob", "--reason", "on leave")
    assert (made["scope"], made["target"]) == ("user", "bob")
    everything = await root.gets("hold", "everything", "--reason", "fire")
    for hold in (made, everything):
        assert (await root.gets("hold", "release", hold["hold_id"]))["released_by"] == "root"
    assert (await root.says("hold", "list")).stderr == "Nothing is held.\n"
    assert len((await root.gets("hold", "list", "--released"))["items"]) == 3
    held = await root.gets("hold", "agent", AGENT, "--reason", "an incident")
    assert (await ann.refused("hold", "release", held["hold_id"], code=4))["code"] == "held_by_admin"


async def test_policies_are_set_changed_listed_and_deleted(people: dict[str, Person]) -> None:
    root = people["root"]
    said = ("policy", "set", "fs__*", "--agents", "prod-*", "--risk", "high", "--requires-approval", "--note", "files")
    made = await root.gets(*said)
    assert (made["agents"], made["tools"], made["risk"], made["requires_approval"]) == ("prod-*", "fs__*", "high", True)
    told = await root.says("policy", "set", "fs__*", "--agents", "prod-*", "--no-writes", "--denied")
    assert told.stdout == f"fs__* of prod-*: not writes, denied ({made['policy_id']})\n"
    (listed,) = (await root.gets("policy", "list"))["items"]
    assert (listed["risk"], listed["writes"], listed["denied"]) == (None, False, True)
    assert "prod-*\tfs__*\tnot writes, denied" in (await root.says("policy", "list")).stdout
    assert (await root.refused("policy", "set", "x", code=7))["code"] == "invalid_body"
    assert (await people["ann"].refused("policy", "list", code=4))["code"] == "role_required"
    assert (await root.says("policy", "delete", made["policy_id"])).exit_code == 0
    assert (await root.says("policy", "list")).stderr == "There is no policy.\n"
