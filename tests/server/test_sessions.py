"""Sessions over HTTP (inventory 1.5): continued, whole or marked, on record; R10, R30, R34."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from typing import Any

import httpx
import openai
import pytest

from tests.server.chatting import (
    ECHO,
    PATH,
    ask,
    at_rest,
    kept,
    opened,
    read_session,
    said,
    sdk,
    streamed,
    talk,
    text_of,
    until,
)
from tests.server.conftest import Serve, StartGateway
from tests.server.upstreams import answering, chat, chat_stream, refusal, sent, up
from windlass.agent.conversation import Conversation
from windlass.agent.ledger import Ledger
from windlass.core.events import MessageAdded, RunFinished, RunStarted
from windlass.core.messages import Message, Text, ToolCall, ToolResponse, user
from windlass.core.models import Capabilities
from windlass.core.request import Request
from windlass.testing.faults import FaultServer, Received, Step, Stream
from windlass.testing.validity import check_openai

CALL = ("weather", '{"city":"Oslo"}')
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


# --------------------------------------------------------------------------------------------------------- continuing


@pytest.mark.parametrize("stream", [False, True])
async def test_1_5_a_session_goes_on(gateway: StartGateway, stream: bool) -> None:
    async with FaultServer(answering("answer")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        async with sdk(served.url) as client:
            for prompt in ("one", "two", "three"):
                fields: dict[str, Any] = {
                    "model": "auto", "messages": [said(prompt)], "extra_body": {"provider": "up", "session_id": "s"}
                }  # fmt: skip
                if stream:
                    assert await streamed(client, **fields) == (["answer"], "stop")
                else:
                    done = await client.chat.completions.create(**fields)
                    assert done.choices[0].message.content == "answer"
        assert sent(upstream)["messages"] == [
            said("one"), said("answer", "assistant"), said("two"), said("answer", "assistant"), said("three")
        ]  # fmt: skip
        assert await talk(served, "s") == [("user", p) if r else ("assistant", "answer")
                                           for p in ("one", "two", "three") for r in (True, False)]  # fmt: skip
        events = await kept(served, "s")
        assert [type(event).__name__ for event in events[:5]] == [
            "SessionCreated", "RunStarted", "MessageAdded", "MessageAdded", "RunFinished"
        ]  # fmt: skip
        await served.gateway.accounts.flush()
        rows = await served.gateway.accounts.tables.fetch("SELECT session_id, outcome FROM account_requests")
        assert rows == [("s", "ok")] * 3


async def test_1_5_what_is_resent_is_not_said_twice(gateway: StartGateway) -> None:
    async with FaultServer(answering("A")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields: dict[str, Any] = {"provider": "up", "session_id": "s"}
        history = [said("Rules.", "system"), said("one")]
        text_of(await ask(served.url, messages=history, **fields))
        history += [said("A", "assistant"), said("two")]
        text_of(await ask(served.url, messages=history, **fields))
        assert sent(upstream)["messages"] == history
        # Only what is new, and only the end of it: the same conversation. The system text is remembered.
        text_of(await ask(served.url, messages=[said("three")], **fields))
        history += [said("A", "assistant"), said("three")]
        assert sent(upstream)["messages"] == history
        text_of(await ask(served.url, messages=[*history[-1:], said("A", "assistant"), said("four")], **fields))
        history += [said("A", "assistant"), said("four")]
        assert sent(upstream)["messages"] == history
        text_of(await ask(served.url, messages=[said("Other rules.", "system"), said("five")], **fields))
        assert sent(upstream)["messages"][0] == said("Other rules.", "system")
        assert [text for role, text in await talk(served, "s") if role == "user"] == [
            "one", "two", "three", "four", "five"
        ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
async def test_1_5_calls_of_the_client_s_functions_are_continued(gateway: StartGateway, stream: bool) -> None:
    def step(request: Received) -> Step:
        body = json.loads(request.body)
        assert check_openai(body) == []
        if body["messages"][-1]["role"] == "tool":
            return chat_stream("Rain.") if stream else chat("Rain.")
        return chat_stream("", call=CALL) if stream else chat("", call=CALL)

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields: dict[str, Any] = {"provider": "up", "session_id": "s", "tools": [FUNCTION], "stream": stream}
        reply = {"role": "tool", "tool_call_id": "call_abc", "content": "rain"}
        for _ in range(2):
            # The upstream gives every call the same id: within a request each is used once.
            assert (await ask(served.url, messages=[said("weather?")], **fields)).status_code == 200
            assert (await ask(served.url, messages=[reply], **fields)).status_code == 200
        roles = [message["role"] for message in sent(upstream)["messages"]]
        assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant", "tool"]
        # A call that is left without its result gets one that says so, and a result without a call is left out.
        text = (await ask(served.url, messages=[said("weather?")], **fields)).text
        assert "call_abc" in text
        fields["tools"] = None
        answer = await ask(served.url, messages=[reply, reply, said("thanks")], **fields)
        assert answer.status_code == 200
        await ask(served.url, messages=[said("never mind")], **fields)
        assert check_openai(sent(upstream)) == []


async def test_1_5_retention_limits_what_is_sent_and_never_what_is_kept(gateway: StartGateway) -> None:
    async with FaultServer(answering("A")) as upstream:
        served = await gateway(
            providers=up(upstream, model="m"), environ={"LLM_ROUTER_SESSION_RETENTION_MESSAGES": "3"}
        )  # fmt: skip
        for number in range(6):
            text_of(await ask(served.url, prompt=f"q{number}", provider="up", session_id="s"))
        # Three messages would begin with an answer: it begins with the question after it.
        assert sent(upstream)["messages"] == [said("q4"), said("A", "assistant"), said("q5")]
        assert len(await talk(served, "s")) == 12
        assert served.gateway.settings.retention_messages == 3
    assert (await gateway()).gateway.settings.retention_messages == 24, "A's default"


async def test_1_5_max_context_tokens_counts_the_session_too(gateway: StartGateway) -> None:
    async with FaultServer(answering("A")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        for number in range(4):
            fields: dict[str, Any] = {"prompt": f"{number} " + "word " * 40, "provider": "up", "session_id": "s"}
            text_of(await ask(served.url, body={**fields, "max_context_tokens": 200}))
        assert len(sent(upstream)["messages"]) == 5 and sent(upstream)["messages"][0]["content"].startswith("1 ")
        assert len(await talk(served, "s")) == 8


async def test_1_5_tool_results_of_the_server_are_kept(gateway: StartGateway) -> None:
    async with FaultServer(answering("noon")) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        fields: dict[str, Any] = {"provider": "up", "session_id": "s"}
        text_of(await ask(served.url, prompt="the time?", tools=[{"name": "utc"}], **fields))
        (_, note, _) = await talk(served, "s")
        assert note[0] == "system" and note[1].startswith("Tool execution results:\n\n[tool=utc]")
        # The client does not know of the note, and resends what it knows.
        text_of(await ask(served.url, messages=[said("the time?"), said("noon", "assistant"), said("ok")], **fields))
        assert [role for role, _ in await talk(served, "s")] == ["user", "system", "assistant", "user", "assistant"]


async def test_1_5_the_whole_transcript_of_a_loop_is_kept(gateway: StartGateway) -> None:
    served = await gateway()
    text_of(await ask(served.url, prompt="first", session_id="s", **ECHO))
    text_of(await ask(served.url, prompt="again", session_id="s", loop_max_turns=2, **ECHO))
    assert await talk(served, "s") == [
        ("user", "first"), ("assistant", "Echo: first"), ("user", "again"), ("assistant", "Echo: again"),
        ("user", "Continue."), ("assistant", "Echo: Continue."),
    ]  # fmt: skip
    async with sdk(served.url) as client:
        extra = {**ECHO, "session_id": "s", "loop_max_turns": 1}
        assert (await streamed(client, model="auto", messages=[said("more")], extra_body=extra))[1] == "stop"
    assert (await talk(served, "s"))[-2:] == [("user", "more"), ("assistant", "Echo: more")]


async def test_1_5_a_failed_request_leaves_nothing_of_its_turn(gateway: StartGateway) -> None:
    def step(request: Received) -> Step:
        return refusal(422, "no") if b"bad" in request.body else chat("A")

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        loops: list[dict[str, Any]] = [{}, {"loop_max_turns": 2}]
        for more in loops:
            fields: dict[str, Any] = {"provider": "up", "session_id": f"s{len(more)}", **more}
            assert (await ask(served.url, body={"prompt": "bad", **fields})).status_code == 400
            await at_rest(served)
            assert await talk(served, fields["session_id"]) == []
            last = (await kept(served, fields["session_id"]))[-1 - len(more)]
            assert isinstance(last, RunFinished) and last.stop_reason == "error"
        assert text_of(await ask(served.url, prompt="good", provider="up", session_id="s0")) == "A"
        assert sent(upstream)["messages"] == [said("good")]
        assert await talk(served, "s0") == [("user", "good"), ("assistant", "A")]


# ------------------------------------------------------------------------------------------------ broken off, killed


async def test_r10_a_stream_that_breaks_off_is_kept_and_marked(gateway: StartGateway) -> None:
    def step(request: Received) -> Step:
        return chat_stream("half of it", end=False) if b"go on" not in request.body else chat_stream("the rest")

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"), server={"attempts": 1})
        fields: dict[str, Any] = {"model": "auto", "extra_body": {"provider": "up", "session_id": "s"}}
        async with sdk(served.url) as client:
            with pytest.raises(openai.APIError):
                await streamed(client, messages=[said("tell me")], **fields)
            await at_rest(served)
            messages = Conversation.fold(await kept(served, "s")).messages
            assert [(m.role, m.text, m.finish_reason) for m in messages] == [
                ("user", "tell me", None), ("assistant", "half of it", "interrupted")
            ]  # fmt: skip
            assert (await read_session(served.url, "s")).json()["status"] == "interrupted"
            assert await streamed(client, messages=[said("go on")], **fields) == (["the rest"], "stop")
        assert check_openai(sent(upstream)) == []
        assert [message["role"] for message in sent(upstream)["messages"]] == ["user", "assistant", "user"]
        assert (await read_session(served.url, "s")).json()["status"] == "idle"


async def test_a_stream_that_another_model_ended_is_kept_as_the_client_has_it(gateway: StartGateway) -> None:
    served = await gateway(routes={"both": ["fault:cut?tokens=3", "fault:ok"]})
    async with sdk(served.url) as client:
        extra = {"session_id": "s"}
        pieces, reason = await streamed(client, model="both", messages=[said("go")], extra_body=extra)
        whole, _ = await streamed(client, model="fault:ok", messages=[said("go")])
    assert reason == "stop" and pieces
    (_, answer) = Conversation.fold(await kept(served, "s")).messages
    assert (answer.text, answer.finish_reason) == ("".join(pieces), "stop")
    assert len(whole) > 0


@pytest.mark.parametrize("model", ["fault:503", "fault:reset", "fault:malformed"])
async def test_a_model_that_fails_leaves_nothing_in_the_session(gateway: StartGateway, model: str) -> None:
    served = await gateway(server={"attempts": 1})
    assert (await ask(served.url, prompt="x", model=model, session_id="s")).status_code >= 500
    await at_rest(served)
    assert await talk(served, "s") == []
    assert isinstance((await kept(served, "s"))[-1], RunFinished)


async def test_r30_a_client_that_leaves_midway_leaves_a_marked_answer(gateway: StartGateway) -> None:
    async with FaultServer([Stream([*chat_stream("so far", end=False).parts, 60.0])]) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        body = {"prompt": "x", "provider": "up", "session_id": "s", "stream": True}
        async with opened(served.url, body) as answer:
            assert "so far" in await anext(answer.aiter_text())
        left = time.monotonic()
        await until(lambda: not upstream.open and not served.gateway.running)
        assert time.monotonic() - left < 1.0
        await until(lambda: not served.gateway.sessions.working("", "s"))
        (_, answer) = Conversation.fold(await kept(served, "s")).messages
        assert (answer.text, answer.finish_reason) == ("so far", "interrupted")


async def test_r30_a_client_that_leaves_before_the_answer_leaves_nothing(gateway: StartGateway) -> None:
    async with FaultServer([Stream([60.0])]) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        body = {"prompt": "x", "provider": "up", "session_id": "s"}
        async with httpx.AsyncClient() as client:
            task = asyncio.create_task(client.post(f"{served.url}{PATH}", json=body))
            await until(lambda: upstream.requests)
            task.cancel()
            await asyncio.wait([task])
        await until(lambda: not served.gateway.running)
        assert await talk(served, "s") == []
        assert isinstance((await kept(served, "s"))[-1], RunFinished)


def _config(upstream: FaultServer, *server: str) -> str:
    lines = "\n".join(["[server]", *server])
    return f'{lines}\n[providers.up]\nbase_url = "{upstream.url}/v1"\napi_key = "k"\nmodel = "m"\n'


async def test_r34_a_gateway_that_is_killed_leaves_its_sessions_whole(serve: Serve) -> None:
    def step(request: Received) -> Step:
        if b"slow" not in request.body or b"after" in request.body:
            return chat("A")
        return Stream([*chat_stream("half", end=False).parts, 60.0])

    async with FaultServer(step) as upstream:
        served = serve(_config(upstream))
        fields: dict[str, Any] = {"provider": "up", "session_id": "s"}
        for prompt in ("one", "two"):
            text_of(await ask(served.url, prompt=prompt, **fields))
        body = {"prompt": "slow", "stream": True, **fields}
        async with opened(served.url, body) as answer:
            assert "half" in await anext(answer.aiter_text())
            assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        again = serve(_config(upstream), home=served.home)
        found = (await read_session(again.url, "s")).json()
        # What was acknowledged is there, the request that was in flight is marked, and of its turn there is nothing.
        assert found["status"] == "interrupted"
        assert [message["role"] for message in found["messages"]] == ["user", "assistant"] * 2
        assert text_of(await ask(again.url, prompt="after", **fields)) == "A"
        assert [message["content"] for message in sent(upstream)["messages"]] == ["one", "A", "two", "A", "after"]
        assert (await read_session(again.url, "s")).json()["status"] == "idle"
        # The command line reads the same ledger.
        command = [sys.executable, "-m", "windlass", "sessions", "show", "s"]
        shown = subprocess.run(command, env=again.env, capture_output=True, text=True, timeout=30, check=True)
        assert shown.stdout.splitlines() == [
            f"{role}: {text}" for text in ("one", "two", "after") for role, text in (("user", text), ("assistant", "A"))
        ]  # fmt: skip


async def test_r34_a_loop_that_is_killed_keeps_the_turns_it_had(serve: Serve) -> None:
    def step(request: Received) -> Step:
        if b"Continue." not in request.body or b"after" in request.body:
            return chat_stream("one") if b"after" not in request.body else chat("A")
        return Stream([*chat_stream("half", end=False).parts, 60.0])

    async with FaultServer(step) as upstream:
        served = serve(_config(upstream))
        fields: dict[str, Any] = {"provider": "up", "session_id": "s"}
        async with opened(served.url, {"prompt": "go", "stream": True, "loop_mode": "basic", **fields}) as answer:
            pieces = answer.aiter_text()
            assert "[loop turn 1/8]" in await anext(pieces)
            await until(lambda: len(upstream.requests) == 2)
            assert served.stop(signal.SIGKILL) == -signal.SIGKILL
        again = serve(_config(upstream), home=served.home)
        found = (await read_session(again.url, "s")).json()
        assert found["status"] == "interrupted"
        assert [message["role"] for message in found["messages"]] == ["user", "assistant", "user"]
        assert text_of(await ask(again.url, prompt="after", **fields)) == "A"
        assert check_openai(sent(upstream)) == []


@pytest.mark.parametrize("stream", [False, True])
async def test_r30_a_loop_whose_client_left_counts_only_where_it_was_told_of(
    gateway: StartGateway, stream: bool
) -> None:
    def step(request: Received) -> Step:
        slow = Stream([*chat_stream("half", end=False).parts, 60.0])
        return slow if b"Continue." in request.body else chat_stream("one")

    async with FaultServer(step) as upstream:
        served = await gateway(providers=up(upstream, model="m"))
        body = {"prompt": "go", "provider": "up", "session_id": "s", "loop_mode": "basic", "stream": stream}
        async with httpx.AsyncClient(timeout=20.0) as client:
            task = asyncio.create_task(client.post(f"{served.url}{PATH}", json=body))
            await until(lambda: len(upstream.requests) == 2)
            task.cancel()
            await asyncio.wait([task])
        await at_rest(served)
        await until(lambda: not served.gateway.sessions.working("", "s"))
        told = [("user", "go"), ("assistant", "one"), ("user", "Continue."), ("assistant", "half")]
        assert await talk(served, "s") in ((told, told[:3]) if stream else ([],))


async def test_events_say_who_asked_what_and_what_it_cost(gateway: StartGateway) -> None:
    served = await gateway()
    text_of(await ask(served.url, prompt="one two", session_id="s", **ECHO))
    events = await kept(served, "s")
    started = next(event for event in events if isinstance(event, RunStarted))
    answer = [event for event in events if isinstance(event, MessageAdded)][-1]
    finished = events[-1]
    assert (started.model, started.agent) == ("echo", "gateway")
    assert answer.usage is not None and answer.usage.output_tokens == 3
    assert isinstance(finished, RunFinished) and finished.usage == answer.usage and finished.stop_reason == "end_turn"
    assert {event.run_id for event in events[1:]} == {started.run_id}


async def test_what_is_loaded_is_legal_for_every_conversation(gateway: StartGateway) -> None:
    """Histories of other programs, with calls left open and ids used twice, are sent so that a vendor takes them."""
    served = await gateway()
    sessions = served.gateway.sessions
    ledger = Ledger(sessions.store, "s")
    call = Message("assistant", (ToolCall("c", "f", {}), ToolCall("d", "f", {})))
    await ledger.commit([MessageAdded(message=m) for m in (user("a"), call, user("b"), call)])
    turn = await sessions.enter("", "s", None)
    incoming = [Message("tool", (ToolResponse("d", "done"),)), user("c")]
    request = await turn.load(Request(model="m", messages=incoming))
    turn.leave()
    body = json.loads(served.gateway.routes.endpoints[0].ingress.dialect.encode_request(
        request, Capabilities(), stream=False
    ))  # fmt: skip
    assert check_openai(body) == []
    assert [m.role for m in request.messages] == ["user", "assistant", "tool", "user", "assistant", "tool", "user"]
    assert request.messages[-1].parts == (Text("c"),)
