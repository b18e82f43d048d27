"""Whose an agent is over HTTP: who sees which, what may be done with it, and who changes that."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.dev.gateway import DevGateway
from tests.api.harness import AGENT, Stack, Tools, stack
from tests.api.people import introduce

AGENTS = "/v1/bridge/agents"


async def bound(stack: Stack, agent_id: str = AGENT, owner: str = "ann", **said: Any) -> Any:
    """The agent is ``owner``'s by an admin's word; the answer's body."""
    made = await stack.ask("PUT", f"{AGENTS}/{agent_id}/binding", sub="root", json={"owner": owner, **said})
    assert made.status == 200, made.body
    return made.body


async def granted(stack: Stack, subject: str, permission: str, agent_id: str = AGENT, **said: Any) -> str:
    body = {"subject": subject, "permission": permission, **said}
    made = await stack.ask("POST", f"{AGENTS}/{agent_id}/grants", sub="ann", json=body)
    assert made.status == 200, made.body
    grant_id: str = made.body["grant_id"]
    return grant_id


async def seen(stack: Stack, sub: str) -> dict[str, Any]:
    """What somebody sees, by id."""
    found = await stack.ask("GET", AGENTS, sub=sub)
    assert found.status == 200, found.body
    return {agent["agent_id"]: agent for agent in found.body["items"]}


async def test_an_unbound_agent_is_there_for_admins_only(strict: Stack) -> None:
    theirs = await seen(strict, "root")
    assert theirs[AGENT]["owner"] is None
    assert theirs[AGENT]["may"] == ["use", "view"]
    assert theirs[AGENT]["online"] == "online"
    assert theirs[AGENT]["last_seen_at"] is not None
    assert await seen(strict, "ann") == {}
    for path in (AGENT, f"{AGENT}/tools", f"{AGENT}/grants"):
        assert (await strict.ask("GET", f"{AGENTS}/{path}", sub="ann")).status == 404


async def test_what_is_ones_to_do_is_told_with_each_agent(strict: Stack) -> None:
    assert (await bound(strict))["outcome"] == "bound"
    await granted(strict, "user:bob", "use")
    await granted(strict, "group:night", "approve")
    await granted(strict, "group:team", "view")
    may = {sub: (await seen(strict, sub)).get(AGENT, {}).get("may") for sub in ("ann", "bob", "gus", "root", "otto")}
    assert may == {"ann": ["owner"], "bob": ["use"], "gus": ["approve", "view"], "root": ["view"], "otto": None}
    one = await strict.ask("GET", f"{AGENTS}/{AGENT}", sub="gus")
    assert one.body == (await seen(strict, "gus"))[AGENT]
    assert one.body["owner"] == "ann"


async def test_an_expired_grant_shows_nothing(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "user:bob", "view", expires_at="2099-01-01T00:00:00Z")
    assert AGENT in await seen(strict, "bob")
    await strict.sql("UPDATE agent_grants SET expires_at = now()")
    assert await seen(strict, "bob") == {}
    assert (await strict.ask("GET", f"{AGENTS}/{AGENT}", sub="bob")).status == 404


