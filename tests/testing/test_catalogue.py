"""The sixteen faults on the wire, seen by a bare socket, and the right answers, seen by the vendors' own SDKs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core import clock
from windlass.core.errors import ConfigError, RequestRefused, UnknownNameError
from windlass.testing.answers import PATHS, TOKENS, answer_to, read_question
from windlass.testing.catalogue import FAULTS, OK, OUTCOMES, CatalogueServer, parse_fault, serve_fault
from windlass.testing.faults import Received

TEXT = "".join(TOKENS)
CHAT, MESSAGES, OLLAMA = PATHS
#: Bytes that only the end of a right stream has.
TERMINAL = {CHAT: b"[DONE]", MESSAGES: b"message_stop", OLLAMA: b'"done":true'}
STREAMING = ["cut", "stalled", "malformed", "no-done", "error-event", "content-filter", "slow-first-token"]


class Still(clock.Clock):
    """A clock that stands still unless told otherwise, with one id: two answers are the same bytes."""

    seconds = 0.0

    def now_ns(self) -> int:
        return 1_700_000_000_000_000_000

    def monotonic(self) -> float:
        return self.seconds

    def new_id(self) -> str:
        return "0" * 26


@pytest.fixture
def still() -> Generator[Still]:
    with clock.use(Still(1)) as used:
        assert isinstance(used, Still)
        yield used


@dataclass
class Seen:
    """What came back: the pieces are the chunks of a chunked body, else the body; `end` is how it ended.

    whole: as HTTP says it ends; fin, rst: the connection ended before; open: nothing more came, nothing was closed.
    """

    status: int
    headers: dict[str, str]
    pieces: list[bytes]
    end: str

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def question(path: str, *, stream: bool = True, model: str = "m", content: Any = "hi", **more: Any) -> bytes:
    messages = more.pop("messages", [{"role": "user", "content": content}])
    body: dict[str, Any] = {"model": model, "stream": stream, "messages": messages}
    if path == CHAT and stream:
        body["stream_options"] = {"include_usage": True}
    return json.dumps({**body, **more}).encode()


class Wire:
    """A bare socket that reads one answer byte by byte where it matters: what arrived counts, also before a reset."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.data = sock, b""

    async def more(self) -> None:
        # Server and client share this loop: what has not come after so many of its turns does not come, however slow
        # the machine is.
        for _ in range(60):
            try:
                got = self.sock.recv(65536)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if not got:
                raise EOFError
            self.data += got
            return
        raise TimeoutError

    async def until(self, mark: bytes) -> bytes:
        while mark not in self.data:
            await self.more()
        head, _, self.data = self.data.partition(mark)
        return head

    async def exactly(self, size: int) -> bytes:
        while len(self.data) < size:
            await self.more()
        out, self.data = self.data[:size], self.data[size:]
        return out


async def see(
    server: CatalogueServer, path: str = CHAT, body: bytes | None = None, *, method: str = "POST", **headers: str
) -> Seen:
    """Ask on a connection of its own and return what was seen."""
    loop, body = asyncio.get_running_loop(), question(path) if body is None else body
    lines = [f"{method} {path} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    seen = Seen(0, {}, [], "whole")
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", server.port))
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode() + body)
        wire = Wire(sock)
        try:
            first, *rest = (await wire.until(b"\r\n\r\n")).decode().split("\r\n")
            seen.status = int(first.split()[1])
            seen.headers = {name: value for name, _, value in (line.partition(": ") for line in rest)}
            if "content-length" in seen.headers:
                seen.pieces.append(await wire.exactly(int(seen.headers["content-length"])))
            else:
                while size := int(await wire.until(b"\r\n"), 16):
                    seen.pieces.append(await wire.exactly(size))
                    assert await wire.exactly(2) == b"\r\n"
                assert await wire.exactly(2) == b"\r\n"
        except EOFError:
            seen.end = "fin"
        except ConnectionResetError:
            seen.end = "rst"
        except TimeoutError:
            seen.end = "open"
        seen.pieces += [wire.data] if wire.data else []
    return seen


