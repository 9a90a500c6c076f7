"""The official `openai` SDK and openai-agents as clients of us over a real socket, and as judges of what we answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import agents
import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent
from openai_responses_kit import check_responses
from pydantic import BaseModel, TypeAdapter
from wire_server import Answer, Got, serve

from windlass.core.errors import (
    BadRequestError,
    ContextExceededError,
    OverloadedError,
    RateLimitError,
    RequestRefused,
    WindlassError,
)
from windlass.core.items import Finish, FinishReason, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.json import loads
from windlass.core.messages import Blob, Message, Part, Reasoning, Text, ToolCall, ToolResponse, user
from windlass.core.models import Capabilities
from windlass.core.usage import Usage
from windlass.wire.base import bad_field
from windlass.wire.openai_responses import DIALECT, echo_fields

JSON, EVENTS = "application/json", "text/event-stream"
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function", "name": "weather", "description": "Tell the weather.", "parameters": SCHEMA, "strict": False,
}  # fmt: skip


def answering(items: list[Item]) -> Callable[[Got], Answer]:
    """Answer as a server of ours would: in a stream or whole, as the client asks, repeating its request."""

    def reply(got: Got) -> Answer:
        assert got.path == "/v1/responses"
        decoded = DIALECT.decode_request(got.body)
        echo = echo_fields(loads(got.body))
        head: dict[str, Any] = {"model": decoded.request.model, "response_id": "resp_x", "created": 7, "echo": echo}
        if decoded.stream:
            encoder = DIALECT.stream_encoder(**head)
            return 200, EVENTS, [frame for item in items if (frame := encoder.encode(item))]
        finish = items[-1]
        assert isinstance(finish, Finish)
        return 200, JSON, DIALECT.encode_response(finish, **head)

    return reply


@contextlib.asynccontextmanager
async def sdk(reply: Callable[[Got], Answer]) -> AsyncGenerator[tuple[AsyncOpenAI, list[Got]]]:
    """Give the SDK's client, against a loopback server that answers so, and what the server got."""
    async with serve(reply) as server, openai.DefaultAsyncHttpxClient(trust_env=False) as http:
        client = AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0, http_client=http)
        yield client, server.got


def finish(*parts: Part, reason: FinishReason = "stop") -> Finish:
    return Finish(Message("assistant", parts, finish_reason=reason), Usage(12, 7, 4, 0, 3), reason)


TEXT = "Łódź 🦜\n\nevent: error\u2028"
ITEMS: list[Item] = [
    NoticeItem("retry", "again"),
    ReasoningItem("Let me "),
    ReasoningItem("see."),
    TextItem(TEXT[:6]),
    TextItem(TEXT[6:]),
    UsageItem(Usage(1, 1)),
    ToolCallItem(1, "a", "weather"),
    ToolCallItem(1, None, None, '{"city":'),
    ToolCallItem(2, "b", "now", "{}"),
    ToolCallItem(1, None, None, '"Łódź"}'),
    finish(
        Reasoning("Let me see."), Text(TEXT), ToolCall("a", "weather", {"city": "Łódź"}), ToolCall("b", "now", {}),
        reason="tool_call",
    ),
]  # fmt: skip
ASK: dict[str, Any] = {"model": "gpt", "input": "hi"}


def strict(found: Any) -> Any:
    """Check a model of the SDK, which builds its models without checking."""
    return type(found).model_validate(found.model_dump(by_alias=True, warnings="none"))


async def test_our_answer_satisfies_the_sdk() -> None:
    async with sdk(answering(ITEMS)) as (client, _):
        asked: dict[str, Any] = {**ASK, "tools": [TOOL], "metadata": {"k": "v"}, "instructions": "Be brief."}
        found = strict(await client.responses.create(**asked))
    thought, text, first, second = found.output
    assert (found.id, found.created_at, found.model, found.status, found.output_text) == (
        "resp_x", 7, "gpt", "completed", TEXT,
    )  # fmt: skip
    assert thought.summary[0].text == "Let me see." and text.content[0].text == TEXT
    assert [(call.call_id, call.name, call.arguments) for call in (first, second)] == [
        ("a", "weather", '{"city":"Łódź"}'), ("b", "now", "{}"),
    ]  # fmt: skip
    assert (found.metadata, found.instructions, found.tools[0].name) == ({"k": "v"}, "Be brief.", "weather")
    usage = found.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (12, 7, 19)
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (4, 3)


def unparsed(value: Any) -> Any:
    """Return a response of the SDK's without what its parser added."""
    if isinstance(value, list):
        return [unparsed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: unparsed(item) for key, item in value.items() if key not in ("parsed", "parsed_arguments")}


