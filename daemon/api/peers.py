"""From which address a request came, where proxies stand before the node and are trusted to say so.

``X-Forwarded-For`` is read from its end, which the nearest proxy wrote, as far as its addresses are themselves trusted
proxies; what stands before the first other address is hearsay of that client.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from aiohttp import web

from daemon.addresses import Networks, networks_of


def address_of(request: web.Request, trusted_proxies: str) -> str | None:
    """The client's address, as far as it can be known; None where there is none (a Unix socket)."""
    trusted, known = _networks(trusted_proxies), request.remote
    if not trusted or not _is_of(_parsed(known or ""), trusted):
        return known
    hops = [hop for line in request.headers.getall("X-Forwarded-For", ()) for hop in line.split(",")]
    for hop in reversed(hops):
        address = _parsed(hop)
        if address is None:
            break
        known = str(address)
        if not _is_of(address, trusted):
            break
    return known


_networks = lru_cache(maxsize=8)(networks_of)


def _is_of(address: IPv4Address | IPv6Address | None, networks: Networks) -> bool:
    return address is not None and any(address in network for network in networks)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without a port; an IPv4 address in the clothes of IPv6 is itself."""
    plain = text.strip()
    if plain.startswith("["):
        plain = plain[1:].partition("]")[0]
    elif plain.count(":") == 1:
        plain = plain.partition(":")[0]
    try:
        address = ip_address(plain)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