async def test_the_list_comes_in_pages_by_id(strict: Stack) -> None:
    ids = sorted(["Zed", "a-1", "a-2", "ä", "b", "z"])
    for agent_id in ids:
        await bound(strict, agent_id)
    found: list[str] = []
    cursor: str | None = None
    while True:
        query = "?limit=2" + (f"&cursor={cursor}" if cursor else "")
        page = (await strict.ask("GET", AGENTS + query, sub="ann")).body
        found += [agent["agent_id"] for agent in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == ids
    assert (await strict.ask("GET", AGENTS + "?cursor=%21", sub="ann")).status == 422
    assert (await strict.ask("GET", AGENTS + "?cursor=AAAA", sub="ann")).status == 200


async def test_who_is_offline_is_told_so_and_who_cannot_be_asked_about_is_unknown(strict: Stack) -> None:
    await bound(strict)
    await bound(strict, "laptop")
    states = {agent_id: agent["online"] for agent_id, agent in (await seen(strict, "ann")).items()}
    assert states == {AGENT: "online", "laptop": "offline"}
    assert (await seen(strict, "ann"))["laptop"]["last_seen_at"] is None
    tools = await strict.ask("GET", f"{AGENTS}/laptop/tools", sub="ann")
    assert (tools.status, tools.body["code"]) == (409, "agent_offline")
    await strict.gateway.stop()
    strict.context.reach._asked_at = 0
    states = {agent_id: agent["online"] for agent_id, agent in (await seen(strict, "ann")).items()}
    assert states == {AGENT: "unknown", "laptop": "unknown"}
    tools = await strict.ask("GET", f"{AGENTS}/{AGENT}/tools", sub="ann")
    assert (tools.status, tools.body["code"]) == (503, "gateway_unavailable")


async def test_tools_are_told_live_with_what_they_say_and_what_is_said_of_them(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "user:bob", "use", tools=["s*"])
    policy = {"agents": "agent-*", "tools": "slow", "risk": "high", "requires_approval": True}
    assert (await strict.ask("POST", "/v1/tool-policies", sub="root", json=policy)).status == 200
    deny = {"tools": "streaming", "denied": True}
    assert (await strict.ask("POST", "/v1/tool-policies", sub="root", json=deny)).status == 200
    told = (await strict.ask("GET", f"{AGENTS}/{AGENT}/tools", sub="bob")).body
    tools = {tool["name"]: tool for tool in told["tools"]}
    echo, slow = tools["bridge__echo"], tools["slow"]
    assert echo["annotations"] == {"readOnlyHint": True, "idempotentHint": True, "openWorldHint": False}
    assert echo["input_schema"]["type"] == "object"
    assert (echo["writes"], echo["open_world"], echo["may_use"]) == (False, False, False)
    assert AGENT in echo["refusal"]
    assert (slow["writes"], slow["open_world"], slow["risk"], slow["requires_approval"]) == (True, True, "high", True)
    assert (slow["may_use"], slow["refusal"]) == (True, None)
    assert (tools["streaming"]["denied"], tools["streaming"]["may_use"]) == (True, False)
    await strict.gateway.connect(Tools("late"))
    late = await strict.ask("GET", f"{AGENTS}/late/tools", sub="root")
    assert {tool["may_use"] for tool in late.body["tools"] if not tool["denied"]} == {True}


@pytest.mark.parametrize("sub", ["bob", "gus", "vera", "otto"])
async def test_nobody_else_binds_transfers_or_unbinds(strict: Stack, sub: str) -> None:
    await bound(strict)
    await granted(strict, "user:bob", "use")
    await granted(strict, "group:team", "approve")
    took = await strict.ask("PUT", f"{AGENTS}/{AGENT}/binding", sub=sub, json={"owner": sub})
    assert took.status in (403, 404)
    new = await strict.ask("PUT", f"{AGENTS}/unbound/binding", sub=sub, json={"owner": sub})
    assert new.status in (403, 404)
    for who in (sub, "ann"):
        assert (await strict.ask("DELETE", f"{AGENTS}/{AGENT}/binding", sub=who)).status == 403
    assert (await seen(strict, "root"))[AGENT]["owner"] == "ann"


async def test_a_refused_attempt_is_in_the_audit(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "user:bob", "view")
    await strict.ask("PUT", f"{AGENTS}/{AGENT}/binding", sub="bob", json={"owner": "bob"})
    (line,) = await strict.sql("SELECT * FROM audit_log WHERE outcome = 'refused'")
    assert (line["actor"], line["action"], line["code"]) == ("bob", "agent.transferred", "not_the_owner")
    assert (line["agent_id"], line["owner"]) == (AGENT, "ann")


async def test_an_owner_hands_the_agent_on_and_has_it_no_more(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "user:gus", "use")
    handed = await strict.ask("PUT", f"{AGENTS}/{AGENT}/binding", sub="ann", json={"owner": "bob"})
    assert handed.body == {"agent_id": AGENT, "owner": "bob", "outcome": "transferred"}
    assert await seen(strict, "ann") == {}
    assert (await seen(strict, "gus"))[AGENT]["may"] == ["use"]
    again = await strict.ask("PUT", f"{AGENTS}/{AGENT}/binding", sub="ann", json={"owner": "ann"})
    assert again.status == 404
    told = await strict.sql("SELECT action, actor, owner FROM audit_log WHERE agent_id = $1 ORDER BY id", AGENT)
    assert [tuple(row) for row in told] == [
        ("agent.bound", "root", "ann"),
        ("grant.added", "ann", "ann"),
        ("agent.transferred", "ann", "bob"),
    ]


async def test_binding_is_idempotent_and_takes_from_nobody_unless_it_is_meant(strict: Stack) -> None:
    assert (await bound(strict))["outcome"] == "bound"
    version = await strict.sql("SELECT version FROM authority_version")
    assert (await bound(strict, free_only=True))["outcome"] == "unchanged"
    taken = await strict.ask("PUT", f"{AGENTS}/{AGENT}/binding", sub="root", json={"owner": "bob", "free_only": True})
    assert (taken.status, taken.body["code"]) == (409, "agent_taken")
    assert await strict.sql("SELECT version FROM authority_version") == version
    assert (await bound(strict, owner="bob"))["outcome"] == "transferred"
    assert (await strict.sql("SELECT version FROM authority_version"))[0][0] > version[0][0]


async def test_an_unbound_agent_loses_its_grants_and_is_nobodys(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "user:bob", "use")
    gone = await strict.ask("DELETE", f"{AGENTS}/{AGENT}/binding", sub="root")
    assert gone.body == {"agent_id": AGENT, "owner": None, "outcome": "unbound"}
    again = await strict.ask("DELETE", f"{AGENTS}/{AGENT}/binding", sub="root")
    assert again.body["outcome"] == "unchanged"
    assert await seen(strict, "bob") == {}
    await bound(strict)
    assert await seen(strict, "bob") == {}


async def test_a_held_agent_says_so_and_why(strict: Stack) -> None:
    await bound(strict)
    hold = {"scope": "agent", "target": AGENT, "reason": "it smokes"}
    assert (await strict.ask("POST", "/v1/holds", sub="ann", json=hold)).status == 200
    agent = (await seen(strict, "ann"))[AGENT]
    assert (agent["held"], agent["held_reason"]) == (True, "it smokes")
    await bound(strict, "other")
    assert (await seen(strict, "ann"))["other"]["held"] is False
    everything = {"scope": "everything", "reason": "fire"}
    assert (await strict.ask("POST", "/v1/holds", sub="root", json=everything)).status == 200
    assert (await seen(strict, "ann"))["other"]["held"] is True


async def test_a_schema_that_cannot_be_told_again_spoils_no_other_tool(strict: Stack) -> None:
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"properties": schema}
    late = Tools("late")
    late.tool("deep", late._ok, input_schema=schema)
    await strict.gateway.connect(late)
    told = await strict.ask("GET", f"{AGENTS}/late/tools", sub="root")
    assert told.status == 200
    tools = {tool["name"]: tool["input_schema"] for tool in told.body["tools"]}
    assert (tools["deep"], tools["ok"]) == ({}, {"type": "object"})


