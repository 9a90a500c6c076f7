"""Embeddings in their three forms, with the official `openai` and `ollama` SDKs as clients and judges."""

from __future__ import annotations

import base64
import json
import struct
from contextlib import suppress
from typing import Any

import ollama
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_server import Answer, Got, serve
from wire_strategies import clean_text

from windlass.core.errors import BadRequestError, OverloadedError, ProviderError, WindlassError, WireError
from windlass.core.ports import Embeddings
from windlass.core.usage import Usage
from windlass.wire.base import field_of
from windlass.wire.embeddings import MAX_INPUTS, OLLAMA, OLLAMA_OLD, OPENAI, EmbeddingDialect, EmbeddingRequest

ALL = {dialect.path: dialect for dialect in (OPENAI, OLLAMA, OLLAMA_OLD)}
every_dialect = pytest.mark.parametrize("dialect", list(ALL.values()), ids=list(ALL))
ASKED = EmbeddingRequest(("a", "b"), "m")


def vector_of(text: str, dimensions: int | None) -> tuple[float, ...]:
    """Return numbers that 32 bits hold exactly, so that every form gives back the same."""
    return tuple([(len(text) + at) / 8 - 3 for at in range(dimensions or 4)])


def answer(got: Got) -> Answer:
    dialect = ALL[got.path]
    try:
        asked = dialect.decode_request(got.body)
    except BadRequestError as error:
        return 400, "application/json", json.dumps({"error": {"message": str(error)}}).encode()
    vectors = tuple([vector_of(text, asked.dimensions) for text in asked.texts])
    made = Embeddings(vectors, asked.model, Usage(len(asked.texts)))
    return 200, "application/json", dialect.encode_response(made, asked)


@pytest.mark.parametrize("form", [None, "float", "base64"])
async def test_openai_sdk_reads_our_answers(form: Any) -> None:
    async with serve(answer) as server, openai.DefaultAsyncHttpxClient(trust_env=False) as http:
        sdk = openai.AsyncOpenAI(api_key="k", base_url=f"{server.url}/v1", max_retries=0, http_client=http)
        more: dict[str, Any] = {} if form is None else {"encoding_format": form}
        got = await sdk.embeddings.create(model="e", input=["ab", "c"], dimensions=3, user="u", **more)
        one = await sdk.embeddings.create(model="e", input="abc", **more)
        with pytest.raises(openai.BadRequestError, match="holds tokens"):
            await sdk.embeddings.create(model="e", input=[1, 2])
    assert (got.object, got.model, [row.index for row in got.data]) == ("list", "e", [0, 1])
    # What the SDK decodes from base64 itself, and what it gets as text in that form.
    given = [row.embedding if form != "base64" else struct.unpack("<3f", base64.b64decode(str(row.embedding)))
             for row in got.data]  # fmt: skip
    assert [tuple(vector) for vector in given] == [vector_of("ab", 3), vector_of("c", 3)]
    assert (got.usage.prompt_tokens, got.usage.total_tokens, len(one.data)) == (2, 2, 1)
    first = OPENAI.decode_request(server.got[0].body)
    assert (first.texts, first.model, first.dimensions, first.extra) == (("ab", "c"), "e", 3, {"user": "u"})
    assert first.encoding == ("float" if form == "float" else "base64")


