"""What bodies carry: addresses that are not followed, bombs that do not go off, text that stays text."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.server.conftest import InProcess, Serve, StartGateway
from tests.server.edge import Answer, ask, request
from tests.server.test_edge_access import path_of
from tests.server.upstreams import answering, up
from windlass.core.errors import RequestRefused
from windlass.core.items import Finish, Item, ReasoningItem, TextItem
from windlass.core.messages import Message, Text
from windlass.core.usage import Usage
from windlass.server.body import FORBIDDEN, peek
from windlass.server.http import encode_head
from windlass.server.start import ENDPOINTS
from windlass.testing.faults import FaultServer, Reply
from windlass.wire import anthropic, gemini, ollama, openai_chat, openai_completions, openai_responses

BODIES = [row for row in ENDPOINTS if row.body and row.access != "admin"]
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def sentinel() -> AsyncGenerator[tuple[str, list[int]]]:
    """Listen where nobody has any business; yields the address and the connections that came."""
    came: list[int] = []

    def met(_reader: Any, writer: asyncio.StreamWriter) -> None:
        came.append(1)
        writer.close()

    server = await asyncio.start_server(met, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", came


async def post(made: InProcess, path: str, body: Any, **headers: str) -> Answer:
    """Post JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return await ask(made.port, request("POST", path, headers, data))


def error_of(answer: Answer) -> str:
    """Return the text of an error in whatever shape."""
    return answer.body.decode()


# ------------------------------------------------------------------------------------------------ S31, S32-S39, S40


async def test_s31_no_request_says_where_to_or_with_what_key(gateway: StartGateway) -> None:
    async with sentinel() as (url, came), FaultServer(answering("hello")) as upstream:
        made = await gateway(providers=up(upstream), routes={"fake": "up:fake"})
        base: dict[str, Any] = {"model": "fake", "messages": MESSAGES, "max_tokens": 5}
        for endpoint in BODIES:
            for name in sorted(FORBIDDEN):
                for value in (url, {"authorization": "Bearer x"}, None):
                    answer = await post(made, path_of(endpoint, "fake"), {**base, name: value})
                    # A store's routes take no further field at all: any of these is refused, the first one found.
                    told = name in error_of(answer) or endpoint.path.startswith("/windlass/v1/store/")
                    assert answer.status == 400 and told, (endpoint.path, name, answer)
        assert upstream.requests == []
        hints = {"x-base-url": url, "x-api-base": url, "x-target-url": url, "helicone-target-url": url,
                 "x-portkey-custom-host": url, "x-forwarded-host": url[7:], "x-upstream": url}  # fmt: skip
        deep = {"metadata": {"api_base": url}, "extra_body": {"api_base": url}, "litellm_params": {"api_base": url}}
        assert (await post(made, "/v1/chat/completions?api_base=" + url, {**base, **deep}, **hints)).status == 200
        assert upstream.requests[0].headers["authorization"] == "Bearer sk-upstream"
        for model in (url, f"{url}/v1:x", f"openai@{url}", f"up:{url}", "up:../../x", "up:x?y=z", "http:x",
                      "local:/x.gguf", "local:/etc/passwd", "../up:fake"):  # fmt: skip
            await post(made, "/v1/chat/completions", {**base, "model": model})
        assert {received.target for received in upstream.requests} == {"/v1/chat/completions"}
        assert came == []


