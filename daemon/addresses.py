"""Addresses as settings hold them: checked where they are read, because the drivers would each find other words.

Used by ``config``, which passes ``mask`` on. Each check takes what was given and returns it, or raises ValueError
saying what it must be.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

Networks: TypeAlias = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]

DEFAULT_GATEWAY = "default"
"""The name of a Gateway that is alone and was given none."""
_GATEWAY_URL = re.compile(r"((?P<id>[A-Za-z0-9._-]{1,100})=)?(?P<url>https?://[^,\s]+)")


def postgres_url(secret: SecretStr) -> SecretStr:
    """Postgres; one of the drivers would answer a wrong one with a traceback."""
    url = urlsplit(secret.get_secret_value())
    if url.scheme not in ("postgresql", "postgres") or url.port == 0:  # reading an impossible port is a ValueError
        raise ValueError("must be postgresql://user:password@host:port/database")
    return secret


def redis_url(secret: SecretStr) -> SecretStr:
    """A Redis, or none."""
    if secret.get_secret_value() and urlsplit(secret.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must be redis://host:port/db, rediss:// for TLS")
    return secret


def gateways_of(text: str) -> dict[str, str]:
    """Base URLs by name, of `url`, `url,url` or `id=url,id=url`."""
    parts = [_GATEWAY_URL.fullmatch(part.strip()) for part in text.split(",")]
    if None in parts:
        raise ValueError("must be http(s)://host:port, or several as id=url,id=url (ids of letters, digits, . _ -)")
    found = [(match["id"], match["url"].rstrip("/")) for match in parts if match]
    if len(found) == 1:
        return {found[0][0] or DEFAULT_GATEWAY: found[0][1]}
    names = [name or urlsplit(url).netloc.rpartition("@")[2] for name, url in found]
    urls = [url for _, url in found]
    if len(set(names)) < len(names) or len(set(urls)) < len(urls):
        raise ValueError("names a Gateway twice")
    return dict(zip(names, urls, strict=True))


def gateway_urls(text: str) -> str:
    """As ``gateways_of``, which reads it again."""
    gateways_of(text)
    return text


def networks_of(text: str) -> Networks:
    """Addresses and networks behind commas. Raises ValueError for what is none of them."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",")) if text.strip() else ()


def networks(text: str) -> str:
    """``networks_of``, as text that can be read so."""
    networks_of(text)
    return text


def mask(url: str) -> str:
    """A URL, or several behind commas, fit for logs: passwords are replaced by ``****``."""
    if len(several := re.split(r",(?=(?:[\w.-]+=)?https?://)", url)) > 1:
        return ",".join(map(mask, several))
    url = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:****@", url)
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1****", url)


def jwks_url(text: str) -> str:
    """Where keys come from, or nowhere: whoever can change them on their way is everybody, so HTTPS or this machine."""
    if not text:
        return text
    url = urlsplit(text)
    if url.port == 0 or not url.hostname or url.username is not None or not (url.scheme == "https" or _here(url)):
        raise ValueError("must be https://host/path, without a user in it; http:// only on this machine (127.0.0.1)")
    return text


def _here(url: SplitResult) -> bool:
    if url.scheme != "http":
        return False
    if url.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        return False
