"""Broken answers: gone on with by another model, or told; limits of time; what only looks like an answer."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.server.breaking import ASK, PREFILL, Records, begun, chunk, events, post, read, said, two
from tests.server.conftest import StartGateway
from tests.server.upstreams import PNG, USAGE, chat, chat_stream, refusal, reply, sent
from windlass.core.errors import MissingKeyError
from windlass.server.needs import estimate_body
from windlass.testing.faults import BlackHole, FaultServer, Part, Received, Reply, Step, Stream, gzip_bomb, sse

# ------------------------------------------------------------------------------------------------------------- rescue


async def test_r07_another_model_goes_on_where_the_stream_broke(gateway: StartGateway) -> None:
    go, first = begun(chunk("", role="assistant"), chunk("one"), chunk(" two"), end="rst")
    async with two(gateway, first, chat_stream(" three", " four")) as (up, _, other, records):
        _, text = await read(up, go, {**ASK, "max_tokens": 10})
        assert said(text) == "one two three four"
        assert text.count("[DONE]") == 1 and text.endswith("data: [DONE]\n\n")
        rows = events(text)
        assert {row["id"] for row in rows} == {"chatcmpl-first"} and {row["created"] for row in rows} == {5}
        # A second role would be added to the first by clients that put deltas together.
        assert [row["choices"][0]["delta"]["role"] for row in rows if "role" in row["choices"][0]["delta"]] == [
            "assistant"
        ]
        assert rows[-1]["choices"][0]["finish_reason"] == "stop"
        asked = sent(other)
        assert asked["messages"][-1] == {"role": "assistant", "content": "one two"}
        assert asked["max_tokens"] == 8
        (record,) = records.all
        assert (record.outcome, record.target, record.attempts) == ("ok", "one:a, two:b", 2)
        assert record.estimated and record.output_tokens == 2 + USAGE["completion_tokens"]


async def test_a_rescue_sends_no_trailing_blank_and_repeats_none(gateway: StartGateway) -> None:
    go, first = begun(chunk("Title"), chunk(":\n"))
    async with two(gateway, first, chat_stream("\n", "\nbody")) as (up, _, other, _records):
        _, text = await read(up, go)
        assert sent(other)["messages"][-1]["content"] == "Title:"
        assert said(text) == "Title:\n\nbody"


async def test_what_came_with_the_broken_event_is_not_lost(gateway: StartGateway) -> None:
    broken = b"".join(
        [part for part in sse(chunk(" two"), '{"id":"x","choi', chunk(" lost")) if isinstance(part, bytes)]
    )
    go, first = begun(chunk("one"), then=[broken])
    async with two(gateway, first, chat_stream(" three")) as (up, _, other, _records):
        _, text = await read(up, go)
        assert sent(other)["messages"][-1]["content"] == "one two"
        assert said(text) == "one two three"


async def test_a_client_of_another_dialect_is_rescued_too(gateway: StartGateway) -> None:
    broken = b"".join([part for part in sse(chunk(" two"), '{"error":{"message":"busy"}}') if isinstance(part, bytes)])
    go, first = begun(chunk("one"), then=[broken])
    async with two(gateway, first, chat_stream(" three")) as (up, _, other, records):
        text, ended = "", False
        async with anthropic.AsyncAnthropic(base_url=up.url, api_key="any", max_retries=0) as client:
            ask: Any = ASK["messages"]
            async for event in await client.messages.create(model="r", max_tokens=50, messages=ask, stream=True):
                if event.type == "content_block_delta" and event.delta.type == "text_delta":
                    text += event.delta.text
                    go.set()
                ended = ended or event.type == "message_stop"
        assert (text, ended) == ("one two three", True)
        assert sent(other)["messages"][-1]["content"] == "one two"
        assert records.all[0].target == "one:a, two:b"


async def test_a_third_goes_on_where_the_second_refuses(gateway: StartGateway) -> None:
    go, first = begun(chunk("one"))
    async with FaultServer([chat_stream(" two")]) as last:
        third, able = {"base_url": f"{last.url}/v1", "api_key": "k", **PREFILL}, PREFILL["capabilities"]
        async with FaultServer([first]) as a, FaultServer([refusal(400, "no_prefill")]) as b:
            up = await gateway(
                providers={
                    "one": {"base_url": f"{a.url}/v1", "api_key": "k"},
                    "two": {"base_url": f"{b.url}/v1", "api_key": "k", "capabilities": {**able, "vision": False}},
                    "three": third,
                },
                routes={"r": ["one:a", "two:b", "three:c"]},
            )  # fmt: skip
            records = Records(up)
            _, text = await read(up, go)
            assert said(text) == "one two" and "[DONE]" in text
            assert (records.all[0].target, records.all[0].attempts) == ("one:a, three:c", 3)


async def test_a_rescue_that_breaks_is_rescued_again(gateway: StartGateway) -> None:
    go, first = begun(chunk("one"))
    second = Stream(sse(chunk(" two")), finish=False, end="fin")
    async with FaultServer([first]) as a, FaultServer([second]) as b, FaultServer([chat_stream(" three")]) as c:
        up = await gateway(
            providers={
                name: {"base_url": f"{server.url}/v1", "api_key": "k", **PREFILL}
                for name, server in (("one", a), ("two", b), ("three", c))
            },
            routes={"r": ["one:a", "two:b", "three:c"]},
        )
        _, text = await read(up, go)
        assert (said(text), "[DONE]" in text) == ("one two three", True)
        assert sent(c)["messages"][-1]["content"] == "one two"


TOOL: dict[str, Any] = {
    "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}]
}


@pytest.mark.parametrize("why", ["half a tool call", "nobody can", "the route says no", "several answers"])
async def test_what_cannot_go_on_ends_in_an_error_and_no_done(gateway: StartGateway, why: str) -> None:
    go, first = begun(chunk("one"), *([chunk("", **TOOL)] if why == "half a tool call" else []))
    how: dict[str, Any] = {}
    if why == "nobody can":
        how["second_table"] = {"capabilities": {"prefill": False}}
    if why == "the route says no":
        how["limits"] = {"continue": False}
    body = {**ASK, "n": 2} if why == "several answers" else ASK
    async with two(gateway, first, chat_stream(" two"), **how) as (up, _, other, records):
        _, text = await read(up, go, body)
        assert said(text) == "one" and "[DONE]" not in text
        assert events(text)[-1]["error"]["type"] == "provider_error"
        assert other.requests == []
        assert (records.all[0].outcome, records.all[0].target) == ("interrupted", "one:a")


async def test_an_answer_that_was_filtered_is_not_asked_of_another(gateway: StartGateway) -> None:
    parts = sse(chunk("one"), chunk(reason="content_filter"), "[DONE]")
    async with two(gateway, Stream(parts), chat_stream("two")) as (up, _, other, _records):
        async with httpx.AsyncClient(timeout=20.0, verify=False) as client:
            answer = await client.post(f"{up.url}/api/chat", json={**ASK, "stream": False})
        assert answer.status_code == 400 and "filter" in answer.json()["error"]
        assert other.requests == []


async def test_an_end_that_came_before_the_break_counts(gateway: StartGateway) -> None:
    go, first = begun(chunk("one"), chunk(reason="stop"), end="rst")
    async with two(gateway, first, chat_stream("more")) as (up, _, other, records):
        _, text = await read(up, go)
        assert (said(text), text.count("[DONE]")) == ("one", 1)
        assert (other.requests, records.all[0].outcome) == ([], "ok")


async def test_r15_a_break_before_content_shows_only_in_the_headers(gateway: StartGateway) -> None:
    async with two(gateway, Stream(sse(chunk("", role="assistant"), '{"error":{"message":"x"}}')), chat("hi")) as (
        up, _, other, _records,
    ):  # fmt: skip
        other.script[:] = [chat_stream("hi")]
        async with httpx.AsyncClient(timeout=20.0, verify=False) as client:
            answer = await client.post(f"{up.url}/v1/chat/completions", json=ASK)
        assert said(answer.text) == "hi"
        assert answer.headers["x-windlass-model"] == "two:b"
        assert answer.headers["x-windlass-attempts"] == "2"


async def test_a_target_without_its_key_counts_as_failed(
    gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(gateway, chat("one"), chat("two")) as (up, one, _, _records):

        def forward(*_: object, **__: object) -> None:
            raise MissingKeyError("ONE_API_KEY is not set.")

        first = up.gateway.router.route("r").targets[0].provider
        monkeypatch.setattr(first, "forward", forward)
        async with httpx.AsyncClient(timeout=20.0, verify=False) as client:
            answer = await client.post(f"{up.url}/v1/chat/completions", json={**ASK, "stream": False})
        assert answer.json()["choices"][0]["message"]["content"] == "two"
        assert one.requests == []


# -------------------------------------------------------------------------------- what does not come as it was asked


async def test_a_whole_answer_to_a_request_for_a_stream_is_streamed(gateway: StartGateway) -> None:
    async with two(gateway, chat("hello", ("f", '{"a":1}')), chat("no")) as (up, *_):
        text = (await post(up)).text
        assert text.endswith("data: [DONE]\n\n")
        assert events(text)[-1]["choices"][0]["finish_reason"] == "tool_calls"
        calls = [call for row in events(text) for call in row["choices"][0]["delta"].get("tool_calls", ())]
        assert "".join([call["function"]["arguments"] for call in calls]) == '{"a":1}'


async def test_a_stream_that_nobody_asked_for_is_put_together(gateway: StartGateway) -> None:
    async with two(gateway, chat_stream("hel", "lo"), chat("no")) as (up, *_):
        done = (await post(up, {**ASK, "stream": False})).json()
        assert done["choices"][0]["message"]["content"] == "hello"
        assert done["usage"]["total_tokens"] == USAGE["total_tokens"]


HTML = Reply(200, b"<html>Sign in</html>", {"content-type": "text/html"})
CUT = Stream([b'{"choices":[{"message":{"content":"hel'], headers={"content-type": "application/json"}, finish=False)
BOMB = gzip_bomb(100 << 20)
NO_ANSWERS: dict[str, Step] = {
    "r16 html": HTML,
    "a redirect": Reply(302, b"", {"location": "http://127.0.0.1:1/"}),
    "json without choices": reply({"id": "x"}),
    "an error in a 200": reply({"error": {"message": "busy", "type": "overloaded_error"}}),
    "r08 a cut body": CUT,
    "r29 a gzip bomb": Reply(200, BOMB.body, {**BOMB.headers, "content-type": "application/json"}),
    "the vendor broke off": reply({"choices": [{"message": {"content": "x"}, "finish_reason": "network_error"}]}),
    "an empty body": Reply(200, b"", {"content-type": "application/json"}),
    "[DONE] alone": Stream(sse("[DONE]")),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", NO_ANSWERS)
async def test_what_is_no_answer_goes_to_the_next_or_is_an_error(
    gateway: StartGateway, name: str, stream: bool
) -> None:
    def second(request: Received) -> Step:
        return chat_stream("fine") if json.loads(request.body).get("stream") else chat("fine")

    routes = {"r": ["one:a", "two:b"], "alone": {"targets": ["one:a"], "attempts": 1}}
    async with (
        two(gateway, NO_ANSWERS[name], second, routes=routes) as (up, *_),
        openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="any", max_retries=0) as client,
    ):
        ask: Any = client.chat.completions.create
        done: Any = await ask(**{**ASK, "stream": stream})
        if stream:
            text = "".join([piece.choices[0].delta.content or "" async for piece in done])
        else:
            text = done.choices[0].message.content
        assert text == "fine"
        with pytest.raises(openai.APIStatusError) as caught:
            await ask(**{**ASK, "model": "alone", "stream": stream})
        assert caught.value.status_code in (502, 503)
        assert "x-should-retry" in caught.value.response.headers


# -------------------------------------------------------------------------------------------------------------- limits


async def test_the_first_token_has_a_limit_that_opening_events_do_not_move(gateway: StartGateway) -> None:
    parts: list[Part] = [*sse(chunk("", role="assistant")), 0.2, *sse(chunk("")), 0.2, *sse(chunk("")), asyncio.Event()]
    async with two(gateway, Stream(parts), chat_stream("fine"), limits={"first_token_timeout": 0.5}) as (up, *_):
        assert said((await post(up)).text) == "fine"
        assert up.gateway.router.route("r").targets[0].breaker.last_error == "provider_timeout"


async def test_r11_pings_do_not_keep_a_stream_alive(gateway: StartGateway) -> None:
    ping: list[Part] = [b": ping\n\n", 0.05]
    go, first = begun(chunk("one"), then=[*ping * 100])
    async with two(gateway, first, chat_stream(" two"), limits={"idle_timeout": 0.4}) as (up, *_):
        _, text = await read(up, go)
        assert said(text) == "one two" and "[DONE]" in text


async def test_a_whole_answer_that_never_comes_is_left_for_another(gateway: StartGateway) -> None:
    async with two(gateway, BlackHole(), chat("fine"), server={"request_timeout": 1.0}) as (up, *_):
        assert (await post(up, {**ASK, "stream": False})).json()["choices"][0]["message"]["content"] == "fine"


async def test_the_routes_own_limit_of_time_holds(gateway: StartGateway) -> None:
    async with two(gateway, BlackHole(), BlackHole(), limits={"timeout": 0.4}) as (up, *_):
        answer = await post(up, {**ASK, "stream": False})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")


async def test_a_clients_deadline_is_kept_and_it_is_told_not_to_ask_again(gateway: StartGateway) -> None:
    async with two(gateway, BlackHole(), BlackHole()) as (up, *_):
        headers = {"x-stainless-read-timeout": "0.4", "x-stainless-retry-count": "0"}
        for stream in (False, True):
            answer = await post(up, {**ASK, "stream": stream}, **headers)
            assert (answer.status_code, answer.headers["x-should-retry"]) == (504, "false")


async def test_a_clients_read_timeout_does_not_bound_a_stream_that_goes_on(gateway: StartGateway) -> None:
    parts: list[Part] = [part for text in "abcdefgh" for part in (*sse(chunk(text)), 0.1)]
    first = Stream([*parts, *sse(chunk(reason="stop"), "[DONE]")])
    async with two(gateway, first, chat_stream("no")) as (up, *_):
        answer = await post(up, **{"x-stainless-read-timeout": "0.5"})
        assert said(answer.text) == "abcdefgh" and "[DONE]" in answer.text


async def test_an_sdk_that_asked_before_gets_fewer_attempts(gateway: StartGateway) -> None:
    async with two(gateway, refusal(503, "overloaded"), refusal(503, "overloaded")) as (up, one, other, _records):
        answer = await post(up, **{"x-stainless-retry-count": "3"})
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
        assert (len(one.requests), len(other.requests)) == (1, 0)


async def test_r17_a_wait_is_told(gateway: StartGateway) -> None:
    busy = refusal(429, "rate_limit_exceeded", **{"retry-after": "120"})
    async with two(gateway, busy, busy, limits={"attempts": 2}) as (up, *_):
        answer = await post(up)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "120")
        assert answer.headers["x-should-retry"] == "true"


async def test_the_gateways_own_share_of_the_time_is_told(gateway: StartGateway) -> None:
    slow = Stream([0.3, *sse(chunk("one", None), chunk(reason="stop"), "[DONE]")])
    async with two(gateway, slow, chat("no")) as (up, *_):
        told = (await post(up)).headers["server-timing"]
        own, upstream = [float(part.rpartition("=")[2]) for part in told.split(", ")]
        assert upstream >= 290 and own < upstream


# ----------------------------------------------------------------------------------------- settings, needs, other bytes


async def test_settings_that_cannot_be_told_are_reported_or_refused(gateway: StartGateway) -> None:
    body = {"model": "r", "max_tokens": 9, "top_k": 5, "messages": [{"role": "user", "content": "hi"}]}
    async with two(gateway, chat_stream("a"), chat_stream("a")) as (up, *_):
        assert (await post(up, body, "/v1/messages")).headers["x-windlass-dropped"] == "top_k"
        # What passes as it is loses nothing: the vendor says what it does not take.
        assert "x-windlass-dropped" not in (await post(up, {**ASK, "top_k": 5})).headers
    async with two(gateway, chat_stream("a"), chat_stream("a"), server={"unsupported": "refuse"}) as (up, one, *_):
        answer = await post(up, body, "/v1/messages")
        assert answer.status_code == 400 and "top_k" in answer.json()["error"]["message"]
        assert one.requests == []


async def test_an_image_does_not_count_as_the_text_it_is_written_in(gateway: StartGateway) -> None:
    image = "data:image/png;base64," + base64.b64encode(PNG + bytes(900_000)).decode()
    content = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": image}}]
    body = {**ASK, "stream": False, "messages": [{"role": "user", "content": content}]}
    assert estimate_body(json.dumps(body).encode()) < 2000
    small = {"capabilities": {"context": 8000}}
    async with two(gateway, chat("seen"), chat("no"), first_table=small) as (up, one, *_):
        assert (await post(up, body)).json()["choices"][0]["message"]["content"] == "seen"
        assert len(one.requests) == 1
        text = {**ASK, "stream": False, "messages": [{"role": "user", "content": "word " * 20_000}]}
        assert (await post(up, text)).json()["choices"][0]["message"]["content"] == "no"


MESSAGE = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
    b'"model":"c","content":[],"odd": 1,"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text",'
    b'"text":""}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
    b'"text":"hi"}}\n\n',
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":2}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)


async def test_other_dialects_pass_byte_by_byte_where_nobody_could_go_on(gateway: StartGateway) -> None:
    lines = (
        b'{"model":"q","created_at":"t","message":{"role":"assistant","content":"hi"},"odd":  1,"done":false}\n'
        b'{"model":"q","created_at":"t","message":{"content":""},"done":true,"done_reason":"stop","eval_count":1}\n'
    )
    kinds = {"content-type": "application/x-ndjson"}
    async with FaultServer([Stream(list(MESSAGE))]) as one, FaultServer([Stream([lines], headers=kinds)]) as other:
        up = await gateway(
            providers={
                "one": {"base_url": one.url, "api_key": "k", "dialect": "anthropic"},
                "two": {"base_url": other.url, "dialect": "ollama"},
            },
            routes={"r": "one:c", "q": "two:q"},
        )
        body = {"model": "r", "max_tokens": 9, "stream": True, "messages": ASK["messages"]}
        assert (await post(up, body, "/v1/messages")).content == b"".join(MESSAGE)
        assert (await post(up, {**ASK, "model": "q"}, "/api/chat")).content == lines


async def test_a_cut_event_of_another_dialect_is_not_passed(gateway: StartGateway) -> None:
    go = asyncio.Event()
    cut = Stream([MESSAGE[0], go, MESSAGE[1][:60]], finish=False, end="fin")
    async with FaultServer([cut]) as one:
        up = await gateway(
            providers={"one": {"base_url": one.url, "api_key": "k", "dialect": "anthropic"}}, routes={"r": "one:c"}
        )
        text, error = "", None
        async with anthropic.AsyncAnthropic(base_url=up.url, api_key="any", max_retries=0) as client:
            ask: Any = ASK["messages"]
            try:
                async for event in await client.messages.create(model="r", max_tokens=9, messages=ask, stream=True):
                    if event.type == "content_block_delta" and event.delta.type == "text_delta":
                        text += event.delta.text
                        go.set()
            except anthropic.APIStatusError as caught:
                error = caught
        assert text == "hi" and error is not None


async def test_r30_a_client_that_leaves_ends_the_upstream_and_is_written_down(gateway: StartGateway) -> None:
    first = Stream([*sse(chunk("one"), chunk(" two")), asyncio.Event()])
    async with two(gateway, first, chat("no")) as (up, one, *_, records):
        async with (
            httpx.AsyncClient(timeout=20.0, verify=False) as client,
            client.stream("POST", f"{up.url}/v1/chat/completions", json=ASK) as answer,
        ):
            async for _ in answer.aiter_bytes():
                break
        async with asyncio.timeout(1.0):
            await one.wait(open=0)
            while not records.all:
                await asyncio.sleep(0)
        (record,) = records.all
        assert (record.outcome, record.target) == ("client_gone", "one:a")
        assert record.estimated and record.output_tokens > 0
