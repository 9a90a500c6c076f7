"""Where a tool may go: URLs in one form, hosts and addresses that are let through (S32, S37, S38)."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.addresses import address_refused, name_refused
from windlass.core.errors import ConfigError
from windlass.core.http import parse_url
from windlass.tools.access import Refusal
from windlass.tools.web_address import Domains, read_url, redirect_target, same_origin


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "017700000001", "0x7f000001", "0", "①②⑦.⓪.⓪.①"]
)
def test_s32_other_spellings_are_what_the_system_makes_of_them(host: str) -> None:
    target = read_url(f"http://{host}/")
    found = {str(row[4][0]) for row in socket.getaddrinfo(target.url.host, 80, type=socket.SOCK_STREAM)}
    assert found and all(address_refused(address) for address in found)


def test_s38_a_metadata_name_is_seen_through_its_dress() -> None:
    assert name_refused(read_url("http://METADATA.google.internal./x").host)


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
