"""A model file served by name: slots, order, what frees them, memory told before loading, and unloading."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, aclosing
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from windlass.agent.agent import Agent
from windlass.core import clock
from windlass.core.config import Config
from windlass.core.errors import (
    ConfigError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    UnsupportedInputError,
)
from windlass.core.features import FeatureOff
from windlass.core.items import Finish, Item, TextItem
from windlass.core.messages import user
from windlass.core.request import Budget, Request, Settings
from windlass.core.routes import read_routes
from windlass.core.threads import run_in_thread
from windlass.local import engine as engine_module
from windlass.local.door import Door
from windlass.local.embedded import embedded_model
from windlass.local.engine import Engine, EngineOptions
from windlass.providers.local import LocalProvider
from windlass.providers.local_slots import NoRoom
from windlass.providers.own import local_provider
from windlass.providers.route import Router
from windlass.testing.faults import FaultServer, Stream, sse

TINY = embedded_model().path
ENDLESS = Settings(max_tokens=1500, extra={"grammar": 'root ::= "a" root'})
LONG = {"type": "string", "minLength": 3000}
SMALL = {"threads": 1, "gpu_layers": 0}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mine.gguf"
    shutil.copyfile(TINY, path)
    return path


@pytest.fixture
def served(file: Path) -> Generator[Any]:
    """Make providers of `[providers.local]` tables whose model `m` is a file; they are closed at the end."""
    made: list[LocalProvider] = []

    def make(**table: Any) -> LocalProvider:
        whole = {**SMALL, "models": {"m": str(file)}, **table}
        made.append(local_provider(Config(environ={}, providers={"local": whole})))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


def asking(text: str = "x", **fields: Any) -> Request:
    fields = {"model": "m", "settings": ENDLESS, **fields}
    return Request(messages=[user(text)], **fields)


def opened(provider: LocalProvider, request: Request) -> AsyncGenerator[Item]:
    return cast("AsyncGenerator[Item]", provider.stream(request))


async def last_of(provider: LocalProvider, request: Request) -> Finish:
    async with aclosing(opened(provider, request)) as items:
        got = [item async for item in items]
    assert isinstance(got[-1], Finish)
    return got[-1]


def slots_of(provider: LocalProvider, model: str = "m") -> Any:
    return provider._serve(model).slots  # pyright: ignore[reportPrivateUsage]


async def until(condition: Any) -> None:
    async with clock.deadline(20):
        while not condition():
            await clock.sleep(0.005)


# ----------------------------------------------------------------------------------------------------------- by name


async def test_any_model_file_answers_by_its_name(served: Any, file: Path) -> None:
    provider = served(model="m")
    for model in ("m", "", "default", str(file)):
        assert (
            await last_of(provider, asking("hello", model=model, settings=Settings(temperature=0)))
        ).message.text != ""
    assert (await last_of(provider, asking(settings=Settings(max_tokens=2)))).model == "m"
    assert (await last_of(provider, asking(model="tiny", settings=Settings(max_tokens=2)))).model == "tiny-0"
    assert await provider.models() == ["m", "tiny-0"]
    with pytest.raises(ModelNotFoundError, match="Use 'm', 'tiny-0' or the path"):
        await last_of(provider, asking(model="other"))


async def test_an_agent_takes_a_file_and_a_name(file: Path) -> None:
    config = Config(environ={}, providers={"local": {**SMALL, "models": {"m": str(file)}}})
    for model in (f"local:{file}", "local:m"):
        agent = Agent(model, config=config, temperature=0)
        assert (await agent.run("hello")).text.startswith("Hello! I am the tiny built-in model")
        await agent.destroy()
    cast("LocalProvider", agent.provider).close()


async def test_the_context_is_stated_from_the_file_s_header(served: Any, file: Path) -> None:
    provider = served(models={"m": str(file), "short": {"path": str(file), "context": 512}, "gone": "/no.gguf"})
    known = [provider.capabilities(model).context for model in ("m", "short", "tiny", "gone")]
    assert known == [4096, 512, 4096, None]
    router = Router(Config(environ={}, providers={"local": {"models": {"short": {"path": str(file), "context": 512}}}}))
    (target,) = router.route("local:short").targets
    assert (target.context, target.capabilities.vision) == (512, False)
    await router.close()


async def test_a_gateway_s_clients_choose_among_names_and_no_files(file: Path) -> None:
    config = Config(environ={}, providers={"local": {**SMALL, "models": {"m": str(file)}}})
    router = Router(config)
    provider: Any = router.provider("local")  # also what lists its models must not open files for clients
    (target,) = router.route("local:m").targets
    assert target.provider is provider and (await last_of(provider, asking("hello", settings=Settings()))).message.text
    (asked,) = router.route(f"local:{file}").targets
    with pytest.raises(ModelNotFoundError):
        await last_of(asked.provider, asking(model=asked.model))
    await router.close()


async def test_the_default_model_of_the_user_may_be_a_file(file: Path) -> None:
    config = Config.from_environment({"WINDLASS_MODEL": f"local:{file}"})
    router = Router(config)
    (target,) = router.route("auto").targets
    assert (await last_of(target.provider, asking("hello", model=target.model, settings=Settings()))).model == "mine"
    with pytest.raises(ModelNotFoundError):
        (other,) = router.route(f"local:{file.with_name('other.gguf')}").targets
        await last_of(other.provider, asking(model=other.model))
    await router.close()


# ------------------------------------------------------------------------------------------------------------- slots


async def test_four_slots_answer_four_at_a_time_and_the_fifth_waits(served: Any) -> None:
    provider, order = served(slots=4, context=2048), list[tuple[int, str]]()

    async def ask(number: int) -> None:
        settings = Settings(max_tokens=60, extra={"grammar": 'root ::= "a" root'})
        async with aclosing(opened(provider, asking(settings=settings))) as items:
            async for item in items:
                order.append((number, type(item).__name__))

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(ask(number))
        await until(lambda: slots_of(provider).busy == 4)
        assert slots_of(provider).waiting == 1
    first_end = order.index(next(row for row in order if row[1] == "Finish"))
    # Before any of the first four was done, each of them had told pieces, in turn with the others.
    pieces = [number for number, kind in order[:first_end] if kind == "TextItem"]
    assert {number: pieces.count(number) > 10 for number in range(4)} == dict.fromkeys(range(4), True)
    turns = sum(1 for before, after in pairwise(pieces) if before != after)
    assert turns > 40, pieces
    assert 4 not in pieces and order[-1] == (4, "Finish")
    assert (slots_of(provider).busy, slots_of(provider).waiting) == (0, 0)


async def test_who_leaves_frees_the_slot_at_the_next_token(served: Any) -> None:
    provider = served(slots=1)
    for _ in range(3):
        async with aclosing(opened(provider, asking())) as first:
            assert isinstance(await anext(first), TextItem)
            waiting = asyncio.create_task(last_of(provider, asking("hello", settings=Settings(temperature=0))))
            await until(lambda: slots_of(provider).waiting == 1)
        # The worker has one slot: that the next one is answered shows that it is free.
        assert (await waiting).message.text.startswith("Hello!")
    assert slots_of(provider).busy == 0


async def test_the_engine_itself_reports_the_slots_that_are_taken_and_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Telling(Door):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            params.endpoint_slots = True

    monkeypatch.setattr(engine_module, "Door", Telling)
    engine = Engine(TINY, EngineOptions(context=4096, slots=4, threads=1, gpu_layers=0, memory_map=False))
    provider = LocalProvider(engine=engine, model="m")
    try:
        async with AsyncExitStack() as stack:
            streams = list[AsyncGenerator[Item]]()
            for _ in range(4):
                request = asking(output_schema=LONG, settings=Settings(max_tokens=3000))
                streams.append(await stack.enter_async_context(aclosing(opened(provider, request))))
                assert isinstance(await anext(streams[-1]), TextItem)
            native: Any = engine._running.native  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]

            def working() -> int:
                return sum(row["is_processing"] for row in json.loads(native._door.ask("/slots")))

            assert await run_in_thread(working) == 4
            for left in (3, 2, 1, 0):
                await streams.pop().aclose()
                async with clock.deadline(20):
                    while (now := await run_in_thread(working)) != left:
                        assert now > left
    finally:
        engine.close()


async def test_a_full_queue_is_told_and_nothing_is_lost(served: Any) -> None:
    provider = served(slots=1, queue=1)
    async with aclosing(opened(provider, asking())) as first:
        await anext(first)
        waiting = asyncio.create_task(last_of(provider, asking("hello", settings=Settings(max_tokens=3))))
        await until(lambda: slots_of(provider).waiting == 1)
        with pytest.raises(NoRoom, match="it takes no more now") as caught:
            await last_of(provider, asking())
        with pytest.raises(NoRoom):
            await provider.count(asking())
    assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
    assert (await waiting).usage.output_tokens == 3
    assert slots_of(provider).busy == 0


async def test_deadlines_hold_while_waiting_and_while_the_prompt_is_read(served: Any) -> None:
    provider = served(slots=1)
    async with aclosing(opened(provider, asking())) as first:
        await anext(first)
        with pytest.raises(ProviderTimeoutError, match="did not answer in the time given"):
            await last_of(provider, asking(budget=Budget(0.1)))
        assert (slots_of(provider).busy, slots_of(provider).waiting) == (1, 0)
    # A long prompt takes the whole of a short time; the slot is free again afterwards.
    with pytest.raises(ProviderTimeoutError):
        await last_of(provider, asking("hello " * 1900, budget=Budget(0.001)))
    assert (await last_of(provider, asking("hello", settings=Settings(max_tokens=3)))).usage.output_tokens == 3
    assert slots_of(provider).busy == 0


async def test_a_route_goes_on_to_the_next_target_and_opens_no_breaker(file: Path) -> None:
    config = Config(
        environ={},
        providers={"local": {**SMALL, "slots": 1, "queue": 0, "models": {"m": str(file)}}},
        routes=read_routes({"both": ["local:m", "echo"], "one": "local:m"}),
    )
    router = Router(config)
    busy: Any = router.provider("local")
    target = router.route("one").targets[0]
    async with aclosing(opened(busy, asking())) as first:
        await anext(first)
        with pytest.raises(NoRoom) as caught:
            await last_of(busy, asking())
        for _ in range(8):
            attempts = router.route("both").attempts()
            asked = [await attempts.next()]
            attempts.failed(caught.value)
            asked.append(await attempts.next())
            attempts.close()
            assert [one.name for one in asked if one is not None] == ["local:m", "echo"]
        alone = router.route("one").attempts()
        await alone.next()
        alone.failed(caught.value)
        assert await alone.next() is None and alone.last_error is caught.value
    assert target.breaker.healthy and target.breaker.consecutive == 0
    await router.close()


# ------------------------------------------------------------------------------------------------- memory, unloading


async def test_the_memory_is_told_before_loading_and_what_does_not_fit_is_refused(
    served: Any, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = served(models={"m": str(file), "huge": {"path": str(file), "context": 1 << 29}, "gone": "/no.gguf"})
    caplog.set_level(logging.INFO, "windlass.local")
    plans = provider.plans()
    assert [fits for _, fits in plans] == [True, False, False]
    assert plans[0][0].startswith("m needs about") and "It does not fit" in plans[1][0] and "/no.gguf" in plans[2][0]
    with pytest.raises(NoRoom, match=r"huge needs about .* are free\. Use a smaller context") as caught:
        await last_of(provider, asking(model="huge"))
    assert isinstance(caught.value, OverloadedError) and caught.value.status == 503
    assert provider._serve("huge").engine is None and slots_of(provider, "huge").busy == 0  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(NoRoom, match="huge needs about"):
        await provider.embed(["x"], "huge")
    caplog.clear()
    await last_of(provider, asking("hello", settings=Settings(max_tokens=2)))
    await last_of(provider, asking("hello", settings=Settings(max_tokens=2)))
    # Once, when it is loaded; what is free by then may have changed.
    told = [record.getMessage().partition(";")[0] for record in caplog.records]
    assert told == [plans[0][0].partition(";")[0]]


async def test_ignore_memory_loads_in_spite_of_the_plan(served: Any, file: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("windlass.local.planning.free_memory", lambda: 1 << 20)
    with pytest.raises(NoRoom):
        await last_of(served(), asking("hello", settings=Settings(max_tokens=2)))
    provider = served(ignore_memory=True)
    assert (await last_of(provider, asking("hello", settings=Settings(max_tokens=2)))).usage.output_tokens == 2


async def test_an_idle_model_is_unloaded_and_loaded_again(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "windlass.local")
    provider = served(idle_seconds=0.05)
    model: Any = provider._serve("m")  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        async with aclosing(opened(provider, asking())) as items:
            await anext(items)
            pid = model.engine.pid
            await clock.sleep(0.15)  # as long as somebody asks it stays
            assert model.engine is not None and model.engine.pid == pid
        await until(lambda: model.engine is None)
        await until(lambda gone=pid: not _runs(gone))
    assert [record.getMessage().partition(" is ")[2] for record in caplog.records if "unloaded" in record.msg] == [
        "unloaded: nobody asked it for 0.05 s."
    ] * 2
    assert (await last_of(provider, asking("hello", settings=Settings(max_tokens=2)))).usage.output_tokens == 2


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------- other backends


async def test_a_model_behind_a_server_of_one_s_own() -> None:
    def chunk(**delta: Any) -> str:
        return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    end = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    use = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
    answer = Stream(sse(chunk(content="from "), chunk(content="afar"), end, use, "[DONE]"))
    async with FaultServer([answer]) as server:
        far = {"base_url": f"{server.url}/v1", "api_key": "env:FAR"}
        config = Config(environ={"FAR": "k-1"}, providers={"local": {"models": {"far": far}}})
        provider = local_provider(config)
        assert provider.plans() == [(f"far is asked at {server.url}.", True)]
        got = await last_of(provider, asking(model="far", settings=Settings()))
        assert (got.message.text, got.model, got.usage.total_tokens) == ("from afar", "far", 5)
        provider.close()
    assert server.requests[0].target == "/v1/chat/completions"
    assert dict(server.requests[0].headers)["authorization"] == "Bearer k-1"


async def test_a_llama_server_that_is_not_there_is_named(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    provider = served(backend="server")
    with pytest.raises(ConfigError, match="no llama-server on PATH"):
        await last_of(provider, asking())
    with pytest.raises(UnsupportedInputError, match="gives text only"):
        await provider.embed(["x"], "m")
    assert slots_of(provider).busy == 0


async def test_adapters_that_are_no_models_are_refused(tmp_path: Path, file: Path, served: Any) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"nothing")
    provider = served(models={"m": {"path": str(file), "adapters": [str(bad)]}})
    with pytest.raises(ProviderError, match=r"bad\.gguf"):
        await last_of(provider, asking())
    provider = served(model=str(file), adapters=[str(bad)])
    with pytest.raises(ProviderError, match=r"bad\.gguf"):
        await last_of(provider, asking(model=""))
    # They belong to that model: another one is loaded without them.
    assert (await last_of(provider, asking("hello", settings=Settings(max_tokens=2)))).usage.output_tokens == 2


# ---------------------------------------------------------------------------------------------------------- switches


async def test_switched_off_they_are_refused_with_the_setting() -> None:
    config = Config(environ={}, off={"llm": "/home/u/windlass.toml"}, routes=read_routes({"r": ["local", "echo"]}))
    for make in (lambda: local_provider(config), lambda: Agent("local", config=config), lambda: Agent(config=config)):
        with pytest.raises(FeatureOff, match=r"\[features\] llm = false\. It stands in /home/u/windlass.toml"):
            make()
    router = Router(config)
    (problem,) = router.check()
    assert problem.startswith("local: Models on this machine are switched off")
    assert [target.name for target in router.route("r").targets] == ["echo"]
    with pytest.raises(ModelNotFoundError, match=r"llm = false\.$") as caught:
        router.route("local:tiny")  # a client learns no folder of ours
    assert caught.value.status == 404 and router.local_plans() == []