async def seen_of(spec: str, path: str = CHAT, body: bytes | None = None) -> Seen:
    async with CatalogueServer(spec) as server:
        seen = await see(server, path, body)
        # A client that left takes the connection's end with it, also out of silence and pauses.
        await server.wait(connections=1, open=0)
    return seen


def opening(path: str, right: Seen) -> int:
    """How many pieces of a right stream come before its first token."""
    return len(right.pieces) - 1 - len(TOKENS)


# ------------------------------------------------------------------------------------------------------------ the table


def test_the_catalogue_has_sixteen_faults_and_says_what_to_make_of_each() -> None:
    assert len(FAULTS) == 16 and OK.name not in FAULTS
    assert [name for name, fault in FAULTS.items() if name != fault.name] == []
    used = {outcome for fault in FAULTS.values() for outcome in (fault.outcome, fault.whole_outcome)}
    assert used == set(OUTCOMES)
    # Content was given: it can only be gone on with. None was: it can be asked again, or elsewhere.
    assert {name for name, fault in FAULTS.items() if fault.outcome == "continue"} == set(STREAMING[:5])
    assert {fault.whole_outcome for fault in FAULTS.values()} == {"retry", "fallback", "pass", "answer"}
    assert [name for name, fault in FAULTS.items() if not fault.streamed or not fault.whole] == []


def table() -> str:
    rows = ["| fault | parameters | a stream | an answer that comes whole | a good client |", "|---|---|---|---|---|"]
    for name, fault in FAULTS.items():
        stated = [f"{key}={value}" for key, value in fault.parameters.items() if key not in ("delay", "id")]
        parameters = " ".join([f"`{text}`" for text in stated]) or "–"
        both = (
            fault.outcome if fault.outcome == fault.whole_outcome else f"{fault.outcome}; whole: {fault.whole_outcome}"
        )
        rows.append(f"| `{name}` | {parameters} | {fault.streamed} | {fault.whole} | {both} |")
    return "\n".join(rows)


def test_the_documented_table_is_the_catalogue() -> None:
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
    assert table() in page, f"docs/testing.md must hold:\n{table()}"
    for outcome, text in OUTCOMES.items():
        assert f"- **{outcome}**: {text}" in page


def test_a_fault_is_parsed_with_its_parameters() -> None:
    assert parse_fault("ok") == (OK, {"delay": 0.0})
    assert parse_fault("cut?tokens=3&end=rst") == (FAULTS["cut"], {"tokens": 3, "delay": 0.0, "end": "rst"})
    assert parse_fault("429-retry-after?seconds=0.5&id=a%20b")[1] == {"seconds": 0.5, "delay": 0.0, "id": "a b"}
    for spec, message in {
        "cutt": "Unknown fault 'cutt'. Did you mean 'cut'?",
        "": "Unknown fault ''",
        "cut?token=1": "Unknown parameter of fault 'cut': 'token'. Did you mean 'tokens'?",
        "503?tokens=1": "Unknown parameter of fault '503': 'tokens'.",
        "cut?end=hang": "Fault cut: end is 'hang'; it must be fin or rst.",
        "cut?tokens=many": "tokens is 'many'; it must be a whole number from 0 to 100000.",
        "cut?tokens=-1": "tokens is '-1'",
        "cut?tokens": "tokens is ''",
        "cut?delay=nan": "delay is 'nan'; it must be a number of seconds from 0 to 100000.",
        "cut" + "?" * 500: "at most 200 characters",
    }.items():
        with pytest.raises(ConfigError) as caught:
            parse_fault(spec)
        assert message in str(caught.value)


@given(
    st.builds(
        "{}?{}={}".format,
        st.sampled_from([*FAULTS, "x"]),
        st.sampled_from(["tokens", "seconds", "delay", "times", "end", "id", "y"]) | st.text(max_size=9),
        st.text(max_size=9) | st.floats().map(str) | st.integers().map(str),
    )
    | st.text(max_size=60)
)
def test_any_text_is_a_fault_in_its_bounds_or_a_typed_error(spec: str) -> None:
    try:
        fault, parameters = parse_fault(spec)
    except ConfigError:
        return
    assert parameters.keys() == fault.parameters.keys()
    assert all(isinstance(value, str) or 0 <= value <= 100_000 for value in parameters.values())


