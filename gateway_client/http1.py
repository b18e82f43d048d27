"""HTTP/1.1 as values: where the Gateway is, a request as bytes, and an answer read from bytes (RFC 9112).

Only `invoker` and `client` call it. It never does I/O, never waits, and never guesses: what it cannot read with
certainty is `Malformed`.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Self
from urllib.parse import quote, urlsplit

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 1024 * 1024

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.(?P<minor>[01]) (?P<status>[1-5][0-9]{2})( .*)?")
_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,8}")

# What frames or authorises the request is not for callers to say a second time.
_OURS: Final = frozenset(
    {
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-internal-token",
    }
)


class Malformed(Exception):
    """The bytes are not an HTTP/1.1 answer that can be trusted."""


class UnsafeHeader(ValueError):
    """A header that could change the meaning of the request, for instance by a line break."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the Gateway is. `authority` is what goes into Host and URLs, `prefix` a path without a final slash."""

    secure: bool
    host: str
    port: int
    authority: str
    prefix: str

    @classmethod
    def parse(cls, base_url: str) -> Self:
        """Reads `http[s]://host[:port][/prefix]`; raises ValueError for anything else."""
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("a Gateway URL is http[s]://host[:port][/prefix]")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("a Gateway URL has no user, query or fragment")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        if ":" in parts.hostname:
            host = parts.hostname
            named = f"[{host.partition('%')[0]}]"  # a zone means something on this machine only
        else:
            host = named = parts.hostname.encode("idna").decode("ascii")
        if not re.fullmatch(r"[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\]", named):
            raise ValueError(f"not a host: {named!r}")
        return cls(
            secure=secure,
            host=host,
            port=port,
            authority=named if parts.port is None else f"{named}:{port}",
            prefix=quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~"),
        )

    @property
    def url(self) -> str:
        """The base URL again, without a final slash."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.prefix}"


class Answer(NamedTuple):
    """One complete answer. `keep_alive`: the connection may carry another request."""

    status: int
    body: bytes
    keep_alive: bool


def check_header(name: str, value: str) -> None:
    """Raises UnsafeHeader for a name that is no token, and for a value with line breaks or other control bytes."""
    if not _NAME.fullmatch(name):
        raise UnsafeHeader(f"not a header name: {name!r}")
    if not _VALUE.fullmatch(value):
        raise UnsafeHeader(f"the value of header {name!r} holds characters that HTTP forbids")


def post_head(endpoint: Endpoint, path: str, token: str) -> bytes:
    """The part of a POST's head that is the same for every call; the token was checked before."""
    lines = [
        f"POST {endpoint.prefix}{path} HTTP/1.1",
        f"Host: {endpoint.authority}",
        "Content-Type: application/json",
        *([f"X-Internal-Token: {token}"] if token else []),
        "Content-Length: ",
    ]
    return "\r\n".join(lines).encode("latin-1")


def get_bytes(endpoint: Endpoint, path: str, token: str) -> bytes:
    """A whole GET; path and token must be fit for a head already."""
    lines = [
        f"GET {endpoint.prefix}{path} HTTP/1.1",
        f"Host: {endpoint.authority}",
        *([f"X-Internal-Token: {token}"] if token else []),
        "\r\n",
    ]
    return "\r\n".join(lines).encode("latin-1")


def post_bytes(head: bytes, body: bytes, headers: Mapping[str, str] | None) -> bytes:
    """The whole request. Raises UnsafeHeader, so that nobody's header becomes somebody's second request."""
    if not headers:
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)
    lines = []
    for name, value in headers.items():
        check_header(name, value)
        if name.lower() in _OURS:
            raise UnsafeHeader(f"header {name!r} is set by the client")
        lines.append(f"{name}: {value}\r\n")
    return b"%b%d\r\n%b\r\n%b" % (head, len(body), "".join(lines).encode("latin-1"), body)


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    keep_alive: bool
    chunked: bool
    length: int | None  # None with `chunked` False: the body ends with the connection


