"""Who the dev Gateway lets in when it has a secret of agents' tokens: HELLO and AUTH of the contract, §8.

``DevGateway`` asks at each connection, the first and every later one; a connection that stands is not looked at again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import jwt

from daemon.dev.agent import LocalAgent

Versions = Callable[[str, str], Awaitable[int | None]]
"""The version that the Gateway's Redis has for (sub, agent id)."""


class TokenRefused(Exception):
    """The Gateway closes the connection with 1008 and this reason."""


class Door:
    """Without a ``secret`` everybody is let in. ``versions``: in Redis mode only."""

    def __init__(self, secret: str, versions: Versions | None) -> None:
        self._secret = secret
        self._versions = versions

    async def admit(self, agent: LocalAgent) -> None:
        """Let the agent in. Raises TokenRefused."""
        if not self._secret:
            return
        sub, version = self._claims(agent)
        if self._versions is not None and await self._versions(sub, agent.agent_id) != version:
            raise TokenRefused("invalid token version")

    def _claims(self, agent: LocalAgent) -> tuple[str, int]:
        """``exp`` and ``nbf`` are looked at where they are there; ``iat`` and ``iss`` are not."""
        try:
            claims: dict[str, Any] = jwt.decode(
                agent.token, self._secret, algorithms=["HS256"], options={"verify_iat": False, "verify_aud": False}
            )
        except jwt.InvalidTokenError:
            raise TokenRefused("invalid token") from None
        sub, version = claims.get("sub"), claims.get("ver")
        good = claims.get("type") == "bridge_agent" and claims.get("agent_id") == agent.agent_id
        if not (good and isinstance(sub, str) and sub and type(version) is int and version > 0):
            raise TokenRefused("invalid token")
        return sub, version


OPEN = Door("", None)
"""Of a Gateway without a secret."""
