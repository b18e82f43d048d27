"""``RUNWARDEN_GATEWAY_URL`` in the singular and the plural, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.addresses import gateways_of
from daemon.config import effective, load, mask
from daemon.errors import SetupError

NEEDED: dict[str, Any] = {
    "jwt_secret": "sixteen characters at least",
    "postgres_url": "postgresql://u:p@db/x",
    "redis_url": "redis://r",
}


@pytest.mark.parametrize(
    ("given", "urls"),
    [
        ("http://gw:8090", {"default": "http://gw:8090"}),
        ("http://gw:8090/prefix/", {"default": "http://gw:8090/prefix"}),
        ("gw-1=http://gw:8090", {"gw-1": "http://gw:8090"}),
        ("a=http://x, b=https://y:1/p", {"a": "http://x", "b": "https://y:1/p"}),
        ("http://x:1,http://u:p@y", {"x:1": "http://x:1", "y": "http://u:p@y"}),
    ],
)
def test_gateways_have_the_names_they_were_given_or_those_of_their_hosts(given: str, urls: dict[str, str]) -> None:
    assert gateways_of(given) == urls
    assert load(**NEEDED, gateway_url=given).gateway.urls == urls


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("ftp://gw", "must be http(s)://host:port"),
        ("http://x,", "must be http(s)://host:port"),
        ("*=http://x,b=http://y", "must be http(s)://host:port"),
        ("a=http://x,a=http://y", "names a Gateway twice"),
        ("a=http://x,b=http://x/", "names a Gateway twice"),
    ],
)
def test_what_names_no_gateways_is_refused_with_the_reason(given: str, says: str) -> None:
    with pytest.raises(SetupError, match="RUNWARDEN_GATEWAY_URL: ") as caught:
        load(**NEEDED, gateway_url=given)
    assert says in str(caught.value)


def test_the_gateways_redis_must_be_one() -> None:
    with pytest.raises(SetupError, match="RUNWARDEN_GATEWAY_REDIS_URL: must be redis://"):
        load(**NEEDED, gateway_url="http://gw", gateway_redis_url="http://gw")


def test_passwords_are_masked_in_each_of_several_urls() -> None:
    assert mask("a=http://u:one@x,b=http://y:2,http://v:two@z") == "a=http://u:****@x,b=http://y:2,http://v:****@z"
    shown = effective(load(**NEEDED, gateway_url="http://gw", gateway_redis_url="redis://:hush@r/1"))
    assert shown["RUNWARDEN_GATEWAY_REDIS_URL"] == "redis://:****@r/1"
