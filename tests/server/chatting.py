"""How the tests of what reference A adds talk to a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import openai

from tests.server.conftest import InProcess
from windlass.agent.conversation import Conversation
from windlass.agent.ledger import Ledger
from windlass.core.events import Event

PATH = "/v1/chat/completions"
ECHO = {"provider": "echo"}


def said(text: str, role: str = "user") -> dict[str, str]:
    """Return a message."""
    return {"role": role, "content": text}


async def ask(url: str, body: Any = None, key: str = "", **fields: Any) -> httpx.Response:
    """Post a chat request; its fields are keywords."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # Reading all of the system's certificates takes longer than the request.
    async with httpx.AsyncClient(timeout=30.0, verify=False) as client:
        if isinstance(body, bytes):
            headers["content-type"] = "application/json"
            return await client.post(f"{url}{PATH}", content=body, headers=headers)
        return await client.post(f"{url}{PATH}", json=fields if body is None else body, headers=headers)


def text_of(answer: httpx.Response) -> str:
    """Return the text of a whole answer."""
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def error_of(answer: httpx.Response) -> tuple[int, str, str | None, str]:
    """Return (status, type, param, code) of an error."""
    error = answer.json()["error"]
    return answer.status_code, error["type"], error["param"], error["code"]


@asynccontextmanager
async def sdk(url: str, key: str = "any") -> AsyncGenerator[openai.AsyncOpenAI]:
    """Open the official client, which asks only once."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30.0) as client:
        yield client


async def streamed(client: openai.AsyncOpenAI, **fields: Any) -> tuple[list[str], str | None]:
    """Return the pieces of text of a stream and its finish reason, as the official client reads them."""
    extra = fields.pop("extra_body", {})
    stream = await client.chat.completions.create(**fields, stream=True, extra_body=extra)
    pieces: list[str] = []
    reason: str | None = None
    async for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                pieces.append(choice.delta.content)
            reason = choice.finish_reason or reason
    return pieces, reason


async def kept(served: InProcess, session: str, tenant: str = "") -> list[Event]:
    """Return every row of a session."""
    return await Ledger(served.gateway.sessions.store, session, tenant=tenant).read()


async def talk(served: InProcess, session: str, tenant: str = "") -> list[tuple[str, str]]:
    """Return (role, text) of a session's conversation."""
    messages = Conversation.fold(await kept(served, session, tenant)).messages
    return [(message.role, message.text) for message in messages]


async def read_session(url: str, session: str, key: str = "", method: str = "GET", **query: str) -> httpx.Response:
    """Ask for a session."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=20.0, verify=False) as client:
        return await client.request(
            method, f"{url}/v1/sessions/{quote(session, safe='')}", params=query, headers=headers
        )


@asynccontextmanager
async def opened(url: str, body: dict[str, Any]) -> AsyncGenerator[httpx.Response]:
    """Open a streamed answer."""
    async with (
        httpx.AsyncClient(timeout=20.0, verify=False) as client,
        client.stream("POST", f"{url}{PATH}", json=body) as answer,
    ):
        yield answer


async def at_rest(served: InProcess) -> None:
    """Wait until nothing is worked on: what became of a failed request is kept after it was told."""
    await until(lambda: not served.gateway.running)


async def until(condition: Any) -> None:
    """Wait for something to become true, at most ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
