"""Two vendors behind one route, and the ways in which the tests of broken answers talk to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.server.conftest import InProcess, StartGateway
from windlass.accounts.records import RequestRecord
from windlass.testing.faults import End, FaultServer, Part, Received, Step, Stream, sse

ASK: dict[str, Any] = {"model": "r", "stream": True, "messages": [{"role": "user", "content": "Count."}]}
PREFILL = {"capabilities": {"prefill": True}}


def chunk(text: str = "", reason: str | None = None, **delta: Any) -> str:
    choice = {"index": 0, "delta": {"content": text, **delta} if not reason else {}, "finish_reason": reason}
    return json.dumps({"id": "chatcmpl-first", "object": "chat.completion.chunk", "created": 5, "model": "m-1",
                       "choices": [choice]})  # fmt: skip


def begun(*frames: str, then: list[Part] | None = None, end: End = "fin") -> tuple[asyncio.Event, Stream]:
    """Return a stream that goes on to `then` once the event is set, by which the client has what came before."""
    go = asyncio.Event()
    return go, Stream([*sse(*frames), go, *(then or [])], finish=False, end=end)


Answers = Step | Callable[[Received], Step]


def script(answers: Answers) -> list[Step] | Callable[[Received], Step]:
    return answers if callable(answers) else [answers]


class Records:
    """What was written down, in order."""

    def __init__(self, up: InProcess) -> None:
        self.all: list[RequestRecord] = []
        up.gateway.watchers.append(lambda record, _: self.all.append(record))


@asynccontextmanager
async def two(
    gateway: StartGateway, first: Answers, second: Answers, *, first_table: dict[str, Any] | None = None, **more: Any
) -> AsyncGenerator[tuple[InProcess, FaultServer, FaultServer, Records]]:
    """A route over two vendors, of which the second can go on with an answer."""
    async with (
        FaultServer(script(first)) as one,
        FaultServer(script(second)) as other,
    ):
        up = await gateway(
            providers={
                "one": {"base_url": f"{one.url}/v1", "api_key": "k", **(first_table or {})},
                "two": {"base_url": f"{other.url}/v1", "api_key": "k", **PREFILL, **more.pop("second_table", {})},
            },
            routes=more.pop("routes", {"r": {"targets": ["one:a", "two:b"], **more.pop("limits", {})}}),
            **more,
        )
        yield up, one, other, Records(up)


async def read(up: InProcess, go: asyncio.Event | None, body: Any = None, **headers: str) -> tuple[int, str]:
    """Stream a chat answer; `go` is set at its first bytes. Returns (status, all of it)."""
    text = ""
    async with (
        httpx.AsyncClient(timeout=20.0, verify=False) as client,
        client.stream("POST", f"{up.url}/v1/chat/completions", json=body or ASK, headers=headers) as answer,
    ):
        async for piece in answer.aiter_text():
            text += piece
            if go is not None:
                go.set()
    return answer.status_code, text


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def said(text: str) -> str:
    found = [event["choices"][0]["delta"].get("content") or "" for event in events(text) if event.get("choices")]
    return "".join(found)


async def post(up: InProcess, body: Any = None, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20.0, verify=False) as client:
        return await client.post(f"{up.url}{path}", json=body or ASK, headers=headers)
