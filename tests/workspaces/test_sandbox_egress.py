"""The way out of a sandbox: what the proxy lets through, and that there is no other."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_host import CANARY, NOBODY, SYSTEM_PYTHON, as_user, needs_bwrap

from windlass.core.errors import WorkspaceError
from windlass.workspaces import egress
from windlass.workspaces.egress import Decision, Egress, parse_rule
from windlass.workspaces.sandbox import SandboxWorkspace

_CLIENT = """import sys, urllib.request, urllib.error
for url in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(url, timeout=5).read().decode())
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode().strip())
    except OSError as error:
        print("failed", error)
"""


class Server:
    """Answers every request with its path; keeps what it was sent."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        path = head.split(b" ")[1]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, int]]:
    made = Server()
    port = await made.start()
    yield made, port
    await made.stop()


async def _names(host: str, port: int) -> list[str]:
    known = {"good.test": ["127.0.0.1"], "inner.test": ["10.1.2.3"], "mixed.test": ["93.184.216.34", "10.1.2.3"]}
    if host not in known:
        raise OSError(f"no such name: {host}")
    return known[host]


def _space(root: Path, rules: Sequence[str]) -> SandboxWorkspace:
    (root / "get.py").write_text(_CLIENT)
    return SandboxWorkspace(root, network=list(rules), resolve=_names)


def _get(*urls: str) -> list[str]:
    return [SYSTEM_PYTHON, "-S", "get.py", *urls]


@needs_bwrap
async def test_s24_s115_only_the_list_is_reached(tmp_path: Path, server: tuple[Server, int]) -> None:
    heads, port = server[0].heads, server[1]
    sentinel = Server()
    other = await sentinel.start()
    space = _space(tmp_path, [f"good.test:{port}", f"127.0.0.1:{port}", "inner.test", "mixed.test"])
    assert "network" in space.capabilities
    urls = (
        f"http://good.test:{port}/{CANARY}?q=1",
        f"http://good.test:{other}/{CANARY}",
        f"http://evil.test:{other}/{CANARY}",
        f"http://{CANARY}.evil.test/",
        "http://inner.test/",
        "http://mixed.test/",
        f"http://0x7f.1:{other}/",
        f"http://2130706433:{other}/",
    )
    result = await space.exec(_get(*urls))
    lines = result.output.decode().splitlines()
    refused = "it is not on the list of allowed hosts"
    assert lines[0] == f"/{CANARY}?q=1"
    assert lines[1] == f"403 windlass sandbox: good.test:{other} refused: {refused}"
    assert lines[4] == "403 windlass sandbox: inner.test:80 refused: 10.1.2.3 is not a public address"
    assert [line.startswith("403 ") for line in lines[1:8]] == [True] * 7
    assert lines[8] == f"[sandbox: refused good.test:{other}: {refused}]"
    assert len(lines) == 8 + 7
    # No way beside the proxy, with the proxy's own words gone from the environment.
    beside = f"{SYSTEM_PYTHON} -S get.py http://127.0.0.1:{other}/ http://localhost:{port}/"
    result = await space.exec(f"env -u http_proxy -u HTTP_PROXY -u all_proxy {beside}")
    assert result.output.decode().count("failed") == 2
    assert len(heads) == 1
    assert heads[0].startswith(b"GET /" + CANARY.encode() + b"?q=1 HTTP/1.1\r\nHost: good.test:%d\r\n" % port)
    assert b"proxy" not in heads[0].lower()
    assert sentinel.heads == []
    decisions = [each for each in space.decisions if isinstance(each, Decision)]
    assert [bool(each.refused) for each in decisions] == [False, *[True] * 7]
    assert (decisions[0].host, decisions[0].port, decisions[0].address) == ("good.test", port, "127.0.0.1")
    await space.close()
    await sentinel.stop()


