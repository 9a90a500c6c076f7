"""The response cache: the same answer to the same question of the same tenant, in either form, and to nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.server.conftest import InProcess, StartGateway
from tests.server.test_endpoints_ollama import client_of
from windlass.core.usage import Usage
from windlass.server.cache import CachedAnswer, ResponseCache
from windlass.stores.tables import open_tables
from windlass.testing.faults import FaultServer, Received, Reply, Step, Stream, sse

JSON = {"content-type": "application/json"}
ASK: dict[str, Any] = {"model": "here", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}


def _whole(text: str | None, reason: str = "stop", **fields: Any) -> Reply:
    message = {"role": "assistant", "content": text, **fields}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    body = {"id": "up-1", "object": "chat.completion", "created": 1, "model": "m-1", "choices": [choice],
            "usage": USAGE, "odd": [1, 2]}  # fmt: skip
    return Reply(200, json.dumps(body).encode(), JSON)


def _chunk(text: str, reason: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return json.dumps({"id": "up-2", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
                       "choices": [choice]})  # fmt: skip


def _stream(*texts: str, reason: str = "stop") -> Stream:
    usage = json.dumps({"id": "up-2", "model": "m-1", "choices": [], "usage": USAGE})
    return Stream(sse(*[_chunk(text) for text in texts], _chunk("", reason), usage, "[DONE]"))


async def _up(gateway: StartGateway, upstream: FaultServer, **server: Any) -> InProcess:
    return await gateway(
        providers={"up": {"base_url": f"{upstream.url}/v1", "api_key": "k"}},
        routes={"here": "up:gpt-4.1", "there": "up:gpt-4.1-mini"},
        server={"cache_ttl": 60.0, "attempts": 1, **server},
    )


async def _post(up: InProcess, key: str = "", path: str = "/v1/chat/completions", **changes: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    control = changes.pop("control", None)
    if control:
        headers["cache-control"] = control
    async with httpx.AsyncClient(base_url=up.url) as client:
        answer = await client.post(path, json={**ASK, **changes}, headers=headers)
    assert up.gateway.cache is not None
    await up.gateway.cache.flush()
    return answer


def _hit(answer: httpx.Response) -> bool:
    return answer.headers.get("x-windlass-cache") == "hit"


async def test_off_by_default(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await gateway(
            providers={"up": {"base_url": f"{upstream.url}/v1", "api_key": "k"}}, routes={"here": "up:m"}
        )
        assert up.gateway.cache is None
        async with httpx.AsyncClient(base_url=up.url) as client:
            for _ in range(2):
                assert not _hit(await client.post("/v1/chat/completions", json=ASK))
        assert len(upstream.requests) == 2


async def test_the_same_question_is_answered_once_with_the_same_bytes(gateway: StartGateway) -> None:
    async with FaultServer([_whole("hello")]) as upstream:
        up = await _up(gateway, upstream)
        first = await _post(up, user="u1", metadata={"a": "b"})
        again = await _post(up, user="u2", stream=False)
        assert not _hit(first) and _hit(again)
        assert first.content == again.content and again.json()["usage"] == USAGE
        assert again.headers["x-windlass-model"] == "up:gpt-4.1"
        assert len(upstream.requests) == 1
        await up.gateway.accounts.flush()
        rows = await up.gateway.accounts.tables.fetch(
            "SELECT outcome, cost, input_tokens, output_tokens, attempts, target FROM account_requests ORDER BY time"
        )
        assert rows[1] == ("cached", 0, 7, 2, 0, "up:gpt-4.1")
        assert rows[0][0] == "ok" and rows[0][1] > 0
        assert (up.gateway.cache.hits, up.gateway.cache.misses) == (1, 1)  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    "changes",
    [{"messages": [{"role": "user", "content": "other"}]}, {"model": "there"}, {"max_tokens": 5}, {"seed": 1},
     {"tools": [{"type": "function", "function": {"name": "f"}}]}],
)  # fmt: skip
async def test_another_question_is_another_answer(gateway: StartGateway, changes: dict[str, Any]) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream)
        await _post(up)
        assert not _hit(await _post(up, **changes))
        assert _hit(await _post(up))


async def test_the_order_of_fields_does_not_matter(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream)
        await _post(up)
        async with httpx.AsyncClient(base_url=up.url) as client:
            answer = await client.post("/v1/chat/completions", json=dict(reversed(ASK.items())))
        assert _hit(answer)


async def test_s58_no_tenant_gets_another_s_answer(gateway: StartGateway) -> None:
    async with FaultServer([_whole("for t1"), _whole("for t2"), _whole("for nobody")]) as upstream:
        up = await _up(gateway, upstream)
        keys = [
            (await up.gateway.accounts.create(f"k{n}", tenant=tenant))[1]
            for n, tenant in enumerate(("t1", "t1", "t2", ""))
        ]
        texts: list[tuple[str, bool]] = []
        for key in (*keys, *keys):
            answer = await _post(up, key)
            texts.append((answer.json()["choices"][0]["message"]["content"], _hit(answer)))
        assert texts[:4] == [("for t1", False), ("for t1", True), ("for t2", False), ("for nobody", False)]
        assert texts[4:] == [("for t1", True), ("for t1", True), ("for t2", True), ("for nobody", True)]


async def test_a_key_that_may_not_use_a_model_gets_no_cached_answer_of_it(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream)
        _, may = await up.gateway.accounts.create("may", tenant="t")
        _, not_ = await up.gateway.accounts.create("not", tenant="t", models=["there"])
        await _post(up, may)
        assert _hit(await _post(up, may))
        assert (await _post(up, not_)).status_code == 403


# -------------------------------------------------------------------------------------------------------- both forms


async def test_a_whole_answer_answers_a_stream_through_the_official_sdk(gateway: StartGateway) -> None:
    async with FaultServer([_whole("", "tool_calls", tool_calls=[CALL], content=None)]) as upstream:
        up = await _up(gateway, upstream)
        await _post(up)
        async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="any", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="here", temperature=0, stream=True, stream_options={"include_usage": True},
                messages=[{"role": "user", "content": "hi"}],
            )  # fmt: skip
            chunks = [chunk async for chunk in stream]
        calls = [c for chunk in chunks if chunk.choices for c in chunk.choices[0].delta.tool_calls or []]
        assert calls[0].id == "call_1" and calls[0].function and calls[0].function.name == "look"
        assert json.loads("".join([c.function.arguments or "" for c in calls if c.function])) == {"a": 1}
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
        assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 7
        assert len(upstream.requests) == 1


async def test_a_stream_answers_a_whole_request_and_another_stream(gateway: StartGateway) -> None:
    async with FaultServer([_stream("hel", "lo")]) as upstream:
        up = await _up(gateway, upstream)
        first = await _post(up, stream=True)
        whole = await _post(up)
        again = await _post(up, stream=True)
        assert not _hit(first) and _hit(whole) and _hit(again)
        choice = whole.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("hello", "stop")
        # The usage that only we asked for is known all the same.
        assert whole.json()["usage"]["total_tokens"] == 9
        assert again.headers["content-type"].startswith("text/event-stream") and again.text.endswith("data: [DONE]\n\n")
        assert len(upstream.requests) == 1


async def test_anthropic_s_and_ollama_s_sdks_get_cached_streams(gateway: StartGateway) -> None:
    def script(request: Received) -> Step:
        return _stream("hel", "lo") if b'"stream":true' in request.body else _whole("hello")

    async with FaultServer(script) as upstream:
        up = await _up(gateway, upstream)
        cache = up.gateway.cache
        assert cache is not None
        async with anthropic.AsyncAnthropic(base_url=up.url, api_key="any", max_retries=0) as client:
            asked: Any = {
                "model": "here", "max_tokens": 9, "messages": ASK["messages"], "extra_body": {"temperature": 0}
            }  # fmt: skip
            texts: list[str] = []
            for _ in range(2):
                async with client.messages.stream(**asked) as stream:
                    message = await stream.get_final_message()
                    assert message.content[0].type == "text" and message.stop_reason == "end_turn"
                    texts.append(message.content[0].text)
                await cache.flush()
            done = await client.messages.create(**asked)
            assert done.content[0].type == "text" and done.usage.input_tokens == 7
            assert [*texts, done.content[0].text] == ["hello"] * 3
        assert (cache.hits, cache.misses) == (2, 1)
        async with client_of(up) as local:
            for stream in (False, True, True):
                asked = {"messages": ASK["messages"], "options": {"temperature": 0}, "stream": stream}
                said: Any = await local.chat("here", **asked)
                text = "".join([part.message.content async for part in said]) if stream else said.message.content
                assert text == "hello"
                await cache.flush()
        # Another dialect is another entry.
        assert (cache.hits, cache.misses) == (4, 2)
        assert len(upstream.requests) == 2


# --------------------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (_whole("a", "content_filter"), {}),
        (_whole("a"), {"temperature": 0.5}),
        (_whole("a"), {"temperature": None}),
        (_whole("a"), {"n": 2}),
        (Reply(429, b"{}", JSON), {}),
        (Stream(sse(_chunk("a"))), {"stream": True}),
        (_stream("a", reason="content_filter"), {"stream": True}),
        (_whole("x" * (1 << 20)), {}),
    ],
    ids=["filtered", "warm", "no temperature", "choices", "error", "cut", "filtered stream", "too large"],
)
async def test_what_is_not_whole_and_sure_is_not_kept(
    gateway: StartGateway, step: Step, changes: dict[str, Any]
) -> None:
    async with FaultServer([step]) as upstream:
        up = await _up(gateway, upstream)
        await _post(up, **changes)
        assert not _hit(await _post(up, **changes))
        assert len(upstream.requests) == 2


async def test_any_temperature_by_setting(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream, cache_any_temperature=True)
        for temperature in (1.5, None):
            assert not _hit(await _post(up, temperature=temperature))
            assert _hit(await _post(up, temperature=temperature))


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
async def test_whole_answers_are_kept(gateway: StartGateway, reason: str) -> None:
    async with FaultServer([_whole("a", reason, tool_calls=[CALL] if reason == "tool_calls" else None)]) as upstream:
        up = await _up(gateway, upstream)
        await _post(up)
        assert _hit(await _post(up))


async def test_clients_may_say_no(gateway: StartGateway) -> None:
    async with FaultServer([_whole("1"), _whole("2"), _whole("3"), _whole("4")]) as upstream:
        up = await _up(gateway, upstream)

        async def ask(control: str = "") -> tuple[str, bool]:
            answer = await _post(up, control=control)
            return answer.json()["choices"][0]["message"]["content"], _hit(answer)

        assert await ask("no-store") == ("1", False)
        assert await ask() == ("2", False)
        assert await ask("no-store") == ("3", False)
        assert await ask() == ("2", True)
        # Asked again, and kept in place of what was there.
        assert await ask("No-Cache") == ("4", False)
        assert await ask() == ("4", True)


async def test_answers_end_with_their_time(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream)
        await _post(up)
        assert _hit(await _post(up))
        await up.gateway.accounts.tables.execute("UPDATE cached_answers SET expires = 1")
        assert not _hit(await _post(up))
        assert _hit(await _post(up))


async def _fill(up: InProcess, count: int, size: int) -> Callable[[], Any]:
    cache = up.gateway.cache
    assert cache is not None
    for number in range(count):
        body = b"x" * size
        made = CachedAnswer(body, "up:m", None, Usage(1, 1), "stop")
        await cache._keep("t", number.to_bytes(8, "big"), made, 60.0, 100_000)  # pyright: ignore[reportPrivateUsage]
    return lambda: up.gateway.accounts.tables.fetch("SELECT sum(size), count(*), min(created) FROM cached_answers")


async def test_the_table_keeps_its_bound_and_the_newest(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream, cache_bytes=100_000)
        total = await _fill(up, 150, 1000)
        ((size, count, _),) = await total()
        assert 80_000 < size <= 100_000 and count == size // (size // count)
        rows = await up.gateway.accounts.tables.fetch("SELECT digest FROM cached_answers ORDER BY created")
        kept = [int.from_bytes(row[0], "big") for row in rows]
        assert kept == list(range(150 - len(kept), 150))


async def test_several_gateways_share_it_on_postgresql(database_url: str) -> None:
    tables, others = open_tables(database_url), open_tables(database_url)
    one, two = ResponseCache(tables), ResponseCache(others)
    try:
        for number in range(40):
            made = CachedAnswer(b"\x00answer" * 100, "up:m", None, Usage(number, 1), "stop")
            cache = (one, two)[number % 2]
            await cache._keep("t", bytes([number]), made, 60.0, 20_000)  # pyright: ignore[reportPrivateUsage]
        found = await two._find("t", bytes([38]))  # pyright: ignore[reportPrivateUsage]
        assert found is not None and found.usage.input_tokens == 38 and found.body == b"\x00answer" * 100
        assert await one._find("t", bytes([0])) is None  # pyright: ignore[reportPrivateUsage]
        assert await one._find("other", bytes([38])) is None  # pyright: ignore[reportPrivateUsage]
        ((size,),) = await tables.fetch("SELECT sum(size) FROM cached_answers")
        # Each of two gateways may be a sixteenth ahead of its last look.
        assert size <= 20_000 + 2 * (20_000 // 16 + 1000)
        assert one.failures == two.failures == 0
    finally:
        await tables.close()
        await others.close()


async def test_a_database_that_fails_is_a_miss(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream)
        await _post(up)
        await up.gateway.accounts.tables.execute("DROP TABLE cached_answers")
        answer = await _post(up)
        assert answer.status_code == 200 and not _hit(answer)
        assert up.gateway.cache is not None and up.gateway.cache.failures == 2


async def test_the_same_question_at_once_may_be_asked_twice_and_is_kept_once(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream)
        answers = await asyncio.gather(*[_post(up) for _ in range(8)])
        assert {answer.status_code for answer in answers} == {200}
        rows = await up.gateway.accounts.tables.fetch("SELECT count(*) FROM cached_answers")
        assert rows == [(1,)] and len(upstream.requests) <= 8
        assert _hit(await _post(up))


async def test_a_hit_uses_nothing_of_a_budget(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream)
        _, secret = await up.gateway.accounts.create("ann", tenant="t", token_budget=12_000)
        # Each reserves a thousand tokens and more, which is given back.
        for number in range(40):
            assert _hit(await _post(up, secret)) is (number > 0)
        await up.gateway.accounts.flush()
        ((used,),) = await up.gateway.accounts.tables.fetch(
            "SELECT used - (SELECT coalesce(sum(amount), 0) FROM account_leases WHERE kind = 'token_budget') "
            "FROM account_meters WHERE kind = 'token_budget'"
        )
        assert used <= 9


async def test_a_reload_switches_it_and_other_targets_are_other_answers(gateway: StartGateway) -> None:
    async with FaultServer([_whole("a")]) as upstream:
        up = await _up(gateway, upstream)
        await _post(up)
        first = up.gateway.cache
        off = await gateway(
            providers={"up": {"base_url": f"{upstream.url}/v1", "api_key": "k"}}, routes={"here": "up:other"}
        )
        up.gateway.replace(off.gateway.settings, off.gateway.config, off.gateway.router)
        assert up.gateway.cache is None
        up.gateway.replace(up.gateway.settings, off.gateway.config, off.gateway.router)
        up.gateway.cache = first
        assert not _hit(await _post(up))
