"""Where a tool may go: URLs in one form, hosts and addresses that are let through (S32, S37, S38)."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import ConfigError
from windlass.core.http import parse_url
from windlass.tools.access import Refusal
from windlass.tools.web_address import Domains, address_refused, name_refused, read_url, redirect_target, same_origin
from windlass.workspaces import egress

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
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "172.15.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", LITERALS)
def test_s32_literals_that_are_not_public(address: str) -> None:
    assert address_refused(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_s32_public_addresses_are_let_through(address: str) -> None:
    assert address_refused(address) == ""


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "017700000001", "0x7f000001", "0", "①②⑦.⓪.⓪.①"]
)
def test_s32_other_spellings_are_what_the_system_makes_of_them(host: str) -> None:
    target = read_url(f"http://{host}/")
    found = {str(row[4][0]) for row in socket.getaddrinfo(target.url.host, 80, type=socket.SOCK_STREAM)}
    assert found and all(address_refused(address) for address in found)


def test_s38_metadata_is_blocked_also_where_private_networks_are_allowed() -> None:
    for address in (
        "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
        "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fe80::1", "::169.254.169.254",
        "fe80::1%eth0",
    ):  # fmt: skip
        assert "metadata" in address_refused(address, allow_private=True), address
    assert name_refused("metadata.google.internal") and name_refused("metadata") and not name_refused("example.com")
    assert read_url("http://METADATA.google.internal./x").host == "metadata.google.internal"


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


@given(
    st.one_of(
        st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address), st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address)
    )
)
def test_the_sandbox_lets_out_no_address_that_is_refused_here_but_by_more_metadata(
    address: ipaddress.IPv4Address,
) -> None:
    # The two rules live on one floor and cannot share code; they must not drift apart.
    if egress.address_refused(str(address)):
        assert address_refused(str(address))
    elif why := address_refused(str(address)):
        assert "metadata" in why


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pass@host/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://a\tb/", "http://a\\@b/",
        "http://host\\@evil/", "http://a%00b/", "http://127。0。0。1\x00/", "http:///127.0.0.1/", "file:///etc/passwd",
        "gopher://a/", "ftp://a/", "//host/", "host/path", "javascript:alert(1)", "http://", "http://a:99999/", "http://a:b/",
        "http://[::]:port/", "https://a b/", "http://\ud800/", "http://a/\ud800", "data:text/plain,x", "",
    ],
)  # fmt: skip
def test_s37_what_is_no_plain_url_is_refused(url: str) -> None:
    with pytest.raises(Refusal):
        read_url(url)


@pytest.mark.parametrize(
    ("url", "text", "host"),
    [
        (" HTTP://Example.COM#@evil ", "http://Example.COM", "example.com"),
        (
            "https://bücher.example/ä?ö=ü ß#x", "https://xn--bcher-kva.example/%C3%A4?%C3%B6=%C3%BC%20%C3%9F",
            "xn--bcher-kva.example",
        ),
        ("http://127。0。0。1/", "http://127.0.0.1/", "127.0.0.1"),
        ("http://[::1]:8080/a", "http://[::1]:8080/a", "::1"),
        ("http://host.:80/x%20y", "http://host.:80/x%20y", "host"),
        ("http://ｅｘａｍｐｌｅ.com/", "http://example.com/", "example.com"),
    ],
)  # fmt: skip
def test_s37_one_parser_one_canonical_host(url: str, text: str, host: str) -> None:
    target = read_url(url)
    assert (target.text, target.host) == (text, host)
    assert parse_url(target.text) == target.url, "what is checked is what is connected to"


@given(st.text(max_size=60))
def test_s37_any_text_is_a_url_or_a_refusal(text: str) -> None:
    for url in (text, f"http://{text}", f"https://a/{text}"):
        try:
            target = read_url(url)
        except Refusal:
            continue
        assert parse_url(target.text) == target.url and target.text.isascii()
        assert set(target.host) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_:")


def test_s35_redirects_are_read_like_urls() -> None:
    base = read_url("https://a.test/x/y?z")
    assert redirect_target(base, "../q").text == "https://a.test/q"
    assert redirect_target(base, "//b.test/r").text == "https://b.test/r"
    assert redirect_target(base, "/ü".encode().decode("latin-1")).text == "https://a.test/%C3%BC"
    for bad in (
        "http://a.test/",
        "file:///etc/passwd",
        "gopher://a/",
        "\\\\evil",
        "/a\tb",
        "https://u:p@b/",
        "https://[x/",
    ):
        with pytest.raises(Refusal):
            redirect_target(base, bad)
    assert same_origin(base, read_url("https://A.test:443/")) and not same_origin(base, read_url("https://a.test:444/"))


def test_lists_of_hosts() -> None:
    some = Domains(["example.com", "*.wide.test", "10.0.0.5", "bücher.example"], ["bad.example.com"])
    for host in ("example.com", "a.b.example.com", "x.wide.test", "10.0.0.5", "xn--bcher-kva.example"):
        assert some.refused(host) == "", host
    for host in ("bad.example.com", "x.bad.example.com", "notexample.com", "wide.test", "10.0.0.6", "example.com.evil"):
        assert some.refused(host), host
    assert Domains().refused("anything.test") == ""
    for bad in ("https://x", "a/b", "", "a..b", "*", "a b", "x:80"):
        with pytest.raises(ConfigError):
            Domains([bad])
