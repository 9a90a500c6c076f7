"""The legacy completions dialect: what it reads and writes, with the official `openai` SDK as client and judge."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI
from wire_server import Answer, Got, serve
from wire_strategies import PDF, PNG, clean_text, wild_text

from windlass.core.errors import (
    BadRequestError,
    OverloadedError,
    ProviderError,
    StreamInterrupted,
    UnsupportedInputError,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.messages import Blob, Message, Part, Reasoning, Text, ToolCall, ToolResponse, assistant, user
from windlass.core.models import Capabilities
from windlass.core.request import Request, Settings, ToolSpec
from windlass.core.usage import Usage
from windlass.wire import openai_chat
from windlass.wire.base import field_of
from windlass.wire.openai_completions import DIALECT, DecodedCompletion

CAPS = Capabilities()
TEXT = "Hällo\n\ndata: x\u2028"
FINISH = Finish(Message("assistant", (Reasoning("hidden"), Text(TEXT))), Usage(7, 3), "length", "gpt-x")
ITEMS: list[Item] = [
    NoticeItem("retry", "again"),
    ReasoningItem("hidden"),
    TextItem(TEXT[:4]),
    TextItem(""),
    TextItem(TEXT[4:]),
    UsageItem(Usage(7, 3)),
    FINISH,
]
CALLS = Finish(Message("assistant", (ToolCall("c", "look", {}),)), Usage(1, 1), "tool_call")


def decoded(**fields: Any) -> DecodedCompletion:
    return DIALECT.decode_request(json.dumps({"model": "m", "prompt": "Once", **fields}).encode())


def streamed(items: list[Item], **options: Any) -> bytes:
    encoder = DIALECT.stream_encoder(model="m", response_id="cmpl-1", created=5, **options)
    return b"".join([encoder.encode(item) for item in items])


def read(data: bytes, step: int = 1 << 30) -> list[Item]:
    decoder = DIALECT.stream_decoder()
    pieces = [decoder.feed(data[at : at + step]) for at in range(0, len(data), step)]
    return [*[item for piece in pieces for item in piece], *decoder.close()]


# ------------------------------------------------------------------------------------------------------ the SDK judges


def answer(got: Got) -> Answer:
    asked = DIALECT.decode_request(got.body)
    if not asked.stream:
        body = DIALECT.encode_response(FINISH, model="m", response_id="cmpl-1", created=5, echo=asked.echo)
        return 200, "application/json", body
    usage = bool(asked.extra.get("stream_options", {}).get("include_usage"))
    encoder = DIALECT.stream_encoder(model="m", response_id="cmpl-1", created=5, include_usage=usage, echo=asked.echo)
    return 200, "text/event-stream", [encoder.encode(item) for item in ITEMS]


@contextlib.asynccontextmanager
async def sdk(reply: Any = answer) -> AsyncGenerator[tuple[AsyncOpenAI, list[Got]]]:
    async with serve(reply) as server, openai.DefaultAsyncHttpxClient(trust_env=False) as http:
        yield AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0, http_client=http), server.got


@pytest.mark.parametrize("echo", [False, True])
async def test_sdk_reads_our_answers(echo: bool) -> None:
    expected = ("Once" if echo else "") + TEXT
    async with sdk() as (client, got):
        whole = await client.completions.create(model="m", prompt="Once", echo=echo)
        stream = await client.completions.create(
            model="m", prompt="Once", echo=echo, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        bare = [c async for c in await client.completions.create(model="m", prompt="Once", stream=True, echo=echo)]
    assert [one.path for one in got] == ["/v1/completions"] * 3
    assert (whole.object, whole.id, whole.created, whole.model) == ("text_completion", "cmpl-1", 5, "m")
    assert [(choice.index, choice.text, choice.finish_reason) for choice in whole.choices] == [(0, expected, "length")]
    assert whole.usage is not None and (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (7, 3)
    assert "".join([chunk.choices[0].text for chunk in chunks if chunk.choices]) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 10
    assert all(chunk.usage is None for chunk in bare) and len(bare) == len(chunks) - 1


async def test_we_read_what_the_sdk_sends() -> None:
    async with sdk() as (client, got):
        await client.completions.create(
            model="m", prompt=["Once"], max_tokens=9, temperature=0.5, top_p=0.9, stop=["a", "b"], seed=4, n=1,
            best_of=1, presence_penalty=1, frequency_penalty=-1, user="u", logit_bias={"5": 1}, suffix="",
        )  # fmt: skip
        asked = DIALECT.decode_request(got[0].body)
    assert asked.request.messages == [user("Once")]
    assert asked.request.settings == Settings(
        max_tokens=9, temperature=0.5, top_p=0.9, stop=("a", "b"), seed=4, presence_penalty=1, frequency_penalty=-1
    )
    assert (asked.extra, asked.stream, asked.echo) == ({"user": "u", "logit_bias": {"5": 1}}, False, "")


async def test_sdk_raises_on_our_errors() -> None:
    def cut(got: Got) -> Answer:
        encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
        pieces = [encoder.encode(TextItem("par")), encoder.error(OverloadedError("upstream died"))]
        return 200, "text/event-stream", pieces

    def refuse(got: Got) -> Answer:
        try:
            DIALECT.decode_request(got.body)
        except WindlassError as error:
            status, body = DIALECT.encode_error(error)
            return status, "application/json", body
        raise AssertionError

    texts: list[str] = []
    async with sdk(cut) as (client, _):
        with pytest.raises(openai.APIError, match="upstream died"):
            async for chunk in await client.completions.create(model="m", prompt="x", stream=True):
                texts += [choice.text for choice in chunk.choices]
    assert texts == ["par"]
    async with sdk(refuse) as (client, _):
        with pytest.raises(openai.BadRequestError, match="one request for each") as caught:
            await client.completions.create(model="m", prompt=["a", "b"])
    assert caught.value.param == "prompt"


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": [[1, 2], [3]]}, "prompt"),
        ({"prompt": [{"type": "image_url"}]}, "prompt[0]"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": ["…"]}}, "prompt"),
        ({"n": 2}, "n"),
        ({"n": 1_000_000_000}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"suffix": "end"}, "suffix"),
        ({"suffix": 1}, "suffix"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"echo": "yes"}, "echo"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1 << 63}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop": {}}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"model": ""}, "model"),
        ({"model": 1}, "model"),
    ],
)
def test_s77_refusals_name_the_field(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decoded(**fields)
    assert field_of(caught.value) == path
    status, body = DIALECT.encode_error(caught.value)
    assert (status, json.loads(body)["error"]["param"]) == (400, path)


def test_harmless_spellings_are_taken() -> None:
    asked = decoded(n=1, best_of=1.0, logprobs=None, suffix="", echo=False, stop="x", max_tokens=None)
    assert asked.request.settings == Settings(stop=("x",)) and asked.extra == {}
    assert decoded(logprobs=False).request.settings.max_tokens is None
    assert decoded(prompt="").request.messages == [Message("user")]
    assert decoded(echo=True, stream=True).echo == "Once"


def test_an_echo_comes_once_and_first() -> None:
    data = streamed([NoticeItem("retry", "again"), *ITEMS], echo="Once upon")
    first = json.loads(data.split(b"\n\n")[0].removeprefix(b"data: "))
    assert first["choices"][0]["text"] == "Once upon"
    last = read(data)[-1]
    assert isinstance(last, Finish) and last.message.text == "Once upon" + TEXT


@given(
    text=wild_text,
    chosen=st.builds(
        Settings,
        max_tokens=st.none() | st.integers(1, 99),
        temperature=st.none() | st.floats(0, 2),
        seed=st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
        stop=st.lists(clean_text, max_size=3).map(tuple),
    ),
    stream=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_request_reads_as_what_was_written(text: str, chosen: Settings, stream: bool) -> None:
    body = DIALECT.encode_request(Request(model="m", messages=[user(text)], settings=chosen), CAPS, stream=stream)
    back = DIALECT.decode_request(body)
    carried = "".join(["\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text])
    assert (back.request.messages, back.request.settings) == ([user(carried)], chosen)
    assert (back.stream, back.extra) == (stream, {"stream_options": {"include_usage": True}} if stream else {})


def prompt_of(*messages: Message, **fields: Any) -> str:
    body = DIALECT.encode_request(Request(model="m", messages=list(messages), **fields), CAPS, stream=False)
    return json.loads(body)["prompt"]


def test_a_conversation_that_is_one_prompt_is_told() -> None:
    note = Blob(b"a,b", "text/csv", "document", "t.csv")
    assert prompt_of(user("x"), system="Be brief.") == "Be brief.\n\nx"
    assert prompt_of(Message("system", (Text("s"),)), user(["a", note]), user("b")) == (
        's\n\na\n\n<document name="t.csv">\na,b\n</document>\n\nb'
    )
    assert prompt_of(user("Once upon"), assistant(" a time")) == "Once upon a time"
    assert prompt_of(user("x"), tools=(ToolSpec("look"),), tool_choice="none") == "x"


LOOK = ToolCall("c", "look", {})


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([user("x"), assistant("y"), user("z")], "several turns"),
        ([user("x"), Message("assistant", (LOOK,))], "several turns"),
        ([user("x"), Message("tool", (ToolResponse("c", "r"),))], "several turns"),
        ([Message("user", (Blob(PNG, "image/png"),))], "image"),
        ([Message("user", (Blob(PDF, "application/pdf", "document"),))], "document"),
        ([Message("user", (ToolResponse("c", "r"),))], "response to the tool call 'c'"),
        ([Message("user", (LOOK,))], "call of the tool 'look'"),
    ],
)
def test_what_one_prompt_cannot_tell_is_refused(messages: list[Message], what: str) -> None:
    with pytest.raises(UnsupportedInputError, match=what):
        DIALECT.encode_request(Request(model="m", messages=messages), CAPS, stream=False)


def test_tools_are_refused_and_settings_without_a_word_are_named() -> None:
    with pytest.raises(UnsupportedInputError, match="'look'"):
        prompt_of(user("x"), tools=(ToolSpec("look"),))
    asked = Request(
        model="m", messages=[user("x")], output_schema={},
        settings=Settings(top_k=1, repeat_penalty=1.1, thinking="high", temperature=1, seed=1),
    )  # fmt: skip
    assert DIALECT.dropped_settings(asked, CAPS) == ["top_k", "repeat_penalty", "thinking", "output_schema"]
    off = Request(model="m", messages=[], settings=Settings(thinking="off"))
    assert DIALECT.dropped_settings(off, CAPS) == []


def test_extra_fields_come_last_and_keep_our_usage() -> None:
    extra = {"echo": True, "stream_options": {"include_usage": False, "other": 1}}
    request = Request(model="m", messages=[user("x")], settings=Settings(extra=extra))
    body = json.loads(DIALECT.encode_request(request, CAPS, stream=True))
    assert body["echo"] is True and body["stream_options"] == {"include_usage": True, "other": 1}


# ------------------------------------------------------------------------------------------------------------- answers


def chunk(text: str, reason: str | None = None, **more: Any) -> bytes:
    row = {"text": text, "index": 0, "finish_reason": reason, "logprobs": {"tokens": [text]}}
    return b"data: " + json.dumps({"id": "c", "model": "g", "choices": [row], **more}).encode() + b"\n\n"


VENDOR = chunk("Hel") + chunk("lo é", "stop", usage={"prompt_tokens": 2, "completion_tokens": 1}) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1 << 20])
def test_r12_a_stream_is_read_however_it_is_cut(step: int) -> None:
    items = read(VENDOR, step)
    assert items[:2] == [TextItem("Hel"), TextItem("lo é")]
    last = items[-1]
    assert isinstance(last, Finish)
    assert (last.message.text, last.usage, last.reason, last.model) == ("Hello é", Usage(2, 1), "stop", "g")


@given(texts=st.lists(clean_text, max_size=4), step=st.integers(1, 40), reason=st.sampled_from(["stop", "length"]))
@settings(max_examples=50, deadline=None)
def test_what_we_stream_we_read(texts: list[str], step: int, reason: Any) -> None:
    parts: tuple[Part, ...] = (Text("".join(texts)),) if texts else ()
    sent = Finish(Message("assistant", parts, finish_reason=reason), Usage(5, 6), reason)
    got = read(streamed([*[TextItem(text) for text in texts], sent]), step)[-1]
    assert isinstance(got, Finish)
    assert (got.message, got.usage, got.reason) == (sent.message, sent.usage, sent.reason)
    whole = DIALECT.decode_response(DIALECT.encode_response(sent, model="m", response_id="r", created=0))
    assert (whole.message, whole.usage, whole.reason) == (sent.message, sent.usage, sent.reason)
    # A stream that gave no deltas holds the text of its end.
    undelivered = read(streamed([sent]))[-1]
    assert isinstance(undelivered, Finish) and undelivered.message == sent.message


def test_a_whole_answer_goes_on_as_a_chat_without_its_log_probabilities() -> None:
    rows = [{"text": f"t{at}", "index": at, "finish_reason": "stop", "logprobs": {"tokens": ["t"]}} for at in (0, 1)]
    finish = DIALECT.decode_response(json.dumps({"id": "c", "model": "g", "choices": rows}).encode())
    assert finish.message.text == "t0"
    chat = json.loads(openai_chat.DIALECT.encode_response(finish, model="m", response_id="r", created=0))
    assert [row["message"]["content"] for row in chat["choices"]] == ["t0", "t1"]
    assert all(not row.get("logprobs") for row in chat["choices"])


def test_an_answer_in_the_form_of_a_chat_is_read_too() -> None:
    row = {"message": {"role": "assistant", "content": "x"}, "index": 0, "finish_reason": "stop"}
    assert DIALECT.decode_response(json.dumps({"choices": [row]}).encode()).message.text == "x"


def test_tool_calls_alone_are_an_error_and_beside_text_are_left_out() -> None:
    with pytest.raises(WireError, match=r"'look' and no text.*/v1/completions"):
        DIALECT.encode_response(CALLS, model="m", response_id="r", created=0)
    data = streamed([ToolCallItem(0, "c", "look", "{}"), CALLS])
    assert b"cannot express" in data and b"[DONE]" not in data
    with pytest.raises(ProviderError, match="cannot express"):
        read(data)
    both = Finish(Message("assistant", (Text("t"), ToolCall("c", "look", {}))), Usage(1, 1), "tool_call")
    body = json.loads(DIALECT.encode_response(both, model="m", response_id="r", created=0))
    assert body["choices"] == [{"text": "t", "index": 0, "logprobs": None, "finish_reason": "stop"}]


def test_r10_a_cut_answer_never_looks_whole() -> None:
    cut = Finish(Message("assistant", (Text("par"),)), reason="interrupted")
    with pytest.raises(ProviderError, match="cut short") as caught:
        read(streamed([TextItem("par"), cut]))
    assert caught.value.partial == "par"
    with pytest.raises(StreamInterrupted):
        read(chunk("par"))
    with pytest.raises(WireError, match="no choices"):
        DIALECT.decode_response(b"{}")
    with pytest.raises(OverloadedError):
        DIALECT.decode_response(b'{"error": {"message": "x", "code": 503}}')


BITS = st.sampled_from(
    [b'{"choices":[', b'{"text":', b'"index":0', b"data: ", b"\n\n", b"[DONE]", b"}", b"]", b"null", b","]
)


@given(data=st.one_of(st.binary(max_size=60), st.lists(BITS, max_size=12).map(b"".join)))
@settings(max_examples=150, deadline=None)
def test_any_bytes_raise_only_our_errors(data: bytes) -> None:
    for action in (DIALECT.decode_request, DIALECT.decode_response, read):
        with contextlib.suppress(WindlassError):
            action(data)
