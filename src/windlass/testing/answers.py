"""What a model's server answers, rightly, in three dialects: OpenAI chat, Anthropic messages, Ollama chat.

Written from the vendors' pages and not from `windlass.wire`, so that either can show that the other is wrong:
platform.openai.com/docs/api-reference/chat, docs.anthropic.com/en/api/messages, docs.ollama.com/api/chat.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from windlass.core import clock, json
from windlass.core.errors import RequestRefused
from windlass.testing.faults import Received

__all__ = [
    "LISTS",
    "PATHS",
    "TOKENS",
    "Answer",
    "Dialect",
    "Frames",
    "Question",
    "Refusal",
    "answer_to",
    "read_question",
]

#: The answer to everything. No token ends with a space: Anthropic refuses a prefill that does.
TOKENS = ("one", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten")

Reason: TypeAlias = Literal["stop", "length", "calls", "filter"]

_CALL = re.compile(r"^call ([\w.-]{1,64}) (\{.*\})[ \t\r]*$", re.MULTILINE)
_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True)
class Refusal:
    """An error as the vendors tell it: OpenAI's `type`, `code` and `param`, Anthropic's `type`, Ollama's bare text."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    anthropic: str = "invalid_request_error"


@dataclass(frozen=True)
class Question:
    """What a request asks. `prefill` is the text of an assistant message at its end, None without one.

    `credential` is what the client identified itself with, `words` how long the prompt is, `limit` the most tokens it
    wants, `wants_usage` whether it wants them counted in the stream.
    """

    dialect: Dialect
    model: str
    stream: bool
    credential: str
    prefill: str | None
    calls: tuple[tuple[str, str], ...]
    words: int
    limit: int | None
    wants_usage: bool


@dataclass(frozen=True)
class Answer:
    """What is answered: tokens of text, or calls as (id, name, JSON text of the arguments), and why it ends there."""

    id: str
    model: str
    created_ns: int
    tokens: tuple[str, ...]
    calls: tuple[tuple[str, str, str], ...]
    reason: Reason
    input_tokens: int
    wants_usage: bool

    @property
    def output_tokens(self) -> int:
        """The tokens of text, and one for the head and each piece of a call."""
        return len(self.tokens) + sum([1 + len(_pieces(text)) for _, _, text in self.calls])


@dataclass(frozen=True)
class Frames:
    """A stream: what comes before the first token, one piece of bytes for each token, and what ends it rightly."""

    opening: bytes
    tokens: Sequence[bytes]
    closing: bytes


class Dialect(Protocol):
    """How one vendor writes its answers."""

    @property
    def name(self) -> str: ...
    @property
    def stream_type(self) -> str:
        """The media type of a stream."""
        ...

    def frames(self, answer: Answer) -> Frames: ...
    def whole(self, answer: Answer) -> bytes: ...
    def error(self, refusal: Refusal) -> bytes: ...
    def error_frame(self, refusal: Refusal) -> bytes:
        """Return the error as an event of a stream that has begun."""
        ...


# ------------------------------------------------------------------------------------------------------- the question


def read_question(request: Received) -> Question:
    """Read a request. Raises RequestRefused: 404 for a path that no dialect has, 400 for a body without messages."""
    path = request.target.partition("?")[0]
    dialect = PATHS.get(path)
    if dialect is None or request.method != "POST":
        raise RequestRefused(404, f"There is no {request.method} {path}.", reason="unknown_url")
    try:
        body = json.loads(request.body)
    except json.JsonError as error:
        raise RequestRefused(400, f"The body is {error}.", reason="invalid_json") from None
    messages = _objects(body.get("messages")) if isinstance(body, dict) else []
    if not messages:
        raise RequestRefused(400, "messages must be an array of at least one message.", param="messages")
    last = messages[-1]
    options = body.get("options")
    limits = (body.get("max_completion_tokens"), body.get("max_tokens"), _object(options).get("num_predict"))
    return Question(
        dialect,
        str(body.get("model") or ""),
        # Ollama streams unless it is told not to.
        bool(body.get("stream", dialect.name == "ollama")),
        request.headers.get("authorization") or request.headers.get("x-api-key") or "",
        _text(last.get("content")) if last.get("role") == "assistant" else None,
        tuple(_calls(_text(last.get("content")))) if last.get("role") == "user" else (),
        len(_text([body.get("system"), *[message.get("content") for message in messages]]).split()),
        next((limit for limit in limits if isinstance(limit, int) and limit > 0), None),
        dialect.name != "openai" or _object(body.get("stream_options")).get("include_usage") is True,
    )


