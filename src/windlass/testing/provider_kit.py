"""Check that an object is a Provider, by what it does.

Use it in a test of your own provider::

    async def test_my_provider() -> None:
        await check_provider(lambda: MyProvider(...))

The provider is really asked, some twenty times: point it at a model that is cheap, or at a server of your test.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from windlass.core import clock
from windlass.core.errors import ProviderError
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.messages import Message, Text, ToolCall, ToolResponse, user
from windlass.core.ports import Provider
from windlass.core.request import Request, Settings, ToolSpec

__all__ = ["PROVIDER_CHECKS", "ProviderUnderTest", "check_failing_provider", "check_provider", "collect"]

_KINDS = (TextItem, ReasoningItem, ToolCallItem, UsageItem, NoticeItem, Finish)
_REASONS = frozenset({"stop", "length", "tool_call", "content_filter", "refusal", "interrupted", "error"})
#: What was let go must be gone after so many turns of the event loop and so many seconds.
_TURNS, _PATIENCE = 50, 2.0


class ProviderUnderTest:
    """What a check gets: a fresh provider, a request to ask it, and how many streams to run at once."""

    def __init__(self, provider: Provider, request: Request, streams: int) -> None:
        self.provider, self.request, self.streams = provider, request, streams

    def open(self, request: Request | None = None) -> AsyncGenerator[Item]:
        """Start a stream. Raises AssertionError when it is not an async iterator that can be closed."""
        stream: Any = self.provider.stream(request or self.request)
        if inspect.iscoroutine(stream):
            stream.close()
            raise AssertionError("stream() is a coroutine; it must be a plain `def`, or an async generator")
        _expect(hasattr(stream, "__anext__"), f"stream() gives {type(stream).__name__}, not an async iterator")
        _expect(hasattr(stream, "aclose"), "the iterator cannot be closed early: it has no aclose()")
        return stream

    async def ask(self, request: Request | None = None) -> list[Item]:
        """Return the items of one whole answer, checked to be one."""
        return await collect(self.open(request))


Check: TypeAlias = Callable[[ProviderUnderTest], Coroutine[Any, Any, None]]


async def check_provider(
    make: Callable[[], Provider | Awaitable[Provider]], *, request: Request | None = None, streams: int = 4
) -> list[str]:
    """Run every check on a fresh provider from `make` and return the checks' names.

    `request` is what is asked (a short text by default, of the provider's own `default_model` or `model`). `make` may
    be async; a provider with a `close()`, async or not, is closed after its check. Raises AssertionError naming the
    check and what it saw.
    """
    for name, check in PROVIDER_CHECKS.items():
        provider = await _made(make)
        model = str(getattr(provider, "default_model", "") or getattr(provider, "model", ""))
        asked = request or Request(model=model, messages=[user("Say hello.")], settings=Settings(max_tokens=64))
        try:
            await check(ProviderUnderTest(provider, asked, streams))
        except Exception as error:
            raise AssertionError(f"check_provider, {name}: {str(error) or repr(error)}") from error
        finally:
            await _closed(provider)
    return list(PROVIDER_CHECKS)


async def check_failing_provider(
    make: Callable[[], Provider | Awaitable[Provider]], *, request: Request | None = None
) -> ProviderError:
    """Ask a provider that cannot answer: it must raise a ProviderError that names it, without a `Finish` before.

    Returns the error, for a closer look. Raises AssertionError for anything else.
    """
    provider = await _made(make)
    subject = ProviderUnderTest(provider, request or Request(model="", messages=[user("x")]), 1)
    count = 0
    try:
        async with aclosing(subject.open()) as stream:
            async for item in stream:
                _expect(not isinstance(item, Finish), "a Finish came, and no error")
                count += 1
    except ProviderError as error:
        _expect(error.provider == provider.name, f"the error names provider {error.provider!r}, not {provider.name!r}")
        _expect(bool(error.message), "the error says nothing")
        return error
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"raised {type(error).__name__} ({error}), not a ProviderError") from error
    finally:
        await _closed(provider)
    raise AssertionError(f"gave {count} items and no error")


async def _made(make: Callable[[], Provider | Awaitable[Provider]]) -> Provider:
    made = make()
    return await made if inspect.isawaitable(made) else made


async def _closed(provider: Any) -> None:
    close = getattr(provider, "close", None)
    for _ in range(2):  # closing twice is fine
        closing = close() if close is not None else None
        if inspect.isawaitable(closing):
            await closing


async def collect(stream: AsyncIterator[Item]) -> list[Item]:
    """Read a stream to its end and check its shape: known items, one `Finish`, last, that says what the deltas said.

    Raises AssertionError.
    """
    async with aclosing(stream) as opened:  # pyright: ignore[reportArgumentType, reportUnknownVariableType]
        items = [item async for item in opened]
        _same(await anext(opened, None), None, "what comes after the end")  # pyright: ignore[reportUnknownArgumentType]
    for item in items:
        _expect(isinstance(item, _KINDS), f"{item!r:.200} is no stream item")
    finishes = [at for at, item in enumerate(items) if isinstance(item, Finish)]
    _same(finishes, [len(items) - 1], f"places of Finish among {len(items)} items")
    finish = items[-1]
    assert isinstance(finish, Finish)
    _expect(finish.reason in _REASONS, f"the reason {finish.reason!r} is not one of {sorted(_REASONS)}")
    _same(finish.message.role, "assistant", "the role of the answer")
    _same(
        "".join([i.text for i in items if isinstance(i, TextItem)]), finish.message.text, "text of deltas and message"
    )
    names = {item.index: item.name for item in items if isinstance(item, ToolCallItem) and item.name}
    _same([names[index] for index in sorted(names)], [call.name for call in finish.message.tool_calls], "calls")
    ids = [call.id for call in finish.message.tool_calls]
    _expect(all(ids) and len(set(ids)) == len(ids), f"the calls' ids {ids} are not one each")
    counts = msgspec.structs.asdict(finish.usage)
    _expect(all(value >= 0 for value in counts.values()), f"usage {counts} has a negative count")
    msgspec.json.encode(items)
    return items


async def _shape(subject: ProviderUnderTest) -> None:
    provider = subject.provider
    _expect(isinstance(provider, Provider), "the object lacks `name` or `stream(request)`")
    _expect(isinstance(provider.name, str) and bool(provider.name), f"name is {provider.name!r}")
    stream = subject.open()
    await stream.aclose()  # before its first item: nothing was asked yet
    _same(await anext(stream, None), None, "an item of a stream closed before it began")


async def _whole_answer(subject: ProviderUnderTest) -> None:
    items = await subject.ask()
    finish = items[-1]
    assert isinstance(finish, Finish)
    _expect(bool(finish.message.parts), "the answer is empty: nothing can be checked on it")


async def _again(subject: ProviderUnderTest) -> None:
    for _ in range(2):
        await subject.ask()


async def _request_unchanged(subject: ProviderUnderTest) -> None:
    messages = list(subject.request.messages)
    request = replace(subject.request, messages=messages, metadata={"mine": 1}, system="Be brief.")
    before = msgspec.json.encode(request)
    await subject.ask(request)
    _expect(request.messages is messages, "the list of messages was replaced")
    _same(msgspec.json.encode(request), before, "the request after it was answered")


async def _history_with_tools(subject: ProviderUnderTest) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    call = ToolCall("call_1", "echo", {"text": "one"})
    history = [
        *subject.request.messages,
        Message("assistant", (Text("I will."), call)),
        Message("tool", (ToolResponse("call_1", "one"),)),
        user("And now?"),
    ]
    await subject.ask(replace(subject.request, messages=history, tools=(ToolSpec("echo", "Return the text.", schema),)))


async def _closing_early(subject: ProviderUnderTest) -> None:
    await subject.ask()  # what a provider keeps between requests is there from now on
    before = len(asyncio.all_tasks())
    stream = subject.open()
    first = await anext(stream, None)
    _expect(first is not None, "the stream has no item")
    await stream.aclose()
    await stream.aclose()
    _same(await anext(stream, None), None, "an item after the stream was closed")
    await _none_left(before)
    await subject.ask()


async def _cancelling(subject: ProviderUnderTest) -> None:
    await subject.ask()
    before = len(asyncio.all_tasks())
    for turns in (0, 1, 3, 10):
        task = asyncio.create_task(subject.ask())
        for _ in range(turns):
            await asyncio.sleep(0)
        in_time = not task.done()
        task.cancel()
        await asyncio.wait([task])
        _expect(task.cancelled() or not in_time or _finished(task), f"cancelled after {turns} steps, it {_how(task)}")
    await _none_left(before)
    await subject.ask()


def _finished(task: asyncio.Task[Any]) -> bool:
    # A provider that never waits has its whole answer before the cancellation can arrive.
    return not task.cancelled() and task.exception() is None and not task.cancelling()


def _how(task: asyncio.Task[Any]) -> str:
    error = None if task.cancelled() else task.exception()
    return f"raised {error!r}" if error is not None else "went on to its end: CancelledError was swallowed"


async def _none_left(before: int) -> None:
    """Wait until there are no more tasks than before. Not none at all: a server of the test may run on this loop."""
    end = clock.monotonic() + _PATIENCE
    turns = 0
    while (more := len(asyncio.all_tasks()) - before) > 0 and (turns < _TURNS or clock.monotonic() < end):
        turns += 1
        await clock.sleep(0 if turns < _TURNS else 0.01)
    _expect(more <= 0, f"{more} tasks are left that were not there before: {sorted(map(repr, asyncio.all_tasks()))}")


async def _at_once(subject: ProviderUnderTest) -> None:
    """Streams read in turn, item by item: each must still be its own (`collect` compares deltas and message)."""
    requests = [
        replace(subject.request, messages=[*subject.request.messages[:-1], user(f"Say {number} and {number}.")])
        for number in range(subject.streams)
    ]

    async def slowly(request: Request) -> AsyncGenerator[Item]:
        async with aclosing(subject.open(request)) as stream:
            async for item in stream:
                await asyncio.sleep(0)
                yield item

    await asyncio.gather(*[collect(slowly(request)) for request in requests])


#: Every check by the name of what it is about; each gets a provider of its own.
PROVIDER_CHECKS: dict[str, Check] = {
    "shape": _shape,
    "a whole answer": _whole_answer,
    "asked again": _again,
    "the request is not changed": _request_unchanged,
    "a history with tools": _history_with_tools,
    "closing early": _closing_early,
    "cancelling": _cancelling,
    "streams at once": _at_once,
}


def _same(got: object, wanted: object, why: str) -> None:
    _expect(got == wanted, f"{why}: expected {wanted!r:.300}, got {got!r:.300}")


def _expect(true: Sequence[Any] | bool, why: str) -> None:
    if not true:
        raise AssertionError(why)