@pytest.mark.parametrize(
    "items",
    [
        ITEMS,
        ITEMS[-1:],
        [TextItem("x"), finish(Text("x"))],
        [finish()],
        [finish(Text("No."), reason="refusal")],
    ],
    ids=["rich", "whole", "plain", "empty", "refusal"],
)
async def test_our_stream_assembles_to_the_answer(items: list[Item]) -> None:
    async with sdk(answering(items)) as (client, _):
        async with client.responses.stream(**ASK) as stream:
            seen = [event async for event in stream]
            assembled: Any = await stream.get_final_response()
        whole = await client.responses.create(**ASK)
    assert unparsed(assembled.to_dict()) == whole.to_dict()
    assert [event.type for event in seen][:2] == ["response.created", "response.in_progress"]
    assert seen[-1].type == "response.completed"
    texts = "".join([event.delta for event in seen if event.type == "response.output_text.delta"])
    assert texts == whole.output_text
    # The SDK's own running copies end as what they are copies of.
    copies = {event.item_id: event.snapshot for event in seen if event.type == "response.function_call_arguments.delta"}
    assert list(copies.values()) == [item.arguments for item in whole.output if item.type == "function_call"]


@pytest.mark.parametrize("reason", ["stop", "length", "tool_call"])
async def test_our_events_are_valid_and_numbered(reason: FinishReason) -> None:
    last = ITEMS[-1]
    assert isinstance(last, Finish)
    items = [*ITEMS[:-1], finish(*last.message.parts, reason=reason)]
    events: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    async with sdk(answering(items)) as (client, _):
        stream: Any = await client.responses.create(**ASK, stream=True)
        seen = [event async for event in stream]
    for event in seen:
        assert type(events.validate_python(event.model_dump(by_alias=True, warnings="none"))) is type(event)
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert seen[-1].type == ("response.incomplete" if reason == "length" else "response.completed")


class City(BaseModel):
    """A structured answer."""

    city: str


async def test_structured_answers_are_parsed() -> None:
    async with sdk(answering([finish(Text('{"city":"Łódź"}'))])) as (client, got):
        parsed = await client.responses.parse(**ASK, text_format=City)
        async with client.responses.stream(**ASK, text_format=City) as stream:
            streamed = await stream.get_final_response()
    assert parsed.output_parsed == streamed.output_parsed == City(city="Łódź")
    for request in got:
        decoded = DIALECT.decode_request(request.body)
        assert decoded.request.output_schema is not None and list(decoded.request.output_schema["properties"]) == [
            "city"
        ]


async def test_what_the_sdk_sends_is_read() -> None:
    async with sdk(answering([finish(Text("x"))])) as (client, got):
        await client.responses.create(
            model="gpt",
            instructions="Be brief.",
            input=[
                {"role": "developer", "content": "Be kind."},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "look"},
                        {"type": "input_image", "image_url": "data:image/png;base64,iVBORw==", "detail": "low"},
                    ],
                },
                {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"city": "Oslo"}'},
                {"type": "function_call_output", "call_id": "a", "output": "rain"},
            ],
            tools=[TOOL],  # pyright: ignore[reportArgumentType]
            tool_choice={"type": "function", "name": "weather"},
            reasoning={"effort": "high", "summary": "auto"},
            max_output_tokens=99,
            store=False,
            include=["reasoning.encrypted_content"],
            previous_response_id="resp_0",
        )
    decoded = DIALECT.decode_request(got[0].body)
    request = decoded.request
    assert (request.system, request.tool_choice, request.settings.thinking) == (
        "Be brief.\n\nBe kind.",
        "weather",
        "high",
    )
    assert list(request.messages) == [
        Message("user", (Text("look"), Blob(b"\x89PNG", "image/png", provider_metadata={"openai": {"detail": "low"}}))),
        Message("assistant", (ToolCall("a", "weather", {"city": "Oslo"}, '{"city": "Oslo"}'),)),
        Message("tool", (ToolResponse("a", "rain"),)),
    ]
    assert decoded.extra == {
        "store": False, "include": ["reasoning.encrypted_content"], "previous_response_id": "resp_0",
        "reasoning": {"summary": "auto"},
    }  # fmt: skip


async def test_the_sdk_sends_our_output_back() -> None:
    """The documented way to go on without `previous_response_id`: the output's items are appended to the input."""
    metadata = {"anthropic": {"signature": "sig"}}
    items: list[Item] = [ReasoningItem("hm"), ReasoningItem("", metadata), *ITEMS[3:]]
    async with sdk(answering(items)) as (client, got):
        first = await client.responses.create(**ASK)
        async with client.responses.stream(**ASK) as stream:
            streamed = await stream.get_final_response()
        for found in (first, streamed):
            outputs = [{"type": "function_call_output", "call_id": call, "output": "ok"} for call in ("a", "b")]
            history: Any = [{"role": "user", "content": "hi"}, *found.output, *outputs]
            await client.responses.create(model="gpt", input=history)
    for request in got[2:]:
        decoded = DIALECT.decode_request(request.body).request
        said, *results = decoded.messages[1:]
        assert [type(part) for part in said.parts] == [Reasoning, Text, ToolCall, ToolCall]
        assert [part.id for result in results for part in result.parts if isinstance(part, ToolResponse)] == ["a", "b"]
        sent = loads(DIALECT.encode_request(decoded, Capabilities(), stream=False))
        assert check_responses(sent) == []
    assert DIALECT.decode_request(got[3].body).request.messages[1].parts[0] == Reasoning("hm", metadata)


# ------------------------------------------------------------------------------------------------------------- errors


