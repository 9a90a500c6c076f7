"""TLS: the certificate must prove the host, failures are typed, and nothing falls back to plain http."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
from pathlib import Path

import pytest

from windlass.core.errors import ConnectError, ProtocolError, TransportError, TransportTimeout
from windlass.core.http import Client, TlsError
from windlass.testing.faults import FaultServer, Reply, Rst, Stream, sse

OK = Reply(200, b"fine")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a key and two self-signed certificates for localhost and 127.0.0.1: good.pem, and expired.pem."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "names").write_text("subjectAltName=DNS:localhost,DNS:api.test,IP:127.0.0.1\n")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem")
    openssl("req", "-new", "-key", "key.pem", "-subj", "/CN=localhost", "-out", "request.pem")
    for name, days in (("good", "2"), ("expired", "-1")):
        made = ("x509", "-req", "-in", "request.pem", "-signkey", "key.pem", "-extfile", "names")
        openssl(*made, "-days", days, "-out", f"{name}.pem")
    return folder


def server_side(certificates: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / "key.pem")
    return context


def client_side(certificates: Path, name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificates / f"{name}.pem"))


async def test_https_keeps_alive_and_streams(certificates: Path) -> None:
    fds, script = len(os.listdir("/proc/self/fd")), [OK, Stream(sse("a", "b")), OK]
    async with FaultServer(script, ssl_context=server_side(certificates, "good")) as server:
        async with Client(proxies={}, ssl_context=client_side(certificates, "good")) as client:
            assert (await client.request("POST", server.url, body=b"x" * 400_000)).body == b"fine"
            async with client.stream("GET", server.url) as answer:
                assert await answer.read() == b"data: a\n\ndata: b\n\n"
            pinned = await client.request("GET", f"https://api.test:{server.port}/", pin="127.0.0.1")
            assert pinned.body == b"fine", "the name is still proved although the address is pinned"
            assert server.connections == 2 and len(server.requests[0].body) == 400_000
        await server.wait(open=0)
    await asyncio.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == fds


@pytest.mark.parametrize(
    ("name", "trusted", "host", "says"),
    [
        ("good", False, "127.0.0.1", "self.signed"),
        ("expired", True, "127.0.0.1", "expired"),
        ("good", True, "other.test", "Hostname mismatch"),
    ],
    ids=["self-signed", "expired", "other name"],
)
async def test_r05_bad_certificates(certificates: Path, name: str, trusted: bool, host: str, says: str) -> None:
    async with FaultServer([OK], ssl_context=server_side(certificates, name)) as server:
        context = client_side(certificates, name) if trusted else None
        async with Client(proxies={}, ssl_context=context) as client:
            with pytest.raises(TlsError, match=f"(?i){says}") as caught:
                await client.request("POST", f"https://{host}:{server.port}/", body=b"{}", pin="127.0.0.1")
        assert isinstance(caught.value, ConnectError) and not caught.value.sent
        assert caught.value.to_dict()["recovery_strategy"] == "none"
        assert server.connections <= 1 and not server.requests, "no second try, and never without TLS"


async def test_r05_handshakes_that_fail() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for serve, kind, limit in ((plain, TlsError, 30.0), (hang, TransportTimeout, 0.1), (leave, ConnectError, 30.0)):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, Client(proxies={}, connect_timeout=limit) as client:
            with pytest.raises(TransportError) as caught:
                await client.request("GET", f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            assert type(caught.value) is kind and not caught.value.sent


async def test_r07_r08_breaks_inside_tls(certificates: Path) -> None:
    script = [Stream(sse("a"), finish=False), Rst(), OK]
    async with FaultServer(script, ssl_context=server_side(certificates, "good")) as server:
        async with Client(proxies={}, ssl_context=client_side(certificates, "good")) as client:
            for says in ("before the end of the body", "before any answer"):
                with pytest.raises(ProtocolError, match=says):
                    await client.request("GET", server.url)
            async with client.stream("GET", server.url) as answer:
                assert answer.status == 200
        await server.wait(open=0)
