"""What the front asks the Gateways: who is online, what tools an agent offers, which tokens they accept.

Used by the handlers about agents and by ``front``. It can call no tool: it is given the Gateways and keeps only these
questions of them. Their errors become ours here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from daemon.errors import Conflict, StoreUnavailable, WorldError
from daemon.store.agents import Agents, TokenVersion
from daemon.telemetry import log
from gateway_client import GatewayError, Gateways, NotSent, Roster, ToolInfo, Unavailable

FRESH_S = 1.0
"""A roster is told again for so long, however many ask."""
TOOLS_TIMEOUT_S = 10.0
MIRROR_S = 60.0
"""Between two looks at the versions in the Gateways' Redis: it may have been flushed, or away when one changed."""
PAGE = 500


class Reach:
    """``mirrors``: whether there are tokens whose versions the Gateways must know."""

    def __init__(self, gateways: Gateways, *, mirrors: bool) -> None:
        self._ask_roster = gateways.roster
        self._ask_tools = gateways.tools
        self._redis = gateways.redis if mirrors else None
        self._roster: asyncio.Task[Roster] | None = None
        self._asked_at = 0.0

    async def roster(self) -> Roster:
        """Who is online; those who ask at once share an answer."""
        if self._roster is None or (self._roster.done() and time.monotonic() - self._asked_at > FRESH_S):
            self._asked_at = time.monotonic()
            self._roster = asyncio.create_task(self._ask_roster(), name="roster")
        return await asyncio.shield(self._roster)

    async def tools(self, agent_id: str) -> list[ToolInfo]:
        """What the agent offers now. Raises Conflict when it is offline, WorldError when no Gateway says."""
        try:
            async with asyncio.timeout(TOOLS_TIMEOUT_S):
                return await self._ask_tools(agent_id)
        except NotSent as fault:
            if fault.code == "agent_offline":
                raise Conflict("The agent is offline: start it, and ask again.", code="agent_offline") from None
            raise _away(fault) from None
        except (GatewayError, TimeoutError) as fault:
            raise _away(fault) from None

    async def accept(self, known: TokenVersion) -> int:
        """The Gateways take this version and no older one; answers the one that stands. Raises WorldError."""
        if self._redis is None:
            return known.version
        try:
            return await self._redis.raise_token_version(known.owner, known.agent_id, known.version)
        except Unavailable as fault:
            raise WorldError(
                f"The Gateways' Redis does not answer ({fault}): the change stands here and they learn of it within"
                f" {MIRROR_S:.0f} s of its return. Ask again.",
                code="gateway_redis_unavailable",
            ) from None

    async def mirror(self, agents: Agents) -> None:
        """See, again and again, that the Gateways know every version; until cancelled."""
        while self._redis is not None:
            with contextlib.suppress(StoreUnavailable):
                try:
                    await self.mirror_once(agents)
                except Unavailable as fault:
                    log.warning("the Gateways may not know which agents' tokens are good", fault=str(fault))
            await asyncio.sleep(MIRROR_S)

    async def mirror_once(self, agents: Agents) -> int:
        """How many versions they did not know. Raises StoreUnavailable, Unavailable."""
        told, after = 0, None
        while self._redis is not None and (page := await agents.token_versions(after=after, limit=PAGE)):
            stand = await self._redis.token_versions([(known.owner, known.agent_id) for known in page])
            told += await self._raise(
                [known for known, version in zip(page, stand, strict=True) if version < known.version]
            )
            after = page[-1]
        return told

    async def _raise(self, behind: Sequence[TokenVersion]) -> int:
        assert self._redis is not None  # noqa: S101 - asked by the only caller
        for known in behind:
            await self._redis.raise_token_version(*known)
        return len(behind)


def _away(fault: BaseException) -> WorldError:
    return WorldError(
        f"The Gateway does not say ({fault or type(fault).__name__}): ask again.", code="gateway_unavailable"
    )
