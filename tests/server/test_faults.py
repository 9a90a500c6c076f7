"""The sixteen faults through the gateway, with the official clients of three dialects, streaming and not.

An answer is either whole or an error of the client's own kind: never a part that looks like a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anthropic
import ollama
import openai
import pytest

from tests.server.conftest import InProcess, StartGateway
from windlass.testing.answers import TOKENS
from windlass.testing.catalogue import FAULTS

WHOLE = "".join(TOKENS)
#: A last guard: no case takes longer, whatever the fault.
SECONDS = 20.0


@dataclass
class Got:
    """What a client was given: text, why it ended there (None: nobody said), and the error it raised."""

    text: str = ""
    reason: str | None = None
    error: Exception | None = None


Ask = Callable[[str, str, bool], Awaitable[Got]]
ASKED: Any = [{"role": "user", "content": "Count."}]


async def chat(url: str, model: str, stream: bool) -> Got:
    got = Got()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        try:
            if not stream:
                done = await client.chat.completions.create(model=model, messages=ASKED)
                return Got(done.choices[0].message.content or "", done.choices[0].finish_reason)
            async for chunk in await client.chat.completions.create(model=model, messages=ASKED, stream=True):
                for choice in chunk.choices:
                    got.text += choice.delta.content or ""
                    got.reason = choice.finish_reason or got.reason
        except openai.APIError as error:
            got.error = error
    return got


async def messages(url: str, model: str, stream: bool) -> Got:
    got = Got()
    async with anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client:
        try:
            if not stream:
                done = await client.messages.create(model=model, messages=ASKED, max_tokens=100)
                return Got("".join([block.text for block in done.content if block.type == "text"]), done.stop_reason)
            reason = None
            async for event in await client.messages.create(model=model, messages=ASKED, max_tokens=100, stream=True):
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    got.text += event.delta.text
                elif event.type == "message_delta":
                    reason = event.delta.stop_reason
                elif event.type == "message_stop":
                    got.reason = reason
        except anthropic.APIError as error:
            got.error = error
    return got


async def generate(url: str, model: str, stream: bool) -> Got:
    got = Got()
    client = ollama.AsyncClient(host=url)
    try:
        if not stream:
            done = await client.chat(model=model, messages=ASKED)
            return Got(done.message.content or "", done.done_reason if done.done else None)
        async for piece in await client.chat(model=model, messages=ASKED, stream=True):
            got.text += piece.message.content or ""
            got.reason = piece.done_reason if piece.done else None
    except ollama.ResponseError as error:
        got.error = error
    finally:
        await client._client.aclose()  # pyright: ignore[reportPrivateUsage]  # it has no other way to be closed
    return got


CLIENTS: dict[str, Ask] = {"chat": chat, "anthropic": messages, "ollama": generate}
#: Faults that only time ends: there the limits are short.
SLOW = {"silence": "silence", "stalled": "stalled", "slow-first-token": "slow-first-token?seconds=5"}
#: What takes part in every case under a name of its own, because it remembers whom it failed.
REMEMBERING = {"429-retry-after": "seconds=0.05", "500-once": "times=1", "flapping": "delay=0"}


def model_of(name: str, case: str) -> str:
    if name in REMEMBERING:
        return f"fault:{name}?{REMEMBERING[name]}&id={case}"
    return f"fault:{SLOW.get(name, name)}"


async def served(gateway: StartGateway, name: str) -> InProcess:
    limits = {"first_token_timeout": 0.5, "idle_timeout": 0.5} if name in SLOW else {}
    attempts = 3 if FAULTS[name].outcome == "retry" else 1
    routes: dict[str, Any] = {}
    for mode in ("whole", "stream"):
        model = model_of(name, mode)
        routes[f"{mode}-rescued"] = {"targets": [model_of(name, f"{mode}-r"), "fault:ok"], **limits}
        routes[f"{mode}-alone"] = {"targets": [model], "attempts": attempts, **limits}
    return await gateway(routes=routes)


def is_filtered(got: Got) -> bool:
    return got.reason in ("content_filter", "refusal") and WHOLE.startswith(got.text)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", FAULTS)
async def test_sixteen_faults_are_rescued_or_told(gateway: StartGateway, name: str, client: str) -> None:
    up = await served(gateway, name)
    ask = CLIENTS[client]
    cases = [(mode, rest) for rest in ("rescued", "alone") for mode in ("whole", "stream")]
    # Retries are rationed: those that many ask for at once are not all made.
    lane = asyncio.Semaphore(1 if FAULTS[name].outcome == "retry" else len(cases))

    async def one(mode: str, rest: str) -> Got:
        async with lane, asyncio.timeout(SECONDS):
            return await ask(up.url, f"{mode}-{rest}", mode == "stream")

    answers = await asyncio.gather(*[one(mode, rest) for mode, rest in cases])
    for (mode, rest), got in zip(cases, answers, strict=True):
        fault, told = FAULTS[name], f"{name} {client} {mode} {rest}: {got}"
        # Who speaks another dialect than the model's is answered from a stream.
        outcome = fault.whole_outcome if (mode, client) == ("whole", "chat") else fault.outcome
        # Whoever learns of no error has all of it, or was told by name that a filter cut it.
        assert got.error is not None or got.reason is not None, told
        assert got.error is not None or got.text == WHOLE or is_filtered(got), told
        assert WHOLE.startswith(got.text), told
        if name == "content-filter":
            assert is_filtered(got) or got.error is not None, told
        elif rest == "rescued" or outcome in ("retry", "answer") or name == "prefill-rejected":
            assert (got.text, got.error) == (WHOLE, None), told
        else:
            assert got.error is not None, told
            assert got.reason is None, told
    assert up.gateway.stats.active == 0
    await up.gateway.accounts.flush()
    assert sum([row.requests for row in await up.gateway.accounts.usage()]) == len(cases)


def test_the_catalogue_has_sixteen() -> None:
    assert len(FAULTS) == 16
