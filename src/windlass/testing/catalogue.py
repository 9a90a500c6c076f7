"""Sixteen ways in which a model's server fails, as data, and a server that fails in each of them on a real socket.

    async with CatalogueServer("cut?tokens=5") as server:
        ...                               # OpenAI chat, Anthropic messages and Ollama chat, at server.url

A fault is named with its parameters as in a URL: `cut`, `cut?tokens=3&end=rst`. `ok` is no fault: it answers rightly.
Docs, tests, the `fault:` models and `windlass doctor --gateway` read the same table.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, TypeAlias
from urllib.parse import parse_qsl

from windlass.core import clock, json
from windlass.core.errors import (
    BadRequestError,
    ConfigError,
    ContextExceededError,
    OverloadedError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    RequestRefused,
    StreamInterrupted,
    UnknownNameError,
    WireError,
)
from windlass.testing.answers import (
    LISTS,
    PATHS,
    Answer,
    Frames,
    Question,
    Refusal,
    answer_to,
    read_question,
)
from windlass.testing.faults import BlackHole, End, FaultServer, Part, Raw, Received, Reply, Rst, Step, Stream

__all__ = ["FAULTS", "OK", "OUTCOMES", "CatalogueServer", "Fault", "Outcome", "Parameter", "parse_fault", "serve_fault"]

Parameter: TypeAlias = int | float | str

#: What a good client or gateway makes of a fault; its words are explained in OUTCOMES.
Outcome: TypeAlias = Literal["retry", "fallback", "continue", "pass", "answer"]

OUTCOMES: dict[Outcome, str] = {
    "retry": "asked again, it answers",
    "fallback": "nothing was answered yet: another model can answer, else a clean error",
    "continue": "part of the answer was given: another model goes on with it, else a clean error; never a clean end",
    "pass": "the request's own fault, or the model's last word: passed on as it is, not asked again",
    "answer": "answered rightly",
}


@dataclass(frozen=True)
class Fault:
    """One row: what is on the wire of a stream (`streamed`) and of an answer that comes whole.

    `parameters` are their defaults: `tokens` given before the failure, `seconds` of waiting, `delay` in seconds before
    each token after the first, `times` it fails, `end` of a connection (fin or rst), `id` to count apart. `outcome` is
    what a good gateway makes of a stream and `whole_outcome` of a whole answer. `error` is what a provider of ours
    raises when nobody rescues the stream (of prefill-rejected, when it is asked to go on), None where it answers.
    """

    name: str
    streamed: str
    whole: str
    outcome: Outcome
    whole_outcome: Outcome
    error: type[ProviderError] | None
    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])


_ANSWERS = "the answer"
_TOKENS: dict[str, Parameter] = {"tokens": 5, "delay": 0.0}
OK = Fault("ok", _ANSWERS, _ANSWERS, "answer", "answer", None, {"delay": 0.0})

#: Name -> the sixteen faults.
FAULTS: dict[str, Fault] = {
    row.name: row
    for row in (
        Fault(
            "429-retry-after", "429 with Retry-After (whole seconds) and retry-after-ms until that time is over, then "
            "the answer", "the same", "retry", "retry", RateLimitError, {"seconds": 1.0, "delay": 0.0, "id": ""},
        ),
        Fault("429", "429 without Retry-After, for ever", "the same", "fallback", "fallback", RateLimitError),
        Fault(
            "500-once", "500 for the first `times` requests, then the answer", "the same", "retry", "retry",
            OverloadedError, {"times": 1, "delay": 0.0, "id": ""},
        ),
        Fault("503", "503, for ever", "the same", "fallback", "fallback", OverloadedError),
        Fault(
            "reset", "the connection is reset (RST) before any byte of an answer", "the same", "fallback", "fallback",
            ProviderConnectionError,
        ),
        Fault(
            "silence", "the request is taken and never answered; the connection stays open", "the same", "fallback",
            "fallback", ProviderTimeoutError,
        ),
        Fault(
            "slow-first-token", "the head and opening events at once, the first token after `seconds`, then the rest",
            "nothing for `seconds`, then the answer", "fallback", "fallback", None, {"seconds": 2.0, "delay": 0.0},
        ),
        Fault(
            "cut", "`tokens`, then the connection is closed (FIN, or RST with `end=rst`) inside the body",
            "half of the announced bytes, then closed", "continue", "fallback", StreamInterrupted,
            {**_TOKENS, "end": "fin"},
        ),
        Fault(
            "stalled", "`tokens`, then nothing more; the connection stays open",
            "half of the announced bytes, then nothing more", "continue", "fallback", ProviderTimeoutError, _TOKENS,
        ),
        Fault(
            "malformed", "`tokens`, one event that is not JSON, then the rest and a right end",
            "half a JSON document of the announced length", "continue", "fallback", WireError, _TOKENS,
        ),
        Fault(
            "no-done", "`tokens`, then a clean end of the body without a finish reason or terminal event",
            _ANSWERS + ": what is whole has no such mark", "continue", "answer", StreamInterrupted, _TOKENS,
        ),
        Fault(
            "error-event", "status 200, `tokens`, an error event (overloaded), then a clean end",
            "status 200 and an error as its body", "continue", "fallback", OverloadedError, _TOKENS,
        ),
        Fault(
            "context", "400: the prompt does not fit the model's context", "the same", "pass", "pass",
            ContextExceededError,
        ),
        Fault(
            "content-filter", "`tokens`, then a right end whose reason is the filter; 400 where `tokens` is 0, and "
            "always for Ollama, which has no such reason", "the same", "pass", "pass", None, _TOKENS,
        ),
        Fault(
            "prefill-rejected", "400 where the last message is the assistant's, else the answer", "the same", "pass",
            "pass", BadRequestError, {"delay": 0.0},
        ),
        Fault(
            "flapping", "503 and the answer in turns, 503 first", "the same", "retry", "retry", OverloadedError,
            {"delay": 0.0, "id": ""},
        ),
    )
}  # fmt: skip

#: Characters of a fault with its parameters, and of what a server keeps of a client's name.
_LONGEST = 200


def parse_fault(spec: str) -> tuple[Fault, dict[str, Parameter]]:
    """Return the fault that `NAME?parameter=value&…` names, and its parameters, defaults filled in.

    Raises UnknownNameError for a name or parameter it does not have, ConfigError for a value that does not fit.
    """
    if len(spec) > _LONGEST:
        raise ConfigError(f"A fault with its parameters has at most {_LONGEST} characters, not {len(spec)}.")
    name, _, query = spec.partition("?")
    fault = OK if name == OK.name else FAULTS.get(name)
    if fault is None:
        raise UnknownNameError("fault", name, [OK.name, *FAULTS])
    parameters = dict(fault.parameters)
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in parameters:
            raise UnknownNameError(f"parameter of fault {name!r}:", key, fault.parameters)
        parameters[key] = _value(name, key, text, parameters[key])
    return fault, parameters


def _value(name: str, key: str, text: str, default: Parameter) -> Parameter:
    if isinstance(default, str):
        if key == "end" and text not in ("fin", "rst"):
            raise ConfigError(f"Fault {name}: end is {text!r}; it must be fin or rst.")
        return text
    try:
        number = type(default)(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 100_000:
        kind = "a whole number" if isinstance(default, int) else "a number of seconds"
        raise ConfigError(f"Fault {name}: {key} is {text!r}; it must be {kind} from 0 to 100000.")
    return number


# ------------------------------------------------------------------------------------------------- what is on the wire

_LIMITED = Refusal(
    429, "Rate limit reached for requests per minute.", "requests", "rate_limit_exceeded", anthropic="rate_limit_error"
)
_BROKEN = Refusal(500, "The server had an error while processing your request.", "server_error", anthropic="api_error")
_OVERLOADED = Refusal(503, "The model is overloaded.", "server_error", anthropic="overloaded_error")
# By its words the prompt is too long for every vendor: each client looks for those of its own.
_TOO_LONG = Refusal(
    400,
    "This model's maximum context length is 8192 tokens, and the input length exceeds the context length: "
    "prompt is too long: 9001 tokens > 8192 maximum.",
    code="context_length_exceeded",
    param="messages",
)
_FILTERED = Refusal(
    400, "The response was filtered due to the content management policy.", code="content_filter", param="prompt"
)
_NO_PREFILL = Refusal(
    400,
    "This model does not support assistant message prefill. The conversation must end with a user message.",
    param="messages",
)


@dataclass
class _Memory:
    """What a server remembers of one client and model: how often it asked before, and when first (monotonic)."""

    since: float
    seen: int = 0


@dataclass(frozen=True)
class _Case:
    """One request to answer wrongly: the right answer, and how to spoil it."""

    question: Question
    answer: Answer
    parameters: Mapping[str, Parameter]
    memory: _Memory

    def number(self, name: str) -> float:
        return float(self.parameters.get(name, 0))

    @property
    def tokens(self) -> int:
        return int(self.number("tokens"))

    @cached_property
    def frames(self) -> Frames:
        return self.question.dialect.frames(self.answer)

    @cached_property
    def body(self) -> bytes:
        return self.question.dialect.whole(self.answer)

    def given(self, tokens: Sequence[bytes]) -> list[Part]:
        """The opening and these tokens, each a part of its own, with the pauses between them."""
        opening = self.frames.opening
        parts: list[Part] = [opening] if opening else []
        pause = self.number("delay")
        for index, token in enumerate(tokens):
            parts += [pause, token] if pause and index else [token]
        return parts

    def stream(self, parts: Sequence[Part], *, finish: bool = True, end: End | None = None) -> Stream:
        headers = {"content-type": self.question.dialect.stream_type, "cache-control": "no-cache"}
        return Stream(parts, headers=headers, finish=finish, end=end)

    def half(self, end: End) -> Step:
        """As many tokens as it is to give, or half of a whole answer, then this end inside the body."""
        if self.question.stream:
            return self.stream(self.given(self.frames.tokens[: self.tokens]), finish=False, end=end)
        return Stream([self.body], headers=_JSON, framing="length", cut=len(self.body) // 2, end=end)

    def refused(self, refusal: Refusal, headers: Mapping[str, str] | None = None) -> Reply:
        return Reply(refusal.status, self.question.dialect.error(refusal), {**_JSON, **(headers or {})})

    def right(self) -> Step:
        """The right answer."""
        if not self.question.stream:
            return Reply(200, self.body, _JSON)
        return self.stream([*self.given(self.frames.tokens), self.frames.closing])


_JSON = {"content-type": "application/json"}


def _limited(case: _Case) -> Step:
    left = case.memory.since + case.number("seconds") - clock.monotonic()
    if left <= 0:
        return case.right()
    # RFC 9110 knows whole seconds only; OpenAI sends the exact wait beside them.
    wait = {"retry-after": str(math.ceil(left)), "retry-after-ms": str(math.ceil(left * 1000))}
    return case.refused(_LIMITED, wait)


def _once(case: _Case) -> Step:
    return case.refused(_BROKEN) if case.memory.seen < case.number("times") else case.right()


def _slow(case: _Case) -> Step:
    seconds = case.number("seconds")
    if not case.question.stream:
        parts, end = Reply(200, case.body, _JSON).script()
        return Raw([seconds, *parts], end)
    opening = len(case.given(()))
    parts = [*case.given(case.frames.tokens), case.frames.closing]
    return case.stream([*parts[:opening], seconds, *parts[opening:]])


def _malformed(case: _Case) -> Step:
    if not case.question.stream:
        return Reply(200, case.body[: len(case.body) // 2], _JSON)
    tokens, closing = list(case.frames.tokens), case.frames.closing
    if case.tokens < len(tokens):
        tokens[case.tokens] = b"".join(_broken(tokens[case.tokens]))
    else:
        closing = _broken(closing)[0] + closing
    return case.stream([*case.given(tokens), closing])


def _broken(frame: bytes) -> tuple[bytes, bytes]:
    """Return the first event with half of its last line, and the events after it."""
    event, blank, rest = frame.partition(b"\n\n")
    event = event.rstrip(b"\n")
    start = event.rfind(b"\n") + 1
    return event[: start + (len(event) - start) // 2] + (blank or b"\n"), rest


def _no_done(case: _Case) -> Step:
    return case.stream(case.given(case.frames.tokens[: case.tokens])) if case.question.stream else case.right()


def _error_event(case: _Case) -> Step:
    dialect = case.question.dialect
    if not case.question.stream:
        return Reply(200, dialect.error(_OVERLOADED), _JSON)
    return case.stream([*case.given(case.frames.tokens[: case.tokens]), dialect.error_frame(_OVERLOADED)])


def _content_filter(case: _Case) -> Step:
    if not case.tokens or case.question.dialect.name == "ollama":
        return case.refused(_FILTERED)
    answer = replace(case.answer, tokens=case.answer.tokens[: case.tokens], calls=(), reason="filter")
    return replace(case, answer=answer).right()


def _prefill_rejected(case: _Case) -> Step:
    return case.refused(_NO_PREFILL) if case.question.prefill is not None else case.right()


_STEPS: dict[str, Callable[[_Case], Step]] = {
    "ok": _Case.right,
    "429-retry-after": _limited,
    "429": lambda case: case.refused(_LIMITED),
    "500-once": _once,
    "503": lambda case: case.refused(_OVERLOADED),
    "reset": lambda _: Rst(),
    "silence": lambda _: BlackHole(),
    "slow-first-token": _slow,
    "cut": lambda case: case.half("rst" if case.parameters["end"] == "rst" else "fin"),
    "stalled": lambda case: case.half("hang"),
    "malformed": _malformed,
    "no-done": _no_done,
    "error-event": _error_event,
    "context": lambda case: case.refused(_TOO_LONG),
    "content-filter": _content_filter,
    "prefill-rejected": _prefill_rejected,
    "flapping": lambda case: case.right() if case.memory.seen % 2 else case.refused(_OVERLOADED),
}

# ---------------------------------------------------------------------------------------------------------- the server

#: How many clients and models a server remembers; the oldest is forgotten first.
_MOST = 10_000
#: How many requests a server that runs for long keeps for inspection.
_KEEP = 100


class CatalogueServer(FaultServer):
    """Speak three dialects, and fail as `spec` says; without one, as the model of each request says (`cut?tokens=3`).

    The answer is "one two … ten" token by token, or the tool calls that the user's text asks for (`call NAME {json}`,
    one a line). It honours max_tokens, counts words as tokens, and goes on with a prefill. GET /v1/models and
    GET /api/tags list the catalogue. What a fault remembers (429-retry-after, 500-once, flapping) it remembers per
    server, credential and model as sent, so that clients with keys, models or `id`s of their own do not meet. The last
    100 requests are in `requests`. Raises UnknownNameError and ConfigError for the spec.
    """

    def __init__(self, spec: str | None = None, *, host: str = "127.0.0.1", port: int = 0, keep: int = _KEEP) -> None:
        self._chosen = None if spec is None else parse_fault(spec)
        self._memories: dict[tuple[str, str], _Memory] = {}
        super().__init__(self._answer, host=host, port=port, keep=keep)

    def _answer(self, request: Received) -> Step:
        path = request.target.partition("?")[0]
        if request.method == "GET" and path in LISTS:
            return Reply(200, json.dumps(LISTS[path]([OK.name, *FAULTS])), _JSON)
        try:
            question = read_question(request)
        except RequestRefused as error:
            return _refusal(path, error.status, error.message, error.reason, error.param)
        try:
            fault, parameters = self._chosen or parse_fault(question.model)
        except UnknownNameError as error:
            return _refusal(path, 404, str(error), "model_not_found", "model")
        except ConfigError as error:
            return _refusal(path, 400, str(error), "invalid_value", "model")
        memory = self._memory(question)
        step = _STEPS[fault.name](_Case(question, answer_to(question), parameters, memory))
        memory.seen += 1
        return step

    def _memory(self, question: Question) -> _Memory:
        key = (question.credential[:_LONGEST], question.model[:_LONGEST])
        if key not in self._memories and len(self._memories) >= _MOST:
            del self._memories[next(iter(self._memories))]
        return self._memories.setdefault(key, _Memory(clock.monotonic()))


def _refusal(path: str, status: int, text: str, code: str | None, param: str | None) -> Reply:
    """Return an error in the dialect of the path, OpenAI's where it has none."""
    dialect = PATHS.get(path) or PATHS["/v1/chat/completions"]
    kind = "not_found_error" if status == 404 else "invalid_request_error"
    return Reply(status, dialect.error(Refusal(status, text, code=code, param=param, anthropic=kind)), _JSON)


async def serve_fault(
    spec: str, host: str = "127.0.0.1", port: int = 0, ready: Callable[[str], object] | None = None
) -> None:
    """Serve a fault until cancelled; `ready` is called with the base URL once clients can connect.

    Raises UnknownNameError and ConfigError for the spec, and ConfigError where the address cannot be had.
    """
    server = CatalogueServer(spec, host=host, port=port)
    try:
        server.listen()
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}:{port}: {error.strerror or error}.") from error
    try:
        if ready is not None:
            ready(server.url)
        await asyncio.Event().wait()
    finally:
        await server.close()