async def test_an_error_after_the_headers_reaches_the_sdk() -> None:
    for last in (OverloadedError("Upstream is gone."), finish(Text("so far"), reason="interrupted")):

        def reply(got: Got, last: Any = last) -> Answer:
            encoder = DIALECT.stream_encoder(model="m", response_id="resp_x", created=1)
            begun = encoder.encode(TextItem("so far"))
            return 200, EVENTS, [begun, encoder.encode(last) if isinstance(last, Finish) else encoder.error(last)]

        async with sdk(reply) as (client, _):
            stream: Any = await client.responses.create(**ASK, stream=True)
            seen: list[str] = []
            with pytest.raises(openai.APIError, match=r"gone|partial"):
                async for event in stream:
                    seen += [event.delta] if event.type == "response.output_text.delta" else []
            assert seen == ["so far"]
            with pytest.raises(openai.APIError, match=r"gone|partial"):
                async with client.responses.stream(**ASK) as managed:
                    await managed.get_final_response()


async def test_an_error_before_anything_was_told_reaches_the_sdk() -> None:
    def reply(got: Got) -> Answer:
        encoder = DIALECT.stream_encoder(model="m", response_id="resp_x", created=1)
        return 200, EVENTS, [encoder.error(RateLimitError("Slow down."))]

    async with sdk(reply) as (client, _):
        with pytest.raises(openai.APIError, match="Slow down"):
            async with client.responses.stream(**ASK) as stream:
                await stream.get_final_response()


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (bad_field("input[0].content", "must be a string"), openai.BadRequestError, "bad_request"),
        (ContextExceededError("Too long."), openai.BadRequestError, "context_length_exceeded"),
        (RateLimitError("Slow down."), openai.RateLimitError, "rate_limited"),
        (OverloadedError("Busy."), openai.InternalServerError, "overloaded"),
        (RequestRefused(400, "No.", reason="unsupported_parameter"), openai.BadRequestError, "unsupported_parameter"),
    ],
)
async def test_our_errors_are_the_sdks_errors(
    error: WindlassError, kind: type[openai.APIStatusError], code: str
) -> None:
    status, body = DIALECT.encode_error(error)
    async with sdk(lambda got: (status, JSON, body)) as (client, _):
        with pytest.raises(kind) as caught:
            await client.responses.create(**ASK)
    assert (caught.value.code, caught.value.param) == (code, "input[0].content" if "[0]" in str(error) else None)


async def test_what_the_server_does_not_do_is_told_to_the_sdk() -> None:
    def reply(got: Got) -> Answer:
        with pytest.raises((RequestRefused, BadRequestError)) as caught:
            DIALECT.decode_request(got.body)
        status, body = DIALECT.encode_error(caught.value)
        return status, JSON, body

    async with sdk(reply) as (client, _):
        asked: list[tuple[dict[str, Any], str]] = [
            ({"background": True}, "background"),
            ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ]
        for fields, param in asked:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.create(**ASK, **fields)
            assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


# ------------------------------------------------------------------------------------------------------ openai-agents


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_openai_agents_runs_its_loop_on_us(streamed: bool) -> None:
    """Two turns of a real agent: a tool call with reasoning before it, then the answer."""
    signed = {"anthropic": {"signature": "s"}}
    call = ToolCall("call_1", "weather", {"city": "Oslo"})
    turns: list[list[Item]] = [
        [
            ReasoningItem("I look."),
            ReasoningItem("", signed),
            ToolCallItem(0, "call_1", "weather", '{"city":"Oslo"}'),
            finish(Reasoning("I look.", signed), call, reason="tool_call"),
        ],
        [TextItem("It rains."), finish(Text("It rains."))],
    ]
    asked: list[str] = []

    def weather(city: str) -> str:
        asked.append(city)
        return "rain"

    def reply(got: Got) -> Answer:
        return answering(turns[sum(b"function_call_output" in request.body for request in server_got)])(got)

    server_got: list[Got] = []
    agents.set_tracing_disabled(True)
    async with sdk(reply) as (client, got):
        server_got = got
        agent = agents.Agent(
            name="a",
            instructions="Help.",
            model=agents.OpenAIResponsesModel("gpt", client),
            tools=[agents.function_tool(weather)],
        )
        if streamed:
            run = agents.Runner.run_streamed(agent, "How is Oslo?")
            async for _ in run.stream_events():
                pass
            output = run.final_output
        else:
            output = (await agents.Runner.run(agent, "How is Oslo?")).final_output
    assert (output, asked) == ("It rains.", ["Oslo"])
    first, second = [DIALECT.decode_request(request.body) for request in got]
    assert (first.request.system, first.stream, list(first.request.messages)) == (
        "Help.",
        streamed,
        [user("How is Oslo?")],
    )
    assert [tool.name for tool in first.request.tools] == ["weather"]
    assert list(second.request.messages[1:]) == [
        Message("assistant", (Reasoning("I look.", signed), call)),
        Message("tool", (ToolResponse("call_1", "rain"),)),
    ]
    assert json.loads(got[0].body)["tools"][0]["strict"] is True and "tools" in first.extra
