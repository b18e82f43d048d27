"""The HTTP server beneath the application: aiohttp's, but that what it refuses by itself is told in our form too.

Used by ``node``. What is no HTTP never reaches the application and its gate: the connection answers, and is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import (
    ContentEncodingError,
    HttpProcessingError,
    InvalidHeader,
    InvalidURLError,
    LineTooLong,
)

from daemon import telemetry
from daemon.api.gate import OURS, problem
from daemon.errors import BadRequest, RunwardenError

BACKLOG = 1024
"""Connections that may wait to be accepted."""
SHUTDOWN_S = 2.0
MAX_LINE = 8190
"""Bytes of the request line, and of each header."""
MAX_HEADERS = 128
MAX_WHY = 200
"""Characters kept of what aiohttp says."""
TLS = "HTTPS traffic on an HTTP port"
HTTP_2 = "PRI/Upgrade"
"""What aiohttp says of each; a test notices when it says it otherwise."""


class _ClientsFault(logging.Filter):
    """Leaves out what clients do wrong with HTTP itself, which is answered: a traceback for each, and anybody could
    fill the log with them."""

    def filter(self, record: logging.LogRecord) -> bool:
        fault = record.exc_info[1] if record.exc_info else None
        return not isinstance(fault, HttpProcessingError | web.RequestPayloadError)


SERVER_LOG = logging.getLogger("runwarden.http")
"""For aiohttp's server: what goes wrong in it."""
SERVER_LOG.addFilter(_ClientsFault())
OPTIONS: dict[str, Any] = {
    "logger": SERVER_LOG,
    "access_log": None,
    "max_line_size": MAX_LINE,
    "max_field_size": MAX_LINE,
    "max_headers": MAX_HEADERS,
}


class _Connection(web.RequestHandler):
    """One connection. Its errors are those of the gate."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is answered where the application was not asked, or failed beyond its gate. Ends the connection."""
        super().handle_error(request, status, exc, message)  # logs it; raises if an answer had begun
        fault: RunwardenError = RunwardenError(OURS)
        if isinstance(exc, HttpProcessingError):
            fault = _fault_of(exc)
            telemetry.requests.labels("none", fault.status).inc()  # all others the gate has counted
        answer = problem(fault)
        answer.force_close()
        return answer


def _fault_of(fault: HttpProcessingError) -> BadRequest:
    """In our words, and without the bytes that were sent: a token may be among them."""
    said = fault.message.partition("\n\n")[0]  # the line that was sent follows
    if isinstance(fault, LineTooLong):
        return BadRequest(
            f"The request's head has a line that is too long: its method and URL, and each of its headers, may have at"
            f" most {MAX_LINE} bytes. Send less, or send it in the body."
        )
    if isinstance(fault, ContentEncodingError):
        return BadRequest("The body's Content-Encoding is not read here: send it as gzip, deflate, or as it is.")
    if HTTP_2 in said:
        return BadRequest("This port is HTTP/1.1, not HTTP/2: ask by HTTP/1.1.")
    if TLS in said:
        return BadRequest("This port is HTTP, not HTTPS: ask by http://, or at the address where TLS ends.")
    if "Too many headers" in said:
        return BadRequest(f"The request has too many headers: it may have at most {MAX_HEADERS}.")
    why = " ".join(said.split())[:MAX_WHY].rstrip(":.")
    if isinstance(fault, InvalidURLError | InvalidHeader):
        why = "its URL cannot be read" if isinstance(fault, InvalidURLError) else "a header cannot be read"
    return BadRequest(f"The request is not HTTP/1.1 as it must be ({why}): send it by an HTTP client.")


class _Server(web.Server):
    """Makes the connections, for the application that the server ``beneath`` was made for."""

    def __init__(self, beneath: web.Server) -> None:
        super().__init__(beneath.request_handler, request_factory=beneath.request_factory)

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **OPTIONS)


@asynccontextmanager
async def listening(app: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """The application, served until left; gives its URL. Raises OSError when it cannot listen there."""
    application = web.AppRunner(app, **OPTIONS)
    await application.setup()
    try:
        beneath = cast("web.Server", application.server)  # there is one since ``setup``
        server = web.ServerRunner(_Server(beneath), shutdown_timeout=SHUTDOWN_S)
        await server.setup()
        try:
            await web.TCPSite(server, host, port, backlog=BACKLOG).start()
            at, bound = server.addresses[0][:2]
            yield f"http://{at}:{bound}"
        finally:
            await server.cleanup()
    finally:
        await application.cleanup()