# ------------------------------------------------------------------------------------------------------- on the wire


@pytest.mark.parametrize("path", PATHS)
async def test_ok_is_one_chunk_a_token_and_a_right_end(path: str, still: Still) -> None:
    right = await seen_of("ok", path)
    assert (right.status, right.end) == (200, "whole")
    assert right.headers["content-type"] == PATHS[path].stream_type
    assert len(right.pieces) == 11 + (path != OLLAMA)
    at = opening(path, right)
    for token, piece in zip(TOKENS, right.pieces[at : at + 10], strict=True):
        assert json.dumps(token).encode() in piece and piece.endswith(b"\n")
    assert [TERMINAL[path] in piece for piece in right.pieces] == [False] * (len(right.pieces) - 1) + [True]
    whole = await seen_of("ok", path, question(path, stream=False))
    assert (whole.status, whole.headers["content-type"], whole.end) == (200, "application/json", "whole")
    assert TEXT.encode() in whole.body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("spec", "end"), [("cut", "fin"), ("cut?end=rst", "rst"), ("stalled", "open")])
async def test_r07_r08_cut_and_stalled_end_inside_the_body(path: str, spec: str, end: str, still: Still) -> None:
    right = await seen_of("ok", path)
    for tokens in (5, 0, 99):
        full = f"{spec}{'&' if '?' in spec else '?'}tokens={tokens}"
        seen = await seen_of(full, path)
        assert (seen.status, seen.end) == (200, end)
        assert seen.pieces == right.pieces[: opening(path, right) + min(tokens, 10)], full
    seen = await seen_of(spec, path, question(path, stream=False))
    assert (seen.status, seen.headers["content-type"], seen.end) == (200, "application/json", end)
    assert 0 < len(seen.body) < int(seen.headers["content-length"])


@pytest.mark.parametrize("path", PATHS)
async def test_r10_no_done_ends_cleanly_without_a_terminal_event(path: str, still: Still) -> None:
    right = await seen_of("ok", path)
    for tokens in (5, 0, 99):
        seen = await seen_of(f"no-done?tokens={tokens}", path)
        assert (seen.status, seen.end) == (200, "whole")
        assert seen.pieces == right.pieces[: opening(path, right) + min(tokens, 10)]
        assert TERMINAL[path] not in seen.body and b'finish_reason":"' not in seen.body
    body = question(path, stream=False)
    assert (await seen_of("no-done", path, body)).body == (await seen_of("ok", path, body)).body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("tokens", [0, 5, 99])
async def test_r14_malformed_is_one_bad_event_among_right_ones(path: str, tokens: int, still: Still) -> None:
    right, seen = await seen_of("ok", path), await seen_of(f"malformed?tokens={tokens}", path)
    assert (seen.status, seen.end, len(seen.pieces)) == (200, "whole", len(right.pieces))

    def lines(seen: Seen) -> list[bytes]:
        return [line.removeprefix(b"data: ") for line in seen.body.split(b"\n") if not line.startswith(b"event:")]

    bad = [line for line in lines(seen) if line not in (b"", b"[DONE]") and not is_json(line)]
    assert len(bad) == 1 and any(line.startswith(bad[0]) for line in lines(right))
    if tokens < 10:
        at = opening(path, right) + tokens
        assert seen.pieces[:at] == right.pieces[:at] and seen.pieces[at + 1 :] == right.pieces[at + 1 :]
    assert seen.pieces[-1].endswith(right.pieces[-1])
    whole = await seen_of("malformed", path, question(path, stream=False))
    assert (whole.status, whole.end) == (200, "whole") and not is_json(whole.body)


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("path", PATHS)
async def test_r15_error_event_is_an_error_inside_a_stream_of_status_200(path: str, still: Still) -> None:
    right, seen = await seen_of("ok", path), await seen_of("error-event?tokens=2", path)
    at = opening(path, right) + 2
    assert (seen.status, seen.end, seen.pieces[:at], len(seen.pieces)) == (200, "whole", right.pieces[:at], at + 1)
    assert b"overloaded" in seen.pieces[at] and b'"error":' in seen.pieces[at]
    assert seen.pieces[at].startswith(b"event: error\n") == (path == MESSAGES)
    whole = await seen_of("error-event", path, question(path, stream=False))
    assert whole.status == 200 and "error" in json.loads(whole.body)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("spec", "status", "word", "kind"),
    [
        ("429", 429, "rate_limit_exceeded", "rate_limit_error"),
        ("500-once", 500, "server_error", "api_error"),
        ("503", 503, "server_error", "overloaded_error"),
        ("flapping", 503, "server_error", "overloaded_error"),
        ("context", 400, "context_length_exceeded", "invalid_request_error"),
        ("content-filter?tokens=0", 400, "content_filter", "invalid_request_error"),
    ],
)
async def test_refusals_have_the_dialects_shape(
    spec: str, status: int, word: str, kind: str, path: str, stream: bool
) -> None:
    seen = await seen_of(spec, path, question(path, stream=stream))
    data = json.loads(seen.body)
    assert (seen.status, seen.headers["content-type"], seen.end) == (status, "application/json", "whole")
    assert not {"retry-after", "retry-after-ms"} & set(seen.headers)
    if path == CHAT:
        assert set(data) == {"error"} and set(data["error"]) == {"message", "type", "param", "code"}
        assert word in (data["error"]["code"], data["error"]["type"])
    elif path == MESSAGES:
        assert data["type"] == "error" and data["error"]["type"] == kind and data["error"]["message"]
    else:
        assert set(data) == {"error"} and isinstance(data["error"], str)


