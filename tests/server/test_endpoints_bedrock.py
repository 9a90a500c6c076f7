"""Bedrock's Converse and ConverseStream through boto3, which is not changed but for the address."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from tests.server.conftest import StartGateway
from tests.server.upstreams import PNG, answering, chat_stream, refusal, reply, sent, up
from windlass.testing.faults import FaultServer, Stream
from windlass.wire.eventstream import encode_frame

T = TypeVar("T")
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": [{"text": "hi"}]}]}


@pytest.fixture(autouse=True)
def _no_profile(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    for name in ("AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    """Make clients: `connect(url)` with dummy credentials; they are closed when the test ends."""
    made: list[Any] = []

    def start(url: str, **options: Any) -> Any:
        config = Config(retries={"max_attempts": 0, "mode": "standard"})
        named = options or {"aws_access_key_id": "AKIADUMMY", "aws_secret_access_key": "dummy"}
        client: Any = boto3.client(  # pyright: ignore[reportUnknownMemberType]
            "bedrock-runtime", region_name="us-east-1", endpoint_url=url, config=config, **named
        )
        made.append(client)
        return client

    yield start
    for client in made:
        client.close()


Connect = Callable[..., Any]


def _read(client: Any, model: str) -> list[dict[str, Any]]:
    stream = client.converse_stream(modelId=model, **ASK)["stream"]
    try:
        return list(stream)
    finally:
        stream.close()


async def _run(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)


async def test_converse_with_an_image_and_a_tool(gateway: StartGateway, connect: Connect) -> None:
    async with FaultServer(answering(call=("add", '{"a":1}'))) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        client = await _run(lambda: connect(made.url))
        content = [{"text": "look"}, {"image": {"format": "png", "source": {"bytes": PNG}}}]
        spec = {"name": "add", "inputSchema": {"json": {"type": "object", "properties": {}}}}
        done = await _run(
            lambda: client.converse(
                modelId="fast",
                messages=[{"role": "user", "content": content}],
                system=[{"text": "be brief"}],
                inferenceConfig={"maxTokens": 9},
                toolConfig={"tools": [{"toolSpec": spec}]},
            )
        )
        assert done["stopReason"] == "tool_use" and done["usage"]["totalTokens"] == 5
        assert done["output"]["message"]["content"][0]["toolUse"]["input"] == {"a": 1}
        headers = done["ResponseMetadata"]["HTTPHeaders"]
        assert headers["x-windlass-model"] == "up:big" and "gateway;dur=" in headers["server-timing"]
        assert done["ResponseMetadata"]["RequestId"] == headers["x-request-id"]
        asked = sent(upstream)
        assert asked["max_tokens"] == 9 and asked["tools"][0]["function"]["name"] == "add"
        assert asked["messages"][1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


async def test_converse_stream_and_a_model_whose_id_has_colons_and_slashes(
    gateway: StartGateway, connect: Connect
) -> None:
    async with FaultServer(answering("hel", "lo")) as upstream:
        made = await gateway(providers=up(upstream), routes={"fast": "up:big"})
        client = await _run(lambda: connect(made.url))

        events = await _run(lambda: _read(client, "up:meta/big"))
        text = "".join(
            [event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event]
        )
        assert text == "hello" and events[-1]["metadata"]["usage"]["outputTokens"] == 2
        assert any(event.get("messageStop") == {"stopReason": "end_turn"} for event in events)
        assert sent(upstream)["model"] == "meta/big"


async def test_the_same_dialect_passes_as_it_is_in_both_forms(gateway: StartGateway, connect: Connect) -> None:
    whole = {"output": {"message": {"role": "assistant", "content": [{"text": "x"}]}}, "stopReason": "end_turn",
             "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2}, "metrics": {"latencyMs": 7}}  # fmt: skip
    frames = [
        encode_frame({":event-type": name, ":content-type": "application/json", ":message-type": "event"}, payload)
        for name, payload in (
            ("messageStart", b'{"role":"assistant"}'),
            ("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"x"}}'),
            ("messageStop", b'{"stopReason":"end_turn"}'),
            ("metadata", b'{"usage":{"inputTokens":1,"outputTokens":1,"totalTokens":2},"metrics":{"latencyMs":7}}'),
        )
    ]
    stream = Stream(frames, headers={"content-type": "application/vnd.amazon.eventstream"})
    async with FaultServer([reply(whole), stream, Stream(frames[:2], headers=stream.headers)]) as upstream:
        aws = {"aws": {"base_url": upstream.url, "dialect": "bedrock", "api_key": "token"}}
        made = await gateway(providers=aws, routes={"nova": "aws:amazon.nova-lite-v1:0"}, server={"attempts": 1})
        client = await _run(lambda: connect(made.url))
        done = await _run(lambda: client.converse(modelId="nova", requestMetadata={"team": "a"}, **ASK))
        assert done["metrics"]["latencyMs"] == 7
        assert upstream.requests[0].target == "/model/amazon.nova-lite-v1%3A0/converse"
        assert sent(upstream) == {**ASK, "requestMetadata": {"team": "a"}}
        async with httpx.AsyncClient() as plain:
            answer = await plain.post(f"{made.url}/model/nova/converse-stream", json=ASK)
        assert answer.content == b"".join(frames)
        assert answer.headers["content-type"] == "application/vnd.amazon.eventstream"
        with pytest.raises(EventStreamError):
            await _run(lambda: _read(client, "nova"))


@asynccontextmanager
async def _over_tls(port: int, folder: Path) -> AsyncGenerator[str]:
    """Stand before the gateway as a proxy that ends TLS does: boto3 sends a bearer token over https only."""
    key = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    made = ("openssl", *key, *names, "-keyout", "key.pem", "-out", "cert.pem")
    await _run(lambda: subprocess.run(made, cwd=folder, check=True, capture_output=True))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_key_of_the_gateway_is_aws_s_bearer_token(
    gateway: StartGateway, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = await gateway(routes={"parrot": "echo", "other": "echo"})
    _, key = await made.gateway.accounts.create("k", models=["parrot"])
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", key)
    async with _over_tls(made.port, tmp_path) as url:
        client = await _run(lambda: connect(url, verify=str(tmp_path / "cert.pem")))
        done = await _run(lambda: client.converse(modelId="parrot", **ASK))
        assert done["output"]["message"]["content"] == [{"text": "Echo: hi"}]
        with pytest.raises(client.exceptions.AccessDeniedException):
            await _run(lambda: client.converse(modelId="other", **ASK))
        await _run(client.close)


async def test_a_signed_request_may_carry_a_key_of_the_gateway_beside_its_signature(
    gateway: StartGateway, connect: Connect
) -> None:
    made = await gateway(routes={"parrot": "echo"})
    _, key = await made.gateway.accounts.create("k")
    client = await _run(lambda: connect(made.url))

    def with_key(request: Any, **_: Any) -> None:
        request.headers["x-api-key"] = key

    client.meta.events.register("before-send.bedrock-runtime.Converse", with_key)
    done = await _run(lambda: client.converse(modelId="parrot", **ASK))
    assert done["stopReason"] == "end_turn"


async def test_a_signature_of_aws_is_no_key_and_the_refusal_says_what_is(
    gateway: StartGateway, connect: Connect
) -> None:
    made = await gateway(routes={"parrot": "echo"})
    await made.gateway.accounts.create("k")
    client = await _run(lambda: connect(made.url))
    with pytest.raises(client.exceptions.AccessDeniedException) as refused:
        await _run(lambda: client.converse(modelId="parrot", **ASK))
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 401
    assert "Set AWS_BEARER_TOKEN_BEDROCK to a key of this gateway" in str(refused.value)


async def test_errors_are_the_exceptions_of_aws(gateway: StartGateway, connect: Connect) -> None:
    script = [refusal(429, "rate_limit_exceeded"), refusal(500, "server_error"), chat_stream("a", end=False)]
    async with FaultServer(script) as upstream:
        made = [
            await gateway(providers=up(upstream), routes={"fast": "up:big"}, server={"attempts": 1}) for _ in range(3)
        ]
        clients = [await _run(lambda at=at: connect(at.url)) for at in made]
        for at, name in ((0, "ThrottlingException"), (1, "ServiceUnavailableException")):
            with pytest.raises(ClientError) as failed:
                await _run(lambda at=at: clients[at].converse(modelId="fast", **ASK))
            assert failed.value.response["Error"]["Code"] == name
        with pytest.raises(EventStreamError):
            await _run(lambda: _read(clients[2], "fast"))
        with pytest.raises(clients[2].exceptions.ResourceNotFoundException):
            await _run(lambda: clients[2].converse(modelId="nobody", **ASK))
        with pytest.raises(clients[2].exceptions.ValidationException) as bad:
            await _run(lambda: clients[2].converse(modelId="fast", messages=[]))
        assert "messages" in str(bad.value)


async def test_s46_a_path_that_is_no_text_is_refused(gateway: StartGateway) -> None:
    made = await gateway(routes={"parrot": "echo"})
    async with httpx.AsyncClient() as plain:
        for name in ("%ff", "%00", "%2e%2e", "a%0ab"):
            answer = await plain.post(f"{made.url}/model/{name}/converse", json=ASK)
            assert answer.status_code in (400, 404), name
