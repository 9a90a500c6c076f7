"""The `fault:` models: real bytes on a real socket become the typed errors they must become, and nothing is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import uvloop

from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import (
    BadRequestError,
    ModelNotFoundError,
    OverloadedError,
    ProtocolError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    StreamInterrupted,
    TransportError,
    TransportTimeout,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, Item, NoticeItem, TextItem, ToolCallItem
from windlass.core.messages import assistant, user
from windlass.core.models import Prices, facts_of
from windlass.core.request import Request, Settings
from windlass.core.usage import Usage
from windlass.providers.fault import FaultProvider
from windlass.providers.remote import RemoteProvider
from windlass.providers.retry import Retrying
from windlass.providers.vendors import DIALECTS
from windlass.testing.answers import TOKENS
from windlass.testing.catalogue import FAULTS, CatalogueServer
from windlass.testing.provider_kit import PROVIDER_CHECKS, check_failing_provider, check_provider, collect

TEXT, FIVE = "".join(TOKENS), "".join(TOKENS[:5])
SPOKEN = ["openai-chat", "anthropic", "ollama"]
#: Seconds after which these tests lose patience with a server that is silent on purpose.
IDLE = 0.2


def ask(model: str, text: str = "hi", said: str | None = None) -> Request:
    messages = [user(text)] if said is None else [user(text), assistant(said)]
    return Request(model=model, messages=messages, settings=Settings(max_tokens=64))


@asynccontextmanager
async def faults(idle: float = 30.0) -> AsyncGenerator[FaultProvider]:
    provider = FaultProvider(idle_timeout=idle)
    try:
        yield provider
    finally:
        await provider.close()


@asynccontextmanager
async def spoken(name: str, spec: str) -> AsyncGenerator[RemoteProvider]:
    """A provider of that dialect in front of a server with that fault."""
    at = DIALECTS[name]
    capabilities = FaultProvider().capabilities("ok")
    async with CatalogueServer(spec) as server:
        provider = RemoteProvider(
            name, at.dialect, server.url, at.path, capabilities=capabilities, idle_timeout=IDLE, environ={}
        )
        try:
            yield provider
        finally:
            await provider.close()


async def items_of(provider: Any, request: Request) -> tuple[list[Item], ProviderError | None]:
    """Return what came, and the error it ended with."""
    items: list[Item] = []
    try:
        async with aclosing(provider.stream(request)) as stream:
            async for item in stream:
                items.append(item)  # noqa: PERF401 - it may raise half-way
    except ProviderError as error:
        return items, error
    return items, None


def text_of(items: list[Item]) -> str:
    return "".join([item.text for item in items if isinstance(item, TextItem)])


async def whole_of(provider: RemoteProvider, request: Request) -> Finish:
    """Ask for a whole answer, as a gateway does that forwards one. Raises the typed error that it must become."""
    dialect = provider.dialect
    body = dialect.encode_request(request, provider.capabilities(request.model), stream=False)
    async with provider.forward(body, request.model, stream=False) as response:
        data = await response.read()
        headers = {name.lower(): value for name, value in response.headers.items()}
    if response.status >= 400:
        raise dialect.decode_error(response.status, headers, data, provider=None, model=None, endpoint=None)
    return dialect.decode_response(data)


# ---------------------------------------------------------------------------------------------------- typed errors


@pytest.mark.parametrize("dialect", SPOKEN)
@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_becomes_the_error_of_its_row(name: str, dialect: str) -> None:
    fault = FAULTS[name]
    spec = "slow-first-token?seconds=0.01" if name == "slow-first-token" else name
    prefilled = "one two" if name == "prefill-rejected" else None
    async with spoken(dialect, spec) as provider:
        items, error = await items_of(provider, ask("m", said=prefilled))
    # Ollama has no word for a filtered answer; there it is an error.
    expected = BadRequestError if (name, dialect) == ("content-filter", "ollama") else fault.error
    assert type(error) is (type(None) if expected is None else expected)
    if error is not None:
        assert error.provider == dialect and error.endpoint is not None and error.message
        assert not [item for item in items if isinstance(item, Finish)]
        given = FIVE if fault.outcome == "continue" else ""
        # Text that came in one read with what breaks the stream is in the error alone.
        assert error.partial == given and given.startswith(text_of(items))
    else:
        finish = items[-1]
        assert isinstance(finish, Finish)
        filtered = name == "content-filter"
        assert finish.message.text == text_of(items) == (FIVE if filtered else TEXT)
        assert finish.reason in (("content_filter", "refusal") if filtered else ("stop",))


#: A whole answer: TransportError kinds where the body never came, as it is forwarded.
WHOLE: dict[str, type[WindlassError] | None] = {
    "reset": ProtocolError,
    "silence": TransportTimeout,
    "cut": ProtocolError,
    "stalled": TransportTimeout,
    "no-done": None,
}


@pytest.mark.parametrize("dialect", SPOKEN)
@pytest.mark.parametrize("name", FAULTS)
async def test_each_fault_of_a_whole_answer_is_typed(name: str, dialect: str) -> None:
    spec = "slow-first-token?seconds=0.01" if name == "slow-first-token" else name
    expected = WHOLE.get(name, FAULTS[name].error)
    if (name, dialect) == ("content-filter", "ollama"):
        expected = BadRequestError
    async with spoken(dialect, spec) as provider:
        request = ask("m", said="one two" if name == "prefill-rejected" else None)
        if expected is not None:
            with pytest.raises(expected) as caught:
                await whole_of(provider, request)
            assert type(caught.value) is expected
        else:
            finish = await whole_of(provider, request)
            filtered = name == "content-filter"
            assert finish.message.text == (FIVE if filtered else TEXT)
            assert finish.reason in (("content_filter", "refusal") if filtered else ("stop",))
            assert finish.usage == Usage(1, 5 if filtered else 10)


@pytest.mark.parametrize("tokens", [0, 1, 10, 99])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cut?end=rst", StreamInterrupted),
        ("cut?end=fin", StreamInterrupted),
        ("malformed?delay=0", WireError),
        ("no-done?delay=0", StreamInterrupted),
        ("error-event?delay=0", OverloadedError),
    ],
)
async def test_wherever_a_stream_breaks_no_finish_comes_and_the_text_is_kept(
    name: str, kind: type[ProviderError], tokens: int
) -> None:
    async with faults() as provider:
        items, error = await items_of(provider, ask(f"{name}&tokens={tokens}"))
    assert error is not None and error.partial == "".join(TOKENS[:tokens])
    assert error.partial.startswith(text_of(items)) and not [item for item in items if isinstance(item, Finish)]
    # Before any text a broken connection is one that may be asked again.
    lost = name.startswith("cut") and not tokens
    assert type(error) is (ProviderConnectionError if lost else kind)


async def test_broken_calls_are_never_whole() -> None:
    async with faults() as provider:
        items, error = await items_of(provider, ask("cut?tokens=2", 'call weather {"city": "Oslo"}'))
        assert isinstance(error, (StreamInterrupted, ProviderConnectionError))
        assert [type(item) for item in items] == [ToolCallItem, ToolCallItem]
        items, error = await items_of(provider, ask("ok", 'call weather {"city": "Oslo"}'))
    finish = items[-1]
    assert isinstance(finish, Finish) and (error, finish.reason) == (None, "tool_call")
    assert [(call.name, call.arguments) for call in finish.message.tool_calls] == [("weather", {"city": "Oslo"})]


async def test_waits_and_partial_answers_are_told() -> None:
    async with faults(IDLE) as provider:
        _, limited = await items_of(provider, ask("429-retry-after?seconds=7.5"))
        _, plain = await items_of(provider, ask("429"))
        assert isinstance(limited, RateLimitError) and limited.retry_after is not None
        assert 7.0 < limited.retry_after <= 7.5
        assert isinstance(plain, RateLimitError) and plain.retry_after is None
        _, stalled = await items_of(provider, ask("stalled?tokens=2"))
        assert isinstance(stalled, ProviderTimeoutError) and stalled.partial == "one two"
        _, slow = await items_of(provider, ask("slow-first-token?seconds=60"))
        assert isinstance(slow, ProviderTimeoutError) and slow.partial == ""


# ------------------------------------------------------------------------------------------------------- rescues


@pytest.mark.parametrize("name", [name for name, row in FAULTS.items() if row.outcome == "retry"])
async def test_what_a_retry_rescues_our_retries_rescue(name: str) -> None:
    provider, model, full = registry.model(f"fault:{name}", Config.from_environment({}))
    assert isinstance(provider, Retrying) and (provider.name, full) == ("fault", f"fault:{name}")
    provider.base = 0.001
    asked = f"{model}?seconds=0.02" if name == "429-retry-after" else model
    try:
        items = await collect(provider.stream(ask(asked)))
    finally:
        await provider.close()
    notices = [item.kind for item in items if isinstance(item, NoticeItem)]
    assert notices == ["retry"] and text_of(items) == TEXT


async def test_flapping_and_once_by_model_and_provider() -> None:
    async def answered(provider: FaultProvider, model: str, count: int) -> list[bool]:
        return [(await items_of(provider, ask(model)))[1] is None for _ in range(count)]

    async with faults() as one, faults() as other:
        assert await answered(one, "flapping", 4) == [False, True, False, True]
        assert await answered(one, "flapping?id=b", 3) == [False, True, False]
        assert await answered(one, "500-once?times=2", 4) == [False, False, True, True]
        assert await answered(other, "500-once?times=2", 3) == [False, False, True]


@pytest.mark.parametrize("name", [name for name, row in FAULTS.items() if row.outcome == "continue"])
async def test_what_was_given_and_a_prefill_make_the_whole_answer(name: str) -> None:
    async with faults(IDLE) as provider:
        assert provider.capabilities("ok").prefill
        items, error = await items_of(provider, ask(f"{name}?tokens=3"))
        assert error is not None and error.partial == "one two three"
        for given in {error.partial, text_of(items)} - {""}:
            rest, failed = await items_of(provider, ask("ok", said=given))
            assert failed is None and given + text_of(rest) == TEXT
        # One that says it can and cannot: refused before content, so that another way is open.
        nothing, refused = await items_of(provider, ask("prefill-rejected", said="one two three"))
        assert (nothing, type(refused)) == ([], BadRequestError)


# -------------------------------------------------------------------------------------------------- as a provider


async def test_it_is_a_provider() -> None:
    assert await check_provider(FaultProvider) == list(PROVIDER_CHECKS)


@pytest.mark.parametrize("name", [name for name, row in FAULTS.items() if row.error and name != "prefill-rejected"])
async def test_failing_as_a_provider_must(name: str) -> None:
    error = await check_failing_provider(lambda: FaultProvider(idle_timeout=IDLE), request=ask(name))
    assert type(error) is FAULTS[name].error


async def test_unknown_names_and_bad_parameters_are_answered_as_vendors_answer() -> None:
    async with faults() as provider:
        _, unknown = await items_of(provider, ask("cutt"))
        assert isinstance(unknown, ModelNotFoundError) and unknown.status == 404 and "'cut'" in str(unknown)
        _, bad = await items_of(provider, ask("cut?tokens=-1"))
        assert isinstance(bad, BadRequestError) and "from 0 to 100000" in str(bad)
        assert await provider.models() == ["ok", *FAULTS]


async def test_it_costs_nothing_and_needs_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts_of("fault", "cut?tokens=5").prices == Prices(0.0, 0.0)
    config = Config.from_environment({"WINDLASS_PROVIDER": "groq", "WINDLASS_MODEL": "fault:cut"})
    assert config.default_model == "fault:cut"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    environ = {"HTTP_PROXY": "http://127.0.0.1:9", "WINDLASS_IDLE_TIMEOUT": "0.05"}
    provider, model, full = registry.model("fault", Config.from_environment(environ))
    assert (model, full) == ("ok", "fault:ok")
    assert text_of((await items_of(provider, ask("ok")))[0]) == TEXT
    provider.base = 0.001
    _, silent = await items_of(provider, ask("silence"))
    assert isinstance(silent, ProviderTimeoutError) and silent.attempt == silent.max_attempts == 3
    await provider.close()


# -------------------------------------------------------------------------------------------- starting and ending


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.001)


async def test_nothing_is_left_after_closing() -> None:
    await asyncio.sleep(0)
    before, tasks = descriptors(), asyncio.all_tasks()
    provider = FaultProvider(idle_timeout=0.05)
    for name in ("ok", *FAULTS, "none"):
        await items_of(provider, ask("slow-first-token?seconds=9" if name == "slow-first-token" else name))
    address = provider.address("ok")
    assert descriptors() > before and len({provider.address(name) for name in FAULTS}) == 16
    await provider.close()
    await until(lambda: descriptors() == before and asyncio.all_tasks() == tasks)
    port = int(address.split(":")[2].split("/")[0])
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    # It may be asked again: with servers of its own, and a memory of its own.
    assert text_of((await items_of(provider, ask("ok")))[0]) == TEXT
    await provider.close()
    await provider.close()
    await until(lambda: descriptors() == before and asyncio.all_tasks() == tasks)


async def test_many_at_once_start_one_server_and_each_gets_its_own_answer() -> None:
    async with faults() as provider:
        results = await asyncio.gather(*[items_of(provider, ask(f"cut?tokens={n % 10 + 1}")) for n in range(30)])
        assert [text_of(items) for items, _ in results] == ["".join(TOKENS[: n % 10 + 1]) for n in range(30)]
        assert len({provider.address(f"cut?tokens={n}") for n in range(9)}) == 1


async def test_closed_amid_a_stream_it_ends_with_a_typed_error() -> None:
    provider = FaultProvider()
    task = asyncio.create_task(items_of(provider, ask("stalled?tokens=1")))
    await until(lambda: bool(provider.base_url.count(":") > 1))
    await asyncio.sleep(0.02)
    await provider.close()
    _, error = await task
    assert isinstance(error, ProviderError) and error.provider == "fault"


async def test_a_client_that_leaves_frees_the_server() -> None:
    before = descriptors()
    async with faults() as provider:
        async with aclosing(provider.stream(ask("stalled"))) as stream:  # pyright: ignore[reportArgumentType, reportUnknownVariableType]
            assert await anext(stream) == TextItem("one")
        await until(lambda: descriptors() == before + 1)  # the listening socket
        for turns in range(6):
            task = asyncio.create_task(items_of(provider, ask("silence")))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await until(lambda: descriptors() <= before + 2)
    await until(lambda: descriptors() == before)


async def test_forwarded_bytes_are_the_servers_own() -> None:
    async with faults() as provider:
        request = ask("cut?tokens=2")
        body = provider.dialect.encode_request(request, provider.capabilities(request.model), stream=True)
        got: list[bytes] = []
        with pytest.raises(TransportError):
            async with provider.forward(body, request.model, stream=True) as response:
                assert (response.status, response.headers.get("content-type")) == (200, "text/event-stream")
                async for chunk in response.chunks():
                    got.append(chunk)  # noqa: PERF401 - it raises half-way
        data = b"".join(got)
        assert b'"content":"one"' in data and b'"content":" two"' in data and b"three" not in data


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_in_a_loop_of_either_kind_and_in_one_after_the_other(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    provider = FaultProvider(idle_timeout=IDLE)

    async def once() -> list[tuple[str, str]]:
        out: list[tuple[str, str]] = []
        for model in ("ok", "reset", "cut?end=rst", "cut", "silence", "500-once"):
            items, error = await items_of(provider, ask(model))
            out.append((text_of(items), type(error).__name__))
        await provider.close()
        return out

    with asyncio.Runner(loop_factory=loop) as runner:  # uvloop's first loop keeps two for the process
        runner.run(asyncio.sleep(0))
    before = descriptors()
    for _ in range(2):
        with asyncio.Runner(loop_factory=loop) as runner:
            assert runner.run(once()) == [
                (TEXT, "NoneType"),
                ("", "ProviderConnectionError"),
                (FIVE, "StreamInterrupted"),
                (FIVE, "StreamInterrupted"),
                ("", "ProviderTimeoutError"),
                ("", "OverloadedError"),
            ]
    assert descriptors() == before