@pytest.mark.parametrize("path", PATHS)
async def test_reset_and_silence_give_no_byte(path: str) -> None:
    for stream in (True, False):
        body = question(path, stream=stream)
        assert await seen_of("reset", path, body) == Seen(0, {}, [], "rst")
        assert await seen_of("silence", path, body) == Seen(0, {}, [], "open")


@pytest.mark.parametrize("path", PATHS)
async def test_slow_first_token_comes_after_its_opening(path: str, still: Still) -> None:
    right = await seen_of("ok", path)
    waiting = await seen_of("slow-first-token", path)
    assert (waiting.status, waiting.end, waiting.pieces) == (200, "open", right.pieces[: opening(path, right)])
    assert await seen_of("slow-first-token", path, question(path, stream=False)) == Seen(0, {}, [], "open")
    assert await seen_of("slow-first-token?seconds=0.01", path) == right


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_r27_content_filter_is_a_right_end_for_that_reason(path: str, still: Still) -> None:
    right, seen = await seen_of("ok", path), await seen_of("content-filter", path)
    at = opening(path, right) + 5
    assert (seen.status, seen.end, seen.pieces[:at], len(seen.pieces)) == (200, "whole", right.pieces[:at], at + 1)
    word = b'"finish_reason":"content_filter"' if path == CHAT else b'"stop_reason":"refusal"'
    assert word in seen.pieces[at] and TERMINAL[path] in seen.pieces[at]
    whole = await seen_of("content-filter", path, question(path, stream=False))
    assert whole.status == 200 and word in whole.body and b'"one two three four five"' in whole.body


@pytest.mark.parametrize("path", PATHS)
async def test_prefill_is_gone_on_with_or_rejected(path: str, still: Still) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one two three fo"}]
    body = question(path, stream=False, messages=messages)
    seen = await seen_of("ok", path, body)
    assert b'"ur five six seven eight nine ten"' in seen.body
    rejected = await seen_of("prefill-rejected", path, body)
    assert rejected.status == 400 and b"does not support assistant message prefill" in rejected.body
    plain = question(path, stream=False)
    assert (await seen_of("prefill-rejected", path, plain)).body == (await seen_of("ok", path, plain)).body
    other = question(path, stream=False, messages=[*messages[:1], {"role": "assistant", "content": "Well,"}])
    assert TEXT.encode() in (await seen_of("ok", path, other)).body


async def test_delay_is_a_pause_before_each_token_after_the_first() -> None:
    async with CatalogueServer("ok?delay=3600") as server:
        seen = await see(server)
        assert (seen.end, len(seen.pieces)) == ("open", 2) and b'"one"' in seen.pieces[1]


