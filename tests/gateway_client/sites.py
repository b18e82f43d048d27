"""Gateways for tests of several: each knows some agents, some results, and keeps what was asked of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gateway_client import GatewayClient, GatewayRedis, Gateways
from tests.gateway_client.conftest import Gateway, Peer

STORED = {"v": 1, "type": "RESULT", "agent_id": "agent-1", "req_id": "r1", "ts": 7, "payload": {"ok": True}}
OFFLINE = {"error": "agent_offline"}


@dataclass
class Site:
    """One Gateway: `agents` by id with their time of connection, `ghosts` are listed and answer 404 all the same."""

    agents: dict[str, int] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    ghosts: set[str] = field(default_factory=set)
    results: tuple[int, object] = (404, {"error": "not_found"})
    silent: bool = False
    server: Gateway | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return self.server.url

    def asked(self, what: str) -> int:
        """How many requests there were of this kind."""
        assert self.server is not None
        return sum(f"/{what}" in request.line for request in self.server.requests)

    async def serve(self, gateway: Gateway, peer: Peer) -> None:
        while request := await gateway.take(peer):
            if self.silent:
                continue
            if "/results/" in request.line:
                await peer.answer(*self.results)
            elif "/tools" in request.line:
                known = any(f"/{name}/tools" in request.line for name in self.agents.keys() - self.ghosts)
                await (peer.answer(200, {"tools": [{"name": "t"}]}) if known else peer.answer(404, OFFLINE))
            elif request.line.startswith("GET"):
                await peer.answer(200, {"agents": self._listed()})
            elif request.json["agent_id"] in self.agents.keys() - self.ghosts:
                await peer.answer(202, {"req_id": request.json["req_id"], "status": "accepted"})
            else:
                await peer.answer(404, OFFLINE)

    def _listed(self) -> list[dict[str, object]]:
        online = [{"agent_id": name, "status": "online", "connected_at": at} for name, at in self.agents.items()]
        return online + [{"agent_id": name, "status": "cached", "connected_at": 99} for name in self.cached]


async def several(
    serve: Callable[..., Awaitable[Gateway]], *, redis: GatewayRedis | None = None, **sites: Site | GatewayClient
) -> Gateways:
    """The client of these Gateways, which are started; of a ready client the Gateway is the test's own."""
    clients: dict[str, GatewayClient] = {}
    for name, site in sites.items():
        if isinstance(site, Site):
            site.server = await serve(site.serve)
        clients[name] = GatewayClient(site.url) if isinstance(site, Site) else site
    return Gateways(clients, redis)
