"""Who is online at any of several Gateways, and what is not known while one of them says nothing."""

from contextlib import aclosing

from gateway_client import AgentInfo, Roster
from tests.gateway_client.sites import Site, several


async def test_an_agent_is_online_where_any_gateway_has_it(serve):
    a, b = Site({"agent-1": 1}, cached={"agent-2", "agent-3"}), Site({"agent-2": 5}, cached={"agent-1"})
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        roster = await gateways.roster()
    assert {agent: roster.state(agent) for agent in ("agent-1", "agent-2", "agent-3", "agent-4")} == {
        "agent-1": "online",
        "agent-2": "online",
        "agent-3": "offline",  # a registry's word alone
        "agent-4": "offline",
    }
    assert roster.deaf == ()


async def test_what_a_silent_gateway_has_is_unknown_and_nobody_waits_for_it_long(serve, monkeypatch):
    monkeypatch.setattr("gateway_client.directory.LIST_TIMEOUT_S", 1.0)
    async with aclosing(await several(serve, a=Site({"agent-1": 1}), b=Site(silent=True))) as gateways:
        roster = await gateways.roster()
    assert (roster.state("agent-1"), roster.state("agent-2"), roster.deaf) == ("online", "unknown", ("b",))


def test_the_last_that_was_heard_is_told_where_anything_was():
    agent = AgentInfo(agent_id="a", status="cached", last_seen_at=7, connected_at=1)
    never = AgentInfo(agent_id="b", status="online", last_seen_at=0, connected_at=1)
    roster = Roster(agents={"a": agent, "b": never}, deaf=())
    assert [roster.last_seen_at(agent_id) for agent_id in "abc"] == [7, None, None]