def answer_to(question: Question) -> Answer:
    """Return the right answer: the calls that the user's text asks for line by line (`call NAME {json}`), else TOKENS.

    A prefill that is a beginning of TOKENS is gone on with; of any other it takes no notice.
    """
    said = "".join(TOKENS)
    rest = said.removeprefix(question.prefill or "") if not question.calls else ""
    tokens = tuple(_WORD.findall(rest))[: question.limit]
    reason: Reason = "calls" if question.calls else "length" if "".join(tokens) != rest else "stop"
    calls = tuple([(f"call_{clock.new_id()}", name, text) for name, text in question.calls])
    return Answer(
        clock.new_id(), question.model, clock.now_ns(), tokens, calls, reason, question.words, question.wants_usage
    )


def _calls(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, arguments in _CALL.findall(text):
        try:
            json.loads(arguments)
        except json.JsonError:
            continue
        found.append((name, arguments))
    return found


def _pieces(text: str) -> list[str]:
    """Return an argument text in two pieces, neither of which is JSON."""
    middle = (len(text) + 1) // 2
    return [text[:middle], text[middle:]]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(content: Any) -> str:
    """Return the text of a content, of its blocks, or of an array of contents, joined by line ends."""
    if isinstance(content, dict):
        content = content.get("text")
    if isinstance(content, list):
        return "\n".join([text for part in content if (text := _text(part))])
    return content if isinstance(content, str) else ""


# ------------------------------------------------------------------------------------------------------- OpenAI chat


class _OpenAI:
    name, stream_type = "openai", "text/event-stream"
    _reasons: Mapping[Reason, str] = {
        "stop": "stop", "length": "length", "calls": "tool_calls", "filter": "content_filter"
    }  # fmt: skip

    def frames(self, answer: Answer) -> Frames:
        head = {**self._head(answer, "chat.completion.chunk"), **({"usage": None} if answer.wants_usage else {})}

        def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            return _event({**head, "choices": [choice]})

        def call(index: int, **fields: Any) -> bytes:
            return chunk({"tool_calls": [{"index": index, **fields}]})

        tokens = [chunk({"content": token}) for token in answer.tokens]
        for index, (call_id, name, text) in enumerate(answer.calls):
            tokens.append(call(index, id=call_id, type="function", function={"name": name, "arguments": ""}))
            tokens += [call(index, function={"arguments": piece}) for piece in _pieces(text)]
        closing = chunk({}, self._reasons[answer.reason])
        if answer.wants_usage:
            closing += _event({**head, "choices": [], "usage": self._usage(answer)})
        content = None if answer.calls else ""
        opening = chunk({"role": "assistant", "content": content, "refusal": None})
        return Frames(opening, tokens, closing + b"data: [DONE]\n\n")

    def whole(self, answer: Answer) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.tokens), "refusal": None}
        if answer.calls:
            message["content"] = None
            message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}
                for call_id, name, text in answer.calls
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reasons[answer.reason]}
        head = self._head(answer, "chat.completion")
        return json.dumps({**head, "choices": [choice], "usage": self._usage(answer)})

    def error(self, refusal: Refusal) -> bytes:
        fields = {"message": refusal.message, "type": refusal.type, "param": refusal.param, "code": refusal.code}
        return json.dumps({"error": fields})

    def error_frame(self, refusal: Refusal) -> bytes:
        return b"data: " + self.error(refusal) + b"\n\n"

    def _head(self, answer: Answer, kind: str) -> dict[str, Any]:
        created = answer.created_ns // 1_000_000_000
        return {"id": f"chatcmpl-{answer.id}", "object": kind, "created": created, "model": answer.model}

    def _usage(self, answer: Answer) -> dict[str, int]:
        prompt, completion = answer.input_tokens, answer.output_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _event(data: dict[str, Any], name: str = "") -> bytes:
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + json.dumps(data) + b"\n\n"


# -------------------------------------------------------------------------------------------------- Anthropic messages


