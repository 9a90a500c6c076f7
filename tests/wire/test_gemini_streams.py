"""What Google answers: whole, in chunks, split anywhere, cut, blocked, malformed; and what we answer in its stead."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import PNG, clean_text, json_values, names

from windlass.core.errors import (
    OverloadedError,
    ProviderError,
    RateLimitError,
    StreamInterrupted,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, FinishReason, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.messages import Blob, Message, Part, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.usage import Usage
from windlass.wire.gemini import DIALECT

ID, VERSION = "Il0taoSYJ5Cez7IPx", "gemini-2.5-flash"
COUNTS = {"promptTokenCount": 8, "candidatesTokenCount": 3, "totalTokenCount": 41, "thoughtsTokenCount": 30}


def chunk(*parts: Any, reason: str | None = None, usage: Any = COUNTS, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if reason is not None:
        candidate["finishReason"] = reason
    head = {"modelVersion": VERSION, "responseId": ID}
    return {"candidates": [candidate], **({} if usage is None else {"usageMetadata": usage}), **head, **more}


def call(name: str, call_id: str = "", signature: str = "", **args: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"functionCall": {"name": name, "args": args, **({"id": call_id} if call_id else {})}}
    return {**out, "thoughtSignature": signature} if signature else out


def sse(*chunks: Any, end: str = "\r\n\r\n") -> bytes:
    return "".join([f"data: {json.dumps(item)}{end}" for item in chunks]).encode()


def read(data: bytes, step: int | None = None) -> list[Item]:
    decoder = DIALECT.stream_decoder()
    size = step or len(data) or 1
    out = [item for at in range(0, len(data), size) for item in decoder.feed(data[at : at + size])]
    return [*out, *decoder.close()]


def end_of(*chunks: Any) -> Finish:
    last = read(sse(*chunks))[-1]
    assert isinstance(last, Finish)
    return last


#: The stream of the thinking guide: thoughts, text in pieces, a signature in an empty part, then the end.
STREAM = (
    chunk({"text": "**Counting**\n", "thought": True}),
    chunk({"text": "Thrée "}),
    chunk({"text": "r's."}),
    chunk({"text": "", "thoughtSignature": "EpoGCpcGAdHtim"}, reason="STOP"),
)
USAGE = Usage(8, 33, reasoning_tokens=30)


def test_the_stream_of_the_thinking_guide() -> None:
    items = read(sse(*STREAM))
    assert [type(item) for item in items] == [ReasoningItem, UsageItem, TextItem, TextItem, Finish]
    assert items[-1] == Finish(
        Message(
            "assistant",
            (
                Reasoning("**Counting**\n"),
                Text("Thrée r's."),
                Text("", {"gemini": {"thoughtSignature": "EpoGCpcGAdHtim"}}),
            ),
            finish_reason="stop",
        ),
        USAGE,
        "stop",
        VERSION,
        ID,
        raw="STOP",
    )


@pytest.mark.parametrize("end", ["\r\n\r\n", "\n\n", "\r\r", "\n: keep-alive\n\n", "\nevent: message\nid: 1\n\n"])
def test_r13_the_same_at_every_split_and_line_end(end: str) -> None:
    data = b"\xef\xbb\xbf" + sse(*STREAM, end=end)
    whole = read(data)
    assert whole[-1] == read(sse(*STREAM))[-1]
    for step in (1, 2, 3, 7, 64):
        assert read(data, step) == whole
    for cut in range(1, len(data), 5):
        decoder = DIALECT.stream_decoder()
        assert [*decoder.feed(data[:cut]), *decoder.feed(data[cut:]), *decoder.close()] == whole


@given(cuts=st.lists(st.integers(0, 900), max_size=6), text=clean_text)
@settings(max_examples=40, deadline=None)
def test_r13_any_text_at_any_split(cuts: list[int], text: str) -> None:
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
    finish = Finish(Message("assistant", (Text(text),), finish_reason="stop"), Usage(1, 2), "stop")
    data = encoder.encode(TextItem(text)) + encoder.encode(finish)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    decoder = DIALECT.stream_decoder()
    items = [item for a, b in pairwise(bounds) for item in decoder.feed(data[a:b])]
    assert [*items, *decoder.close()] == read(data)
    last = items[-1]
    assert isinstance(last, Finish) and last.message == finish.message


def test_data_after_the_end_is_ignored() -> None:
    decoder = DIALECT.stream_decoder()
    done = decoder.feed(sse(chunk({"text": "a"}, reason="STOP"), chunk({"text": "b"})))
    assert isinstance(done[-1], Finish) and done[-1].message.text == "a"
    assert decoder.feed(sse(chunk({"text": "c"}))) == [] and decoder.close() == []


# ------------------------------------------------------------------------------------------------------------- calls


def test_r22_parallel_calls_come_whole_with_ids_and_signatures() -> None:
    finish = end_of(
        chunk({"text": "I look."}),
        chunk(call("look", "a1", "c2ln", at="P"), call("look", "a2", at="Q"), reason="STOP"),
    )
    assert finish.reason == "tool_call" and finish.raw == "STOP"
    assert finish.message.parts == (
        Text("I look."),
        ToolCall("a1", "look", {"at": "P"}, None, {"gemini": {"thoughtSignature": "c2ln"}}),
        ToolCall("a2", "look", {"at": "Q"}),
    )


def test_r23_calls_without_ids_or_with_the_same_are_told_apart() -> None:
    """2.5 sends no ids. Ours name the answer, so that they differ from those of every other answer."""
    calls = end_of(chunk(call("f")), chunk(call("f"), call("g", "x"), call("g", "x"), reason="STOP")).message.tool_calls
    assert [item.id for item in calls] == [f"call_0_{ID}", f"call_1_{ID}", "x", f"call_3_{ID}"]
    assert [item.provider_metadata for item in calls] == [
        {"gemini": {"id": ""}}, {"gemini": {"id": ""}}, None, None,
    ]  # fmt: skip
    anonymous = end_of(chunk(call("f"), reason="STOP", responseId=None))
    assert anonymous.message.tool_calls[0].id == "call_0"


def test_r24_arguments_of_all_kinds() -> None:
    parts = [{"functionCall": {"name": "f"}}, {"functionCall": {"name": "f", "args": None}},
             {"functionCall": {"name": "f", "args": "x"}}]  # fmt: skip
    calls = end_of(chunk(*parts, reason="STOP")).message.tool_calls
    assert [(item.arguments, item.arguments_text) for item in calls] == [({}, None), ({}, None), (None, '"x"')]


def test_r25_calls_of_a_cut_answer_are_told_and_the_end_says_so() -> None:
    finish = end_of(chunk({"text": "par"}), chunk(call("f", "a", x=1), reason="MAX_TOKENS"))
    assert finish.reason == "length" and finish.message.tool_calls[0].arguments == {"x": 1}


@pytest.mark.parametrize("field", [{"willContinue": True}, {"partialArgs": [{"jsonPath": "$.x", "stringValue": "a"}]}])
def test_arguments_in_pieces_are_refused_not_run(field: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="in pieces"):
        end_of(chunk({"functionCall": {"name": "f", **field}}, reason="STOP"))


# ------------------------------------------------------------------------------------------------------ signed parts


def test_signed_parts_are_never_joined() -> None:
    sign = {"gemini": {"thoughtSignature": "s1"}}
    finish = end_of(
        chunk({"text": "a", "thought": True}),
        chunk({"text": "b", "thought": True, "thoughtSignature": "s1"}),
        chunk({"text": "c", "thought": True}),
        chunk({"text": "d"}),
        chunk({"text": "e", "thoughtSignature": "s1"}),
        chunk({"text": "f"}, reason="STOP"),
    )
    assert finish.message.parts == (
        Reasoning("a"), Reasoning("b", sign), Reasoning("c"), Text("d"), Text("e", sign), Text("f"),
    )  # fmt: skip


def test_own_parts_and_pictures_are_kept_in_their_place() -> None:
    code = {"executableCode": {"language": "PYTHON", "code": "print(1)"}}
    image = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgoAAQIDBAUGBw=="}, "thoughtSignature": "s"}
    finish = end_of(chunk({"text": "a"}, code, image), chunk({"text": "b"}, reason="STOP"))
    assert finish.message.parts == (
        Text("a"),
        UnknownPart({"type": "gemini.executableCode", "part": code}),
        Blob(PNG, "image/png", provider_metadata={"gemini": {"thoughtSignature": "s"}}),
        Text("b"),
    )


# -------------------------------------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *[(word, "content_filter") for word in ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")],
        ("LANGUAGE", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        *[(word, "error") for word in ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "OTHER", "NEW_WORD")],
    ],
)
def test_r27_reasons(raw: str, reason: FinishReason) -> None:
    finish = end_of(chunk({"text": "x"}, reason=raw))
    assert (finish.reason, finish.raw, finish.message.finish_reason) == (reason, raw, reason)
    again = DIALECT.decode_response(DIALECT.encode_response(finish, model="m", response_id="r", created=0))
    assert (again.reason, again.raw) == (reason, raw)


def test_r27_a_blocked_prompt_is_an_answer_that_was_filtered() -> None:
    blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 4}}
    for data in (sse(blocked), json.dumps(blocked).encode(), json.dumps([blocked]).encode()):
        finish = read(data)[-1]
        assert isinstance(finish, Finish)
        assert (finish.reason, finish.raw, finish.message.parts) == ("content_filter", "PROHIBITED_CONTENT", ())
        assert finish.usage == Usage(4, 0)
        again = json.loads(DIALECT.encode_response(finish, model="m", response_id="r", created=0))
        assert "candidates" not in again and again["promptFeedback"] == blocked["promptFeedback"]


def test_r27_an_empty_answer_is_stored_as_it_is() -> None:
    bare = {"candidates": [{"finishReason": "STOP", "index": 0}], "usageMetadata": {"promptTokenCount": 4}}
    finish = end_of(bare)
    assert (finish.reason, finish.message.parts) == ("stop", ())


def test_r10_a_clean_end_without_a_finish_reason_is_interrupted() -> None:
    for data in (sse(*STREAM[:-1]), sse(*STREAM)[:-40], sse(chunk({"text": "Thrée r's."}, reason=""))):
        with pytest.raises(StreamInterrupted) as caught:
            read(data)
        assert caught.value.partial == "Thrée r's."
    with pytest.raises(StreamInterrupted):
        read(b"")


def test_a_last_event_without_its_blank_line_counts() -> None:
    assert read(sse(*STREAM)[:-4])[-1] == read(sse(*STREAM))[-1]


def test_r21_usage_comes_once_late_or_never() -> None:
    late = [chunk({"text": "x"}, reason="STOP", usage=None), {"usageMetadata": COUNTS}]
    assert [type(item) for item in read(sse(*late))] == [TextItem, UsageItem, Finish]
    assert end_of(*late).usage == USAGE
    never = end_of(chunk({"text": "x"}, reason="STOP", usage=None))
    assert never.usage == Usage(estimated=True)
    growing = [{"promptTokenCount": 8, "candidatesTokenCount": n} for n in (1, 1, 2)]
    items = read(
        sse(*[chunk({"text": "x"}, usage=usage) for usage in growing[:2]], chunk(reason="STOP", usage=growing[2]))
    )
    assert [item.usage.output_tokens for item in items if isinstance(item, UsageItem)] == [1, 2]


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"promptTokenCount": 10, "cachedContentTokenCount": 6, "candidatesTokenCount": 2}, Usage(10, 2, 6)),
        ({"promptTokenCount": 10, "toolUsePromptTokenCount": 5, "candidatesTokenCount": 2}, Usage(15, 2)),
        (COUNTS, USAGE),
        ({**COUNTS, "candidatesTokenCount": 33}, Usage(8, 33, reasoning_tokens=30)),
        ({"promptTokenCount": -1, "candidatesTokenCount": "x", "totalTokenCount": True}, Usage(0, 0)),
    ],
)
def test_r21_counts(counts: dict[str, Any], usage: Usage) -> None:
    """Thoughts are output; a server that counts them among the candidates' tokens says so by its total."""
    assert end_of(chunk(reason="STOP", usage=counts)).usage == usage