async def test_ollama_sdk_reads_our_answers() -> None:
    async with serve(answer) as server:
        sdk = ollama.AsyncClient(host=server.url)
        try:
            many = await sdk.embed(model="e", input=["ab", "c"], truncate=True, dimensions=3, keep_alive="1m")
            one = await sdk.embed(model="e", input="ab")
            old = await sdk.embeddings(model="e", prompt="abc", options={"num_ctx": 9})
            loaded = await sdk.embed(model="e", input="")
            old_loaded = await sdk.embeddings(model="e")
        finally:
            await sdk.close()
    assert [tuple(vector) for vector in many.embeddings] == [vector_of("ab", 3), vector_of("c", 3)]
    assert (many.model, many.prompt_eval_count, len(one.embeddings)) == ("e", 2, 1)
    assert tuple(old.embedding) == vector_of("abc", None)
    assert (loaded.embeddings, old_loaded.embedding) == ([], [])
    asked = [ALL[got.path].decode_request(got.body) for got in server.got]
    assert (asked[0].extra, asked[0].dimensions) == ({"truncate": True, "keep_alive": "1m"}, 3)
    assert (asked[2].texts, asked[2].extra) == (("abc",), {"options": {"num_ctx": 9}})


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.mark.parametrize(
    ("dialect", "fields", "path"),
    [
        (OPENAI, {"input": None}, "input"),
        (OPENAI, {"input": []}, "input"),
        (OPENAI, {"input": ""}, "input"),
        (OPENAI, {"input": ["x", ""]}, "input[1]"),
        (OPENAI, {"input": {}}, "input"),
        (OPENAI, {"input": [1, 2]}, "input"),
        (OPENAI, {"input": [[1, 2]]}, "input"),
        (OPENAI, {"input": ["x", None]}, "input[1]"),
        (OPENAI, {"input": ["x", {}]}, "input[1]"),
        (OPENAI, {"input": ["x"] * (MAX_INPUTS + 1)}, "input"),
        (OPENAI, {"encoding_format": "int8"}, "encoding_format"),
        (OPENAI, {"encoding_format": ["float"]}, "encoding_format"),
        (OPENAI, {"dimensions": 0}, "dimensions"),
        (OPENAI, {"dimensions": 1 << 40}, "dimensions"),
        (OPENAI, {"dimensions": "3"}, "dimensions"),
        (OPENAI, {"model": None}, "model"),
        (OPENAI, {"user": 1}, "user"),
        (OLLAMA, {"input": 1}, "input"),
        (OLLAMA, {"input": ["x"] * (MAX_INPUTS + 1)}, "input"),
        (OLLAMA, {"input": [1]}, "input"),
        (OLLAMA, {"truncate": "yes"}, "truncate"),
        (OLLAMA, {"dimensions": -1}, "dimensions"),
        (OLLAMA_OLD, {"prompt": ["x"]}, "prompt"),
        (OLLAMA_OLD, {"model": ""}, "model"),
    ],
)
def test_s77_refusals_name_the_field(dialect: EmbeddingDialect, fields: dict[str, Any], path: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        dialect.decode_request(json.dumps({"model": "m", "input": "x", **fields}).encode())
    assert (field_of(caught.value), caught.value.status) == (path, 400)


def test_as_many_inputs_as_are_allowed_are_taken() -> None:
    body = json.dumps({"model": "m", "input": ["x"] * MAX_INPUTS, "dimensions": None}).encode()
    assert len(OPENAI.decode_request(body).texts) == len(OLLAMA.decode_request(body).texts) == MAX_INPUTS


@given(
    texts=st.lists(clean_text, min_size=1, max_size=3).map(tuple),
    dimensions=st.none() | st.integers(1, 1 << 16),
    encoding=st.sampled_from(["float", "base64"]),
)
@settings(max_examples=40, deadline=None)
def test_each_request_reads_as_what_was_written(texts: Any, dimensions: int | None, encoding: Any) -> None:
    asked = EmbeddingRequest(texts, "m", dimensions, encoding, {"user": "u"})
    assert OPENAI.decode_request(OPENAI.encode_request(asked)) == asked
    plain = EmbeddingRequest(texts, "m", dimensions, extra={"keep_alive": 1})
    assert OLLAMA.decode_request(OLLAMA.encode_request(plain)) == plain
    one = EmbeddingRequest(texts[:1], "m")
    assert OLLAMA_OLD.decode_request(OLLAMA_OLD.encode_request(one)) == one
    if len(texts) > 1:
        with pytest.raises(BadRequestError, match="/api/embed"):
            OLLAMA_OLD.encode_request(plain)


# ------------------------------------------------------------------------------------------------------------- answers

doubles = st.floats(allow_nan=False, allow_infinity=False)
singles = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(data=st.data(), width=st.integers(1, 5), count=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_each_answer_reads_as_what_was_written(data: st.DataObject, width: int, count: int) -> None:
    def made(numbers: st.SearchStrategy[float], rows: int) -> Embeddings:
        row = st.lists(numbers, min_size=width, max_size=width).map(tuple)
        vectors = data.draw(st.lists(row, min_size=rows, max_size=rows).map(tuple))
        return Embeddings(vectors, "m", Usage(data.draw(st.integers(0, 99))))

    texts = tuple(["x"] * count)
    plain, packed = EmbeddingRequest(texts, "m"), EmbeddingRequest(texts, "m", encoding="base64")
    wide, narrow = made(doubles, count), made(singles, count)
    assert OPENAI.decode_response(OPENAI.encode_response(wide, plain), plain) == wide
    assert OPENAI.decode_response(OPENAI.encode_response(narrow, packed), packed) == narrow
    assert OLLAMA.decode_response(OLLAMA.encode_response(wide, plain), plain) == wide
    one, single = EmbeddingRequest(("x",), "m"), made(doubles, 1)
    old = OLLAMA_OLD.decode_response(OLLAMA_OLD.encode_response(single, one), one)
    assert (old.vectors, old.usage) == (single.vectors, Usage(1, estimated=True))


def rows(*found: Any) -> bytes:
    data = [{"embedding": embedding, "index": index} for index, embedding in found]
    return json.dumps({"data": data, "model": "m-1", "usage": {"prompt_tokens": 5}}).encode()


def test_vectors_come_in_the_order_of_their_index() -> None:
    made = OPENAI.decode_response(rows((1, [1, 2]), (0, [3, 4.5])), ASKED)
    assert made == Embeddings(((3.0, 4.5), (1.0, 2.0)), "m-1", Usage(5))
    assert OPENAI.decode_response(rows((None, [1]), (None, [2])), ASKED).vectors == ((1.0,), (2.0,))


def test_counts_that_nobody_gave_are_estimated() -> None:
    asked = EmbeddingRequest(("x" * 40, "y"), "m")
    for usage in ({}, {"usage": None}, {"usage": {"prompt_tokens": "many"}}, {"usage": {"prompt_tokens": -1}}):
        body = json.dumps({"data": [{"embedding": [1]}, {"embedding": [2]}], **usage}).encode()
        made = OPENAI.decode_response(body, asked)
        assert (made.model, made.usage) == ("m", Usage(11, estimated=True))
    only_total = json.dumps({"data": [{"embedding": [1]}] * 2, "usage": {"total_tokens": 8}}).encode()
    assert OPENAI.decode_response(only_total, asked).usage == Usage(8)


PACKED = base64.b64encode(struct.pack("<2f", 1, 2)).decode()


@pytest.mark.parametrize(
    "body",
    [
        rows((0, [1, 2])),
        rows((0, [1, 2]), (0, [3, 4])),
        rows((0, [1, 2]), (2, [3, 4])),
        rows((0, [1, 2]), (None, [3, 4])),
        rows((0, [1, 2]), (-1, [3, 4])),
        rows((0, [1, 2]), (1, [3])),
        rows((0, []), (1, [])),
        rows((0, [1, 2]), (1, [3, None])),
        rows((0, [1, 2]), (1, [3, True])),
        rows((0, [1, 2]), (1, [3, "4"])),
        rows((0, [1, 2]), (1, [[3], 4])),
        rows((0, [1, 2]), (1, None)),
        rows((0, [1, 2]), (1, {})),
        rows((0, PACKED), (1, "@")),
        rows((0, PACKED), (1, "é")),
        rows((0, PACKED), (1, base64.b64encode(b"12345").decode())),
        rows((0, PACKED), (1, base64.b64encode(struct.pack("<2f", 1, float("nan"))).decode())),
        rows((0, PACKED), (1, base64.b64encode(struct.pack("<2f", 1, float("inf"))).decode())),
        rows((0, [1, 2]), (1, [3, 4])).replace(b"3", b"1e999"),
        rows((0, [1, 2]), (1, [3, 4])).replace(b"3", b"NaN"),
        rows((0, [1, 2]), (1, [3, 4])).replace(b"3", b"9" * 400),
        b'{"data": {}}', b"{}", b"[]", b"", b"<html>", b'{"data": [', b"\xff\xfe",
        b'{"x":' + b"[" * 5000 + b"]" * 5000 + b',"data":[]}',
    ],
)  # fmt: skip
def test_answers_that_do_not_hold_are_wire_errors(body: bytes) -> None:
    with pytest.raises(WireError):
        OPENAI.decode_response(body, ASKED)


@pytest.mark.parametrize(
    "found", [[[1]], [[1], [2], [3]], [[1], [2, 3]], [[], []], [[1], [None]], [[1], 2], None, [["a"], ["b"]]]
)
def test_ollamas_answers_that_do_not_hold_are_wire_errors(found: Any) -> None:
    with pytest.raises(WireError):
        OLLAMA.decode_response(json.dumps({"embeddings": found}).encode(), ASKED)
    with pytest.raises(WireError):
        OLLAMA_OLD.decode_response(json.dumps({"embedding": found}).encode(), ASKED)


@every_dialect
@pytest.mark.parametrize("more", [{}, {"data": [], "embeddings": [], "embedding": []}])
def test_an_error_inside_an_answer_is_that_error(dialect: EmbeddingDialect, more: dict[str, Any]) -> None:
    body = json.dumps({"error": {"message": "no capacity", "code": 503}, **more}).encode()
    with pytest.raises(ProviderError, match="no capacity") as caught:
        dialect.decode_response(body, ASKED)
    assert type(caught.value) is OverloadedError


@every_dialect
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_never_written(dialect: EmbeddingDialect, number: float) -> None:
    for encoding in ("float", "base64"):
        with pytest.raises(WireError, match="finite"):
            dialect.encode_response(Embeddings(((1.0, number),), "m"), EmbeddingRequest(("x",), "m", None, encoding))


def test_numbers_that_32_bits_cannot_hold_are_never_packed() -> None:
    with pytest.raises(WireError, match="32-bit"):
        OPENAI.encode_response(Embeddings(((1e39,),), "m"), EmbeddingRequest(("x",), "m", encoding="base64"))


KEYS = ["data", "embeddings", "embedding", "index", "error", "model", "usage", "input", "prompt", "encoding_format"]
shapes = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | doubles | st.sampled_from(["", "x", "float", PACKED]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@every_dialect
@given(value=shapes, raw=st.binary(max_size=30))
@settings(max_examples=80, deadline=None)
def test_any_bytes_raise_only_our_errors(dialect: EmbeddingDialect, value: Any, raw: bytes) -> None:
    for data in (json.dumps(value).encode(), raw):
        with suppress(WindlassError):
            dialect.decode_request(data)
        with suppress(WindlassError):
            dialect.decode_response(data, ASKED)
