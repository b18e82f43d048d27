"""A route and its declaration: what it takes, what it answers, which problems. The one source of behaviour and of docs.

What a handler takes stands in its signature: ``path``, ``query``, ``headers`` and ``body`` are models, read and
validated before it is called; what it answers stands beside it in ``app``. ``openapi`` tells the same to the world.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_type_hints

from aiohttp import HttpVersion11, web
from pydantic import BaseModel

from daemon.api.context import CALLER, OPERATION
from daemon.api.intake import read_body, read_headers, read_path, read_query
from daemon.api.pace import PACE
from daemon.auth.caller import Role

Problems: TypeAlias = Mapping[int, tuple[str, ...]]
"""Codes by status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a route: JSON of a ``model``, or what is no JSON (``media``), or by choice of the caller either."""

    says: str
    model: type[BaseModel] | None = None
    media: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table in ``app``."""

    method: str
    path: str
    handler: Callable[..., Awaitable[web.StreamResponse]]
    answers: Mapping[int, Answer]
    problems: Problems = field(default_factory=dict)
    open: bool = False
    """Whether anybody may ask, without a token."""
    role: Role = "viewer"
    """What a caller's token must give them; an admin's gives all."""
    paced: bool = False
    """Whether it changes who may do what, so that a caller may do it only so often."""

    @property
    def name(self) -> str:
        """Its operation's id."""
        return f"{self.handler.__module__.rpartition('.')[2]}_{self.handler.__name__}"

    @property
    def takes(self) -> dict[str, type[BaseModel]]:
        """The models of its path, query, headers and body, as far as it has them."""
        hints = get_type_hints(self.handler)
        return {name: hints[name] for name in inspect.signature(self.handler).parameters if name != "request"}

    def bound(self) -> web.RouteDef:
        """As aiohttp wants it: reads what the handler takes, then calls it."""
        takes, handler = self.takes, self.handler

        async def serve(request: web.Request) -> web.StreamResponse:
            given: dict[str, Any] = {}
            request[OPERATION] = self.name
            if not self.open:
                request[CALLER].require(self.role)
            if self.paced:
                request.app[PACE].keep(request[CALLER])
            if "path" in takes:
                given["path"] = read_path(request, takes["path"])
            if "query" in takes:
                given["query"] = read_query(request, takes["query"])
            if "headers" in takes:
                given["headers"] = read_headers(request, takes["headers"])
            if "body" in takes:
                given["body"] = await read_body(request, takes["body"])
            return await handler(request, **given)

        streams = any(answer.media == "text/event-stream" for answer in self.answers.values())
        more: dict[str, Any] = {"expect_handler": go_on}
        if self.method == "GET":
            more["allow_head"] = not streams  # HEAD has no body, so no stream either
        return web.RouteDef(self.method, self.path, serve, more)


async def go_on(request: web.Request) -> None:
    """Of ``Expect``: a client that asks whether to send its body is told yes; what else it may say is ignored.

    aiohttp's own handler refuses that before the gate: 417 in plain text, which no route declares.
    """
    if request.version == HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun


def merged(*some: Problems) -> Problems:
    """The codes of all of these."""
    found: dict[int, tuple[str, ...]] = {}
    for problems in some:
        for status, codes in problems.items():
            found[status] = tuple(dict.fromkeys((*found.get(status, ()), *codes)))
    return dict(sorted(found.items()))
