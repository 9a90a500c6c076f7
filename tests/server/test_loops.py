"""Reference A's loops over HTTP (inventory 1.4): how they begin, go on and end, and what they cost."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import openai
import pytest

from tests.server.chatting import PATH, ask, error_of, said, sdk, streamed, text_of
from tests.server.conftest import InProcess, StartGateway
from tests.server.upstreams import answering, chat_stream, refusal, sent, up
from windlass.agent.modes import AGENT_FOLLOW_UP, AGENT_GUIDANCE
from windlass.testing.faults import FaultServer, Received, Step, Stream

HI = [said("Do it.")]


def turns(*texts: str, **calls: tuple[str, str]) -> Any:
    """Return a script that streams one text after the other, the last one for ever; `turnN=(tool, arguments)` calls."""
    count = 0

    def step(request: Received) -> Step:
        nonlocal count
        del request
        at, count = min(count, len(texts) - 1), count + 1
        return chat_stream(texts[at], call=calls.get(f"turn{at + 1}"))

    return step


async def record(served: InProcess) -> list[tuple[Any, ...]]:
    """Return (target, attempts, outcome, input, output, stream) of every record."""
    await served.gateway.accounts.flush()
    return await served.gateway.accounts.tables.fetch(
        "SELECT target, attempts, outcome, input_tokens, output_tokens, stream FROM account_requests ORDER BY time"
    )


# ------------------------------------------------------------------------------------------------------- what enables


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"loop_mode": "basic"}, 2),
        ({"loop_mode": " BASIC "}, 2),
        ({"loop_max_turns": 5}, 2),
        ({"agent_loop": True}, 2),
        ({"loop_mode": "basic", "agent_loop": True}, 2),
        ({"agent_loop": False}, 1),
        ({"loop_until": "DONE"}, 1),
        ({"think": False}, 1),
    ],
)
async def test_1_4_what_enables_a_loop(gateway: StartGateway, fields: dict[str, Any], asked: int) -> None:
    # Outside a loop the upstream is asked for a whole answer, within one for a stream.
    script = turns("one", "two DONE") if asked == 2 else answering("one")
    async with FaultServer(script) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        text = text_of(await ask(served.url, prompt="Do it.", provider="up", **fields))
        assert (text, len(upstream.requests)) == (("two DONE", 2) if asked == 2 else ("one", 1))


async def test_1_4_basic_goes_on_until_the_marker(gateway: StartGateway) -> None:
    async with FaultServer(turns("one", "done", "it is DONE.")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        answer = await ask(served.url, messages=[said("Rules.", "system"), *HI], provider="up", loop_mode="basic")
        assert text_of(answer) == "it is DONE."
        body = answer.json()
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["prompt_tokens"] == 9 and body["usage"]["completion_tokens"] == 6
        assert sent(upstream)["messages"] == [
            said("Rules.", "system"), *HI, said("one", "assistant"), said("Continue."), said("done", "assistant"),
            said("Continue."),
        ]  # fmt: skip
        assert await record(served) == [("up:m", 3, "ok", 9, 6, 0)]


async def test_1_4_the_marker_may_be_another_and_turns_run_out(gateway: StartGateway) -> None:
    async with FaultServer(turns("DONE")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields = {"prompt": "x", "provider": "up", "loop_until": "FINISHED"}
        assert text_of(await ask(served.url, body={**fields, "loop_max_turns": 3})) == "DONE"
        assert len(upstream.requests) == 3
        assert text_of(await ask(served.url, body={**fields, "loop_mode": "basic"})) == "DONE"
        assert len(upstream.requests) == 3 + 8, "A's default"


async def test_1_4_agent_asks_for_critique_and_stops_without_progress(gateway: StartGateway) -> None:
    async with FaultServer(turns("one", "two", " two ", "three")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        assert text_of(await ask(served.url, messages=HI, provider="up", agent_loop=True, loop_until="END")) == " two "
        system, *rest = sent(upstream)["messages"]
        # A puts it behind the user's messages, where some models take it for an answer's beginning.
        assert system == said(f"{AGENT_GUIDANCE} The completion marker is: END", "system")
        assert rest == [
            *HI, said("one", "assistant"), said(AGENT_FOLLOW_UP), said("two", "assistant"), said(AGENT_FOLLOW_UP)
        ]  # fmt: skip


async def test_1_4_settings_reach_every_turn(gateway: StartGateway) -> None:
    async with FaultServer(turns("one", "DONE")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        answer = await ask(
            served.url, messages=HI, provider="up", loop_mode="basic", temperature=0.3, seed=7, max_tokens=50,
            user="me", stop=["x"], repeat_penalty=1.1,
        )  # fmt: skip
        assert text_of(answer) == "DONE" and answer.headers["x-windlass-dropped"] == "repeat_penalty"
        for at in (0, 1):
            body = sent(upstream, at)
            assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.3, 7, 50)
            assert (body["user"], body["stop"]) == ("me", ["x"])
        text_of(await ask(served.url, messages=HI, provider="up", loop_mode="basic"))
        assert "max_tokens" not in sent(upstream), "what the client does not say is the provider's"


# ----------------------------------------------------------------------------------------------------------- streams


async def test_1_3_progress_is_a_chunk_for_every_turn(gateway: StartGateway) -> None:
    async with FaultServer(turns("one", "two", "DONE")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        async with sdk(served.url) as client:
            extra = {"provider": "up", "loop_mode": "basic", "loop_max_turns": 4}
            pieces, reason = await streamed(client, model="auto", messages=HI, extra_body=extra)
            assert pieces == ["[loop turn 1/4]\none\n", "[loop turn 2/4]\ntwo\n", "[loop turn 3/4]\nDONE\n"]
            assert reason == "stop"
            stream = await client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "x"}], stream=True,
                stream_options={"include_usage": True}, extra_body=extra,
            )  # fmt: skip
            chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 5
        rows = await record(served)
        assert rows[0] == ("up:m", 3, "ok", 9, 6, 1)


async def test_1_3_without_progress_only_the_last_turn_is_told(gateway: StartGateway) -> None:
    async with FaultServer(turns("one", "two", "DONE")) as upstream:
        off = {"LLM_ROUTER_LOOP_STREAM_PROGRESS_ENABLED": "no"}
        served = await gateway(providers=up(upstream, model="m"), environ=off)
        async with sdk(served.url) as client:
            extra = {"provider": "up", "loop_mode": "basic"}
            assert await streamed(client, model="auto", messages=HI, extra_body=extra) == (["DONE"], "stop")


async def test_1_3_a_turn_s_chunk_comes_before_the_next_turn_ends(gateway: StartGateway) -> None:
    gate = asyncio.Event()

    def step(request: Received) -> Step:
        first = b"Continue." not in request.body
        script = chat_stream("one" if first else "DONE")
        return script if first else Stream([gate, *script.parts])

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        body = {"prompt": "x", "provider": "up", "loop_mode": "basic", "stream": True}
        async with (
            httpx.AsyncClient(timeout=20.0) as client,
            client.stream("POST", f"{served.url}{PATH}", json=body) as answer,
        ):
            lines = answer.aiter_lines()
            assert "[loop turn 1/8]" in await anext(lines)
            assert len(upstream.requests) <= 2 and not gate.is_set()
            gate.set()
            assert "[DONE]" in "\n".join([line async for line in lines])


async def test_1_4_an_answer_that_was_cut_ends_the_loop_and_says_so(gateway: StartGateway) -> None:
    def step(request: Received) -> Step:
        del request
        parts = [part.replace(b'"stop"', b'"length"') for part in chat_stream("half").parts if isinstance(part, bytes)]
        return Stream(parts)

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        answer = await ask(served.url, prompt="x", provider="up", loop_mode="basic")
        assert text_of(answer) == "half" and answer.json()["choices"][0]["finish_reason"] == "length"
        async with sdk(served.url) as client:
            extra = {"provider": "up", "loop_mode": "basic"}
            pieces = await streamed(client, model="auto", messages=HI, extra_body=extra)
        assert pieces == (["[loop turn 1/8]\nhalf\n"], "length")
        assert len(upstream.requests) == 2


# ---------------------------------------------------------------------------------------------------------- failures


async def test_1_4_a_turn_that_fails_makes_the_request_fail(gateway: StartGateway) -> None:
    def step(request: Received) -> Step:
        return refusal(422, "no") if b"Continue." in request.body else chat_stream("one")

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        found = error_of(await ask(served.url, prompt="x", provider="up", loop_mode="basic"))
        assert found == (400, "provider_error", None, "provider_rejected_request")
        # What the first turn used is paid for all the same.
        assert await record(served) == [("up:m", 2, "error", 3, 2, 0)]
        async with sdk(served.url) as client:
            stream = await client.chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "x"}], stream=True,
                extra_body={"provider": "up", "loop_mode": "basic"},
            )  # fmt: skip
            first = await anext(stream)
            with pytest.raises(openai.APIError) as caught:
                await anext(stream)
        assert first.choices[0].delta.content == "[loop turn 1/8]\none\n"
        assert caught.value.code == "provider_rejected_request"


async def test_1_4_turns_have_retries_and_fallbacks(gateway: StartGateway) -> None:
    async with FaultServer([refusal(503, "busy")]) as broken, FaultServer(turns("one", "DONE")) as good:
        providers = {
            "a": {"base_url": f"{broken.url}/v1", "api_key": "k"},
            "b": {"base_url": f"{good.url}/v1", "api_key": "k"},
        }
        served = await gateway(providers=providers, routes={"both": ["a:x", "b:y"]})
        answer = await ask(served.url, prompt="x", model="both", loop_mode="basic")
        assert text_of(answer) == "DONE" and answer.headers["x-windlass-model"] == "b:y"
        ((target, attempts, outcome, *_),) = await record(served)
        assert (target, outcome) == ("b:y", "ok") and attempts == len(broken.requests) + len(good.requests)


async def test_s55_a_provider_that_repeats_its_key_is_not_repeated(gateway: StartGateway) -> None:
    async with FaultServer([refusal(401, "the key sk-upstream is wrong")]) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        answer = await ask(served.url, prompt="x", provider="up", loop_mode="basic", session_id="s")
        assert error_of(answer)[3] == "provider_auth_failed"
        rows = await served.gateway.sessions.store.read("s")
        assert "[hidden]" in answer.text and any(b"[hidden]" in row.data for row in rows)
        assert "sk-upstream" not in answer.text and not any(b"sk-upstream" in row.data for row in rows)


async def test_1_4_a_stream_that_breaks_within_a_turn_is_no_answer(gateway: StartGateway) -> None:
    async with FaultServer([chat_stream("half an", end=False), chat_stream("swer DONE")]) as upstream:
        served = await gateway(providers=up(upstream, model="m"), server={"attempts": 1})
        found = error_of(await ask(served.url, prompt="x", provider="up", loop_mode="basic"))
        assert found == (502, "provider_error", None, "provider_transport_error")
        assert len(upstream.requests) == 1, "the second half alone must not pass for an answer"


async def test_1_5_a_loop_that_never_said_anything_is_an_error(gateway: StartGateway) -> None:
    async with FaultServer(turns("")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        found = error_of(await ask(served.url, prompt="x", provider="up", loop_mode="basic"))
        assert found == (502, "provider_error", None, "empty_model_response")


@pytest.mark.parametrize("stream", [False, True])
async def test_r30_a_client_that_leaves_stops_the_loop_within_a_second(gateway: StartGateway, stream: bool) -> None:
    def step(request: Received) -> Step:
        return (
            Stream([*chat_stream("two", end=False).parts, 30.0]) if b"Continue." in request.body else chat_stream("1")
        )

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        body = json.dumps({"prompt": "x", "provider": "up", "loop_mode": "basic", "stream": stream}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(10):
            while len(upstream.requests) < 2:
                await asyncio.sleep(0.01)
        left = time.monotonic()
        writer.transport.abort()
        async with asyncio.timeout(10):
            while upstream.open or served.gateway.running:
                await asyncio.sleep(0.01)
        assert time.monotonic() - left < 1.0
        ((_, attempts, outcome, spent, *_),) = await record(served)
        assert (attempts, outcome) == (2, "client_gone") and spent >= 3


async def test_budgets_are_kept_turn_by_turn(gateway: StartGateway) -> None:
    async with FaultServer(turns("on")) as upstream:
        served = await gateway(providers=up(upstream, model="m"), server={"default_output_tokens": 100})
        _, secret = await served.gateway.accounts.create("poor", token_budget=400)
        found = error_of(
            await ask(served.url, key=secret, prompt="x", provider="up", loop_max_turns=128, loop_until="!")
        )
        assert found[0] == 429 and found[3] == "insufficient_quota"
        # Each turn reserves for its prompt and 100 tokens, and uses five.
        assert 40 < len(upstream.requests) < 80
        await served.gateway.accounts.flush()
        (row,) = await served.gateway.accounts.usage()
        assert row.input_tokens + row.output_tokens == 5 * len(upstream.requests) <= 400


async def test_1_5_max_context_tokens_keeps_the_task_of_a_loop(gateway: StartGateway) -> None:
    async with FaultServer(turns("word " * 40)) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields = {"provider": "up", "loop_max_turns": 6, "max_context_tokens": 150}
        text_of(await ask(served.url, body={"prompt": "The task.", **fields}))
        messages = sent(upstream)["messages"]
        assert messages[0] == said("The task.") and messages[-1] == said("Continue.")
        assert len(messages) < 7
        found = error_of(await ask(served.url, body={"prompt": "The task. " * 100, **fields}))
        assert found == (400, "invalid_request_error", "max_context_tokens", "context_length_exceeded")


# ------------------------------------------------------------------------------------------------------ server tools


async def test_1_5_server_tools_are_real_tools_in_a_loop(gateway: StartGateway) -> None:
    script = turns("", "The time is known. DONE", turn1=("utc", "{}"))
    async with FaultServer(script) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        tools = [{"name": "utc", "description": "What time is it?"}, {"name": "echo"}, {"name": "bash"}]
        answer = await ask(served.url, prompt="the time?", provider="up", tools=tools, loop_mode="basic")
        assert text_of(answer) == "The time is known. DONE"
        offered = {tool["function"]["name"]: tool["function"]["description"] for tool in sent(upstream)["tools"]}
        assert offered.keys() == {"utc", "echo"}, "a shell only where it is switched on"
        assert offered["utc"] == "What time is it?"
        response = sent(upstream)["messages"][-1]
        assert response["role"] == "tool" and response["content"].startswith("DEBUG_TOOL_OK\ntool=utc\nunix_utc=")
        # The prompt runs nothing by itself here: the model has the tools.
        assert [message["role"] for message in sent(upstream, 0)["messages"]] == ["user"]
        text_of(await ask(served.url, prompt="x", provider="up", tools=tools, tool_choice="none", loop_mode="basic"))
        assert "tools" not in sent(upstream)


async def test_1_5_a_loop_runs_commands_where_that_is_on(gateway: StartGateway) -> None:
    script = turns("", "DONE", turn1=("bash", json.dumps({"command": "printf %s from-the-shell"})))
    async with FaultServer(script) as upstream:
        served = await gateway(providers=up(upstream, model="m"), server={"tool_exec": True})
        answer = await ask(served.url, prompt="x", provider="up", tools=[{"name": "bash"}], loop_mode="agent")
        assert text_of(answer) == "DONE"
        content = sent(upstream)["messages"][-1]["content"]
        assert content.startswith("DEBUG_TOOL_OK\ntool=bash\nterm=exited:0\n") and "\nfrom-the-shell\n" in content


async def test_1_4_many_loops_at_once_do_not_mix(gateway: StartGateway) -> None:
    served = await gateway()

    async def one(number: int) -> None:
        text = text_of(await ask(served.url, prompt=f"{number} DONE", provider="echo", loop_mode="basic"))
        assert text == f"Echo: {number} DONE"

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(one(number))
    assert len(await record(served)) == 20