def _images(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Return requests that name something to fetch, in each dialect."""
    chat_parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
    file_part = {"type": "file", "file": {"file_data": url, "filename": "x.pdf"}}
    out: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": chat_parts}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [file_part]}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": url}]}]}),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [url]}], "stream": False}),
        ("/api/generate", {"prompt": "x", "images": [url], "stream": False}),
        ("/v1/embeddings", {"input": url}),
    ]
    for kind in ("image", "document"):
        block = {"type": kind, "source": {"type": "url", "url": url}}
        out.append(("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": [block]}]}))
    part = {"fileData": {"fileUri": url, "mimeType": "image/png"}}
    out.append(("/v1beta/models/{}:generateContent", {"contents": [{"role": "user", "parts": [part]}]}))
    s3 = {"image": {"format": "png", "source": {"s3Location": {"uri": url}}}}
    out.append(("/model/{}/converse", {"messages": [{"role": "user", "content": [s3]}]}))
    tool = {"type": "object", "properties": {"a": {"$ref": url + "/schema.json"}, "b": {"$ref": "file:///etc/passwd"}}}
    function = {"type": "function", "function": {"name": "f", "parameters": tool}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url + "/answer.json"}}}
    out += [
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [function], "response_format": wanted}),
        ("/v1/messages", {"max_tokens": 5, "messages": MESSAGES, "tools": [{"name": "f", "input_schema": tool}]}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": "f", "parameters": tool}]}),
        ("/v1/chat/completions", {"messages": MESSAGES, "tools": [{"type": "mcp", "server_url": url}]}),
        ("/v1/responses", {"input": "x", "tools": [{"type": "mcp", "server_label": "x", "server_url": url}]}),
    ]
    return out


async def test_s32_to_s40_the_gateway_fetches_nothing_for_a_client(gateway: StartGateway) -> None:
    async with sentinel() as (url, came), FaultServer(lambda _: Reply(400, b'{"error":{"message":"no"}}')) as upstream:
        dialects = ("openai-chat", "openai-responses", "anthropic", "ollama", "gemini", "bedrock", "tgi")
        providers = {name: {"base_url": upstream.url, "api_key": "k", "dialect": name} for name in dialects}
        made = await gateway(providers=providers)
        passed = 0
        for name in (*dialects, "local"):
            for address in (
                url,
                url.replace("127.0.0.1", "localhost"),
                url.replace("http", "file"),
                "file:///etc/passwd",
            ):
                for path, body in _images(address):
                    model = f"{name}:tiny-0" if name == "local" else f"{name}:m"
                    before = len(upstream.requests)
                    named = body if "{}" in path else {"model": model, "max_tokens": 2, **body}
                    answer = await post(made, path.format(model), named)
                    assert 400 <= answer.status < 500 or (name == "local" and answer.status == 200), (
                        name,
                        path,
                        answer,
                    )
                    passed += len(upstream.requests) - before
        assert came == [] and passed > 40  # what was passed on, the vendor may fetch


# ----------------------------------------------------------------------------------------- S69, S71: text stays text


@given(st.lists(st.tuples(st.just("x-a"), st.text(max_size=30)), max_size=3))
@example([("x-a", "a\r\nset-cookie: b")])
@example([("x-a", "a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), ("x-a", "\n")])
@settings(max_examples=200, deadline=None)
def test_s69_no_value_ends_its_header(pairs: list[tuple[str, str]]) -> None:
    head = encode_head(200, pairs, "content-length: 0\r\n")
    lines = head.decode("latin-1").split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK" and lines[-3:] == ["content-length: 0", "", ""]
    assert len(lines) == len(pairs) + 4 and all(line.startswith("x-a: ") for line in lines[1:-3])
    assert not any((char < " " and char != "\t") or char == "\x7f" for line in lines for char in line)


CUTS = ["a\r\nx-evil: 1", "a\nx-evil: 1", "a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "a\rb", "a\0b", "a\u2028b", "a\x85b",
        "\u202ex",
        "a\r", "\n", "ü\r\nx: y"]  # fmt: skip


async def test_s69_line_ends_in_names_and_ids_reach_no_header(gateway: StartGateway) -> None:
    async with FaultServer(answering("hello")) as upstream:
        made = await gateway(providers=up(upstream), routes={"fake": "up:fake"})
        for text in CUTS:
            for body in ({"model": text}, {"model": f"up:{text}"}, {"model": "fake", "session_id": text},
                         {"model": "fake", "tenant_id": text}):  # fmt: skip
                for stream in (False, True):
                    answer = await post(made, "/v1/chat/completions", {"messages": MESSAGES, **body, "stream": stream})
                    trimmed = answer.status == 200 and "model" in body and text.strip().isprintable()
                    assert answer.status in (400, 404) or trimmed, (body, answer)
                    assert not [name for name in answer.headers if "evil" in name]
            answer = await post(made, "/v1/responses", {"model": "fake", "input": "x", "previous_response_id": text})
            assert answer.status in (400, 404) and "x-evil" not in answer.headers
        assert not [received for received in upstream.requests if received.target != "/v1/chat/completions"]
        # Letters that no header can hold are told as what a header can.
        answer = await post(made, "/v1/chat/completions", {"model": "up:größe😀", "messages": MESSAGES})
        assert answer.status == 200 and "x-windlass-model" in answer.headers
        for asked, kept in (("abc-1", True), ("a b", False), ("x" * 129, False), ("\xe9", False), ("<a>", False)):
            answer = await ask(made.port, request("GET", "/health", {"x-request-id": asked}))
            assert (answer.headers["x-request-id"] == asked) is kept


DIALECTS: dict[str, Any] = {
    "openai-chat": openai_chat.DIALECT, "anthropic": anthropic.DIALECT, "responses": openai_responses.DIALECT,
    "gemini": gemini.DIALECT, "completions": openai_completions.DIALECT,
}  # fmt: skip
hostile = st.lists(
    st.sampled_from([*"\n\r\u2028\u2029\x85\x0b\x0c\0:{}\"datevn[]DONE", "data: ", "\n\ndata: {}\n\n", "event: error\n",
                     "\r\rdata: [DONE]\r\r", "\U0001f600"]),
    max_size=12,
).map("".join)  # fmt: skip


def _frames(encoder: Any, texts: list[str]) -> bytes:
    items: list[Item] = [TextItem(text) for text in texts if text]
    if texts and texts[0]:
        items.insert(0, ReasoningItem(texts[0]))
    message = Message("assistant", (Text("".join(texts)),))
    items.append(Finish(message, Usage(1, 1), "stop", model="m"))
    return b"".join([encoder.encode(item) for item in items])


@pytest.mark.parametrize("name", DIALECTS)
@given(st.lists(hostile, min_size=1, max_size=4))
@example(["\n\ndata: [DONE]\n\n"])
@example(["a\u2028data: x\u2029\r\revent: error"])
@settings(max_examples=80, deadline=None)
def test_s71_what_a_model_says_stays_inside_one_data_field(name: str, texts: list[str]) -> None:
    encoder = DIALECTS[name].stream_encoder(model="m", response_id="r", created=1)
    ends = 0
    for event in _frames(encoder, texts).split(b"\n\n")[:-1]:
        # Lines end with LF, CR or both (WHATWG HTML, 9.2.5), and with nothing else.
        lines = event.splitlines()
        fields = [line.partition(b":")[0] for line in lines]
        assert fields in ([b"data"], [b"event", b"data"]), event
        data = lines[-1].removeprefix(b"data: ")
        ends += data == b"[DONE]"
        assert data == b"[DONE]" or isinstance(json.loads(data), dict)
    assert ends <= 1


@given(st.lists(hostile, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_s71_what_a_model_says_stays_inside_one_line_of_ndjson(texts: list[str]) -> None:
    encoder = ollama.DIALECT.stream_encoder(model="m", response_id="r", created=1)
    rows = _frames(encoder, texts).decode().splitlines()
    assert all(isinstance(json.loads(row), dict) for row in rows)
    assert sum(bool(json.loads(row)["done"]) for row in rows) == 1


async def test_s59_one_request_is_one_line_of_json(serve: Serve) -> None:
    evil = 'x\r\n{"event":"fake"}\x1b[31m\u2028\x85"}'
    async with FaultServer(answering("hello")) as upstream:
        config = f'[server]\nlog = "json"\n[providers.up]\nbase_url = "{upstream.url}/v1"\napi_key = "k"\n'
        served = await asyncio.to_thread(serve, config)
        for model in ("up:fake", f"up:fake{evil}", evil):
            body = json.dumps({"model": model, "messages": MESSAGES, "user": evil}).encode()
            head = {"user-agent": 'a"}{\x80\t"b', "x-request-id": "r-1"}
            await ask(served.port, request("POST", "/v1/chat/completions", head, body))
        await asyncio.to_thread(served.stop)
        lines = [line for line in served.log.read_bytes().decode().splitlines() if not line.startswith("windlass ")]
        rows = [json.loads(line) for line in lines]
        asked = [row for row in rows if row.get("event") == "request"]
        assert len(asked) >= 1 and all(row.get("event") != "fake" for row in rows)
        assert all(line.isascii() and line.isprintable() for line in lines)


# ------------------------------------------------------------------------------------------------------ S72, S76, S77


async def test_s72_no_multipart_is_read(gateway: StartGateway) -> None:
    made = await gateway()
    parts = b"".join([b'--x\r\ncontent-disposition: form-data; name="f"; filename="../../x"\r\n\r\n\r\n'] * 10_000)
    for endpoint in BODIES:
        for kind in ("multipart/form-data; boundary=x", "multipart/mixed; boundary=x"):
            data = request("POST", path_of(endpoint), {"content-type": kind}, parts[:1000])
            assert (await ask(made.port, data)).status == 415
    data = request("POST", "/v1/chat/completions", {"content-type": "multipart/form-data; boundary=x"}, parts)
    assert (await ask(made.port, data)).status == 415


def _bombs() -> dict[str, bytes]:
    front = b'{"model":"fake","messages":[{"role":"user","content":"hi"}],'
    keys = b",".join([b'"k%d":1' % at for at in range(200_000)])
    return {
        "deep lists": front + b'"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep objects": front + b'"x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        "deep and open": b"[" * 100_000,
        "deep in messages": b'{"model":"fake","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "many keys": b"{" + keys + b"}",
        "a long number": front + b'"max_tokens":' + b"9" * 100_000 + b"}",
        "a long n": front + b'"n":' + b"9" * 100_000 + b"}",
        "a long fraction": front + b'"n":0.' + b"9" * 100_000 + b"}",
        "1e400 tokens": front + b'"max_tokens":1e400}',
        "1e8 tokens, spelled long": front + b'"max_tokens":1e800000000}',
        "NaN": front + b'"temperature":NaN}',
        "Infinity": front + b'"temperature":-Infinity}',
        "twice": front + b'"model":"other"}',
        "twice, spaced": b'{"model": "fake", "model": "other", "messages": []}',
        "twice, spaced so that its length fits": b'{"a":1,"b":2,"c":3,"d":4,"e":5,"model":"x","model":"y"}',
        "twice, one of them escaped": front + b'"mod\\u0065l":"other"}',
        "BOM": b"\xef\xbb\xbf" + front[:-1] + b"}",
        "UTF-16": (front[:-1] + b"}").decode().encode("utf-16"),
        "a bad byte in a key": front + b'"\xff":1}',
        "a bad byte in a text": front + b'"user":"\xff"}',
        "a surrogate in UTF-8": front + b'"user":"\xed\xa0\x80"}',
        "a lone surrogate": front + b'"user":"\\ud800"}',
        "an overlong slash": front + b'"user":"\xc0\xaf"}',
        "a control character": front + b'"user":"\n"}',
        "a comment": front + b"/* */" + b'"a":1}',
        "a comma too many": front + b"}",
        "two values": front[:-1] + b"}{}",
        "a NUL behind": front[:-1] + b"}\0",
        "a list": b"[]",
        "a text": b'"x"',
        "a number": b"1",
        "null": b"null",
        "blanks": b"   ",
        "nothing": b"",
    }


BOMBS = _bombs()


async def test_s76_bombs_are_refused_fast_on_every_route(gateway: StartGateway) -> None:
    async with FaultServer(answering("hello")) as upstream:
        made = await gateway(providers=up(upstream), routes={"fake": "up:fake"})
        for name, bomb in BOMBS.items():
            for endpoint in BODIES if len(bomb) < 1000 else BODIES[:3]:
                if name == "nothing" and endpoint.ingress.name.startswith("ollama"):
                    continue
                began = time.perf_counter()
                answer = await post(made, path_of(endpoint, "fake"), bomb)
                took = time.perf_counter() - began
                assert answer.status == 400, (name, endpoint.path, answer)
                # 50 ms a megabyte, and room for a busy machine.
                assert took < 1.0 + len(bomb) / 1e6 * 0.5, (name, took)
        assert upstream.requests == []


def test_s76_a_megabyte_of_anything_takes_no_longer_than_it_may() -> None:
    texts = {
        "text": b'"' + b"x" * 1_000_000 + b'"', "escapes": b'"' + b"\\n" * 500_000 + b'"',
        "lists": b"[" + b"[]," * 330_000 + b"[]]",
        "unicode": ("\"" + "ü€" * 200_000 + "\"").encode(), "numbers": b"[" + b"1," * 500_000 + b"1]",
        "objects": b"[" + b'{"a":1},' * 125_000 + b"{}]",
    }  # fmt: skip
    for name, text in texts.items():
        forms = (
            b'{"model":"m","x":%b}',
            b'{"model": "m", "x": %b}',
            b'{ "model":"m","x":%b}',
            b'{"mod\\u0065l":"m","x":%b}',
        )
        for form in forms:
            best = 9.0
            for _ in range(5):
                began = time.process_time()
                peek(form % text)
                best = min(best, time.process_time() - began)
            assert best < 0.05 * len(text) / 1e6, (name, form, best)


keys_ = st.sampled_from(["model", "n2", "aa", "é", "a\\u0061", "x" * 30])
values_ = st.sampled_from(['"x"', "1", "[1, 2]", '{"a":1}', '", "', "null", r'"\"model\": 1"'])
spacings = st.sampled_from([(",", ":"), (", ", ": "), (",", ": "), (" , ", ":"), (",\n", ":")])


@given(st.lists(st.tuples(keys_, values_), max_size=7), spacings)
@settings(max_examples=400, deadline=None)
def test_s76_a_field_given_twice_is_always_seen(pairs: list[tuple[str, str]], spacing: tuple[str, str]) -> None:
    comma, colon = spacing
    body = ("{" + comma.join([f'"{name}"{colon}{value}' for name, value in pairs]) + "}").encode()
    names = [json.loads(f'"{name}"') for name, _ in pairs]
    if len(set(names)) == len(names):
        assert set(peek(body)) == set(names)
    else:
        with pytest.raises(RequestRefused) as refused:
            peek(body)
        assert refused.value.reason == "duplicate_key"


@given(st.integers(1, 12), st.integers(0, 15), st.sampled_from(['"x"', "1", "[]"]))
@example(7, 4, "1")
@settings(max_examples=150, deadline=None)
def test_s76_a_second_field_that_fits_into_the_spaces_is_seen(count: int, pad: int, value: str) -> None:
    # Compact, but as long as if it were spaced: the second one hides where spaces would be.
    fields = [f'"f{at}":{value}' for at in range(count)]
    body = ("{" + ",".join([f'"model":"{"b" * pad}"', *fields, '"model":"a"']) + "}").encode()
    with pytest.raises(RequestRefused) as refused:
        peek(body)
    assert refused.value.reason == "duplicate_key"


async def test_s77_counts_past_any_use_are_refused(gateway: StartGateway) -> None:
    async with FaultServer(answering("hello")) as upstream:
        made = await gateway(providers=up(upstream), routes={"fake": "up:fake"})
        message, image = MESSAGES[0], {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        numbers: list[Any] = [10**9, 2**31, 2**63, 2**64, -(10**9), 1e300, 0, -1, 1.5, True, "1", [1]]
        for name, values in (("n", [*numbers, 129]), ("max_tokens", numbers), ("max_completion_tokens", numbers),
                             ("max_output_tokens", [2**63, 10**12])):  # fmt: skip
            for value in values if name == "n" else [v for v in values if isinstance(v, int) and abs(v) > 2**31 - 1]:
                path = "/v1/responses" if name == "max_output_tokens" else "/v1/chat/completions"
                answer = await post(made, path, {"model": "fake", "messages": MESSAGES, "input": "x", name: value})
                assert answer.status == 400 and name in error_of(answer), (name, value, answer)
        large: list[tuple[str, dict[str, Any]]] = [
            ("/v1/chat/completions", {"messages": [message] * 100_000}),
            ("/v1/chat/completions", {"messages": MESSAGES, "tools": [tool] * 100_000}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": [image] * 100_000}]}),
            ("/v1/messages", {"max_tokens": 5, "messages": [message] * 100_000}),
            ("/v1/responses", {"input": [message] * 100_000}),
            ("/v1beta/models/fake:generateContent", {"contents": [{"parts": [{"text": "x"}]}] * 100_000}),
            ("/api/generate", {"prompt": "x", "images": [""] * 100_000}),
            ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["AAAA"] * 100_000}]}),
            ("/v1/embeddings", {"input": ["x"] * 100_000}),
        ]
        for path, body in large:
            began = time.perf_counter()
            answer = await post(made, path, {"model": "fake", **body})
            assert answer.status == 400, (path, list(body), answer)
            assert time.perf_counter() - began < 5.0
        assert upstream.requests == []


async def test_s77_control_tokens_in_texts_reach_a_model_of_our_own_as_texts(gateway: StartGateway) -> None:
    made = await gateway()
    counted: list[int] = []
    for text in ("aXb", "a<|im_start|>b", "a<|im_end|>b"):
        body = {"model": "local:tiny-0", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
        answer = await post(made, "/v1/messages/count_tokens", body)
        counted.append(msgspec.json.decode(answer.body)["input_tokens"])
    assert min(counted[1:]) > counted[0] + 3
