"""Whose word on an address is taken: the connection's, and of trusted proxies that of the hop before them."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from daemon.api.peers import address_of
from daemon.config import load
from daemon.errors import SetupError
from tests.api.harness import QUICK, Stack, stack, step

PROXIES = "10.0.0.0/8, 2001:db8::/32,192.0.2.1"

TOLD = {
    "nobody between": ("198.51.100.7", [], "198.51.100.7"),
    "a client that makes it up": ("198.51.100.7", ["203.0.113.9"], "198.51.100.7"),
    "a proxy that says nothing": ("10.1.2.3", [], "10.1.2.3"),
    "a proxy": ("10.1.2.3", ["203.0.113.9"], "203.0.113.9"),
    "a client behind a proxy that makes it up": ("10.1.2.3", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
    "two proxies": ("192.0.2.1", ["1.1.1.1, 203.0.113.9, 10.0.0.1"], "203.0.113.9"),
    "two headers": ("10.1.2.3", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
    "proxies only": ("10.1.2.3", ["10.9.9.9"], "10.9.9.9"),
    "ports": ("10.1.2.3", ["203.0.113.9:4711"], "203.0.113.9"),
    "IPv6": ("2001:db8::5", ["2a00::1, [2001:db8::9]:443"], "2a00::1"),
    "IPv4 as IPv6": ("::ffff:10.1.2.3", ["::ffff:203.0.113.9"], "203.0.113.9"),
    "nonsense": ("10.1.2.3", ["203.0.113.9, unknown"], "10.1.2.3"),
    "nonsense behind a proxy": ("10.1.2.3", ["unknown, 10.0.0.2"], "10.0.0.2"),
    "a Unix socket": (None, ["203.0.113.9"], None),
}


@pytest.mark.parametrize("name", TOLD)
def test_an_address_is_what_the_last_trusted_hop_saw(name: str) -> None:
    peer, headers, expected = TOLD[name]
    given = CIMultiDict([("X-Forwarded-For", one) for one in headers])
    request = make_mocked_request("GET", "/", headers=given).clone(remote=peer) if peer else None
    if request is None:
        request = make_mocked_request("GET", "/", headers=given)
        request._transport_peername = None
        assert request.remote is None
    assert address_of(request, PROXIES) == expected
    assert address_of(request, "") == peer, "nobody is trusted unasked"


@pytest.mark.parametrize("text", ["10.0.0.0/33", "proxy.example", "10.0.0.1/8", ","])
def test_networks_that_are_none_are_refused_at_the_start(text: str) -> None:
    urls = {"postgres_url": "postgresql://x/y", "redis_url": "redis://x", "gateway_url": "http://x"}
    with pytest.raises(SetupError, match="RUNWARDEN_TRUSTED_PROXIES"):
        load(**QUICK | urls | {"trusted_proxies": text})


@pytest.fixture
def claimed() -> dict[str, str]:
    return {"X-Forwarded-For": "203.0.113.9"}


@pytest.mark.parametrize(("trusted", "expected"), [("127.0.0.1", "203.0.113.9"), ("", "127.0.0.1")])
async def test_the_audit_names_the_client_behind_a_trusted_proxy(
    database: str, redis_url: str, redis_prefix: str, claimed: dict[str, str], trusted: str, expected: str
) -> None:
    async with stack(database, redis_url, redis_prefix, trusted_proxies=trusted) as live:
        await _created(live, claimed)
        (line,) = (await live.ask("GET", "/v1/audit")).body["items"]
        assert line["address"] == expected


async def _created(live: Stack, headers: dict[str, str]) -> None:
    body = {"title": "One", "spec": {"steps": [step("a")]}}
    assert (await live.ask("POST", "/v1/workflows", json=body, headers=headers)).status == 200
