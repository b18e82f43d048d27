"""Who is asking: by JWT, by service token or, for an event stream, by ticket. Used by ``gate`` and ``runs``.

What cannot be known for now (the identity provider's keys, a service token while Postgres is away) is a 503, never a
401: a client that is told 401 throws its token away.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Coroutine
from typing import Any
from uuid import UUID

from daemon.auth import tickets
from daemon.auth.caller import Caller
from daemon.auth.claims import rules_of
from daemon.auth.keys import Keyring
from daemon.auth.service_tokens import PREFIX, bearer_of, digest_of, token_id_of
from daemon.auth.tokens import Tokens, UnknownKey, bearer
from daemon.config import Identity
from daemon.errors import StoreUnavailable, Unauthenticated
from daemon.issuer import Issuer
from daemon.store.pool import Pool
from daemon.store.service_tokens import ServiceTokens
from daemon.store.signing_keys import signing_key
from daemon.telemetry import log

USES_S = 1.0
"""Pause between two writings of which service tokens were used; in between they are gathered."""


class Callers:
    """What the front knows of those who ask. ``issuer``: whose keys are read, if settings name one."""

    def __init__(self, settings: Identity, pool: Pool) -> None:
        secret = settings.jwt_secret.get_secret_value()
        keyring = Keyring(secret)
        self.issuer = Issuer(settings, keyring) if settings.jwks_url else None
        self._keyring = keyring
        self._tokens = Tokens(keyring, rules_of(settings))
        self._pool = pool
        self._service_tokens = ServiceTokens(pool)
        self._ticket_key = tickets.ticket_key(secret) if secret else None
        self._used: set[UUID] = set()
        if self.issuer is not None and not (settings.jwt_issuer or settings.jwt_audience):
            log.warning(
                "whatever these keys sign without an audience is accepted: set RUNWARDEN_JWT_ISSUER and _AUDIENCE",
                url=settings.jwks_url,
            )

    def parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The long-lived parts by name; each runs until cancelled."""
        keys = {} if self.issuer is None else {"issuer": self.issuer.run()}
        return {"uses of service tokens": self._write_uses(), **keys}

    async def by_token(self, authorization: str | None) -> Caller:
        """The caller behind an ``Authorization`` header. Raises Unauthenticated, or WorldError: nobody knows now."""
        token = bearer(authorization)
        if token.startswith(PREFIX):
            return await self._by_service_token(token)
        try:
            return self._tokens.authenticate(token)
        except UnknownKey:
            if self.issuer is None:
                raise
        await self.issuer.look_again()
        return self._tokens.authenticate(token)

    async def by_ticket(self, ticket: str, run_id: str) -> Caller:
        """Who holds a ticket for this run's events; raises as ``by_token``. The id is as the path has it."""
        with contextlib.suppress(ValueError):
            run_id = str(UUID(run_id))
        caller = tickets.admit(ticket, run_id, await self._key_of_tickets())
        if (token_id := token_id_of(caller.via)) is not None and await self.ended((token_id,)):
            raise Unauthenticated("The service token that this ticket was given for has ended.", code="ticket_invalid")
        if caller.key is not None and await self._is_unknown(caller.key):
            raise Unauthenticated("The token that this ticket was given for is good no more.", code="ticket_invalid")
        return caller

    async def ticket(self, caller: Caller, run_id: str) -> tuple[str, int]:
        """A ticket for a run's events, and its end in epoch seconds."""
        return tickets.ticket_for(caller, run_id, await self._key_of_tickets())

    async def ended(self, token_ids: Collection[UUID]) -> set[UUID]:
        """Those of these service tokens that were revoked or have expired."""
        return await self._service_tokens.ended(token_ids)

    async def require_good(self, caller: Caller) -> None:
        """Raises Unauthenticated when what they showed has expired, was revoked, or its key was withdrawn since."""
        over = caller.expires_at is not None and caller.expires_at <= time.time()
        if (token_id := token_id_of(caller.via)) is not None:
            over = over or bool(await self.ended((token_id,)))
        if over or (caller.key is not None and self._keyring.withdrawn(caller.key)):
            raise Unauthenticated("The token is good no more: get a new one.", code="token_expired")

    def withdrawn(self, keys: Collection[str]) -> set[str]:
        """Those of these keys that the identity provider has withdrawn, as far as its keys are known."""
        return {key for key in keys if self._keyring.withdrawn(key)}

    async def _is_unknown(self, key: str) -> bool:
        """Whether the key is none of ours, be it too new for this node. Raises IssuerUnavailable: nobody knows now."""
        if self._keyring.withdrawn(key) and self.issuer is not None:
            await self.issuer.look_again()
        return self._keyring.withdrawn(key)

    async def _key_of_tickets(self) -> bytes:
        """Of the shared secret; where there is none, one that the nodes share through Postgres."""
        if self._ticket_key is None:
            self._ticket_key = await signing_key(self._pool, "events-ticket")
        return self._ticket_key

    async def _by_service_token(self, token: str) -> Caller:
        digest = digest_of(token)
        found = await self._service_tokens.bearer(digest) if digest is not None else None
        if found is None:
            raise Unauthenticated("There is no such service token.", code="token_invalid")
        if found.token.revoked_at is not None:
            raise Unauthenticated("This service token was revoked: get a new one.", code="token_revoked")
        if found.expired:
            raise Unauthenticated("This service token has expired: get a new one.", code="token_expired")
        if found.unseen:
            self._used.add(found.token.id)
        told = found.token
        return bearer_of(
            token_id=told.id,
            user_id=told.user_id,
            scopes=told.scopes,
            groups=told.groups,
            expires_at=int(told.expires_at.timestamp()) if told.expires_at is not None else None,
            made_by=told.made_by,
        )

    async def _write_uses(self) -> None:
        """Beside the requests, so that none waits for it; what cannot be written is tried again."""
        while True:
            await asyncio.sleep(USES_S)
            if not self._used:
                continue
            used, self._used = self._used, set()
            try:
                await self._service_tokens.used(used)
            except StoreUnavailable:
                self._used |= used
