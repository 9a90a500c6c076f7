"""The provider kit: our own providers pass it, and each rule that is broken is found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest

from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import AuthError, ProviderConnectionError, StreamInterrupted
from windlass.core.items import Finish, Item, TextItem
from windlass.core.messages import Message, Text, assistant, user
from windlass.core.request import Request, Settings
from windlass.core.usage import Usage
from windlass.providers.echo import EchoProvider
from windlass.providers.local import LocalProvider
from windlass.testing.faults import FaultServer, Reply, Step, Stream, ndjson, sse
from windlass.testing.provider_kit import PROVIDER_CHECKS, check_failing_provider, check_provider
from windlass.testing.scripted import ScriptedProvider, call, turn


async def test_the_scripted_provider_passes() -> None:
    script = [turn(call("echo", text="x"), call("echo", text="y"), text="I will.", thinking="Hm."), "Hello there."]
    assert await check_provider(lambda: ScriptedProvider(script, repeat=True)) == list(PROVIDER_CHECKS)


@pytest.mark.parametrize("delay", [0.0, 0.001])
async def test_the_echo_passes(delay: float) -> None:
    await check_provider(lambda: EchoProvider(delay=delay))


async def test_the_model_in_this_process_passes() -> None:
    request = Request(model="", messages=[user("what time is it?")], settings=Settings(max_tokens=12))
    await check_provider(LocalProvider, request=request, streams=3)


def openai_answer() -> Stream:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return json.dumps({"id": "r", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})

    function = {"index": 0, "id": "call_a", "function": {"name": "echo", "arguments": '{"text":'}}
    rest = {"index": 0, "function": {"arguments": ' "x"}'}}
    deltas = [{"content": "Hel"}, {"content": "lo"}, {"tool_calls": [function]}, {"tool_calls": [rest]}]
    return Stream(sse(*map(chunk, deltas), chunk({}, "tool_calls"), "[DONE]"))


def anthropic_answer() -> Stream:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "content": [],
         "model": "c", "stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 0}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]  # fmt: skip
    return Stream([f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events])


def ollama_answer() -> Stream:
    lines: list[dict[str, Any]] = [
        {"model": "m", "message": {"role": "assistant", "content": "Hel"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "lo"}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop",
         "prompt_eval_count": 5, "eval_count": 2},
    ]  # fmt: skip
    return Stream(ndjson(*map(json.dumps, lines)), headers={"content-type": "application/x-ndjson"})


def vendor(name: str, server: FaultServer) -> Any:
    config = Config(
        environ={},
        providers={name: {"base_url": server.url, "api_key": "key-1", "model": "m", "dialect": DIALECT[name]}},
    )
    return registry.model(name, config)[0]


DIALECT = {"groq": "openai-chat", "anthropic": "anthropic", "ollama": "ollama", "mine": "openai-chat"}


@pytest.mark.parametrize(
    ("name", "answer"),
    [("groq", openai_answer), ("mine", openai_answer), ("anthropic", anthropic_answer), ("ollama", ollama_answer)],
)
async def test_vendors_over_a_real_server_pass_and_leave_no_connection(name: str, answer: Callable[[], Step]) -> None:
    async with FaultServer([answer()]) as server:
        await check_provider(lambda: vendor(name, server))
        await server.wait(open=0)
        assert len(server.requests) >= 10


@pytest.mark.parametrize(("reply", "kind"), [(Reply(401, b"{}"), AuthError), (openai_answer(), StreamInterrupted)])
async def test_failing_vendors_raise_what_they_mean(reply: Any, kind: type[Exception]) -> None:
    if isinstance(reply, Stream):
        reply = Stream(reply.parts[:2])
    async with FaultServer([reply]) as server:
        assert isinstance(await check_failing_provider(lambda: vendor("groq", server)), kind)


async def test_a_vendor_that_is_not_there_is_a_connection_error() -> None:
    async with FaultServer([Reply()]) as server:
        url = server.url
    config = Config(environ={}, providers={"llama_cpp": {"base_url": url}})
    request = Request(model="m", messages=[user("x")])
    error = await check_failing_provider(lambda: registry.model("llama_cpp", config)[0].provider, request=request)
    assert isinstance(error, ProviderConnectionError)


# -- what the kit finds ------------------------------------------------------------------------------------------------

HELLO = [TextItem("Hel"), TextItem("lo"), Finish(assistant("Hello"), Usage(1, 2))]


class Playing:
    """A provider that yields what it is given, with a wait before each item."""

    name = "playing"
    model = "m"

    def __init__(self, *items: Any) -> None:
        self.items = items or HELLO

    def stream(self, request: Request) -> AsyncIterator[Item]:
        return self.play(request)

    async def play(self, request: Request) -> AsyncGenerator[Item]:
        for item in self.items:
            await asyncio.sleep(0)
            yield item


class Coroutine(Playing):
    async def stream(self, request: Request) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.play(request)


class Mutating(Playing):
    async def play(self, request: Request) -> AsyncGenerator[Item]:
        assert isinstance(request.messages, list)
        request.messages.append(user("more"))
        async for item in super().play(request):
            yield item


class Leaking(Playing):
    def stream(self, request: Request) -> AsyncIterator[Item]:
        self.task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
        return self.play(request)


class Swallowing(Playing):
    async def play(self, request: Request) -> AsyncGenerator[Item]:
        for item in self.items:
            try:
                await asyncio.sleep(0.001)
            except asyncio.CancelledError:
                pass
            yield item


class Mixing(Playing):
    """Keeps the text of a stream in the object: two at once read each other's."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    async def play(self, request: Request) -> AsyncGenerator[Item]:
        self.said.clear()
        for word in ("one ", "two"):
            await asyncio.sleep(0)
            self.said.append(word)
            yield TextItem(word)
        yield Finish(Message("assistant", (Text("".join(self.said)),)))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (Coroutine, "shape: stream.. is a coroutine"),
        (lambda: Playing(TextItem("x")), "a whole answer: places of Finish"),
        (lambda: Playing(*HELLO, TextItem("x")), "a whole answer: places of Finish"),
        (lambda: Playing(HELLO[-1], HELLO[-1]), "a whole answer: places of Finish"),
        (lambda: Playing(TextItem("Hi"), HELLO[-1]), "a whole answer: text of deltas"),
        (lambda: Playing("text", HELLO[-1]), "a whole answer: 'text' is no stream item"),
        (lambda: Playing(Finish(assistant(()))), "a whole answer: the answer is empty"),
        (lambda: Playing(*HELLO[:2], Finish(user("Hello"))), "a whole answer: the role"),
        (lambda: Playing(*HELLO[:2], Finish(assistant("Hello"), Usage(-1))), "negative count"),
        (Mutating, "the request is not changed: the request after"),
        (Leaking, "closing early: [12] tasks are left"),
        (Swallowing, "cancelling: .*swallowed"),
        (Mixing, "streams at once: text of deltas"),
    ],
)
async def test_the_kit_finds(make: Callable[[], Any], found: str) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(AssertionError, match=f"check_provider, .*{found}"):
        await check_provider(make)
    for task in asyncio.all_tasks() - before:
        task.cancel()


class Failing(Playing):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def play(self, request: Request) -> AsyncGenerator[Item]:
        yield TextItem("Hel")
        raise self.error


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: Failing(KeyError("choices")), "raised KeyError"),
        (lambda: Failing(AuthError("no")), "names provider None"),
        (Playing, "a Finish came"),
        (lambda: Playing(TextItem("x")), "1 items and no error"),
    ],
)
async def test_the_kit_for_failures_finds(make: Callable[[], Any], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        await check_failing_provider(make)