# ------------------------------------------------------------------------------------------------ what is remembered


async def statuses(server: CatalogueServer, count: int, *, model: str = "m", **headers: str) -> list[int]:
    return [(await see(server, CHAT, question(CHAT, model=model), **headers)).status for _ in range(count)]


async def test_r17_a_rate_limit_lasts_as_long_as_it_says(still: Still) -> None:
    async with CatalogueServer("429-retry-after?seconds=2.5") as server:
        first = await see(server)
        assert (first.status, first.headers["retry-after"], first.headers["retry-after-ms"]) == (429, "3", "2500")
        still.seconds = 2.0
        early = await see(server)
        assert (early.status, early.headers["retry-after"], early.headers["retry-after-ms"]) == (429, "1", "500")
        still.seconds = 2.5
        assert await statuses(server, 2) == [200, 200]


async def test_once_and_flapping_count_by_credential_and_model() -> None:
    async with CatalogueServer("500-once?times=2") as server:
        assert await statuses(server, 4) == [500, 500, 200, 200]
        assert await statuses(server, 3, model="other") == [500, 500, 200]
        assert await statuses(server, 3, authorization="Bearer a") == [500, 500, 200]
        assert await statuses(server, 3, **{"x-api-key": "a"}) == [500, 500, 200]
    async with CatalogueServer("flapping") as server:
        assert await statuses(server, 4) == [503, 200, 503, 200]
        both = [await statuses(server, 1, authorization=key) for key in ("a", "b", "a", "b")]
        assert both == [[503], [503], [200], [200]]


async def test_without_a_fault_of_its_own_it_fails_as_the_model_says() -> None:
    async with CatalogueServer() as server:
        assert await statuses(server, 2, model="500-once?id=a") == [500, 200]
        assert await statuses(server, 2, model="500-once?id=b") == [500, 200]
        assert await statuses(server, 1, model="ok") == [200]
        for path, kind in ((CHAT, "model_not_found"), (MESSAGES, "not_found_error"), (OLLAMA, "Did you mean 'cut'")):
            seen = await see(server, path, question(path, model="cuts"))
            assert seen.status == 404 and kind in seen.body.decode()
        assert await statuses(server, 1, model="cut?tokens=x") == [400]
        assert await statuses(server, 1, model="x" * 100_000) == [400]


async def test_what_it_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("windlass.testing.catalogue._MOST", 2)
    async with CatalogueServer("500-once", keep=3) as server:
        for model in ("a", "b", "a", "c", "b"):
            await statuses(server, 1, model=model)
        assert await statuses(server, 1, model="b") == [200]
        assert await statuses(server, 1, model="a") == [500], "the oldest is forgotten"
        assert [json.loads(request.body)["model"] for request in server.requests] == ["b", "b", "a"]
        await server.wait(requests=7)


async def test_what_is_no_question_is_refused() -> None:
    async with CatalogueServer("reset") as server:
        for path, body, status in (
            ("/v1/chat/completion", question(CHAT), 404),
            (CHAT, b"{", 400),
            (CHAT, b"[]", 400),
            (MESSAGES, b'{"model": "m", "messages": "hi"}', 400),
            (OLLAMA, b"", 400),
        ):
            assert (await see(server, path, body)).status == status
        assert (await see(server, CHAT, method="GET")).status == 404
        listed = json.loads((await see(server, "/v1/models", b"", method="GET")).body)
        assert [row["id"] for row in listed["data"]] == ["ok", *FAULTS]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | _JSON},
    optional={"content": st.sampled_from(["call a {}", [{"type": "text", "text": "one t"}], "one two"]) | _JSON},
)


@given(
    st.sampled_from(list(PATHS)),
    st.fixed_dictionaries(
        {},
        optional={
            "messages": st.lists(_MESSAGE, max_size=3) | _JSON,
            "model": _JSON,
            "stream": _JSON,
            "system": _JSON,
            "max_tokens": _JSON,
            "stream_options": _JSON,
            "options": _JSON,
        },
    )
    | _JSON,
)
def test_any_question_is_answered_or_refused(path: str, body: Any) -> None:
    try:
        asked = read_question(Received("POST", path, {}, json.dumps(body).encode(), 0))
    except RequestRefused as error:
        assert error.status == 400
        return
    answer = answer_to(asked)
    frames = asked.dialect.frames(answer)
    assert TERMINAL[path] in frames.closing and is_json(asked.dialect.whole(answer))
    assert bool(answer.calls) or TEXT.endswith("".join(answer.tokens)) or answer.reason == "length"


