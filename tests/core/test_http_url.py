"""What goes on the wire: URLs, header checks, proxies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import ConfigError, ConnectError, ProtocolError
from windlass.core.http import Client, endpoint, parse_url
from windlass.testing.faults import FaultServer, Reply

OK = Reply(200, b"fine")


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("http://a.test", "a.test", 80, "/", "a.test"),
        ("HTTPS://A.Test:443/X?y=1#z", "a.test", 443, "/X?y=1", "a.test"),
        ("https://a.test:8443?y", "a.test", 8443, "/?y", "a.test:8443"),
        ("http://[::1]:80/", "::1", 80, "/", "[::1]"),
        ("http://[FE80::1]:81/a%20b", "fe80::1", 81, "/a%20b", "[fe80::1]:81"),
        ("http://under_score/@x", "under_score", 80, "/@x", "under_score"),
    ],
)
def test_parse_url(url: str, host: str, port: int, target: str, authority: str) -> None:
    parsed = parse_url(url)
    assert (parsed.host, parsed.port, parsed.target, parsed.authority) == (host, port, target, authority)


BAD_URLS = [
    "",
    "a.test/x",
    "//a.test/",
    "ftp://a.test/",
    "file:///etc/passwd",
    "http:///127.0.0.1/",
    "http://",
    "http://user:secret@a.test/",
    "http://secret@a.test/",
    "http://user:se/secret@a.test/",
    "http://user:s?secret@a.test/",
    "http://a.test:0/",
    "http://a.test:65536/",
    "http://a.test:/x",
    "http://a.test:+1/",
    "http://a test/",
    "http://a\t.test/",
    "http://a.test/ x",
    "http://a.test/\r\nx: y",
    "http://a.test/x\n",
    "http://a.test/\0",
    "http://a.test/é",
    "http://127。0。0。1/",
    "http://①②⑦.0.0.1/",
    "http://a.test\\@b.test/",
    "http://[::1/",
    "http://[1.2.3.4.5]/",
    "http://[::1%25eth0]/",
    "http://a%2etest/",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_urls(url: str) -> None:
    with pytest.raises(ProtocolError, match="The URL is not valid") as caught:
        parse_url(url)
    assert not caught.value.sent
    assert "secret" not in str(caught.value) and "secret" not in caught.value.endpoint


@given(st.text(max_size=40), st.sampled_from(["http://", "https://", "http://u:p@", ""]))
def test_any_text_parses_or_is_refused(text: str, start: str) -> None:
    shown = endpoint(start + text)
    assert shown.isprintable() and "#" not in shown and "u:p" not in shown
    try:
        parsed = parse_url(start + text)
    except ProtocolError:
        return
    line = f"{parsed.target} {parsed.authority}"
    assert line.isascii() and line.isprintable() and line.count(" ") == 1 and parsed.target.startswith("/")
    assert "@" not in parsed.authority and "?" not in shown and parsed.endpoint == parse_url(parsed.endpoint).endpoint


def test_endpoint_hides_query_and_credentials() -> None:
    assert endpoint("https://a.test/v1?key=secret#secret") == "https://a.test/v1"
    assert endpoint("https://u:secret@a.test/v1") == "https://..."
    assert endpoint("https://u:sec/ret@a.test?x") == "https://..."
    assert endpoint("no url\n?secret") == "..." and endpoint("http://a b\n?secret") == "http://a b?"


BREAKING = ["a\r\nx: y", "a\nb", "a\rb", "a\0b", "\x7f", "a\x01", "caf\u0113", "\ud800"]


@pytest.mark.parametrize("value", BREAKING)
async def test_s69_header_values_that_break_the_line(value: str) -> None:
    async with FaultServer([OK]) as server, Client(proxies={}) as client:
        with pytest.raises(ProtocolError, match="x-key") as caught:
            await client.request("GET", server.url, headers={"x-key": value})
        assert not caught.value.sent and value not in str(caught.value), "a value may be a credential"
        assert server.connections == 0


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "a\n", "é", "a\0", "(a)", " a", "a\u212a"])
async def test_s69_header_names_that_are_no_tokens(name: str) -> None:
    async with FaultServer([OK]) as server, Client(proxies={}) as client:
        with pytest.raises(ProtocolError, match="not a token"):
            await client.request("GET", server.url, headers={name: "v"})
        assert server.connections == 0


@pytest.mark.parametrize("method", ["", "GET /x", "GET\r\n", "G\0", "É"])
async def test_s69_methods_that_are_no_tokens(method: str) -> None:
    async with FaultServer([OK]) as server, Client(proxies={}) as client:
        with pytest.raises(ProtocolError, match="not a token"):
            await client.request(method, server.url)
        assert server.connections == 0


@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "Host", "Connection", "Expect", "TE", "Upgrade"]
)
async def test_s69_framing_headers_are_the_clients(name: str) -> None:
    async with FaultServer([OK]) as server, Client(proxies={}) as client:
        with pytest.raises(ProtocolError, match="set by the client"):
            await client.request("POST", server.url, headers={name: "1"}, body=b"x")
        assert server.connections == 0


async def test_s69_harmless_values_pass() -> None:
    values = {"x-tab": "a\tb", "x-latin": "caf\xe9", "x-empty": "", "x-sym": 'a;b="c",d'}
    async with FaultServer([OK]) as server, Client(proxies={}) as client:
        await client.request("GET", server.url, headers=values)
        assert {name: server.requests[0].headers[name] for name in values} == values


class Proxy:
    """A forward proxy that sends every host to 127.0.0.1 and notes what it was asked."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 Connected\r\n\r\n") -> None:
        self.answer = answer
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head.decode())
        method, target, _ = head.split(b" ", 2)
        if method != b"CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nvia proxy")
        else:
            writer.write(self.answer)
            if self.answer.startswith(b"HTTP/1.1 200") and self.answer.endswith(b"\r\n\r\n"):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", int(target.rpartition(b":")[2]))
                await asyncio.gather(self.copy(reader, up_writer), self.copy(up_reader, writer))
        writer.close()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


