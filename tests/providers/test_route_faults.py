"""Routes over real servers that fail as told: several targets, each with sockets of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from tests.providers.routing import answer, ask, asking, chunk, failure, notices_of, served, text_of
from windlass.agent.agent import Agent
from windlass.core import clock, registry
from windlass.core.config import Config, Value
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    WireError,
)
from windlass.core.items import TextItem
from windlass.core.messages import user
from windlass.core.request import Budget, Request
from windlass.providers.route import Router
from windlass.providers.routed import RouteProvider
from windlass.testing.faults import BlackHole, FaultServer, Fin, Raw, Reply, Rst, Step, Stream, ndjson, sse

FINE = answer("Hel", "lo")


def provider_of(config: Config, *, base: float = 0.001, name: str = "r") -> Any:
    return RouteProvider(Router(config, base=base).route(name))


async def servers(stack: AsyncExitStack, *scripts: list[Step]) -> list[FaultServer]:
    return [await stack.enter_async_context(FaultServer(script)) for script in scripts]


# -- connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [Fin(), Rst(), Raw([b"\x00\x01nonsense\r\n\r\n"])])
async def test_r01_r02_a_connection_lost_before_the_answer_goes_to_the_next_target(broken: Step) -> None:
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [broken], [FINE])
        items, finish = await ask(provider_of(served({"r": ["a", "b"]}, a=a, b=b)))
        assert (finish.message.text, finish.model) == ("Hello", "m") and (len(a.requests), len(b.requests)) == (1, 1)
    (notice,) = notices_of(items)
    assert (notice.kind, notice.provider, notice.model, notice.attempt) == ("switched", "b", "m", 2)
    assert items.index(notice) == 0 and notice.message.endswith("b:m is asked instead.")


async def test_r01_a_single_target_is_asked_again_on_a_new_connection() -> None:
    async with FaultServer([Fin(), FINE]) as a:
        items, finish = await ask(provider_of(served({"r": {"targets": ["a"], "attempts": 2}}, a=a)))
        assert finish.message.text == "Hello" and (len(a.requests), a.connections) == (2, 2)
    assert [notice.kind for notice in notices_of(items)] == ["retry"]


async def test_r03_a_black_hole_is_left_after_the_first_token_timeout() -> None:
    route = {"targets": ["a", "b"], "first_token_timeout": 0.15}
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [BlackHole()], [FINE])
        items, finish = await ask(provider_of(served({"r": route}, a=a, b=b)))
        assert finish.message.text == "Hello" and len(b.requests) == 1
        await a.wait(open=0)  # its connection is not kept
        assert (len(a.requests), a.connections) == (1, 1)
    assert notices_of(items)[0].message == "a:m sent no content within 0.15 s. b:m is asked instead."


async def test_r03_headers_and_pings_are_no_content() -> None:
    route = {"targets": ["a", "b"], "first_token_timeout": 0.15}
    pings = Stream([part for _ in range(40) for part in (b": ping\n\n", 0.02)], end="hang")
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [pings], [FINE])
        _, finish = await ask(provider_of(served({"r": route}, a=a, b=b)))
        assert finish.message.text == "Hello"
        await a.wait(open=0)


async def test_r04_refused_connections_fall_back() -> None:
    async with FaultServer([FINE]) as gone:
        closed = gone.url
    async with FaultServer([FINE]) as b:
        config = served({"r": ["a", "b"]}, {"a": {"base_url": closed, "model": "m"}}, b=b)
        router = Router(config)
        items, finish = await ask(RouteProvider(router.route("r")))
        assert finish.message.text == "Hello" and len(b.requests) == 1
    assert "running?" in notices_of(items)[0].message
    assert router.health()[0].last_error == "provider_connection" and router.health()[0].consecutive_failures == 1


async def test_r04_a_full_backlog_is_a_connect_timeout_and_falls_back() -> None:
    with ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # nobody accepts: the queue is full after one or two
            caller = sockets.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        async with FaultServer([FINE]) as b:
            url = f"http://127.0.0.1:{full.getsockname()[1]}"
            tables = {"a": {"base_url": url, "model": "m"}, "b": {"base_url": b.url, "model": "m"}}
            limits = {"connect_timeout": Value(0.2, "test")}
            config = Config(limits, environ={}, providers=tables, routes={"r": ["a", "b"]})
            items, finish = await ask(provider_of(config))
            assert finish.message.text == "Hello" and len(b.requests) == 1
    assert [notice.kind for notice in notices_of(items)] == ["switched"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssl.SSLContext]:
    folder = tmp_path_factory.mktemp("certificate")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
    made = ["openssl", "req", "-x509", *kind, "-days", "2", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    yield context


async def test_r05_a_certificate_that_proves_nothing_is_not_asked_again_and_never_over_http(
    certificate: ssl.SSLContext,
) -> None:
    async with FaultServer([FINE], ssl_context=certificate) as a, FaultServer([FINE]) as b:
        routes = {"r": {"targets": ["a", "b"], "attempts": 6}, "alone": {"targets": "a", "attempts": 6}}
        config = served(routes, a=a, b=b)
        items, finish = await ask(provider_of(config))
        assert finish.message.text == "Hello" and "certificate" in notices_of(items)[0].message.lower()
        with pytest.raises(ProviderConnectionError) as caught:
            await ask(provider_of(config, name="alone"))
        assert caught.value.attempt == 1 and caught.value.max_attempts == 6
        assert a.requests == [] and len(b.requests) == 1


async def test_r06_a_kept_connection_that_the_server_closed_is_no_switch() -> None:
    first = Stream(FINE.parts, end="fin")
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [first, FINE], [FINE])
        provider = provider_of(served({"r": ["a", "b"]}, a=a, b=b))
        for number in range(1, 3):
            items = [item async for item in provider.stream(asking())]
            assert notices_of(items) == [] and text_of(items) == "Hello" and len(a.requests) == number
            await a.wait(open=0) if number == 1 else None
        assert b.connections == 0
        await provider.close()


# -- what servers say --------------------------------------------------------------------------------------------------


async def test_r15_an_error_event_before_the_first_content_is_the_error_it_says() -> None:
    start = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "c", "stop_reason": None,
             "usage": {"input_tokens": 9, "output_tokens": 0}}  # fmt: skip
    events = [
        f"event: message_start\ndata: {json.dumps({'type': 'message_start', 'message': start})}\n\n",
        'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
    ]
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [Stream([event.encode() for event in events])], [FINE])
        routes = {"r": ["a", "b"], "alone": {"targets": "a", "attempts": 1}}
        config = served(routes, {"a": {"dialect": "anthropic"}}, a=a, b=b)
        items, finish = await ask(provider_of(config))
        assert finish.message.text == "Hello" and finish.usage.input_tokens == 0, "nothing of the first one's usage"
        with pytest.raises(OverloadedError) as caught:
            await ask(provider_of(config, name="alone"))
    assert caught.value.status == 529 and notices_of(items)[0].kind == "switched"
    assert [type(item) for item in items[1:3]] == [TextItem, TextItem]


async def test_r16_a_captive_portal_is_left_for_the_next_target_and_not_asked_again() -> None:
    page = Reply(200, b"<html><body>Please log in</body></html>", {"content-type": "text/html"})
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [page], [failure(503)])
        with pytest.raises(WireError, match="login page") as caught:
            await ask(provider_of(served({"r": {"targets": ["a", "b"], "attempts": 4}}, a=a, b=b)))
        assert (len(a.requests), len(b.requests)) == (1, 3)
    assert [note.partition(":")[0] for note in caught.value.__notes__] == ["b"]


@pytest.mark.parametrize(
    ("status", "kind", "calls", "other"),
    [
        (400, BadRequestError, 1, 0),
        (400, ContextExceededError, 1, 0),
        (401, AuthError, 1, 1),
        (403, AuthError, 1, 1),
        (404, ModelNotFoundError, 1, 1),
        (408, ProviderTimeoutError, 1, 1),
        (413, BadRequestError, 1, 0),
        (422, BadRequestError, 1, 0),
        (429, RateLimitError, 1, 1),
        (500, OverloadedError, 1, 1),
        (502, OverloadedError, 1, 1),
        (503, OverloadedError, 1, 1),
        (529, OverloadedError, 1, 1),
    ],
)
async def test_r19_which_answers_go_to_the_next_target(
    status: int, kind: type[ProviderError], calls: int, other: int
) -> None:
    message = "maximum context length is 8192 tokens" if kind is ContextExceededError else "no"
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [failure(status, message)], [FINE])
        config = served({"r": ["a", "b"], "alone": {"targets": "a", "attempts": 1}}, a=a, b=b)
        if other:
            _, finish = await ask(provider_of(config))
            assert finish.message.text == "Hello"
        else:
            with pytest.raises(kind):
                await ask(provider_of(config))
        assert (len(a.requests), len(b.requests)) == (calls, other)
        with pytest.raises(kind) as caught:
            await ask(provider_of(config, name="alone"))
        assert type(caught.value) is kind and caught.value.status == status


async def test_r19_a_500_and_then_an_answer() -> None:
    async with FaultServer([failure(500), FINE]) as a:
        items, finish = await ask(provider_of(served({"r": {"targets": ["a"], "attempts": 2}}, a=a)))
        assert finish.message.text == "Hello" and len(a.requests) == 2
    assert [notice.kind for notice in notices_of(items)] == ["retry"]


# -- waits that servers ask for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry_after": "7"}, 6.5, 7.0),
        ({"retry_after": "0.5"}, 0.1, 0.5),
        ({"retry_after": "DATE"}, 7.0, 9.0),
        ({"retry_after_ms": "1500"}, 1.1, 1.5),
        ({"retry_after_ms": "2500", "retry_after": "60"}, 2.1, 2.5),
        ({"retry_after": "-5"}, 0.0, 0.0),
        ({"retry_after": "1000000000"}, 86_000.0, 86_400.0),
        ({"retry_after": "soon"}, 0.0, 0.0),
        ({}, 0.0, 0.0),
    ],
)
async def test_r17_every_form_of_retry_after_rests_its_target_and_no_other(
    headers: dict[str, str], least: float, most: float
) -> None:
    date = formatdate(time.time() + 9, usegmt=True)
    stated = {name: date if value == "DATE" else value for name, value in headers.items()}
    counted = not stated or stated.get("retry_after") == "soon"
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [failure(429, **stated)], [FINE])
        router = Router(served({"r": ["a", "b"]}, a=a, b=b))
        provider = RouteProvider(router.route("r"))
        items = [item async for item in provider.stream(asking())]
        assert text_of(items) == "Hello"
        first, second = [target.breaker for target in router.route("r").targets]
        assert least <= first.resting <= most and second.resting == 0.0
        assert (first.consecutive, first.last_error) == (int(counted), "rate_limited")
        if least:
            again = [item async for item in provider.stream(asking())]
            assert text_of(again) == "Hello" and (len(a.requests), len(b.requests)) == (1, 2)
            assert "a:m rests for" in notices_of(again)[0].message
        await provider.close()


async def test_r17_a_short_wait_is_waited_for_and_told_first() -> None:
    async with FaultServer([failure(429, retry_after_ms="60"), FINE]) as a:
        provider = provider_of(served({"r": {"targets": ["a"], "attempts": 2}}, a=a))
        stream = provider.stream(asking())
        notice = await anext(stream)
        assert notice.kind == "retry" and notice.delay == pytest.approx(0.06, abs=0.01) and len(a.requests) == 1
        begun = clock.monotonic()
        rest = [item async for item in stream]
        assert text_of(rest) == "Hello" and clock.monotonic() - begun >= 0.05 and len(a.requests) == 2
        await provider.close()


async def test_r17_a_wait_beyond_the_deadline_is_reported_at_once() -> None:
    async with FaultServer([failure(429, retry_after="30")]) as a:
        provider = provider_of(served({"r": {"targets": ["a"], "attempts": 5}}, a=a))
        with pytest.raises(RateLimitError) as caught:
            await ask(provider, asking(budget=Budget(5.0, 5)))
        assert len(a.requests) == 1 and caught.value.retry_after == 30.0


# -- storms and long outages -------------------------------------------------------------------------------------------


async def test_r20_a_hundred_agents_against_a_dead_provider() -> None:
    """Each may call once; all retries together are at most a tenth of that. With a fallback everybody is served."""
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [failure(503)], [FINE])
        routes = {"alone": {"targets": ["a"], "attempts": 4}, "r": {"targets": ["a", "b"], "attempts": 4}}
        config = served(routes, a=a, b=b)

        async def one(provider: Any) -> str:
            try:
                return text_of([item async for item in provider.stream(asking())])
            except OverloadedError:
                return ""

        alone = provider_of(config, name="alone")
        assert await asyncio.gather(*[one(alone) for _ in range(100)]) == [""] * 100
        assert len(a.requests) <= 110
        health = alone.route.targets[0].breaker
        assert health.state == "open" and await one(alone) == "" and len(a.requests) <= 110, "and then nobody calls"
        before = len(a.requests)
        both = provider_of(config)
        assert await asyncio.gather(*[one(both) for _ in range(100)]) == ["Hello"] * 100
        assert len(a.requests) - before <= 110 and len(b.requests) == 100
        await both.close()


async def test_r18_an_agent_keeps_its_conversation_through_an_outage() -> None:
    busy = failure(503, retry_after="0")
    async with FaultServer([busy, busy, busy, FINE]) as a:
        config = served({"r": {"targets": ["a"], "attempts": 3}}, a=a)
        agent = Agent("r", config=config)
        with pytest.raises(OverloadedError) as caught:
            await agent.run("Remember me.")
        assert caught.value.attempt == 3 == len(a.requests)
        result = await agent.run()  # resume: the prompt is not lost
        assert result.text == "Hello"
        sent = json.loads(a.requests[-1].body)["messages"]
        assert [message["content"] for message in sent if message["role"] == "user"] == ["Remember me."]
        await agent.destroy()


async def test_r18_a_wait_stops_when_the_run_is_aborted() -> None:
    async with FaultServer([failure(429, retry_after="30")]) as a:
        agent = Agent("r", config=served({"r": {"targets": ["a"], "attempts": 3}}, a=a))
        run = agent.run("Hi")
        task = asyncio.ensure_future(run)
        await a.wait(requests=1)
        agent.abort("enough")
        await asyncio.gather(task, return_exceptions=True)
        assert len(a.requests) == 1 and not agent.is_running
        await agent.destroy()


# -- models that go away -----------------------------------------------------------------------------------------------


async def test_r26_a_model_that_was_dropped_falls_back_and_is_asked_last_afterwards() -> None:
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [failure(404, "The model m has been deprecated")], [FINE])
        router = Router(served({"r": ["a", "b"]}, a=a, b=b))
        provider = RouteProvider(router.route("r"))
        for _ in range(3):
            assert text_of([item async for item in provider.stream(asking())]) == "Hello"
        assert (len(a.requests), len(b.requests)) == (1, 3)
        health = {one.name: one for one in router.health()}["a:m"]
        assert (health.healthy, health.state, health.last_error) == (False, "closed", "model_not_found")
        await provider.close()


async def test_r26_another_model_that_answers_instead_is_told_by_its_name() -> None:
    json_type, lines = {"content-type": "application/json"}, {"content-type": "application/x-ndjson"}
    missing = Reply(404, b'{"error":"model \\"qwen3:9b\\" not found"}', json_type)
    tags = Reply(200, b'{"models":[{"name":"llama3:8b"},{"name":"qwen3:4b"}]}', json_type)
    said = ['{"model":"qwen3:4b","message":{"role":"assistant","content":"Hi"},"done":true,"done_reason":"stop"}']
    async with FaultServer([missing, tags, Stream(ndjson(*said), headers=lines)]) as a:
        environ = {"OLLAMA_BASE_URL": a.url}
        config = Config(environ=environ, routes={"r": ["qwen:qwen3:9b", "echo"]})
        items, finish = await ask(provider_of(config))
    (notice,) = notices_of(items)
    assert (notice.kind, notice.model) == ("substituted", "qwen3:4b")
    assert (finish.model, finish.message.text, finish.cost) == ("qwen3:4b", "Hi", 0)


# -- after the first content -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["rst", "fin"])
async def test_a_stream_that_breaks_after_content_is_not_asked_elsewhere(end: Any) -> None:
    cut = Stream(sse(chunk("Hel")), finish=False, end=end)
    async with AsyncExitStack() as stack:
        a, b = await servers(stack, [cut], [FINE])
        router = Router(served({"r": ["a", "b"]}, a=a, b=b))
        seen: list[Any] = []
        with pytest.raises(ProviderError) as caught:
            async for item in RouteProvider(router.route("r")).stream(asking()):
                seen.append(item)  # noqa: PERF401 - what came before the error counts
        assert text_of(seen) == "Hel" == caught.value.partial and b.connections == 0
        assert router.route("r").targets[0].breaker.consecutive == 1
        await router.close()


async def test_leaving_early_closes_the_connection_and_counts_nothing() -> None:
    async with FaultServer([Stream([*sse(chunk("Hel")), asyncio.Event()])]) as a:
        router = Router(served({"r": {"targets": ["a"], "attempts": 2}}, a=a))
        stream: Any = RouteProvider(router.route("r")).stream(Request(model="", messages=[user("x")]))
        assert isinstance(await anext(stream), TextItem)
        await stream.aclose()
        await a.wait(open=0)
        assert router.health()[0].consecutive_failures == 0
        await router.close()


def test_a_route_on_the_command_line(tmp_path: Path) -> None:
    """`windlass run -m fast` really goes from one target to the next."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            a, b = await servers(stack, [failure(503)], [FINE])
            (tmp_path / "windlass.toml").write_text(
                f'[providers.a]\nbase_url = "{a.url}"\nmodel = "m"\n[providers.b]\nbase_url = "{b.url}"\nmodel = "m"\n'
                '[routes]\nfast = ["a", "b"]\n'
            )
            done = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "error", "-m", "windlass", "run", "-m", "fast", "--tools", "none", "hi",
                cwd=tmp_path, env={"WINDLASS_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            out, err = await done.communicate()
            assert (done.returncode, out.decode().strip()) == (0, "Hello"), err.decode()
            assert (len(a.requests), len(b.requests)) == (1, 1)
            assert "b:m is asked instead" in err.decode()

    asyncio.run(main())


def test_the_same_providers_serve_a_route_and_a_plain_name() -> None:
    config = Config(environ={}, providers={"a": {"base_url": "http://127.0.0.1:9"}}, routes={"r": ["a:x", "a:y"]})
    assert registry.model("r", config)[0].route.targets[0].provider is registry.model("a:x", config)[0].provider