# ---------------------------------------------------------------------------------------------------------- failures


def test_r14_a_malformed_chunk_is_an_error_with_its_excerpt_and_the_text_so_far() -> None:
    with pytest.raises(WireError, match="cand") as caught:
        read(sse(STREAM[1]) + b'data: {"candidates": [{]}\n\n')
    assert caught.value.partial == "Thrée " and not isinstance(caught.value, StreamInterrupted)


@pytest.mark.parametrize(
    "bad",
    [
        [1],
        {"candidates": [{"content": {"parts": ["x"]}}]},
        {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "a/b", "data": "?"}}]}}]},
        {"candidates": [{"content": {"parts": [{"functionCall": 1}]}}]},
    ],
)
def test_r14_chunks_of_another_shape_are_errors(bad: Any) -> None:
    with pytest.raises(WireError):
        read(sse(bad))


def test_r15_an_error_event_is_the_error_it_says() -> None:
    error = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
    with pytest.raises(OverloadedError) as caught:
        read(sse(STREAM[1], error))
    assert (caught.value.status, caught.value.partial) == (503, "Thrée ")
    with pytest.raises(OverloadedError):
        read(json.dumps([error]).encode())


def test_r16_a_web_page_is_named() -> None:
    with pytest.raises(WireError, match="web page"):
        read(b"<!doctype html><title>Sign in</title>")


