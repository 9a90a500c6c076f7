"""The gateway inside another server: uvicorn runs the ASGI face, the official SDK asks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx
import openai
import uvicorn

from tests.server.conftest import StartGateway
from windlass.core import clock
from windlass.server.asgi import Application
from windlass.server.gateway import Gateway


@asynccontextmanager
async def mounted(gateway: Gateway) -> AsyncGenerator[str]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(Application(gateway), log_level="critical", lifespan="on", ws="none")
    server = uvicorn.Server(config)
    running = asyncio.ensure_future(server._serve([sock]))  # pyright: ignore[reportPrivateUsage]
    while not server.started:
        await clock.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await running


async def test_under_uvicorn_whole_and_streamed(gateway: StartGateway) -> None:
    up = await gateway(routes={"fake": "echo:echo"})
    async with mounted(up.gateway) as url, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
        done = await client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hi there"}])
        assert "hi there" in (done.choices[0].message.content or "")
        stream = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": "hi there"}], stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        assert text == done.choices[0].message.content


async def test_refusals_and_limits_under_uvicorn(gateway: StartGateway) -> None:
    up = await gateway(server={"max_body_bytes": 1000})
    async with mounted(up.gateway) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/nowhere")).status_code == 404
        json = {"content-type": "application/json"}
        assert (await client.post("/v1/messages", content=b"{" * 5000, headers=json)).status_code == 413
        assert (await client.post("/v1/messages", content=b"{", headers=json)).status_code == 400
        assert (await client.post("/v1/messages", content=b"{}")).status_code == 400
