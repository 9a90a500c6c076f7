"""Which addresses a program that others steer may connect to: public ones, and no other in whatever clothes."""

from __future__ import annotations

import ipaddress

__all__ = ["address_refused", "name_refused"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NET = ipaddress.ip_network

#: Services that give a machine's credentials to whoever asks from it, beside all link-local addresses.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254")
)
_METADATA_NAMES = frozenset(
    [
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
        "metadata.tencentyun.com",
        "metadata.packet.net",
        "metadata.platformequinix.com",
        "metadata.azure.internal",
    ]
)
_NAT64 = (_NET("64:ff9b::/96"), _NET("64:ff9b:1::/48"))
#: IPv6 forms with an IPv4 address in their last 32 bits: compatible, translated (RFC 2765).
_TAILS = (_NET("::/96"), _NET("::ffff:0:0:0/96"), *_NAT64)
_MAPPED = _NET("::ffff:0:0/96")
_RELAY = _NET("192.88.99.0/24")
_ISATAP = (b"\x00\x00\x5e\xfe", b"\x02\x00\x5e\xfe")


def name_refused(host: str) -> str:
    """Return why a name is never looked up, "" where it may be: the names of clouds' metadata services."""
    return f"{host} is a cloud's metadata service" if host in _METADATA_NAMES else ""


def address_refused(text: str, *, allow_private: bool = False) -> str:
    """Return why an IP address may not be connected to, "" where it may.

    Public ones may: `ipaddress.is_global` alone lets through multicast, site-local addresses, and IPv6 forms that carry
    an IPv4 one, so those are decoded and decided about too. `allow_private` lets private networks and this machine
    through, but never link-local addresses, where clouds keep the credentials of a machine.
    """
    try:
        address = ipaddress.ip_address(text.split("%", 1)[0])
    except ValueError:
        return f"{text!r} is no address"
    inner = _inner(address)
    if any(each in _METADATA or each.is_link_local for each in (address, *inner)):
        return f"{text} is link-local, or a cloud's metadata service"
    # Mapped and NAT64 addresses are IPv4 in other clothes, what DNS64 gives for every public host.
    forms: list[_Address] = [*inner] if address in _NAT64[0] or address in _MAPPED else [address, *inner]
    for each in forms:
        if each.is_multicast or each.is_unspecified or each in _RELAY:
            return f"{text} is not a public address"
        if not (_is_private(each) if allow_private else False) and not _is_public(each):
            return f"{text} is not a public address"
    return ""


def _is_public(address: _Address) -> bool:
    return address.is_global and not (address.is_reserved or getattr(address, "is_site_local", False))


def _is_private(address: _Address) -> bool:
    # RFC 1918, RFC 6598 (shared by carriers), loopback, unique local, site-local.
    if address.is_loopback or getattr(address, "is_site_local", False):
        return True
    return (address.is_private and not address.is_reserved) or address in _NET("100.64.0.0/10")


def _inner(address: _Address) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses that an IPv6 one carries: mapped, compatible, 6to4, Teredo, NAT64, ISATAP."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    tail = ipaddress.IPv4Address(address.packed[12:])
    carried = address not in (ipaddress.IPv6Address("::"), ipaddress.IPv6Address("::1")) and any(
        address in net for net in _TAILS
    )
    isatap = address.packed[8:12] in _ISATAP
    found = (address.ipv4_mapped, address.sixtofour, *(address.teredo or ()), tail if carried or isatap else None)
    return [each for each in found if each is not None]
