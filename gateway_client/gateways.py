"""Several Gateways as one: each call goes by HTTP to the one that holds the agent.

The door of this room for the daemon, also where there is one Gateway alone. It repeats a call only after a proof that
nothing was sent, at a Gateway that says to have the agent; everything else is as `client` says. Errors carry the name
of the Gateway that they are about.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from gateway_client.client import GatewayClient
from gateway_client.directory import Directory
from gateway_client.errors import GatewayError, MaybeSent, NotSent, ResultsUnsupported, Unavailable
from gateway_client.models import Envelope, Invocation, ToolInfo
from gateway_client.registry import GatewayRedis
from gateway_client.results import Results
from gateway_client.roster import Roster, roster

_GONE: Final = frozenset({"agent_offline", "gateway_unavailable"})
"""The proofs of `NotSent` after which another Gateway may have the agent."""

Carry = Callable[[GatewayClient], Awaitable[None]]


class Gateways:
    """By name; `redis` is the Gateways' own, where they have one. `aclose` closes all of it."""

    def __init__(self, clients: Mapping[str, GatewayClient], redis: GatewayRedis | None = None) -> None:
        """The names are those that the Gateways have in their Redis, as far as they are known."""
        self.clients = dict(clients)
        self.redis = redis
        self.directory = Directory(self.clients, redis)
        self.results = Results(self.clients, redis)

    async def aclose(self) -> None:
        """Closes every connection."""
        await asyncio.gather(*(client.aclose() for client in self.clients.values()))
        if self.redis is not None:
            await self.redis.aclose()

    def begin_no_more(self) -> None:
        """Invokes that wait for a place are NotSent(not_permitted) at once, and all later ones."""
        for client in self.clients.values():
            client.begin_no_more()

    async def invoke(
        self,
        call: Invocation,
        *,
        may_send: Callable[[], bool] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        """As `GatewayClient.invoke`; answers the name of the Gateway that took it. `may_send` may be asked twice."""

        async def carry(client: GatewayClient) -> None:
            await client.invoke(call, may_send=may_send, headers=headers)

        return await self._at_its_gateway(call.agent_id, carry)

    def invoke_at_once(
        self,
        call: Invocation,
        *,
        may_send: Callable[[], bool],
        told: Callable[[NotSent | MaybeSent | None], None],
        headers: Mapping[str, str] | None = None,
    ) -> asyncio.Future[Any] | None:
        """As `GatewayClient.invoke_at_once`, at the only Gateway; None where there are several, for there a refusal may
        have to be followed by a call elsewhere.
        """
        if len(self.clients) > 1:
            return None
        ((name, client),) = self.clients.items()

        def over(fault: NotSent | MaybeSent | None) -> None:
            if fault is not None:
                fault.gateway = name
            told(fault)

        try:
            return client.invoke_at_once(call, may_send=may_send, told=over, headers=headers)
        except NotSent as fault:
            fault.gateway = name
            raise

    async def cancel(self, req_id: str, agent_id: str, reason: str = "") -> str:
        """As `GatewayClient.cancel`, at the Gateway that holds the agent now; answers its name."""

        async def carry(client: GatewayClient) -> None:
            await client.cancel(req_id, agent_id, reason)

        return await self._at_its_gateway(agent_id, carry)

    async def tools(self, agent_id: str) -> list[ToolInfo]:
        """As `GatewayClient.tools`, at the Gateway that holds the agent. Raises NotSent, Unavailable."""
        found: list[ToolInfo] = []

        async def carry(client: GatewayClient) -> None:
            found.extend(await client.tools(agent_id))

        await self._at_its_gateway(agent_id, carry)
        return found

    async def roster(self) -> Roster:
        """Every agent that any Gateway knows, and which of them did not answer."""
        return await roster(self.clients)

    async def result(self, req_id: str) -> Envelope | None:
        """The stored RESULT, from the Gateways' Redis or, where that is not given or not there, from any Gateway.

        None only when everyone who stores results was asked and has none (yet). Raises ResultsUnsupported when nobody
        stores any, NotSent or Unavailable when somebody who may have it could not be asked.
        """
        if self.redis is not None:
            try:
                return await self.redis.result(req_id)
            except Unavailable:
                pass  # a Gateway may have a better connection to it
        answers: list[GatewayError | None] = []
        asking = [asyncio.create_task(self._result(name, req_id)) for name in self.clients]
        try:
            for one in asyncio.as_completed(asking):
                answer = await one
                if isinstance(answer, Envelope):
                    return answer  # whoever hangs need not be waited for
                answers.append(answer)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        faults = [answer for answer in answers if isinstance(answer, GatewayError)]
        silent = [fault for fault in faults if not isinstance(fault, ResultsUnsupported)]
        # In Redis mode the Gateways share one store, so one that answers speaks for all. Without Redis none has one.
        if None in answers and (self.redis is not None or not silent):
            return None
        if faults:
            raise (silent or faults)[0]
        return None

    async def _result(self, name: str, req_id: str) -> Envelope | GatewayError | None:
        try:
            return await self.clients[name].result(req_id)
        except GatewayError as fault:
            fault.gateway = name
            return fault

    async def _at_its_gateway(self, agent_id: str, carry: Carry) -> str:
        name = await self.directory.find(agent_id)
        try:
            await self._at(name, agent_id, carry)
        except NotSent as fault:
            if fault.code not in _GONE:
                raise
            other = await self.directory.find_elsewhere(agent_id, name)
            if other is None:
                raise
            name = other
            await self._at(name, agent_id, carry)
        return name

    async def _at(self, name: str, agent_id: str, carry: Carry) -> None:
        try:
            await carry(self.clients[name])
        except (NotSent, MaybeSent) as fault:
            fault.gateway = name
            if fault.code in _GONE or isinstance(fault, MaybeSent):
                self.directory.suspect(agent_id)
            raise