# -------------------------------------------------------------------------------------------------- the SDKs as oracles


CALLS = 'Do it:\ncall weather {"city": "Łódź"}\ncall now {}\nplease'


@contextlib.asynccontextmanager
async def openai_sdk(spec: str, retries: int = 0) -> AsyncGenerator[tuple[openai.AsyncOpenAI, CatalogueServer]]:
    async with CatalogueServer(spec) as server, openai.DefaultAsyncHttpxClient(trust_env=False) as http:
        url = f"{server.url}/v1"
        yield openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=retries, http_client=http), server


async def test_the_openai_sdk_reads_the_answers() -> None:
    async with openai_sdk("ok") as (sdk, _):
        ask: Any = sdk.chat.completions.create
        whole = await ask(model="m", messages=[{"role": "user", "content": "How are you"}])
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason, whole.model) == (TEXT, "stop", "m")
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (3, 10, 13)
        short = await ask(model="m", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=2)
        assert (short.choices[0].message.content, short.choices[0].finish_reason) == ("one two", "length")
        async with sdk.chat.completions.stream(
            model="m", messages=[{"role": "user", "content": CALLS}], stream_options={"include_usage": True}
        ) as stream:
            final = await stream.get_final_completion()
        message = final.choices[0].message
        assert message.tool_calls is not None and message.content is None
        assert [(call.function.name, call.function.arguments) for call in message.tool_calls] == [
            ("weather", '{"city": "Łódź"}'),
            ("now", "{}"),
        ]
        assert len({call.id for call in message.tool_calls}) == 2 and final.choices[0].finish_reason == "tool_calls"
        assert final.usage is not None and final.usage.completion_tokens == 6
        parts = [part async for part in await ask(model="m", messages=[{"role": "user", "content": "x"}], stream=True)]
        assert "".join([part.choices[0].delta.content or "" for part in parts]) == TEXT
        assert [part.usage for part in parts] == [None] * 12, "not asked for, not told"
        assert [model.id async for model in sdk.models.list()] == ["ok", *FAULTS]


