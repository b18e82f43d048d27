"""Keys that all nodes sign and verify with among themselves: each made by whoever needs it first, then everybody's."""

from __future__ import annotations

import secrets

from daemon.store.pool import Pool, reading

_MAKE = "INSERT INTO signing_keys (name, key) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
_READ = "SELECT key FROM signing_keys WHERE name = $1"


async def signing_key(pool: Pool, name: str) -> bytes:
    """The key of this name, 256 bits. Raises StoreUnavailable."""
    async with reading(pool) as connection:
        key = await connection.fetchval(_READ, name)
        if key is None:
            await connection.execute(_MAKE, name, secrets.token_bytes(32))
            key = await connection.fetchval(_READ, name)
    return bytes(key)