async def test_a_node_that_is_a_front_only_asks_the_gateways_too_and_several_of_them(
    strict_database: str, redis_url: str, redis_prefix: str
) -> None:
    gateways = [DevGateway(), DevGateway()]
    for number, gateway in enumerate(gateways):
        gateway.add_agent(Tools(f"agent-{number}"))
    urls = ",".join([f"g{number}={await gateway.start()}" for number, gateway in enumerate(gateways)])
    async with stack(strict_database, redis_url, redis_prefix, gateway_url=urls, role="front") as opened:
        introduce(opened)
        agents = await seen(opened, "root")
        assert {agent_id: agent["online"] for agent_id, agent in agents.items()} == dict.fromkeys(agents, "online")
        assert agents.keys() == {"agent-0", "agent-1"}
        for agent_id in agents:
            assert (await opened.ask("GET", f"{AGENTS}/{agent_id}/tools", sub="root")).status == 200
        assert not any(gateway._subscribers for gateway in gateways), "a front hears nothing and calls nothing"
        await gateways[1].stop()
        opened.context.reach._asked_at = 0
        assert [agent["online"] for agent in (await seen(opened, "root")).values()] == ["online"]
        await bound(opened, "agent-1")
        assert (await seen(opened, "ann"))["agent-1"]["online"] == "unknown"
    await gateways[0].stop()