class _Anthropic:
    name, stream_type = "anthropic", "text/event-stream"
    _reasons: Mapping[Reason, str] = {
        "stop": "end_turn", "length": "max_tokens", "calls": "tool_use", "filter": "refusal"
    }  # fmt: skip

    def frames(self, answer: Answer) -> Frames:
        message = {**self._head(answer), "content": [], "stop_reason": None, "stop_sequence": None}
        message["usage"] = {"input_tokens": answer.input_tokens, "output_tokens": 1}
        opening = _typed("message_start", message=message) + _typed("ping")
        tokens: list[bytes] = []
        closing = b""
        if not answer.calls:
            opening += _typed("content_block_start", index=0, content_block={"type": "text", "text": ""})
            tokens = [_delta(0, {"type": "text_delta", "text": token}) for token in answer.tokens]
            closing = _typed("content_block_stop", index=0)
        for index, (call_id, name, text) in enumerate(answer.calls):
            block = {"type": "tool_use", "id": _tool_id(call_id), "name": name, "input": {}}
            tokens.append(_typed("content_block_start", index=index, content_block=block))
            tokens += [_delta(index, {"type": "input_json_delta", "partial_json": part}) for part in _pieces(text)]
            tokens[-1] += _typed("content_block_stop", index=index)
        end = {"stop_reason": self._reasons[answer.reason], "stop_sequence": None}
        closing += _typed("message_delta", delta=end, usage={"output_tokens": answer.output_tokens})
        return Frames(opening, tokens, closing + _typed("message_stop"))

    def whole(self, answer: Answer) -> bytes:
        text = "".join(answer.tokens)
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        content += [
            {"type": "tool_use", "id": _tool_id(call_id), "name": name, "input": json.loads(text)}
            for call_id, name, text in answer.calls
        ]
        usage = {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
        end = {"stop_reason": self._reasons[answer.reason], "stop_sequence": None, "usage": usage}
        return json.dumps({**self._head(answer), "content": content, **end})

    def error(self, refusal: Refusal) -> bytes:
        return json.dumps({"type": "error", "error": {"type": refusal.anthropic, "message": refusal.message}})

    def error_frame(self, refusal: Refusal) -> bytes:
        return b"event: error\ndata: " + self.error(refusal) + b"\n\n"

    def _head(self, answer: Answer) -> dict[str, Any]:
        return {"id": f"msg_{answer.id}", "type": "message", "role": "assistant", "model": answer.model}


def _typed(kind: str, **fields: Any) -> bytes:
    return _event({"type": kind, **fields}, kind)


def _delta(index: int, delta: dict[str, str]) -> bytes:
    return _typed("content_block_delta", index=index, delta=delta)


def _tool_id(call_id: str) -> str:
    return f"toolu_{call_id.removeprefix('call_')}"


# --------------------------------------------------------------------------------------------------------- Ollama chat


class _Ollama:
    name, stream_type = "ollama", "application/x-ndjson"

    def frames(self, answer: Answer) -> Frames:
        def line(message: dict[str, Any], **end: Any) -> bytes:
            message = {"role": "assistant", "content": "", **message}
            return json.dumps({**self._head(answer), "message": message, "done": False, **end}) + b"\n"

        tokens = [line({"content": token}) for token in answer.tokens]
        tokens += [line({"tool_calls": [call]}) for call in self._calls(answer)]
        return Frames(b"", tokens, line({}, **self._end(answer)))

    def whole(self, answer: Answer) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.tokens)}
        if answer.calls:
            message["tool_calls"] = self._calls(answer)
        return json.dumps({**self._head(answer), "message": message, **self._end(answer)})

    def error(self, refusal: Refusal) -> bytes:
        return json.dumps({"error": refusal.message})

    def error_frame(self, refusal: Refusal) -> bytes:
        return self.error(refusal) + b"\n"

    def _head(self, answer: Answer) -> dict[str, Any]:
        return {"model": answer.model, "created_at": clock.rfc3339(answer.created_ns)}

    def _calls(self, answer: Answer) -> list[dict[str, Any]]:
        return [
            {"id": call_id, "function": {"index": index, "name": name, "arguments": json.loads(text)}}
            for index, (call_id, name, text) in enumerate(answer.calls)
        ]

    def _end(self, answer: Answer) -> dict[str, Any]:
        # Durations are in nanoseconds; nothing is computed here, so that they are small.
        return {
            "done": True,
            "done_reason": "length" if answer.reason == "length" else "stop",
            "total_duration": 4000,
            "load_duration": 1000,
            "prompt_eval_count": answer.input_tokens,
            "prompt_eval_duration": 1000,
            "eval_count": answer.output_tokens,
            "eval_duration": 2000,
        }


#: Path -> who speaks there.
PATHS: dict[str, Dialect] = {
    "/v1/chat/completions": _OpenAI(),
    "/v1/messages": _Anthropic(),
    "/api/chat": _Ollama(),
}
#: Path -> the list of models that is read there.
LISTS: dict[str, Callable[[Sequence[str]], Any]] = {
    "/v1/models": lambda names: {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "windlass"} for name in names],
    },
    "/api/tags": lambda names: {"models": [{"name": name, "model": name} for name in names]},
}
