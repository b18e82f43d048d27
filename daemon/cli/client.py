"""The API over HTTP, as the commands need it: calls that are safe to repeat, problems told well, events that resume.

Used through ``connection``. A POST carries an Idempotency-Key, so a call whose answer was lost is made again without
doing anything twice. Never decides what a person sees or which exit code follows beyond ``Told``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import aiohttp

from daemon.cli.exits import Exit, Told
from daemon.dev.sse import StreamLost, follow

TRIES = 4
"""Of one call, when no answer comes or the node says that it cannot just now."""
PAUSE_S = 0.3
"""Before the second try; doubles."""
AWAY = frozenset({502, 503, 504})
TIMEOUT = aiohttp.ClientTimeout(total=40, sock_connect=5)
VERDICT_POLL_S = 0.5

_EXITS = {401: Exit.NOT_AUTHORISED, 403: Exit.NOT_AUTHORISED, 404: Exit.NOT_FOUND, 409: Exit.REFUSED}
_EXITS |= {400: Exit.INVALID, 405: Exit.INVALID, 413: Exit.INVALID, 415: Exit.INVALID, 422: Exit.INVALID}
_STATUS = {"not_an_approver": 403, "role_required": 403}
"""Of verdicts that came late, where the answer itself would have had another than 409."""
_HINTS = {
    401: "The token is wrong, expired or of another node. Set one: runwarden profile set NAME --token-stdin, or"
    " RUNWARDEN_TOKEN.",
    403: "Ask whoever runs this node for the right to do so.",
    404: "You see only what is yours: `runwarden run list`, `workflow list` and `agent list` show it.",
    422: "Change what is named above and try again.",
}
_HINTS_BY_CODE = {
    "pause_changed": "Somebody was faster. Look again: runwarden run show RUN",
    "not_paused": "Look at where it stands: runwarden run show RUN",
    "confirm_required": "Look at what the tool did. To run it again: runwarden run resume RUN --run-again",
    "use_approve": "This step is decided by name: runwarden run approve RUN --step STEP --digest SHA256",
    "digest_required": "Look at the call (runwarden run show RUN), then name its digest: --digest sha256:…",
    "digest_mismatch": "It is another call by now. Look again: runwarden run show RUN",
    "approval_expired": "It is about to be ended as expired, or to be asked anew. Look: runwarden run show RUN",
    "not_an_approver": "What waits for you: runwarden approvals list",
    "not_your_run": "What waits for you: runwarden approvals list",
    "edit_not_allowed": "Reject it, and start a run with the arguments that you want.",
    "held": "What is held, and why: runwarden hold list",
    "agent_unauthorized": "Ask the agent's owner: runwarden agent grant AGENT use --user YOU",
    "agent_tokens_off": "",
    "agent_offline": "Start the agent; `runwarden agent list` tells when it is online.",
    "no_such_route": "The node at this URL is older than this command, or it is no Runwarden; a URL has no /v1 at its"
    " end.",
    "token_revoked": "Make another: runwarden service-token create NAME --scope ROLE (with a token of your own).",
    "not_by_service_token": "Use a token of your own: --profile, --token or RUNWARDEN_TOKEN.",
    "scope_exceeds_roles": "Leave these scopes out, or ask an admin to make the token for you (--user).",
    "too_many_tokens": "Revoke what is not used any more: runwarden service-token list",
    "token_already_made": "Revoke it (runwarden service-token revoke TOKEN), then make another.",
    "issuer_unavailable": "The token may be good: try again shortly.",
    "too_many_streams": "Try again shortly, or at another node.",
}


class Answer(NamedTuple):
    """A successful answer: status, decoded body, and where the command of a 202 is to be asked for."""

    status: int
    body: dict[str, Any]
    location: str | None


class Api:
    """One node at ``url`` (which may have a path, behind a proxy), over a session that carries the token."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def get(self, path: str, **params: Any) -> dict[str, Any]:
        """A resource; parameters that are None are left out, those of several values said several times."""
        said = [
            (name, str(value))
            for name, values in params.items()
            for value in (values if isinstance(values, tuple) else (values,))
            if value is not None
        ]
        return (await self._call("GET", path, params=said)).body

    async def put(self, path: str, body: Mapping[str, Any], *, again: bool = False) -> dict[str, Any]:
        """Replace a resource; repeated only with ``again``, where not each time makes a version of its own."""
        return (await self._call("PUT", path, body, tries=TRIES if again else 1)).body

    async def delete(self, path: str) -> dict[str, Any]:
        """Take a resource away; not repeated, since the second time it would not be there."""
        return (await self._call("DELETE", path, tries=1)).body

    async def post(self, path: str, body: Mapping[str, Any], *, key: str | None = None) -> Answer:
        """Create or decide, under ``key`` or a new one, the same at each try."""
        return await self._call("POST", path, body, headers={"Idempotency-Key": key or secrets.token_urlsafe(18)})

    async def decide(self, run_id: str, verb: str, body: Mapping[str, Any], *, wait_s: float = 30.0) -> Answer:
        """A person's word on a run; waits for its verdict. Status 202 when there is none after ``wait_s``."""
        answer = await self.post(f"/v1/workflow-runs/{run_id}/{verb}", body)
        if answer.status != 202 or answer.location is None:
            return answer
        deadline = asyncio.get_running_loop().time() + wait_s
        while asyncio.get_running_loop().time() < deadline:
            told = await self.get(answer.location)
            if told["verdict"] == "refused":
                raise refusal(_STATUS.get(told["code"], 409), {"code": told["code"], "detail": told["message"]})
            if told["verdict"] == "applied":
                return Answer(200, await self.get(f"/v1/workflow-runs/{run_id}"), None)
            await asyncio.sleep(VERDICT_POLL_S)
        return answer

    async def events(self, run_id: str, *, after_seq: int = 0) -> AsyncGenerator[dict[str, Any], None]:
        """The run's events and ``replay.done``, as often as the connection breaks. Raises Told when it cannot."""
        url = f"{self._url}/v1/workflow-runs/{run_id}/events"
        start = f"{url}?after_seq={after_seq}" if after_seq else url
        try:
            async with aclosing(follow(self._session, start)) as messages:
                async for message in messages:
                    yield json.loads(message.data)
        except StreamLost as fault:
            await self.get(f"/v1/workflow-runs/{run_id}")  # says it better, where the token has expired meanwhile
            hint = "The run goes on without you. Follow it again: runwarden run watch RUN"
            raise Told(str(fault), exit_code=Exit.UNREACHABLE, code="stream_lost", hint=hint) from None

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, **more: Any) -> Any:
        """One exchange. No redirect is followed: the token is for this node."""
        return self._session.request(
            method, self._url + path, json=body, timeout=TIMEOUT, allow_redirects=False, **more
        )

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, tries: int = TRIES, **more: Any
    ) -> Answer:
        fault = ""
        hint = "Is a node running there? `runwarden dev` starts one on this machine; --url or a profile names another."
        for attempt in range(tries):
            if attempt:
                await asyncio.sleep(PAUSE_S * 2 ** (attempt - 1))
            try:
                async with self._request(method, path, body, **more) as answer:
                    text = await answer.text()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                fault = str(error) or type(error).__name__
                if isinstance(error, aiohttp.ClientSSLError):
                    hint = "It speaks no TLS there, or its certificate is not trusted here: should the URL be http://?"
                continue
            if answer.status in AWAY and attempt + 1 < tries:
                continue
            told = _decoded(text)
            if answer.status >= 300 or told is None:
                raise refusal(answer.status, told or {"detail": f"The answer is no JSON object: {text[:200]}"})
            return Answer(answer.status, told, answer.headers.get("Location"))
        message = f"{self._url} does not answer: {fault}"
        raise Told(message, exit_code=Exit.UNREACHABLE, code="unreachable", hint=hint)


def _decoded(text: str) -> dict[str, Any] | None:
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def refusal(status: int, problem: Mapping[str, Any]) -> Told:
    """A problem+json as what the caller is told."""
    code = str(problem.get("code") or f"http_{status}")
    detail = str(problem.get("detail") or problem.get("title") or f"The node answers {status}.")
    exit_code = _EXITS.get(status, Exit.UNREACHABLE if status in AWAY else Exit.FAILED)
    faults = [(str(fault["path"]), str(fault["message"])) for fault in problem.get("errors") or ()]
    hint = _HINTS_BY_CODE.get(code, _HINTS.get(status, ""))
    return Told(detail, exit_code=exit_code, code=code, hint=hint, faults=faults)
