"""Models on this machine behind the Provider port."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from windlass.core.errors import (
    BadRequestError,
    ConfigError,
    ContextExceededError,
    LocalModelError,
    ModelNotFoundError,
    ProviderError,
    ProviderTimeoutError,
    StreamInterrupted,
    UnsupportedInputError,
)
from windlass.core.items import Assembler, Finish, Item, NoticeItem, TextItem, ToolCallItem, UsageItem
from windlass.core.messages import Blob, Message, Text, ToolCall, ToolResponse, user
from windlass.core.ports import Provider
from windlass.core.request import Budget, Request, Settings, ToolSpec
from windlass.local.embedded import embedded_model
from windlass.local.engine import EngineOptions
from windlass.providers.local import LocalProvider
from windlass.testing.provider_kit import check_failing_provider, check_provider

TINY = embedded_model().path
STRING = {"type": "string"}
READ = ToolSpec("read_file", "Read.", {"type": "object", "properties": {"path": STRING}, "required": ["path"]})
WRITE = ToolSpec(
    "write_file",
    "Write.",
    {"type": "object", "properties": {"path": STRING, "content": STRING}, "required": ["path", "content"]},
)
ENDLESS = Settings(max_tokens=3000, extra={"grammar": 'root ::= "a" root'})


@pytest.fixture(scope="module")
def provider() -> LocalProvider:
    return LocalProvider()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a user's own file, without a card."""
    path = tmp_path_factory.mktemp("models") / "mine.gguf"
    shutil.copyfile(TINY, path)
    return path


@pytest.fixture(scope="module")
def filed(copy: Path) -> Generator[LocalProvider]:
    provider = LocalProvider(copy, options=EngineOptions(threads=1, gpu_layers=0))
    yield provider
    provider.close()


def asking(text: str, **fields: Any) -> Request:
    settings = fields.pop("settings", Settings(temperature=0))
    return Request(model=fields.pop("model", ""), messages=[user(text)], settings=settings, **fields)


def stream(provider: LocalProvider, request: Request) -> AsyncGenerator[Item]:
    return cast("AsyncGenerator[Item]", provider.stream(request))


async def items(provider: LocalProvider, request: Request) -> list[Item]:
    async with aclosing(stream(provider, request)) as opened:
        return [item async for item in opened]


async def finish(provider: LocalProvider, request: Request) -> Finish:
    last = (await items(provider, request))[-1]
    assert isinstance(last, Finish)
    return last


async def test_conforms_in_this_process_and_in_a_worker(copy: Path) -> None:
    assert await check_provider(LocalProvider)
    assert await check_provider(lambda: LocalProvider(copy))
    assert (await check_failing_provider(lambda: LocalProvider(copy.with_name("missing.gguf")))).model == "missing"


async def test_text_usage_and_one_finish(provider: LocalProvider) -> None:
    assert isinstance(provider, Provider)
    assert provider.name == "local"
    got = await items(provider, asking("hello"))
    assert [type(item) for item in got if not isinstance(item, TextItem)] == [UsageItem, Finish]
    last = got[-1]
    assert isinstance(last, Finish)
    assert "".join([item.text for item in got if isinstance(item, TextItem)]) == last.message.text
    assert last.message.text.startswith("Hello! I am the tiny built-in model")
    assert (last.usage.input_tokens, last.usage.output_tokens, last.usage.estimated) == (9, 38, False)
    assert (last.reason, last.model) == ("stop", "tiny-0")
    assert last.provider_metadata is not None
    assert last.provider_metadata["local"]["timings"]["predicted_n"] == 38
    assert await provider.count(asking("hello")) == 9


async def test_a_tool_call_and_its_answer(provider: LocalProvider) -> None:
    request = asking("show a.txt", tools=(READ, WRITE))
    got = await items(provider, request)
    pieces = [item for item in got if isinstance(item, ToolCallItem)]
    assert "".join([piece.arguments for piece in pieces]) == '{"path": "a.txt"}'
    last = got[-1]
    assert isinstance(last, Finish)
    (call,) = last.message.tool_calls
    assert (call.name, call.arguments, call.arguments_text) == ("read_file", {"path": "a.txt"}, '{"path": "a.txt"}')
    assert last.reason == "tool_call"
    assembler = Assembler()
    for item in got:
        assembler.add(item)
    assert assembler.parts() == last.message.parts
    answer = Message("tool", (ToolResponse(call.id, "hello world"),))
    after = replace(request, messages=[*request.messages, last.message, answer])
    assert (await finish(provider, after)).message.text == "a.txt contains:\nhello world"