def test_a_server_that_ignores_alt_sse_is_read_too() -> None:
    """Without `alt=sse` the chunks are the elements of one array."""
    last = read(sse(*STREAM))[-1]
    array = json.dumps(list(STREAM), indent=1).encode()
    for step in (1, 50, None):
        assert read(array, step)[-1] == last
    assert DIALECT.decode_response(array) == last
    with pytest.raises(StreamInterrupted) as caught:
        DIALECT.decode_response(json.dumps(list(STREAM[:-1])).encode())
    assert caught.value.partial == "Thrée r's."


def test_whole_answers_that_are_none() -> None:
    for data in (b"{}", b'{"candidates":[]}', b"[]", b"<html>", b"", b"7"):
        with pytest.raises(WireError):
            DIALECT.decode_response(data)


def test_of_several_candidates_the_first_counts() -> None:
    mixed: dict[str, Any] = chunk({"text": "a"}, reason="STOP")
    mixed["candidates"].insert(0, {"content": {"parts": [{"text": "b"}]}, "finishReason": "SAFETY", "index": 1})
    assert end_of(mixed).message.text == "a"


def test_what_has_no_word_of_ours_is_kept_and_written_again() -> None:
    rated = chunk({"text": "x"}, reason="STOP", promptFeedback={"safetyRatings": []})
    rated["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["q"]}
    finish = end_of(rated)
    assert finish.provider_metadata == {
        "gemini": {
            "promptFeedback": {"safetyRatings": []},
            "candidate": {"groundingMetadata": {"webSearchQueries": ["q"]}},
        }
    }
    whole = json.loads(DIALECT.encode_response(finish, model=VERSION, response_id=ID, created=0))
    expected = chunk({"text": "x"}, reason="STOP", promptFeedback={"safetyRatings": []})
    expected["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["q"]}
    expected["usageMetadata"] = {**COUNTS}
    assert whole == expected


@given(data=st.one_of(st.binary(max_size=80), st.builds(sse, json_values(clean_text))), step=st.integers(1, 9))
@settings(max_examples=80, deadline=None)
def test_any_stream_raises_only_our_errors(data: bytes, step: int) -> None:
    with pytest.raises(WindlassError):
        read(data, step)


PATHS = [("candidates",), ("candidates", 0), ("candidates", 0, "content"), ("candidates", 0, "content", "parts"),
         ("candidates", 0, "content", "parts", 0), ("candidates", 0, "finishReason"), ("usageMetadata",),
         ("modelVersion",), ("responseId",), ("usageMetadata", "promptTokenCount"), ("error",)]  # fmt: skip


@given(path=st.sampled_from(PATHS), value=json_values(clean_text), key=names)
@settings(max_examples=120, deadline=None)
def test_any_change_of_an_answer_is_read_or_a_typed_error(path: tuple[Any, ...], value: Any, key: str) -> None:
    body: Any = json.loads(json.dumps(chunk({"text": "x"}, call("f", "a", x=1), reason="STOP")))
    target = body
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    for read_it in (lambda: DIALECT.decode_response(json.dumps(body).encode()), lambda: read(sse(body))):
        try:
            read_it()
        except ProviderError as error:
            assert str(error)


# ------------------------------------------------------------------------------------------------------- our own side


def stream_of(items: list[Item]) -> list[dict[str, Any]]:
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
    data = b"".join([encoder.encode(item) for item in items])
    return [json.loads(line[6:]) for line in data.split(b"\n\n") if line]


def parts_of(data: dict[str, Any]) -> list[Any]:
    return data["candidates"][0]["content"]["parts"]


def test_our_stream_holds_calls_until_they_are_whole() -> None:
    message = Message("assistant", (Text("hi"), ToolCall("a", "f", {"x": 1}), ToolCall("b", "g", {})))
    chunks = stream_of(
        [
            TextItem("hi"),
            NoticeItem("retry", "again"),
            UsageItem(Usage(5, 1)),
            ToolCallItem(0, "a", "f", '{"x"'),
            ToolCallItem(1, "b", "g"),
            ToolCallItem(0, arguments=":1}"),
            Finish(message, Usage(5, 9, 2), "tool_call"),
        ]
    )
    assert [parts_of(item) for item in chunks] == [[{"text": "hi"}], [call("f", "a", x=1), call("g", "b")]]
    assert chunks[-1]["candidates"][0]["finishReason"] == "STOP"
    assert chunks[-1]["usageMetadata"] == {
        "promptTokenCount": 5, "candidatesTokenCount": 9, "totalTokenCount": 14, "cachedContentTokenCount": 2,
    }  # fmt: skip
    assert {(item["modelVersion"], item["responseId"]) for item in chunks} == {("m", "r")}


def test_our_stream_of_an_answer_that_came_whole() -> None:
    sign = {"gemini": {"thoughtSignature": "s"}}
    parts: tuple[Part, ...] = (Reasoning("t"), Text("a", sign), Blob(PNG, "image/png"), ToolCall("a", "f", {}))
    (only,) = stream_of([Finish(Message("assistant", parts), Usage(1, 1), "tool_call")])
    assert [sorted(part) for part in parts_of(only)] == [
        ["text", "thought"], ["text", "thoughtSignature"], ["inlineData"], ["functionCall"],
    ]  # fmt: skip


def test_our_stream_tells_a_signature_that_items_cannot() -> None:
    items = read(sse(chunk({"text": "a"}), chunk({"text": "b", "thoughtSignature": "s"}, reason="STOP")))
    chunks = stream_of(items)
    assert [parts_of(item) for item in chunks] == [
        [{"text": "a"}], [{"text": "b"}], [{"text": "", "thoughtSignature": "s"}],
    ]  # fmt: skip


@pytest.mark.parametrize(("reason", "raw"), [("interrupted", None), ("error", None), ("error", "network_error")])
def test_our_stream_never_ends_well_when_the_answer_broke_off(reason: FinishReason, raw: str | None) -> None:
    message = Message("assistant", (Text("par"),))
    chunks = stream_of([TextItem("par"), ToolCallItem(0, "a", "f", '{"x'), Finish(message, Usage(), reason, raw=raw)])
    assert "error" in chunks[-1] and chunks[-1]["error"]["code"] == 502 and len(chunks) == 2
    whole = json.loads(DIALECT.encode_response(Finish(message, Usage(), reason), model="m", response_id="r", created=0))
    assert whole["candidates"][0]["finishReason"] == "OTHER"


def test_a_word_of_the_vendors_own_goes_on_to_its_clients() -> None:
    finish = end_of(chunk(reason="MALFORMED_FUNCTION_CALL"))
    assert stream_of([finish])[-1]["candidates"][0]["finishReason"] == "MALFORMED_FUNCTION_CALL"


def test_our_error_event_is_read_by_us() -> None:
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
    data = encoder.encode(TextItem("par")) + encoder.error(RateLimitError("slow down", retry_after=2.0))
    with pytest.raises(RateLimitError, match="slow down") as caught:
        read(data)
    assert (caught.value.retry_after, caught.value.partial) == (2.0, "par")


said = st.one_of(
    st.builds(Text, clean_text),
    st.builds(Reasoning, clean_text),
    st.builds(Text, clean_text, st.just({"gemini": {"thoughtSignature": "s"}})),
    st.builds(Reasoning, clean_text, st.just({"gemini": {"thoughtSignature": "s"}})),
    st.just(Blob(PNG, "image/png")),
    st.just(UnknownPart({"type": "gemini.executableCode", "part": {"executableCode": {"code": "1"}}})),
)


def alike(a: Part, b: Part) -> bool:
    """Tell whether two neighbours would come back as one part."""
    return type(a) is type(b) and isinstance(a, (Text, Reasoning)) and not (a.provider_metadata or b.provider_metadata)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


@given(
    parts=st.lists(said, max_size=5),
    calls=st.lists(st.tuples(names, st.dictionaries(names, json_values(clean_text), max_size=2)), max_size=2),
    counts=st.tuples(st.integers(0, 999), st.integers(0, 999), st.integers(0, 99)),
    end=st.sampled_from([("stop", "STOP"), ("length", "MAX_TOKENS"), ("content_filter", "RECITATION")]),
)
@settings(max_examples=80, deadline=None)
def test_every_answer_reads_as_it_was_written(
    parts: list[Part], calls: list[tuple[str, Any]], counts: tuple[int, int, int], end: tuple[FinishReason, str]
) -> None:
    parts = [part for at, part in enumerate(parts) if not at or not alike(parts[at - 1], part)]
    made = [ToolCall(f"id_{n}", name, arguments) for n, (name, arguments) in enumerate(calls)]
    reason: FinishReason = "tool_call" if made and end[0] == "stop" else end[0]
    usage = Usage(counts[0], counts[1] + counts[2], min(counts[0], 5), 0, counts[2])
    message = Message("assistant", (*parts, *made), finish_reason=reason)
    finish = Finish(message, usage, reason, "m", "r", raw=end[1])
    assert DIALECT.decode_response(DIALECT.encode_response(finish, model="m", response_id="r", created=0)) == finish
    encoder = DIALECT.stream_encoder(model="m", response_id="r", created=0)
    assert read(encoder.encode(finish))[-1] == finish
