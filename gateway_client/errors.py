"""The error tree of the Gateway client, and the table of what each HTTP answer proves.

Anyone who calls the client may import it. It never raises by itself and never does I/O.

    GatewayError
    ├── NotSent              no agent saw the call: it may be made again
    ├── MaybeSent            an agent may have seen the call: it must not be repeated without knowing
    ├── Unavailable          a read brought no usable answer: ask again later
    └── ResultsUnsupported   this Gateway stores no results: do not ask again

Every error has a stable `code` for programs; `str(error)` is a sentence for people and never holds the token.
"""

from typing import Final

import orjson

_QUOTED_WORD_LIMIT: Final = 100


class GatewayError(Exception):
    """The Gateway did not do what it was asked."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.gateway = ""
        """Which of several Gateways it was about; empty: none in particular."""

    def __str__(self) -> str:
        sentence = (self.__doc__ or "").partition("\n")[0]
        return f"{sentence} {self.code}: {self.detail}" if self.detail else f"{sentence} {self.code}"


class NotSent(GatewayError):
    """No agent saw the call.

    This is a proof, not a guess. Codes: `gateway_unavailable` (no connection: refused, failed, timed out, no such
    host, no connection free), `agent_offline`, `agent_busy` (its other calls still wait for their answers),
    `invalid_request`, `unauthorized`, `not_permitted` (the `may_send` hook said no), `bad_gateway_url` (what answers
    there is not a Gateway).
    """


class MaybeSent(GatewayError):
    """The call may have reached an agent, and no clean answer came.

    Codes: `send_failed` (502), `gateway_error` (any other unexpected status), `connection_lost` (reset, end of
    file, garbage or no answer in time, after the write began).
    """


class Unavailable(GatewayError):
    """The Gateway gave no usable answer to a read.

    Codes: `gateway_error` (unexpected status), `redis_error` (the Gateway cannot reach its Redis, or we cannot),
    `connection_lost`, `bad_answer` (not what the contract says, or too large), `silent` (an event stream that sent
    nothing, not even a heartbeat).
    """


class ResultsUnsupported(GatewayError):
    """This Gateway stores no results.

    Code: `results_unsupported`.
    """


def error_word(body: bytes) -> str:
    """The `<code>` of a Gateway's error body `{"error":"<code>"}`; empty when the body is anything else."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    word = told.get("error") if isinstance(told, dict) else None
    return word[:_QUOTED_WORD_LIMIT] if isinstance(word, str) else ""


def _refusal(status: int, word: str) -> NotSent | None:
    """The answers that prove that nothing was written to an agent, for calls and reads alike."""
    detail = f"HTTP {status} {word}".rstrip()
    match status:
        case 400:
            return NotSent("invalid_request", detail)
        case 401:
            return NotSent("unauthorized", detail)
        case 404 if word == "agent_offline":
            return NotSent("agent_offline", detail)
        case 404:
            return NotSent("bad_gateway_url", detail)
    return None


def fault_of_call(status: int, body: bytes) -> NotSent | MaybeSent:
    """What a status other than 202 says about a call (invoke, cancel)."""
    word = error_word(body)
    code = "send_failed" if status == 502 else "gateway_error"
    return _refusal(status, word) or MaybeSent(code, f"HTTP {status} {word}".rstrip())


def fault_of_read(status: int, body: bytes) -> NotSent | Unavailable:
    """What a status other than 200 says about a read (agents, tools, result, events)."""
    word = error_word(body)
    code = "redis_error" if word == "redis_error" else "gateway_error"
    return _refusal(status, word) or Unavailable(code, f"HTTP {status} {word}".rstrip())
