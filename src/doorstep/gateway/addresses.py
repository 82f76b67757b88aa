"""Addresses that a request names: which of them may be called from here, so that nobody reaches inside through us.

A name is resolved once, everything that it resolves to is looked at, and the connection goes to what was looked at
(``address=`` of the HTTP client): a name that means another machine a moment later gains nothing. The HTTP client
follows no redirects, so that an answer cannot lead anywhere else; a new address has to be checked anew.
"""

import asyncio
import ipaddress
import socket
from urllib.parse import urlsplit

import msgspec

from doorstep.errors import BadInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = {"fd00:ec2::254", "100.100.100.200", "192.0.0.192"}  # AWS, Alibaba, Oracle; the others have link-local ones


class Checked(msgspec.Struct, frozen=True):
    """A URL that may be called, and the IP address to connect to for it."""

    url: str
    address: str


async def check(url: str, *, allow_private: bool = False, where: str = "url") -> Checked:
    """Return where to connect for a URL; ``BadInput``, naming the field ``where``, when it may not be called.

    ``allow_private`` lets one's own network through, but never what clouds tell their machines in secret.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(where, f"{url!r} is no URL: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise BadInput(where, f"{url!r} is no address on the web; give https://HOST/…")
    if "@" in parts.netloc:
        raise BadInput(where, "a name or password in an address is not sent on; leave them out")
    found = await _resolve(host, port or (443 if parts.scheme == "https" else 80), where)
    for address in found:
        if not _allowed(address, allow_private):
            raise BadInput(where, f"{host} is {address}, which is not on the public internet")
    return Checked(url, str(found[0]))


async def _resolve(host: str, port: int, where: str) -> list[Address]:
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise BadInput(where, f"{host} cannot be found: {error}") from None
    return [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in infos]


def _allowed(address: Address, allow_private: bool) -> bool:
    address = _inner(address)
    if address.is_link_local or address.is_multicast or address.is_unspecified or str(address) in _METADATA:
        return False
    public = address.is_global and not address.is_reserved
    return public or (allow_private and (address.is_private or address.is_loopback))


def _inner(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address leads to, where it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1]) or address
    return address
