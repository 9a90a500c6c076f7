"""The provider that repeats what it is told."""

from __future__ import annotations

from contextlib import aclosing

import pytest

from windlass.core.items import Finish, Item, TextItem, UsageItem
from windlass.core.messages import Message, ToolResponse, assistant, user
from windlass.core.ports import Provider
from windlass.core.request import Request, Settings
from windlass.core.usage import Usage
from windlass.providers.echo import EchoProvider
from windlass.testing.provider_kit import check_provider


async def items(request: Request) -> list[Item]:
    return [item async for item in EchoProvider().stream(request)]


async def test_echoes_word_by_word_with_exact_usage() -> None:
    got = await items(
        Request(model="", messages=[user("one"), assistant("two three"), user("Hello  big\nworld ")], system="be brief")
    )
    assert [item.text for item in got if isinstance(item, TextItem)] == ["Echo: ", "Hello  ", "big\n", "world "]
    finish = got[-1]
    assert isinstance(finish, Finish)
    assert finish.message.text == "Echo: Hello  big\nworld "
    assert finish.usage == Usage(8, 4)
    assert not finish.usage.estimated
    assert (finish.reason, finish.message.finish_reason, finish.model) == ("stop", "stop", "echo")
    assert got[-2] == UsageItem(finish.usage)


@pytest.mark.parametrize(
    ("limit", "text", "reason"), [(1, "Echo: ", "length"), (2, "Echo: a ", "length"), (3, "Echo: a b", "stop")]
)
async def test_max_tokens_cuts(limit: int, text: str, reason: str) -> None:
    got = await items(Request(model="m", messages=[user("a b")], settings=Settings(max_tokens=limit)))
    finish = got[-1]
    assert isinstance(finish, Finish)
    assert (finish.message.text, finish.reason, finish.usage.output_tokens) == (text, reason, limit)


async def test_a_tool_response_and_nothing_are_echoed() -> None:
    for messages, text in (
        ([Message("tool", (ToolResponse("c", "done it"),))], "Echo: done it"),
        ([], "Echo: "),
        ([user("")], "Echo: "),
    ):
        finish = (await items(Request(model="", messages=messages)))[-1]
        assert isinstance(finish, Finish)
        assert finish.message.text == text


async def test_is_a_provider_and_closes_early() -> None:
    provider = EchoProvider()
    assert isinstance(provider, Provider)
    stream = provider.stream(Request(model="", messages=[user("a b c")]))
    async with aclosing(stream) as opened:  # pyright: ignore[reportArgumentType]
        assert await anext(opened) == TextItem("Echo: ")
    assert [item async for item in stream] == []


async def test_conforms() -> None:
    assert await check_provider(EchoProvider)