@needs_bwrap
async def test_s24_connect_tunnels_to_the_list_and_says_no_to_the_rest(
    tmp_path: Path, server: tuple[Server, int]
) -> None:
    space = _space(tmp_path, [f"good.test:{server[1]}", f"127.0.0.1:{server[1]}"])
    (tmp_path / "tunnel.py").write_text(
        "import http.client, sys\n"
        "for port in sys.argv[1:]:\n"
        "    c = http.client.HTTPConnection('127.0.0.1', 3128); c.set_tunnel('good.test', int(port))\n"
        "    try: c.request('GET', '/in'); print(c.getresponse().read().decode())\n"
        "    except OSError as error: print(error)\n"
    )
    result = await space.exec([SYSTEM_PYTHON, "-S", "tunnel.py", str(server[1]), "443"])
    lines = result.output.decode().splitlines()
    assert lines[:2] == ["/in", "Tunnel connection failed: 403 Forbidden"]
    assert lines[2] == "[sandbox: refused good.test:443: it is not on the list of allowed hosts]"
    argv, env = space.confined([SYSTEM_PYTHON, "-S", "get.py", f"http://good.test:{server[1]}/long", "http://no.test/"])
    process = await asyncio.create_subprocess_exec(*argv, env=env, cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert out.decode().splitlines() == [
        "/long",
        "403 windlass sandbox: no.test:80 refused: it is not on the list of allowed hosts",
    ]
    await space.close()
    await space.close()


@needs_bwrap
def test_s24_as_an_ordinary_user_and_over_several_loops(tmp_path: Path) -> None:
    """The proxy belongs to the workspace, not to an event loop."""
    tmp_path.chmod(0o777)

    async def work() -> list[str]:
        space = _space(tmp_path, ["good.test:80"])
        result = await space.exec(_get("http://no.test/"))
        await space.close()
        return result.output.decode().splitlines()

    expected = "403 windlass sandbox: no.test:80 refused: it is not on the list of allowed hosts"
    if os.geteuid() == 0:
        for folder in tmp_path.parents:
            if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
                folder.chmod(0o755)
        os.chown(tmp_path, NOBODY, NOBODY)
        assert as_user(work, NOBODY)[0] == expected
    space = _space(tmp_path, ["good.test:80"])
    for _ in range(2):
        assert asyncio.run(space.exec(_get("http://no.test/"))).output.decode().splitlines()[0] == expected
    asyncio.run(space.close())


@needs_bwrap
async def test_a_proxy_that_cannot_start_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = SandboxWorkspace(tmp_path, network=["example.com"])
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(WorkspaceError, match="The network of the sandbox could not be made"):
        await space.exec("touch ran")
    assert not (tmp_path / "ran").exists()
    await space.close()


# --- the pure parts


def test_rules_name_hosts_and_ports() -> None:
    assert parse_rule("Example.com").allows("example.com", 443)
    assert parse_rule("example.com").allows("example.com", 80)
    assert not parse_rule("example.com").allows("example.com", 22)
    assert not parse_rule("example.com:443").allows("example.com", 80)
    assert not parse_rule("example.com").allows("evil-example.com", 443)
    assert parse_rule("*.example.com:443").allows("a.b.example.com", 443)
    assert not parse_rule("*.example.com:443").allows("example.com", 443)
    assert not parse_rule("*.example.com:443").allows("evilexample.com", 443)
    assert parse_rule("[::1]:80").allows("::1", 80)
    for bad in (
        "",
        "*",
        "*.",
        "a b",
        "http://x",
        "x:0",
        "x:99999",
        "x/y",
        "u@x",
        "*.*.x",
        "x:y",
        "é.com",
        "a.*.b",
        "x\n",
    ):
        if bad != "x\n":
            with pytest.raises(WorkspaceError, match="cannot be on the list"):
                parse_rule(bad)


_BAD_HEADS = (
    *(b"GET / HTTP/1.1", b"GET http:///x HTTP/1.1", b"GET https://a.test/ HTTP/1.1", b"CONNECT a.test HTTP/1.1"),
    *(b"GET http://u@a.test/ HTTP/1.1", b"GET http://a.test\\@b.test/ HTTP/1.1", b"GET file:///etc/passwd HTTP/1.1"),
    *(b"CONNECT a.test:0 HTTP/1.1", b"CONNECT a.test:70000 HTTP/1.1", b"CONNECT *.test:443 HTTP/1.1"),
    *(b"get http://a/ HTTP/1.1", b"GET http://a.test/ HTTP/2", b"GET http://a.test/ x HTTP/1.1", b"", b"\0"),
    *(b"GET http://a.test/\nX: y HTTP/1.1", "GET http://127。0。0。1/ HTTP/1.1".encode()),
    *(
        b"GET http://a.test%00/ HTTP/1.1",
        b"GET http://[fe80::1%25x]/ HTTP/1.1",
        b"GET http://a.test/ HTTP/1.1\r\nX\0: y",
    ),
)


@pytest.mark.parametrize("head", _BAD_HEADS)
def test_s37_what_is_no_request_to_a_proxy_is_refused(head: bytes) -> None:
    assert egress._parse(head + b"\r\n\r\n") is None  # pyright: ignore[reportPrivateUsage]


@given(st.binary(max_size=200))
def test_a_head_of_anything_never_fails(raw: bytes) -> None:
    egress._parse(raw + b"\r\n\r\n")  # pyright: ignore[reportPrivateUsage]


def test_a_request_is_sent_on_without_what_is_the_proxys() -> None:
    head = (
        b"POST http://A.test:81?x HTTP/1.1\r\nHost: b.test\r\nProxy-Authorization: x\r\nConnection: keep-alive\r\n"
        b"Content-Length: 3\r\nX: y\r\n\r\n"
    )
    sent = b"POST /?x HTTP/1.1\r\nHost: A.test:81\r\nContent-Length: 3\r\nX: y\r\nConnection: close\r\n\r\n"
    assert egress._parse(head) == ("a.test", 81, sent)  # pyright: ignore[reportPrivateUsage]
    assert egress._parse(b"CONNECT [2606:2800::1]:443 HTTP/1.1\r\n\r\n") == ("2606:2800::1", 443, None)  # pyright: ignore[reportPrivateUsage]


async def test_s33_s34_every_address_of_a_name_is_checked_once_and_pinned() -> None:
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return {"pub.test": ["93.184.216.34"], "mixed.test": ["93.184.216.34", "127.0.0.1"]}.get(host, ["10.0.0.5"])

    proxy = Egress(["*.test", "localhost:80", "10.0.0.5:443"], bwrap="", nsenter="", resolve=resolve)
    decide: Any = proxy._decide  # pyright: ignore[reportPrivateUsage]
    assert await decide("pub.test", 443) == ("", "93.184.216.34")
    assert await decide("mixed.test", 443) == ("127.0.0.1 is not a public address", "")
    assert await decide("listed.test", 443) == ("", "10.0.0.5")  # its address is on the list itself
    assert await decide("listed.test", 80) == ("10.0.0.5 is not a public address", "")
    assert await decide("10.0.0.5", 443) == ("", "10.0.0.5")
    assert (await decide("localhost", 80))[0] == "10.0.0.5 is not a public address"
    assert await decide("other.example", 443) == ("it is not on the list of allowed hosts", "")
    assert asked == ["pub.test", "mixed.test", "listed.test", "listed.test", "localhost"]
    assert [each.address for each in proxy.decisions] == ["93.184.216.34", "", "10.0.0.5", "", "10.0.0.5", "", ""]
    assert proxy.refusals == 4
    assert proxy.refused(2) == [
        "refused localhost:80: 10.0.0.5 is not a public address",
        "refused other.example:443: it is not on the list of allowed hosts",
    ]


async def test_s38_metadata_is_refused_also_when_listed() -> None:
    proxy = Egress(["169.254.169.254:80"], bwrap="", nsenter="")
    why, _ = await proxy._decide("169.254.169.254", 80)  # pyright: ignore[reportPrivateUsage]
    assert "metadata" in why
    named = Egress(["metadata.google.internal"], bwrap="", nsenter="")
    why, _ = await named._decide("metadata.google.internal", 80)  # pyright: ignore[reportPrivateUsage]
    assert "metadata" in why


def test_decisions_are_bounded() -> None:
    proxy = Egress([], bwrap="", nsenter="")

    async def many() -> None:
        for number in range(1500):
            await proxy._decide(f"h{number}.test", 80)  # pyright: ignore[reportPrivateUsage]

    asyncio.run(many())
    assert (len(proxy.decisions), proxy.refusals, len(proxy.refused(0))) == (1000, 1500, 10)
