"""Ollama's `/api/generate`: what it reads and writes, with the official `ollama` SDK as client and judge."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import ollama
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_server import Answer, Got, Server, serve
from wire_strategies import PDF, PNG, clean_text, wild_text

from windlass.core.errors import (
    BadRequestError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    StreamInterrupted,
    UnsupportedInputError,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Blob, Message, Part, Reasoning, Text, ToolCall, assistant, user
from windlass.core.models import Capabilities
from windlass.core.request import Request, Settings, ToolSpec
from windlass.core.usage import Usage
from windlass.wire import ollama as ollama_chat
from windlass.wire.base import DecodedRequest, field_of
from windlass.wire.ollama_generate import DIALECT, encode_load, load_reason

CAPS = Capabilities(reasoning="switch")
TEXT = "Hällo\u2028 \n\n\x85end"
KEPT = {"ollama": {"total_duration": 9, "load_duration": 2, "prompt_eval_duration": 3, "eval_duration": 4}}
FINISH = Finish(
    Message("assistant", (Reasoning("Hm é"), Text(TEXT))), Usage(20, 7), "length", "qwen", provider_metadata=KEPT
)
ITEMS: list[Item] = [
    NoticeItem("retry", "again"),
    ReasoningItem("Hm "),
    ReasoningItem("é"),
    TextItem(TEXT[:5]),
    TextItem(TEXT[5:]),
    FINISH,
]
CALLS = Finish(Message("assistant", (Reasoning("hm"), ToolCall("c", "look", {}))), Usage(1, 1), "tool_call")


def decoded(**fields: Any) -> DecodedRequest:
    return DIALECT.decode_request(json.dumps({"model": "m", "prompt": "Why?", **fields}).encode())


def streamed(items: list[Item]) -> bytes:
    encoder = DIALECT.stream_encoder(model="qwen", response_id="r", created=1)
    return b"".join([encoder.encode(item) for item in items])


def read(data: bytes, step: int = 1 << 30) -> list[Item]:
    decoder = DIALECT.stream_decoder()
    pieces = [decoder.feed(data[at : at + step]) for at in range(0, len(data), step)]
    return [*[item for piece in pieces for item in piece], *decoder.close()]


# ------------------------------------------------------------------------------------------------------ the SDK judges


def answer(got: Got) -> Answer:
    asked = DIALECT.decode_request(got.body)
    if reason := load_reason(asked):
        return 200, "application/json", encode_load(asked.request.model, 1, reason)
    if not asked.stream:
        return 200, "application/json", DIALECT.encode_response(FINISH, model="qwen", response_id="r", created=1)
    encoder = DIALECT.stream_encoder(model="qwen", response_id="r", created=1)
    return 200, "application/x-ndjson", [encoder.encode(item) for item in ITEMS]


@asynccontextmanager
async def client(reply: Callable[[Got], Answer] = answer) -> AsyncGenerator[tuple[ollama.AsyncClient, Server]]:
    async with serve(reply) as server:
        sdk = ollama.AsyncClient(host=server.url)
        try:
            yield sdk, server
        finally:
            await sdk.close()


def check_end(last: ollama.GenerateResponse) -> None:
    assert (last.done, last.done_reason, last.model) == (True, "length", "qwen")
    assert (last.prompt_eval_count, last.eval_count) == (20, 7)
    assert (last.total_duration, last.load_duration, last.eval_duration) == (9, 2, 4)
    assert last.created_at == "1970-01-01T00:00:01.000000Z"


async def test_sdk_reads_our_answers() -> None:
    async with client() as (sdk, server):
        whole = await sdk.generate(model="qwen", prompt="Why?")
        parts = [part async for part in await sdk.generate(model="qwen", prompt="Why?", stream=True)]
    assert [got.path for got in server.got] == ["/api/generate"] * 2
    assert (whole.response, whole.thinking) == (TEXT, "Hm é")
    check_end(whole)
    assert "".join([part.response or "" for part in parts]) == TEXT
    assert "".join([part.thinking or "" for part in parts]) == "Hm é"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    check_end(parts[-1])


async def test_we_read_what_the_sdk_sends() -> None:
    async with client() as (sdk, server):
        await sdk.generate(
            model="qwen", prompt="See", system="Be brief.", images=[PNG], format={"type": "object"}, think="low",
            options={"temperature": 0.5, "num_ctx": 4096, "num_predict": 5, "stop": ["END"]}, keep_alive="1m",
            raw=False, context=[], suffix="", template="", logprobs=False,
        )  # fmt: skip
        asked = DIALECT.decode_request(server.got[0].body)
    request = asked.request
    assert request.messages == [Message("user", (Text("See"), Blob(PNG, "image/png")))]
    assert (request.system, request.output_schema, asked.stream) == ("Be brief.", {"type": "object"}, False)
    assert request.settings == Settings(max_tokens=5, temperature=0.5, stop=("END",), thinking="low")
    assert asked.extra == {"options": {"num_ctx": 4096}, "keep_alive": "1m"}


async def test_sdk_loads_and_unloads_without_a_model() -> None:
    async with client() as (sdk, _):
        loaded = await sdk.generate(model="qwen")
        unloaded = await sdk.generate(model="qwen", keep_alive=0)
        streamed = [part async for part in await sdk.generate(model="qwen", stream=True)]
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
    assert (unloaded.done, unloaded.done_reason) == (True, "unload")
    assert [(part.done, part.done_reason) for part in streamed] == [(True, "load")]


@pytest.mark.parametrize(
    ("keep", "reason"),
    [(None, "load"), (0, "unload"), (0.0, "unload"), ("0", "unload"), ("0s", "unload"), ("0h0m0s", "unload"),
     (-1, "load"), ("5m", "load"), ("-1", "load"), ("", "load"), ("10s", "load"), (False, "load"), ([], "load")],
)  # fmt: skip
def test_what_a_request_without_a_prompt_asks_for(keep: Any, reason: str) -> None:
    more = {} if keep is None else {"keep_alive": keep}
    assert load_reason(decoded(prompt="", **more)) == reason
    assert load_reason(decoded(**more)) is None
    chat = json.dumps({"model": "m", "messages": [], **more}).encode()
    assert load_reason(ollama_chat.DIALECT.decode_request(chat)) == reason


def test_a_chat_is_told_of_loading_in_its_own_form() -> None:
    said = ollama.ChatResponse.model_validate_json(encode_load("m", 1, "load", chat=True))
    assert (said.done, said.done_reason, said.message.content) == (True, "load", "")
    assert encode_load("m", 1, "load").endswith(b"}\n")


async def test_sdk_raises_on_our_errors() -> None:
    def refuse(got: Got) -> Answer:
        status, body = DIALECT.encode_error(ModelNotFoundError("no such model"))
        return status, "application/json", body

    def cut(got: Got) -> Answer:
        encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
        pieces = [encoder.encode(TextItem("par")), encoder.error(OverloadedError("upstream died"))]
        return 200, "application/x-ndjson", pieces

    async with client(refuse) as (sdk, _):
        with pytest.raises(ollama.ResponseError, match="no such model") as caught:
            await sdk.generate(model="m", prompt="x")
    assert caught.value.status_code == 404
    texts: list[str | None] = []
    async with client(cut) as (sdk, _):
        with pytest.raises(ollama.ResponseError, match="upstream died"):
            async for part in await sdk.generate(model="m", prompt="x", stream=True):
                texts += [part.response]
    assert texts == ["par"]


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"model": ""}, "model"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"system": 1}, "system"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"suffix": "end"}, "suffix"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"raw": True}, "raw"),
        ({"context": [1, 2]}, "context"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"images": "x"}, "images"),
        ({"images": [1]}, "images[0]"),
        ({"images": ["@"]}, "images[0]"),
        ({"images": [base64.b64encode(PNG).decode(), base64.b64encode(PDF).decode()]}, "images[1]"),
        ({"images": [{"type": "image_url"}]}, "images[0]"),
        ({"format": 1}, "format"),
        ({"think": "hard"}, "think"),
        ({"options": []}, "options"),
        ({"options": {"num_predict": 1 << 63}}, "options.num_predict"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"stream": "no"}, "stream"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decoded(**fields)
    assert field_of(caught.value) == path


def test_a_stream_is_what_is_not_refused() -> None:
    assert [decoded(stream=value).stream for value in (None, True, False)] == [True, True, False]
    assert decoded(format="json").extra == {"format": "json"}
    assert decoded(prompt=None, images=[base64.b64encode(PNG).decode()]).request.messages[0].parts == (
        Blob(PNG, "image/png"),
    )


@given(
    text=wild_text,
    system=st.none() | clean_text,
    pictures=st.integers(0, 2),
    chosen=st.builds(
        Settings,
        max_tokens=st.none() | st.integers(1, 99),
        temperature=st.none() | st.floats(0, 2),
        top_k=st.none() | st.integers(0, 99),
        thinking=st.sampled_from([None, "off", "adaptive"]),
        stop=st.lists(clean_text, max_size=2).map(tuple),
    ),
    stream=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_request_reads_as_what_was_written(
    text: str, system: str | None, pictures: int, chosen: Settings, stream: bool
) -> None:
    asked = Message("user", (Text(text), *[Blob(PNG, "image/png")] * pictures))
    request = Request(model="m", messages=[asked], system=system, settings=chosen, output_schema={"type": "object"})
    back = DIALECT.decode_request(DIALECT.encode_request(request, CAPS, stream=stream))
    carried = "".join(["\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text])
    assert back.request.messages == [Message("user", (Text(carried), *asked.parts[1:]))]
    assert (back.request.system, back.request.settings) == (system, chosen)
    assert (back.stream, back.extra, back.request.output_schema) == (stream, {}, {"type": "object"})


def test_what_one_prompt_cannot_tell_is_refused() -> None:
    for messages, caps, what in (
        ([user("x"), assistant("y"), user("z")], CAPS, "several turns"),
        # The template closes the user's turn: the model would not go on from a text of its own.
        ([user("x"), assistant("y")], CAPS, "several turns"),
        ([Message("user", (Blob(PNG, "image/png"),))], Capabilities(vision=False), "takes no images"),
        ([Message("user", (Blob(PDF, "application/pdf", "document"),))], CAPS, "document"),
    ):
        with pytest.raises(UnsupportedInputError, match=what):
            DIALECT.encode_request(Request(model="m", messages=messages), caps, stream=True)
    with pytest.raises(UnsupportedInputError, match="'look'"):
        tools = (ToolSpec("look"),)
        DIALECT.encode_request(Request(model="m", messages=[user("x")], tools=tools), CAPS, stream=True)


def test_settings_without_a_word_are_named() -> None:
    asked = Request(model="m", messages=[], settings=Settings(thinking="high", thinking_budget=5), output_schema={})
    assert DIALECT.dropped_settings(asked, Capabilities(structured_output=False)) == ["thinking", "output_schema"]
    assert DIALECT.dropped_settings(asked, CAPS) == ["thinking_budget"]


def test_load_options_and_extra_fields_go_along() -> None:
    extra = {"num_ctx": 9, "keep_alive": "1m", "options": {"mirostat": 1}}
    request = Request(model="m", messages=[user("x")], settings=Settings(temperature=1, extra=extra))
    assert json.loads(DIALECT.encode_request(request, CAPS, stream=False)) == {
        "model": "m", "prompt": "x", "stream": False, "keep_alive": "1m",
        "options": {"temperature": 1.0, "num_ctx": 9, "mirostat": 1},
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1 << 20])
def test_r12_a_stream_is_read_however_it_is_cut(step: int) -> None:
    items = read(streamed(ITEMS), step)
    assert items[:4] == [item for item in ITEMS if isinstance(item, (ReasoningItem, TextItem))]
    last = items[-1]
    assert isinstance(last, Finish)
    assert last.message.parts == FINISH.message.parts
    assert (last.usage, last.reason, last.model, last.provider_metadata) == (Usage(20, 7), "length", "qwen", KEPT)


def test_the_tokens_of_the_conversation_are_not_kept() -> None:
    last = {"model": "q", "response": "x", "done": True, "done_reason": "stop", "context": [1, 2], "total_duration": 5}
    finish = DIALECT.decode_response(json.dumps(last).encode())
    assert finish.provider_metadata == {"ollama": {"total_duration": 5}}
    assert (finish.message.text, finish.usage.estimated, finish.raw) == ("x", True, "stop")


@given(
    thought=st.none() | clean_text,
    texts=st.lists(clean_text, max_size=3),
    step=st.integers(1, 40),
    reason=st.sampled_from(["stop", "length"]),
)
@settings(max_examples=50, deadline=None)
def test_what_we_stream_we_read(thought: str | None, texts: list[str], step: int, reason: Any) -> None:
    parts: tuple[Part, ...] = (*([Reasoning(thought)] if thought else []), *([Text("".join(texts))] if texts else []))
    sent = Finish(Message("assistant", parts, finish_reason=reason), Usage(5, 6), reason)
    deltas: list[Item] = [ReasoningItem(thought)] if thought else []
    deltas += [TextItem(text) for text in texts]
    for items in ([*deltas, sent], list[Item]([sent])):
        got = read(streamed(items), step)[-1]
        assert isinstance(got, Finish)
        assert (got.message, got.usage, got.reason) == (sent.message, sent.usage, sent.reason)
    whole = DIALECT.decode_response(DIALECT.encode_response(sent, model="m", response_id="r", created=0))
    assert (whole.message, whole.usage, whole.reason) == (sent.message, sent.usage, sent.reason)


def test_tool_calls_alone_are_an_error_and_beside_text_are_left_out() -> None:
    with pytest.raises(WireError, match=r"'look' and no text.*/api/generate"):
        DIALECT.encode_response(CALLS, model="m", response_id="r", created=0)
    with pytest.raises(ProviderError, match="cannot express"):
        read(streamed([ReasoningItem("hm"), ToolCallItem(0, "c", "look", "{}"), CALLS]))
    both = Finish(Message("assistant", (Text("t"), ToolCall("c", "look", {}))), Usage(1, 1), "tool_call")
    lines = streamed([TextItem("t"), ToolCallItem(0, "c", "look", "{}"), both]).splitlines()
    assert [json.loads(line)["response"] for line in lines] == ["t", ""]
    assert json.loads(lines[-1])["done_reason"] == "stop"
    assert json.loads(DIALECT.encode_response(both, model="m", response_id="r", created=0))["response"] == "t"


def test_r10_a_cut_answer_never_looks_whole() -> None:
    cut = Finish(Message("assistant", (Text("par"),)), reason="interrupted")
    with pytest.raises(ProviderError, match="cut short") as caught:
        read(streamed([TextItem("par"), cut]))
    assert caught.value.partial == "par"
    with pytest.raises(StreamInterrupted):
        read(streamed([TextItem("par")]))
    with pytest.raises(StreamInterrupted):
        DIALECT.decode_response(b'{"response": "par", "done": false}')
    with pytest.raises(WireError, match="no response"):
        DIALECT.decode_response(b"{}")
    missing = DIALECT.decode_error(404, {}, b'{"error": "no"}', provider="o", model="m", endpoint="e")
    assert type(missing) is ModelNotFoundError
    with pytest.raises(OverloadedError):
        DIALECT.decode_response(b'{"error": "boom"}')


BITS = st.sampled_from(
    [b'{"response":', b'"x"', b',"done":true}', b',"thinking":', b"\n", b"}", b"null", b"[", b'"model":"m"']
)


@given(data=st.one_of(st.binary(max_size=60), st.lists(BITS, max_size=12).map(b"".join)))
@settings(max_examples=150, deadline=None)
def test_any_bytes_raise_only_our_errors(data: bytes) -> None:
    for action in (DIALECT.decode_request, DIALECT.decode_response, read):
        with suppress(WindlassError):
            action(data)