class AnswerReader:
    """Reads one answer from bytes that come in any pieces."""

    __slots__ = ("_body", "_buffer", "_head")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: _Head | None = None
        self._body = bytearray()  # of a chunked answer: what is decoded so far

    def feed(self, data: bytes) -> Answer | None:
        """The answer once it is complete; None while bytes are missing. Raises Malformed."""
        if self._head is None and not self._buffer and (whole := _read_whole(data)) is not None:
            return whole
        self._buffer += data
        while self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if max(end, 0) > MAX_HEAD_BYTES or (end < 0 and len(self._buffer) > MAX_HEAD_BYTES):
                raise Malformed("the head is too long")
            if end < 0:
                return None
            head = _parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            if head.status >= 200:  # 1xx only announces the answer
                self._head = head
        return self._read_chunks(self._head) if self._head.chunked else self._read_plain(self._head)

    def end(self) -> Answer | None:
        """What the end of the connection means: the answer, if its body was to end with it."""
        head = self._head
        if head is None or head.chunked or head.length is not None:
            return None
        return Answer(status=head.status, body=bytes(self._buffer), keep_alive=False)

    def _read_plain(self, head: _Head) -> Answer | None:
        if len(self._buffer) > MAX_BODY_BYTES:
            raise Malformed("the body is too long")
        if head.length is None or len(self._buffer) < head.length:
            return None
        surplus = len(self._buffer) > head.length
        body = bytes(self._buffer[: head.length])
        return Answer(status=head.status, body=body, keep_alive=head.keep_alive and not surplus)

    def _read_chunks(self, head: _Head) -> Answer | None:
        while (line_end := self._buffer.find(b"\r\n")) >= 0:
            size_text = bytes(self._buffer[:line_end]).partition(b";")[0].strip(b" \t")
            if not _CHUNK_SIZE.fullmatch(size_text):
                raise Malformed("not a chunk size")
            size = int(size_text, 16)
            if len(self._body) + size > MAX_BODY_BYTES:
                raise Malformed("the body is too long")
            if size == 0:
                return self._read_trailers(head, line_end)
            start, stop = line_end + 2, line_end + 2 + size
            if len(self._buffer) < stop + 2:
                return None
            if self._buffer[stop : stop + 2] != b"\r\n":
                raise Malformed("a chunk is longer than it says")
            self._body += self._buffer[start:stop]
            del self._buffer[: stop + 2]
        if len(self._buffer) > MAX_HEAD_BYTES:
            raise Malformed("a chunk's size line is too long")
        return None

    def _read_trailers(self, head: _Head, line_end: int) -> Answer | None:
        # The last chunk's own line end counts as the first half of the blank line that ends the trailers.
        end = self._buffer.find(b"\r\n\r\n", line_end)
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise Malformed("the trailers are too long")
            return None
        surplus = len(self._buffer) > end + 4
        return Answer(status=head.status, body=bytes(self._body), keep_alive=head.keep_alive and not surplus)


def _read_whole(data: bytes) -> Answer | None:
    """The answer if it is all there is and says its length, as nearly every answer does; None: read it in pieces."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0 or len(data) > MAX_BODY_BYTES:
        return None
    head = _parse_head(data[:end])
    body = data[end + 4 :]
    if head.status < 200 or head.length != len(body):
        return None
    return Answer(status=head.status, body=body, keep_alive=head.keep_alive)


@functools.lru_cache(maxsize=16)  # the answers of one second differ in their bodies only
def _parse_head(raw: bytes) -> _Head:
    text = raw.decode("latin-1")
    status_line, *lines = text.split("\r\n")
    if text.count("\n") != len(lines):
        raise Malformed("a bare line feed in the head")
    status, keep_alive = _parse_status_line(status_line)
    chunked, lengths = False, set[int]()
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise Malformed("not a header line")
        value = value.strip(" \t")
        match name.lower():
            case "content-length":
                if not re.fullmatch("[0-9]{1,15}", value):
                    raise Malformed("not a content length")
                lengths.add(int(value))
            case "transfer-encoding":
                chunked = value.lower() == "chunked"
                if not chunked:
                    raise Malformed("an encoding nobody asked for")
            case "connection":
                keep_alive = keep_alive and "close" not in value.lower()
    if len(lengths) + chunked > 1:
        raise Malformed("two lengths")
    if status < 200 or status in {204, 304}:  # these never have a body, whatever they say
        return _Head(status=status, keep_alive=keep_alive, chunked=False, length=0)
    return _Head(status=status, keep_alive=keep_alive, chunked=chunked, length=lengths.pop() if lengths else None)


def _parse_status_line(line: str) -> tuple[int, bool]:
    """The status, and whether this version of HTTP keeps connections open unless told otherwise."""
    found = _STATUS_LINE.fullmatch(line)
    if found is None:
        raise Malformed("not an HTTP/1.1 status line")
    status = int(found["status"])
    if status == 101:
        raise Malformed("nobody asked to switch protocols")
    return status, found["minor"] == "1"
