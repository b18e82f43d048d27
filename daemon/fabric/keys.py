"""Every key in Redis, in one place. ``<prefix>:{<partition>}:…``: one hash tag, so Redis Cluster stays possible.

| key | type | what |
|---|---|---|
| ``inbox:<run>`` | stream | letters of one run, deleted as they are folded |
| ``lease:<run>`` | string, TTL | ``<node>/<nonce>|<epoch>``: who tries to own the run |
| ``doorbell:<node>`` | stream, TTL | "look at these runs" |
| ``ready`` | stream, group ``nodes`` | "this run has no owner" |
| ``events:<run>`` | pub/sub | what was committed just now, as SSE frames |
| ``authority`` | pub/sub | "who may do what has changed" |
| ``role:<name>`` | string, TTL | who does what only one node may do |
| ``generation`` | string | the server's run_id: while it stands there, Redis remembers |
| ``beacon:<name>`` | string, TTL | a word that holds as long as it is repeated |
"""

from __future__ import annotations

from uuid import UUID


class Keys:
    """Names of keys under one prefix and partition."""

    def __init__(self, prefix: str, partition: int = 0) -> None:
        self.root = f"{prefix}:{{{partition}}}:"
        self.ready = self.root + "ready"
        self.generation = self.root + "generation"
        self.authority = self.root + "authority"
        self.doorbells = self.root + "doorbell:"
        self._inbox = self.root + "inbox:"
        self._lease = self.root + "lease:"
        self._events = self.root + "events:"

    def inbox(self, run_id: UUID) -> str:
        return self._inbox + run_id.hex

    def lease(self, run_id: UUID) -> str:
        return self._lease + run_id.hex

    def events(self, run_id: UUID) -> str:
        return self._events + run_id.hex

    def run_of_channel(self, channel: str) -> UUID | None:
        """The run whose ``events`` channel this is; None for any other."""
        return UUID(channel[len(self._events) :]) if channel.startswith(self._events) else None

    def doorbell(self, node: str) -> str:
        return self.doorbells + node

    def role(self, name: str) -> str:
        return f"{self.root}role:{name}"

    def beacon(self, name: str) -> str:
        return f"{self.root}beacon:{name}"
