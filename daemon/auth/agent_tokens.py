"""The tokens that agents present to the Gateway: HS256, the claims of its contract §8. Used by ``api`` and ``dev``.

They open a tunnel there and nothing here: no route takes them.
"""

from __future__ import annotations

import re
import secrets

import jwt

TYPE = "bridge_agent"
AGENT_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{2,63}")
"""What the id of an agent that is given a token looks like."""


def new_agent_id() -> str:
    """An id that nobody has."""
    return f"agent-{secrets.token_hex(8)}"


def agent_token(
    agent_id: str, *, owner: str, version: int, secret: str, issuer: str, issued_at: int, expires_at: int
) -> str:
    """A token; the Gateway takes it while ``version`` is the one that it knows. Times are epoch seconds."""
    claims: dict[str, object] = {
        "type": TYPE,
        "agent_id": agent_id,
        "sub": owner,
        "ver": version,
        "iat": issued_at,
        "exp": expires_at,
    }
    if issuer:
        claims["iss"] = issuer
    return jwt.encode(claims, secret, algorithm="HS256")