@asynccontextmanager
async def proxied(proxy: Proxy, env: Mapping[str, str] | None = None) -> AsyncGenerator[Client]:
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    url = f"http://us%40er:pa:ss@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    settings = {"HTTP_PROXY": url, "https_proxy": url, **(env or {})}
    async with server, Client(env=settings) as client:
        yield client


AUTH = "proxy-authorization: Basic dXNAZXI6cGE6c3M=\r\n"


async def test_http_goes_through_a_proxy_in_absolute_form() -> None:
    proxy = Proxy()
    async with proxied(proxy) as client:
        answer = await client.request("GET", "http://api.test:8080/v1?x=1")
        assert answer.body == b"via proxy"
        assert proxy.heads[0].startswith("GET http://api.test:8080/v1?x=1 HTTP/1.1\r\nhost: api.test:8080\r\n")
        assert AUTH in proxy.heads[0]


async def test_a_pinned_request_tunnels_to_exactly_that_address() -> None:
    proxy = Proxy()
    async with FaultServer([OK]) as server, proxied(proxy) as client:
        answer = await client.request("GET", f"http://api.test:{server.port}/v1", pin="127.0.0.9")
        assert answer.body == b"fine" and proxy.heads[0].startswith(f"CONNECT 127.0.0.9:{server.port} HTTP/1.1\r\n")
        assert AUTH in proxy.heads[0]
        got = server.requests[0]
        assert got.target == "/v1" and got.headers["host"] == f"api.test:{server.port}"
        assert "proxy-authorization" not in got.headers, "the proxy's password is not the server's"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "Check the user and password"),
        (b"HTTP/1.1 502 Bad\r\n\r\n", "refused the tunnel"),
        (b"HTTP/1.1 200 OK\r\n", "no whole answer"),
        (b"HTTP/1.1 200 OK\r\n\r\nearly", "before the tunnel"),
        (b"hello\r\n\r\n", "refused the tunnel"),
    ],
)
async def test_refused_tunnels(answer: bytes, says: str) -> None:
    async with proxied(Proxy(answer)) as client:
        with pytest.raises(ConnectError, match=says) as caught:
            await client.request("POST", "https://api.test/v1", body=b"{}")
        assert not caught.value.sent and "pa:ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("no", "url", "direct"),
    [
        ("", "http://127.0.0.1:{port}/", True),
        ("", "http://localhost:{port}/", True),
        ("*", "http://api.test:{port}/", True),
        ("other, api.test", "http://api.test:{port}/", True),
        (".test", "http://api.test:{port}/", True),
        ("test", "http://api.test:{port}/", True),
        ("api.test:{port}", "http://api.test:{port}/", True),
        ("api.test:1", "http://api.test:{port}/", False),
        ("i.test", "http://api.test:{port}/", False),
        ("10.0.0.0/8", "http://10.1.2.3:{port}/", True),
        ("10.0.0.0/8", "http://11.1.2.3:{port}/", False),
        ("fd00::/8", "http://[fd00::1]:{port}/", True),
        ("[fd00::1]:{port}", "http://[fd00::1]:{port}/", True),
    ],
)
async def test_no_proxy(no: str, url: str, direct: bool) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    proxy = Proxy()
    forward = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    async with FaultServer([OK]) as server, forward:
        env = {
            "http_proxy": f"http://127.0.0.1:{forward.sockets[0].getsockname()[1]}",
            "NO_PROXY": no.format(port=server.port),
        }
        async with Client(env=env, resolve=resolve) as client:
            answer = await client.request("GET", url.format(port=server.port))
        assert answer.body == (b"fine" if direct else b"via proxy")


async def test_httpoxy_and_explicit_settings() -> None:
    proxy = Proxy()
    async with FaultServer([OK]) as server, proxied(proxy, {"REQUEST_METHOD": "GET"}) as client:

        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        with pytest.raises(ConnectError, match=r"api\.test cannot be resolved"):
            await client.request("GET", "http://api.test:8080/")
        async with Client(proxies={}, env={"HTTP_PROXY": "http://127.0.0.1:1"}, resolve=resolve) as direct:
            assert (await direct.request("GET", f"http://api.test:{server.port}/")).body == b"fine"
    assert not proxy.heads


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://", "http://a b", "http://a:0"])
def test_bad_proxies(url: str) -> None:
    with pytest.raises(ConfigError, match="proxy setting"):
        Client(proxies={"all": url})
