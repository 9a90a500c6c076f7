"""A route as a provider: what passes through, what is held back, its deadlines, and how it lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from tests.providers.routing import asking, down, faked, limited, notices_of, scripted, text_of
from windlass.agent.agent import Agent
from windlass.core import clock
from windlass.core.config import Config
from windlass.core.errors import (
    AuthError,
    ConfigError,
    MissingKeyError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    StreamInterrupted,
    UnsupportedInputError,
)
from windlass.core.events import ProviderSwitched, Retry
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, UsageItem
from windlass.core.messages import Blob, Message, Text, assistant
from windlass.core.ports import Embedder, Embeddings, Provider
from windlass.core.request import Budget, Request, ToolSpec
from windlass.core.usage import Usage
from windlass.providers.echo import EchoProvider
from windlass.providers.route import Router
from windlass.providers.routed import RouteProvider, make
from windlass.testing.awaits import sweep
from windlass.testing.provider_kit import PROVIDER_CHECKS, check_provider
from windlass.testing.scripted import ScriptedProvider


class Slow(ScriptedProvider):
    """Yield items and pauses (seconds) in turn; `closed` counts the streams that were let go before their end."""

    def __init__(self, name: str, *steps: Any) -> None:
        super().__init__(name=name)
        self.steps = steps

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        self.requests.append(request)
        ended = False
        try:
            for step in self.steps:
                if isinstance(step, float):
                    await clock.sleep(step)
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
            ended = True
        finally:
            self.closed += not ended


def finish(text: str = "", **more: Any) -> Finish:
    return Finish(assistant(text), Usage(5, 7), **more)


def route_of(routes: Any, **providers: Any) -> RouteProvider:
    return RouteProvider(scripted({"r": routes}, **providers).route("r"))


async def collected(provider: RouteProvider, request: Request | None = None) -> tuple[list[Item], ProviderError | None]:
    items: list[Item] = []
    try:
        async for item in provider.stream(request or asking()):
            items.append(item)  # noqa: PERF401 - what came before the error counts
    except ProviderError as error:
        return items, error
    return items, None


# -- the port ----------------------------------------------------------------------------------------------------------


async def test_it_is_a_provider_like_any_other() -> None:
    made = route_of(["a:x", "b:y"], a=["one two"], b=["three"])
    assert isinstance(made, Provider) and made.name == "r"
    assert await check_provider(lambda: route_of(["a:x"], a=["Hello there, all of you."])) == list(PROVIDER_CHECKS)


async def test_it_passes_the_kit_with_a_first_target_that_is_always_down() -> None:
    def make_one() -> RouteProvider:
        config = Config(environ={}, providers={"a": {"base_url": "http://127.0.0.1:9"}}, routes={"r": ["a:x", "echo"]})
        config.provider("a", lambda: ScriptedProvider([down()], name="a", repeat=True))
        return RouteProvider(Router(config).route("r"))

    assert await check_provider(make_one) == list(PROVIDER_CHECKS)


async def test_each_target_is_asked_for_its_own_model_within_one_budget() -> None:
    a, b = ScriptedProvider([down()], name="a", repeat=True), ScriptedProvider(["hi"], name="b")
    given = Budget(50.0, 5)
    provider = route_of({"targets": ["a:x", "b:y"], "timeout": 20}, a=a, b=b)
    tool = ToolSpec("t")
    items, error = await collected(provider, asking("hello", budget=given, tools=(tool,), system="S"))
    assert error is None and text_of(items) == "hi"
    assert [request.model for request in (*a.requests, *b.requests)] == ["x", "y"]
    sent = b.requests[0]
    assert sent.tools == (tool,) and sent.system == "S" and sent.messages == a.requests[0].messages
    assert isinstance(sent.budget, Budget) and 0 < (sent.budget.remaining() or 0) <= 20.0 and given.attempts == 3


async def test_the_finish_names_who_answered_and_what_it_cost() -> None:
    prices = {"gpt-4.1-mini": (0.4, 1.6)}
    said = [[TextItem("hi"), finish("hi")], [TextItem("hi"), finish("hi", model="named", cost=9)]]
    openai = ScriptedProvider(said, name="openai")
    config = Config(environ={"OPENAI_API_KEY": "k"}, routes={"r": ["openai:gpt-4.1-mini", "echo"]})
    config.provider("openai", lambda: openai)
    provider = make("r", config)
    (last,) = [item for item in (await collected(provider))[0] if isinstance(item, Finish)]
    asked, answered = prices["gpt-4.1-mini"]
    assert (last.model, last.cost) == ("gpt-4.1-mini", round((5 * asked + 7 * answered) * 1000))
    (last,) = [item for item in (await collected(provider))[0] if isinstance(item, Finish)]
    assert (last.model, last.cost) == ("named", 9), "what the provider says itself counts"
    assert make("r", config) is provider


async def test_the_first_target_speaks_for_the_route() -> None:
    class Vectors(ScriptedProvider):
        default_max_tokens = 128

        async def embed(self, texts: Sequence[str], model: str, *, dimensions: int | None = None) -> Embeddings:
            return Embeddings(tuple([(float(len(text)), float(dimensions or 0)) for text in texts]), model)

        async def count(self, request: Request) -> int:
            return len(request.model)

        async def models(self) -> list[str]:
            return ["x", "z"]

    provider: Any = route_of(["a:own", "b:y"], a=Vectors(["hi"], name="a", structured_output=True), b=["hi"])
    embeds: list[object] = [provider]
    assert isinstance(embeds[0], Embedder) and not isinstance(route_of(["b:y", "a:own"], a=["x"], b=["y"]), Embedder)
    assert await provider.embed(["abc"], "other", dimensions=2) == Embeddings(((3.0, 2.0),), "own")
    assert await provider.count(asking()) == 3 and await provider.models() == ["x", "z"]
    assert provider.default_max_tokens == 128 and provider.capabilities("?").tools
    assert provider.structured_output is False, "only what every target can"
    for missing in ("dropped", "notice", "forward", "refresh", "anything"):
        assert not hasattr(provider, missing)


async def test_an_agent_hears_of_switches_and_retries() -> None:
    a = ScriptedProvider([down(), down(), "from a"], name="a")
    b = ScriptedProvider([down(), "from b"], name="b", repeat=True)
    router = scripted({"r": {"targets": ["a:x", "b:y"], "attempts": 4}}, base=0.001, a=a, b=b)
    agent = Agent(RouteProvider(router.route("r")))
    switches: list[tuple[str | None, str | None]] = []
    retries: list[int] = []
    agent.on(ProviderSwitched, lambda event: switches.append((event.provider, event.model)))
    agent.on(Retry, lambda event: retries.append(event.attempt))
    result = await agent.run("hi", max_attempts=4)
    assert result.text in ("from a", "from b") and switches == [("b", "y")] and retries[0] == 3
    await agent.destroy()


# -- until the first content -------------------------------------------------------------------------------------------


async def test_what_a_target_used_that_never_answered_is_not_told() -> None:
    first = Slow("a", UsageItem(Usage(99, 0)), NoticeItem("warning", "careful"), UsageItem(Usage(100, 0)), down())
    fine = NoticeItem("warning", "fine")
    second = Slow("b", UsageItem(Usage(5, 0)), fine, TextItem("hi"), UsageItem(Usage(5, 7)), finish("hi"))
    items, error = await collected(route_of(["a:x", "b:y"], a=first, b=second))
    assert error is None
    assert [item.message for item in notices_of(items)] == ["careful", "It is down. b:y is asked instead.", "fine"]
    assert [item.usage for item in items if isinstance(item, UsageItem)] == [Usage(5, 0), Usage(5, 7)]


@pytest.mark.parametrize("kind", [TextItem, ReasoningItem])
async def test_after_the_first_content_errors_pass_through(kind: Callable[[str], Item]) -> None:
    error = OverloadedError("gone", status=503, partial="x")
    first, second = Slow("a", kind("x"), error), ScriptedProvider(["never"], name="b")
    router = scripted({"r": ["a:x", "b:y"]}, a=first, b=second)
    items, raised = await collected(RouteProvider(router.route("r")))
    assert [type(item) for item in items] == [type(kind(""))] and raised is error
    assert second.requests == [] and first.closed == 1
    assert router.route("r").targets[0].breaker.consecutive == 1


@pytest.mark.parametrize("text", [(), ("Hel",)])
async def test_a_stream_without_a_finish_is_interrupted(text: tuple[str, ...]) -> None:
    first = Slow("a", *[TextItem(piece) for piece in text])
    items, error = await collected(route_of(["a:x", "b:y"], a=first, b=["whole"]))
    if text:
        assert isinstance(error, StreamInterrupted) and error.partial == "Hel" and error.provider == "a"
    else:
        assert error is None and text_of(items) == "whole"


async def test_an_empty_answer_and_a_filtered_one_are_answers() -> None:
    for reason in ("stop", "content_filter", "refusal"):
        second = ScriptedProvider(["never"], name="b")
        items, error = await collected(route_of(["a:x", "b:y"], a=Slow("a", finish(reason=reason)), b=second))
        (last,) = items
        assert error is None and isinstance(last, Finish) and last.reason == reason and second.requests == []


async def test_a_key_that_is_missing_when_it_is_asked_goes_to_the_next_target() -> None:
    error = MissingKeyError("No credentials.")
    items, none = await collected(route_of(["a:x", "b:y"], a=Slow("a", error), b=["hi"]))
    assert none is None and text_of(items) == "hi" and notices_of(items)[0].message.startswith("No credentials.")
    with pytest.raises(ConfigError) as caught:
        await anext(aiter(route_of(["a:x"], a=Slow("a", error)).stream(asking())))
    assert caught.value is error


async def test_a_request_that_nobody_can_serve_is_refused_before_anybody_is_asked() -> None:
    provider = RouteProvider(Router(Config(environ={}, routes={"r": ["local", "echo"]}, providers={})).route("r"))
    image = Message("user", (Blob(b"x", "image/png", "image"), Text("?")))
    items, error = await collected(RouteProvider(provider.route), Request(model="", messages=[image]))
    assert error is None and text_of(items) == "Echo: ?", "echo reads what it can, the local model was left out"
    alone = RouteProvider(Router(Config(environ={}, routes={"r": {"targets": "local", "timeout": 5}})).route("r"))
    _, error = await collected(alone, Request(model="", messages=[image]))
    assert isinstance(error, UnsupportedInputError)


async def test_when_all_fail_the_first_one_s_error_is_told_with_the_others_as_notes() -> None:
    first, second = AuthError("bad key", provider="a"), down()
    _, error = await collected(route_of(["a:x", "b:y"], a=Slow("a", first), b=Slow("b", second)))
    assert error is not None and error is first and error.__notes__ == ["b:y: It is down."]
    assert (error.attempt, error.max_attempts) == (1, 3)


# -- deadlines ---------------------------------------------------------------------------------------------------------


def test_r03_a_target_without_content_in_time_is_left_whatever_else_it_says() -> None:
    async def main() -> None:
        chatty = [part for _ in range(9) for part in (3.0, NoticeItem("warning", "still here"))]
        first = Slow("a", *chatty, TextItem("late"), finish("late"))
        provider = route_of({"targets": ["a:x", "b:y"], "first_token_timeout": 10}, a=first, b=["hi"])
        items, error = await collected(provider)
        assert error is None and text_of(items) == "hi" and clock.monotonic() == pytest.approx(10.0)
        assert first.closed == 1, "its stream was closed"
        assert [n.message for n in notices_of(items)][-1] == "a:x sent no content within 10 s. b:y is asked instead."
        assert len(notices_of(items)) == 4
        assert provider.route.targets[0].breaker.last_error == "provider_timeout"

    faked(main)


def test_a_silence_amid_the_answer_ends_it_with_what_came() -> None:
    async def main() -> None:
        first = Slow("a", 4.0, TextItem("one "), 4.0, TextItem("two"), 6.0, TextItem("three"))
        provider = route_of({"targets": ["a:x", "b:y"], "idle_timeout": 5, "first_token_timeout": 5}, a=first, b=["hi"])
        items, error = await collected(provider)
        assert text_of(items) == "one two" and clock.monotonic() == 13.0
        assert isinstance(error, ProviderTimeoutError) and error.partial == "one two" and error.provider == "a"
        assert error.message == "a:x sent nothing for 5 s amid its answer." and first.closed == 1

    faked(main)


def test_a_slow_reader_is_not_a_slow_target() -> None:
    async def main() -> None:
        first = Slow("a", TextItem("one "), 1.0, TextItem("two"), finish("one two"))
        provider = route_of({"targets": ["a:x"], "idle_timeout": 2, "first_token_timeout": 2}, a=first)
        seen: list[Item] = []
        async for item in provider.stream(asking()):
            seen.append(item)
            await clock.sleep(60.0)
        assert text_of(seen) == "one two" and isinstance(seen[-1], Finish)

    faked(main)


@pytest.mark.parametrize(("route", "given"), [(7, None), (90, 7.0), (None, 7.0)])
def test_the_whole_request_is_bounded_for_any_provider(route: float | None, given: float | None) -> None:
    async def main() -> None:
        drip = [part for _ in range(99) for part in (2.0, TextItem("x"))]
        first = Slow("a", *drip)
        settings: dict[str, Any] = {"targets": ["a:x", "b:y"], "idle_timeout": 60}
        provider = route_of({**settings, "timeout": route} if route else settings, a=first, b=["hi"])
        budget = None if given is None else Budget(given, 3)
        items, error = await collected(provider, asking(budget=budget))
        assert text_of(items) == "xxx" and clock.monotonic() == 7.0 and isinstance(error, ProviderTimeoutError)
        assert "did not finish in the time given" in error.message and first.closed == 1

    faked(main)


def test_an_error_of_the_provider_s_own_that_is_called_timeout_is_not_taken_for_ours() -> None:
    async def main() -> None:
        provider = route_of({"targets": ["a:x"], "first_token_timeout": 5}, a=Slow("a", TimeoutError("its own")))
        with pytest.raises(TimeoutError, match="its own"):
            await collected(provider)

    faked(main)


def test_a_switch_that_is_decided_after_a_wait_is_told_too() -> None:
    async def main() -> None:
        a, b = Slow("a", limited(5.0)), ScriptedProvider([limited(6.0), "from b"], name="b")
        provider = route_of({"targets": ["a:x", "b:y"], "attempts": 3}, a=a, b=b)
        reading = asyncio.ensure_future(collected(provider))
        await clock.sleep(4.0)
        provider.route.targets[0].breaker.rest(50.0)  # another request was told to keep away for longer
        items, error = await reading
        assert error is None and text_of(items) == "from b" and clock.monotonic() == 6.0
        told = [(notice.kind, notice.provider, notice.delay) for notice in notices_of(items)]
        assert told == [("switched", "b", None), ("retry", "a", 5.0), ("retry", "b", 1.0)]

    faked(main)


# -- letting go --------------------------------------------------------------------------------------------------------


async def test_leaving_at_every_await_frees_the_probe_and_closes_the_stream() -> None:
    """Cancel a request that probes a half-open target, at its first await, its second, and so on."""
    seen: list[tuple[Slow, RouteProvider]] = []

    async def scenario(arm: Callable[[Callable[[], None]], None]) -> None:
        steps = (NoticeItem("warning", "w"), TextItem("one"), TextItem("two"), finish("onetwo"))
        slow = Slow("a", *[part for step in steps for part in (0.0, step)])
        provider = route_of({"targets": ["a:x"], "first_token_timeout": 5, "idle_timeout": 5}, a=slow)
        target = provider.route.targets[0]
        for _ in range(5):
            leave = target.breaker.admit()
            assert leave is not None
            leave.failed("overloaded")
        target.breaker._open_until = clock.monotonic()  # pyright: ignore[reportPrivateUsage]
        seen.append((slow, provider))
        task = asyncio.ensure_future(collected(provider))

        def leave_now() -> None:
            task.cancel()

        arm(leave_now)
        await asyncio.gather(task, return_exceptions=True)

    async def check(_: int) -> None:
        slow, provider = seen[-1]
        breaker = provider.route.targets[0].breaker
        assert slow.closed in (0, 1) and len(slow.requests) <= 1
        if breaker.state != "closed":
            assert breaker.available, "the probe's place is free again"

    passes = await sweep(scenario, check, limit=60)
    assert passes > 5 and any(slow.closed for slow, _ in seen)
    assert seen[-1][1].route.targets[0].breaker.state == "closed", "the last pass was not disturbed"


async def test_closing_closes_every_provider_once() -> None:
    class Closing(EchoProvider):
        closed = 0

        async def close(self) -> None:
            self.closed += 1

    class Plain(EchoProvider):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    a, b = Closing(), Plain()
    tables = {name: {"base_url": "http://127.0.0.1:9"} for name in "ab"}
    config = Config(environ={}, providers=tables, routes={"r": ["a:x", "b:y", "a:z", "echo"]})
    config.provider("a", lambda: a)
    config.provider("b", lambda: b)
    router = Router(config)
    await RouteProvider(router.route("r")).close()
    assert (a.closed, b.closed) == (1, 1)
    await router.close()
    assert (a.closed, b.closed) == (2, 2)