async def test_the_anthropic_sdk_reads_the_answers() -> None:
    async with CatalogueServer("ok") as server, anthropic.DefaultAsyncHttpxClient(trust_env=False) as http:
        sdk = anthropic.AsyncAnthropic(api_key="k", base_url=server.url, max_retries=0, http_client=http)
        blocks: Any = [{"type": "text", "text": "How are"}, {"type": "text", "text": "you"}]
        whole = await sdk.messages.create(model="m", max_tokens=64, messages=[{"role": "user", "content": blocks}])
        assert [block.to_dict() for block in whole.content] == [{"type": "text", "text": TEXT}]
        assert (whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens) == ("end_turn", 3, 10)
        async with sdk.messages.stream(
            model="m", max_tokens=3, system="Be brief", messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            assert [text async for text in stream.text_stream] == ["one", " two", " three"]
            final = await stream.get_final_message()
        assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("max_tokens", 3, 3)
        async with sdk.messages.stream(
            model="m", max_tokens=64, messages=[{"role": "user", "content": CALLS}]
        ) as stream:
            final = await stream.get_final_message()
        calls = [(block.name, block.input) for block in final.content if block.type == "tool_use"]
        assert (calls, final.stop_reason) == ([("weather", {"city": "Łódź"}), ("now", {})], "tool_use")
        whole = await sdk.messages.create(model="m", max_tokens=64, messages=[{"role": "user", "content": CALLS}])
        assert [(block.name, block.input) for block in whole.content if block.type == "tool_use"] == calls
        # The answer to a result is text again.
        result: Any = [{"type": "tool_result", "tool_use_id": final.content[0].to_dict()["id"], "content": "rain"}]
        history: Any = [
            {"role": "user", "content": CALLS},
            {"role": "assistant", "content": [block.to_dict() for block in final.content[:1]]},
            {"role": "user", "content": result},
        ]
        after = await sdk.messages.create(model="m", max_tokens=64, messages=history)
        assert after.content[0].type == "text" and after.content[0].text == TEXT


async def test_the_ollama_sdk_reads_the_answers() -> None:
    async with CatalogueServer("ok") as server:
        sdk = ollama.AsyncClient(host=server.url, trust_env=False)
        try:
            whole = await sdk.chat("m", [{"role": "user", "content": "How are you"}])
            assert (whole.message.content, whole.done, whole.done_reason) == (TEXT, True, "stop")
            assert (whole.prompt_eval_count, whole.eval_count) == (3, 10)
            parts = [
                part
                async for part in await sdk.chat(
                    "m", [{"role": "user", "content": "hi"}], stream=True, options={"num_predict": 2}
                )
            ]
            assert [(part.message.content, part.done) for part in parts] == [
                ("one", False),
                (" two", False),
                ("", True),
            ]
            assert (parts[-1].done_reason, parts[-1].eval_count) == ("length", 2)
            called = [part async for part in await sdk.chat("m", [{"role": "user", "content": CALLS}], stream=True)]
            calls = [call.function for part in called for call in part.message.tool_calls or ()]
            assert [(call.name, call.arguments) for call in calls] == [("weather", {"city": "Łódź"}), ("now", {})]
            assert [row.model for row in (await sdk.list()).models] == ["ok", *FAULTS]
        finally:
            await sdk.close()


@pytest.mark.parametrize("spec", [name for name, row in FAULTS.items() if row.outcome == "retry"])
async def test_what_a_retry_rescues_the_openai_sdk_rescues(spec: str) -> None:
    fast = f"{spec}?seconds=0.05" if spec == "429-retry-after" else spec
    async with openai_sdk(fast, retries=1) as (sdk, server):
        done = await sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert (done.choices[0].message.content, len(server.requests)) == (TEXT, 2)


async def test_the_sdks_see_errors_inside_streams() -> None:
    async with openai_sdk("error-event?tokens=2") as (sdk, _):
        got: list[Any] = []
        with pytest.raises(openai.APIError, match="overloaded"):
            stream: Any = await sdk.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=True
            )
            async for part in stream:
                got.append(part)  # noqa: PERF401 - it raises half-way
        assert len(got) == 3
    async with CatalogueServer("error-event?tokens=2") as server:
        sdk_ollama = ollama.AsyncClient(host=server.url, trust_env=False)
        with pytest.raises(ollama.ResponseError, match="overloaded"):
            async for part in await sdk_ollama.chat("m", [{"role": "user", "content": "x"}], stream=True):
                got.append(part)  # noqa: PERF401 - it raises half-way
        await sdk_ollama.close()
        assert len(got) == 5


# ------------------------------------------------------------------------------------------------------- standing alone


async def test_serve_fault_serves_until_cancelled() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve_fault("503", "127.0.0.1", 0, ready.set_result))
    url = await ready
    port = int(url.rsplit(":", 1)[1])
    for path in PATHS:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = question(path)
        writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        writer.close()
    with pytest.raises(ConfigError, match=f"Cannot listen on 127.0.0.1:{port}: "):
        await serve_fault("ok", "127.0.0.1", port)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(UnknownNameError, match="Did you mean 'cut'"):
        await serve_fault("cat")


async def test_a_server_cancelled_while_it_starts_leaves_nothing() -> None:
    for turns in range(4):
        server = CatalogueServer("ok")

        async def enter(server: CatalogueServer = server) -> None:
            async with server:
                await asyncio.Event().wait()

        task = asyncio.create_task(enter())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}


def test_cancelled_twice_it_still_lets_its_port_go() -> None:
    urls: list[str] = []

    async def main() -> None:
        task = asyncio.create_task(serve_fault("ok", ready=urls.append))
        while not urls:
            await asyncio.sleep(0)
        task.cancel()  # and again by the end of the loop, while it closes

    asyncio.run(main())
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", int(urls[0].rsplit(":", 1)[1])))