async def test_tools_are_reduced_to_what_the_card_knows(provider: LocalProvider) -> None:
    rich = {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "where", "minLength": 1},
            "offset": {"type": "integer"},
        },
        "required": [],
    }
    other = ToolSpec("multi_edit", "Several.", {"type": "object", "properties": {"edits": {"type": "array"}}})
    plain = asking("show a.txt", tools=(READ, WRITE))
    offered = asking("show a.txt", tools=(replace(READ, input_schema=rich), WRITE, other))
    assert await provider.count(plain) == await provider.count(offered)
    fresh = LocalProvider()
    first, second = await items(fresh, offered), await items(fresh, offered)
    assert isinstance(first[0], NoticeItem)
    assert (first[0].kind, first[0].model) == ("warning", "tiny-0")
    assert "multi_edit" in first[0].message
    assert not any(isinstance(item, NoticeItem) for item in second)  # once is enough
    assert not any(isinstance(item, NoticeItem) for item in await items(fresh, plain))
    # A gateway tells its clients, each time.
    assert (fresh.dropped(offered), fresh.dropped(plain)) == (["tools"], [])
    assert fresh.dropped(asking("hi", settings=Settings(thinking="high", top_k=3))) == ["thinking"]


async def test_required_named_and_unknown_tools(provider: LocalProvider) -> None:
    forced = await finish(provider, asking("what is love?", tools=(READ, WRITE), tool_choice="required"))
    assert len(forced.message.tool_calls) == 1
    assert forced.reason == "tool_call"
    named = await finish(provider, asking("show a.txt", tools=(READ, WRITE), tool_choice="write_file"))
    assert [call.name for call in named.message.tool_calls] == ["write_file"]
    none = await finish(provider, asking("hello", tools=(READ,), tool_choice="none"))
    assert none.reason == "stop"
    unknown = ToolSpec("launch", "Launch.")
    for tools, choice in (((READ, unknown), "launch"), ((unknown,), "required")):
        with pytest.raises(UnsupportedInputError, match="cannot be made to call"):
            await items(provider, asking("go", tools=tools, tool_choice=choice))


async def test_output_schema(provider: LocalProvider) -> None:
    schema = {"type": "object", "properties": {"word": {"enum": ["yes", "no"]}}, "required": ["word"]}
    last = await finish(provider, asking("hello", output_schema=schema))
    assert json.loads(last.message.text)["word"] in ("yes", "no")
    with pytest.raises(BadRequestError, match="could not hold the model to the schema"):
        await items(provider, asking("hello", output_schema={"type": "bogus"}))


async def test_an_answer_cut_by_the_limit(provider: LocalProvider) -> None:
    last = await finish(provider, asking("hello", settings=Settings(temperature=0, max_tokens=5)))
    assert (last.reason, last.message.finish_reason, last.usage.output_tokens) == ("length", "length", 5)


async def test_the_card_bounds_an_answer_without_limit(provider: LocalProvider) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "string", "minLength": 3000}}, "required": ["n"]}
    last = await finish(provider, asking("hello", output_schema=schema))
    assert (last.reason, last.usage.output_tokens) == ("length", embedded_model().profile.max_output)


async def test_a_failed_tool_is_marked_as_the_model_learnt_it(provider: LocalProvider) -> None:
    call = ToolCall("c1", "read_file", {"path": "a.txt"})
    for response in ("File not found: a.txt", "Error: File not found: a.txt"):
        messages = [
            user("show a.txt"),
            Message("assistant", (call,)),
            Message("tool", (ToolResponse("c1", response, status="error"),)),
        ]
        last = await finish(provider, Request(model="", messages=messages, tools=(READ,)))
        assert last.message.text.startswith("That failed:")


async def test_arguments_that_are_no_json_do_not_break_the_history(provider: LocalProvider) -> None:
    messages = [
        user("show a.txt"),
        Message("assistant", (ToolCall("c1", "read_file", None, "{not json"),)),
        Message("tool", (ToolResponse("c1", "The arguments are not valid JSON.", status="error"),)),
    ]
    assert (await finish(provider, Request(model="", messages=messages, tools=(READ,)))).reason in ("stop", "tool_call")


async def test_context_overflow(provider: LocalProvider) -> None:
    for ask in (items, LocalProvider.count):
        with pytest.raises(ContextExceededError, match=r"has 10008 tokens; the context of tiny-0 holds 4096"):
            await ask(provider, asking("hello " * 5000))


async def test_images_are_refused(provider: LocalProvider) -> None:
    picture = Message("user", (Text("what is this?"), Blob(b"\x89PNG", "image/png")))
    with pytest.raises(UnsupportedInputError):
        await items(provider, Request(model="", messages=[picture]))


async def test_a_grammar_of_the_users_is_for_workers_only(provider: LocalProvider, filed: LocalProvider) -> None:
    settings = Settings(extra={"grammar": 'root ::= "left" | "right"'})
    with pytest.raises(UnsupportedInputError, match="takes no grammar"):
        await items(provider, asking("hello", settings=settings))
    assert (await finish(filed, asking("hello", settings=settings))).message.text in ("left", "right")


