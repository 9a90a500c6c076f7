"""Which addresses may be connected to, for tools and for the sandbox alike (S32, S38)."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.addresses import address_refused, name_refused

LITERALS = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.0.1",
    "169.254.1.1",
    "169.254.169.254",
    "192.0.0.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:7f00:1::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "fe80::1",
    "fe80::5efe:7f00:1",
    "fec0::1",
    "fc00::1",
    "fd12:3456::1",
    "ff02::1",
    "5f00::1",
    "100::1",
    "2001:db8::1",
    "2606:4700::5efe:a00:1",
    "fe80::1%eth0",
    "::ffff:169.254.169.254",
    "100.100.100.200",
    "fd00:ec2::254",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "172.15.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", LITERALS)
def test_s32_literals_that_are_not_public(address: str) -> None:
    assert address_refused(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_s32_public_addresses_are_let_through(address: str) -> None:
    assert address_refused(address) == ""


def test_s38_metadata_is_blocked_also_where_private_networks_are_allowed() -> None:
    for address in (
        "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
        "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fe80::1", "::169.254.169.254",
        "fe80::1%eth0",
    ):  # fmt: skip
        assert "metadata" in address_refused(address, allow_private=True), address
    assert name_refused("metadata.google.internal") and name_refused("metadata") and not name_refused("example.com")


def test_s38_private_is_not_everything() -> None:
    for address in ("127.0.0.1", "10.0.0.1", "192.168.0.9", "100.64.0.1", "::1", "fd12::1", "8.8.8.8", "fec0::1"):
        assert address_refused(address, allow_private=True) == "", address
    for address in ("0.0.0.0", "::", "224.0.0.1", "ff02::1", "240.0.0.1", "255.255.255.255", "192.88.99.1"):
        assert address_refused(address, allow_private=True), address


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_decided_alike_in_every_dress(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    refused = bool(address_refused(str(inner)))
    for form in (f"::ffff:{inner}", f"64:ff9b::{inner}"):
        assert bool(address_refused(form)) == refused
    if refused:
        tail = f"{number >> 16:x}:{number & 0xFFFF:x}"
        for form in (f"2002:{tail}::1", f"::{inner}", f"::ffff:0:{inner}", f"2606:4700::5efe:{tail}"):
            assert address_refused(form)
