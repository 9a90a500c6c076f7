"""Bedrock's runtime on loopback, built on our dialect: what boto3 asks is decoded, and answered in frames or whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import boto3
from botocore.config import Config

from windlass.core.errors import WindlassError
from windlass.core.items import Finish, Item
from windlass.core.threads import run_in_thread
from windlass.wire.base import DecodedRequest
from windlass.wire.bedrock import DIALECT

#: Items of the answer, of which the last may be an error to end the stream with; an error raised refuses the request.
Answerer = Callable[[DecodedRequest], list[Item | WindlassError]]


@dataclass
class Bedrock:
    """Where it listens, and what it got: (model, decoded request, target) of each."""

    url: str = ""
    got: list[tuple[str, DecodedRequest]] = field(default_factory=list[tuple[str, DecodedRequest]])
    targets: list[str] = field(default_factory=list[str])
    sdk: Any = None

    async def call(self, operation: str, **fields: Any) -> Any:
        """Call boto3's `converse`, or `converse_stream` and collect its events, in a thread."""
        return await run_in_thread(self._call, operation, fields)

    def _call(self, operation: str, fields: dict[str, Any]) -> Any:
        if self.sdk is None:
            made: Any = boto3.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="secret")
            options = Config(retries={"max_attempts": 0})
            self.sdk = made.client("bedrock-runtime", region_name="us-east-1", endpoint_url=self.url, config=options)
        sdk: Any = self.sdk
        try:
            answer: Any = getattr(sdk, operation)(**fields)
            if "stream" not in answer:
                return answer
            with contextlib.closing(answer["stream"]) as stream:
                return list(stream)
        except Exception as error:
            # The typed exceptions belong to a client: their names are what a test compares.
            error.typed = {  # pyright: ignore[reportAttributeAccessIssue]
                name for name in dir(sdk.exceptions) if name.endswith("Exception") and _is(error, sdk, name)
            }
            raise


def _is(error: Exception, sdk: Any, name: str) -> bool:
    return type(error) is getattr(sdk.exceptions, name)


def typed(error: Any) -> set[str]:
    """Return the names of the SDK's own exceptions that an error is one of."""
    return error.typed


def _answer(path: str, body: bytes, answer: Answerer, server: Bedrock) -> tuple[int, dict[str, str], bytes]:
    try:
        _, _, model, operation = path.split("/")
        decoded = DIALECT.decode_request(body)
        server.got.append((unquote(model), decoded))
        server.targets.append(path)
        items = answer(decoded)
    except WindlassError as error:
        status, said = DIALECT.encode_error(error)
        return status, {"content-type": "application/json", **DIALECT.error_headers(error)}, said
    if operation == "converse":
        (finish,) = [item for item in items if isinstance(item, Finish)]
        said = DIALECT.encode_response(finish, model=model, response_id="r", created=0)
        return 200, {"content-type": "application/json"}, said
    encoder = DIALECT.stream_encoder(model=model, response_id="r", created=0)
    frames = [encoder.error(item) if isinstance(item, WindlassError) else encoder.encode(item) for item in items]
    return 200, {"content-type": DIALECT.stream_type}, b"".join(frames)


@contextlib.asynccontextmanager
async def serve(answer: Answerer) -> AsyncGenerator[Bedrock]:
    """Serve on 127.0.0.1, one request per connection."""
    server = Bedrock()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        status, said, data = _answer(head[0].split(" ")[1], body, answer, server)
        lines = "".join([f"{name}: {value}\r\n" for name, value in said.items()])
        start = f"HTTP/1.1 {status} Said\r\n{lines}content-length: {len(data)}\r\nconnection: close\r\n\r\n"
        writer.write(start.encode("latin-1"))
        # In small pieces: a frame is cut anywhere.
        for at in range(0, len(data), 37):
            writer.write(data[at : at + 37])
        await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        if server.sdk is not None:
            server.sdk.close()
        listener.close()
        await listener.wait_closed()