async def test_model_ids(provider: LocalProvider, filed: LocalProvider, copy: Path) -> None:
    for model in ("", "default", "tiny-0"):
        assert (await finish(provider, asking("hello", model=model))).model == "tiny-0"
    for model in ("", "default", str(copy)):
        assert (await finish(filed, asking("hello", model=model))).model == "mine"
    assert (await finish(filed, asking("hello", model="tiny-0"))).model == "tiny-0"
    with pytest.raises(ModelNotFoundError, match="no local model 'gpt'"):
        await items(provider, asking("hello", model="gpt"))
    closed = LocalProvider(copy, any_path=False)
    with pytest.raises(ModelNotFoundError, match=r"no local model '/etc/other\.gguf'"):
        await items(closed, asking("hello", model="/etc/other.gguf"))


async def test_notice(provider: LocalProvider, filed: LocalProvider) -> None:
    assert "demonstration model" in provider.notice
    assert filed.notice == ""


async def test_a_file_without_a_card_gets_every_tool(filed: LocalProvider) -> None:
    other = ToolSpec("launch", "Launch.", {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]})
    last = await finish(filed, asking("go", tools=(READ, other), tool_choice="launch"))
    (call,) = last.message.tool_calls
    assert call.name == "launch"
    assert call.arguments is not None
    assert call.arguments["n"] in (1, 2)


async def test_a_card_beside_a_file_is_used(tmp_path: Path) -> None:
    path = tmp_path / "carded.gguf"
    shutil.copyfile(TINY, path)
    shutil.copyfile(TINY.with_suffix(".json"), path.with_suffix(".json"))
    provider = LocalProvider(path)
    assert "demonstration model" in provider.notice
    launch = ToolSpec("launch", "Launch.")
    got = await items(provider, asking("show a.txt", tools=(READ, launch)))
    assert isinstance(got[0], NoticeItem)
    provider.close()


async def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="No such file"):
        await items(LocalProvider(tmp_path / "missing.gguf"), asking("hello"))
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(TINY.read_bytes()[:1000])
    with pytest.raises(ProviderError, match="not a usable GGUF file") as caught:
        await items(LocalProvider(bad), asking("hello"))
    assert isinstance(caught.value.__cause__, LocalModelError)
    assert caught.value.model == "bad"
    card = tmp_path / "carded.gguf"
    shutil.copyfile(TINY, card)
    card.with_suffix(".json").write_text('{"windlass_card": 9}')
    with pytest.raises(ProviderError, match="has version 9"):
        await items(LocalProvider(card), asking("hello"))


def test_without_the_engine_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match=r"pip install 'windlass\[local\]'"):
        LocalProvider()


async def test_closing_early_frees_the_engine(provider: LocalProvider) -> None:
    schema = {"type": "string", "minLength": 3000}
    for _ in range(4):
        async with aclosing(
            stream(provider, asking("x", output_schema=schema, settings=Settings(max_tokens=3000)))
        ) as opened:
            assert isinstance(await anext(opened), TextItem)
    assert (await finish(provider, asking("hello"))).reason == "stop"


async def test_the_budget_of_the_request_holds(filed: LocalProvider) -> None:
    with pytest.raises(ProviderTimeoutError) as caught:
        await items(filed, asking("x", settings=ENDLESS, budget=Budget(0.0)))
    assert caught.value.model == "mine"
    assert (await finish(filed, asking("hello", budget=Budget(60.0)))).reason == "stop"


async def test_r77_worker_dies_amid_an_answer(copy: Path) -> None:
    provider = LocalProvider(copy, options=EngineOptions(threads=1, gpu_layers=0))
    async with aclosing(stream(provider, asking("x", settings=ENDLESS))) as opened:
        first = await anext(opened)
        engine: Any = provider._serve("").engine  # pyright: ignore[reportPrivateUsage]
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(StreamInterrupted, match="was killed by SIGKILL") as caught:
            async for _ in opened:
                pass
    assert isinstance(first, TextItem)
    assert caught.value.partial.startswith("a")
    assert (await finish(provider, asking("hello"))).reason == "stop"
    provider.close()


async def test_many_requests_at_once(provider: LocalProvider) -> None:
    prompts = ["hello", "show a.txt", 'write "hello" to hello.txt', "show todo.txt"] * 3
    asked = [asking(prompt, tools=(READ, WRITE)) for prompt in prompts]
    alone = [(await finish(provider, request)).message for request in asked[:4]]
    together = await asyncio.gather(*[finish(provider, request) for request in asked])

    def bare(message: Message) -> Any:
        return message.text, [(call.name, call.arguments) for call in message.tool_calls]

    assert [bare(one.message) for one in together] == [bare(message) for message in alone] * 3


def test_one_provider_serves_loops_one_after_another(provider: LocalProvider, filed: LocalProvider) -> None:
    for _ in range(2):
        for one in (provider, filed):
            assert asyncio.run(finish(one, asking("hello"))).reason == "stop"
