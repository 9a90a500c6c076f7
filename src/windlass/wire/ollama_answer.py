"""What an Ollama server answers: whole answers, NDJSON streams and errors, both ways.

Source: docs.ollama.com/api/chat and /api/errors. A stream is one JSON object a line; `"done": true` is in the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from windlass.core.clock import now_ns, rfc3339
from windlass.core.errors import (
    AuthError,
    BadRequestError,
    BodyTooLarge,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    PermissionRefused,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    RequestRefused,
    SessionBusy,
    SessionNotFound,
    StreamInterrupted,
    TransportError,
    TransportTimeout,
    WindlassError,
    WireError,
)
from windlass.core.items import Assembler, Finish, FinishReason, Item, ReasoningItem, TextItem, ToolCallItem, UsageItem
from windlass.core.json import JsonError, dumps, loads
from windlass.core.messages import Message, Reasoning, Text, ToolCall
from windlass.core.usage import Usage
from windlass.wire.base import (
    IdRule,
    as_dict,
    as_int,
    as_list,
    as_str,
    excerpt,
    load_object,
    provider_error,
    retry_after_seconds,
    wire_id,
)

__all__ = [
    "IDS",
    "KEY",
    "MAX_LINE",
    "OllamaReader",
    "OllamaStreamDecoder",
    "OllamaStreamEncoder",
    "argument_text",
    "call_data",
    "decode_error",
    "decode_response",
    "encode_error",
    "encode_response",
    "encode_tail",
]

#: The dialect's name and its key in `provider_metadata`.
KEY: Final = "ollama"
#: The server states no pattern; ids have to survive UTF-8 and stay apart.
IDS: Final = IdRule(64)
#: Bytes of one line that we hold before giving up.
MAX_LINE: Final = 16 * 1024 * 1024
_TOP = frozenset(("model", "created_at", "message", "done", "done_reason", "prompt_eval_count", "eval_count"))
#: What Ollama measures, in nanoseconds; it goes out again where a provider said it.
_DURATIONS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
_CALL = frozenset(("id", "type", "function"))


def argument_text(value: Any) -> str:
    """Return a call's arguments as JSON text: an object there, a string on some servers, nothing at all on others."""
    if value is None or isinstance(value, str):
        return value or ""
    return dumps(value).decode()


def call_data(call: ToolCall) -> dict[str, Any]:
    """Return a call as the API writes it: arguments are an object, `{}` where they never were one."""
    return {"id": wire_id(call.id, IDS), "function": {"name": call.name, "arguments": call.arguments or {}}}


def _line_of(data: dict[str, Any]) -> bytes:
    """Return one line of a stream.

    Line readers split at more than line feeds (httpx, and with it the official SDK, at U+0085, U+2028 and U+2029):
    inside JSON these stand in strings only, where they can be escaped.
    """
    line = dumps(data)
    for raw, escaped in ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029")):
        line = line.replace(raw, escaped)
    return line + b"\n"


class OllamaReader:
    """Turn decoded lines (or one whole answer) into items, and keep what `Finish` needs."""

    #: The fields of a line that have words of ours; the others are kept in `provider_metadata`.
    known: ClassVar[frozenset[str]] = _TOP

    def message_of(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the message of a line: its content, thinking and tool_calls."""
        return as_dict(data.get("message"))

    def __init__(self) -> None:
        self.assembler = Assembler()
        self._calls = 0
        self._ids: set[str] = set()

    def take(self, data: dict[str, Any], out: list[Item]) -> bool:
        """Append the items of one line; True when it was the last one. Raises the error that a line holds."""
        if "error" in data:
            raise _error_in(data, self.assembler.text)
        message = self.message_of(data)
        if thought := as_str(message.get("thinking")):
            self._add(ReasoningItem(thought), out)
        if text := as_str(message.get("content")):
            self._add(TextItem(text), out)
        for entry in as_list(message.get("tool_calls")):
            self._call(as_dict(entry), out)
        if data.get("done") is not True:
            return False
        out.append(self._finish(data, out))
        return True

    def _add(self, item: Item, out: list[Item]) -> None:
        self.assembler.add(item)
        out.append(item)

    def _call(self, entry: dict[str, Any], out: list[Item]) -> None:
        # Calls come whole; the `index` of some versions starts again with every line: we count ourselves.
        function = as_dict(entry.get("function"))
        call_id = as_str(entry.get("id"))
        if not call_id or call_id in self._ids:
            call_id = f"call_{self._calls}"
            while call_id in self._ids:
                call_id += "_"
        self._ids.add(call_id)
        rest = {key: value for key, value in entry.items() if key not in _CALL and value is not None}
        text = argument_text(function.get("arguments"))
        name = as_str(function.get("name"))
        self._add(ToolCallItem(self._calls, call_id, name, text, {KEY: rest} if rest else None), out)
        self._calls += 1

    def _finish(self, data: dict[str, Any], out: list[Item]) -> Finish:
        raw = as_str(data.get("done_reason")) or None
        reason: FinishReason = "length" if raw == "length" else "tool_call" if self._calls else "stop"
        usage = Usage(estimated=True)
        if "prompt_eval_count" in data or "eval_count" in data:
            # A prompt that was wholly cached has no `prompt_eval_count` in older versions.
            usage = Usage(as_int(data.get("prompt_eval_count")), as_int(data.get("eval_count")))
            out.append(UsageItem(usage))
        rest = {key: value for key, value in data.items() if key not in self.known and value is not None}
        return Finish(
            self.assembler.message(finish_reason=reason),
            usage=usage,
            reason=reason,
            model=as_str(data.get("model")) or None,
            raw=raw,
            provider_metadata={KEY: rest} if rest else None,
        )


def decode_response(body: bytes) -> Finish:
    """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
    data = load_object(body)
    if "error" not in data and not isinstance(data.get("message"), dict):
        raise WireError(f"The answer has no message: {excerpt(body)!r}.")
    out: list[Item] = []
    OllamaReader().take({**data, "done": True}, out)
    finish = out[-1]
    assert isinstance(finish, Finish)
    if data.get("done") is False:
        raise StreamInterrupted("The answer says that it is not done.", partial=finish.message.text)
    return finish


class OllamaStreamDecoder:
    """Read one stream (`StreamDecoder`); `"done": true` ends it. A line is held up to `MAX_LINE` bytes."""

    def __init__(self, max_line: int = MAX_LINE, reader: OllamaReader | None = None) -> None:
        self._reader = reader or OllamaReader()
        self._rest = bytearray()
        self._max = max_line
        self._done = False

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes, split anywhere, and return the items they complete.

        Raises the classified ProviderError on an error line and WireError on one that is not a JSON object.
        """
        out: list[Item] = []
        if self._done:
            return out
        cut = data.rfind(b"\n") + 1
        if not cut:
            self._rest += data
            self._bound(len(self._rest))
            return out
        whole = bytes(self._rest) + data[:cut]
        self._rest = bytearray(data[cut:])
        self._lines(whole, out)
        self._bound(len(self._rest))
        return out

    def close(self) -> list[Item]:
        """End the body, whose last line may lack its line end. Raises StreamInterrupted when `done` never came."""
        out: list[Item] = []
        if not self._done:
            rest, self._rest = bytes(self._rest), bytearray()
            # Half a line is a cut stream, not a bad one.
            if rest.rstrip().endswith(b"}") and _is_json(rest):
                self._lines(rest, out)
            elif rest.lstrip()[:1] == b"<":
                load_object(rest, "The stream")
        if not self._done:
            raise StreamInterrupted(
                'The stream ended before "done": true.',
                partial=self._reader.assembler.text,
                hint="The text so far is kept; ask again for the rest.",
            )
        return out

    def _bound(self, size: int) -> None:
        if size > self._max:
            self._rest = bytearray()
            raise WireError(
                f"One line of the stream is larger than {self._max} bytes.", partial=self._reader.assembler.text
            )

    def _lines(self, whole: bytes, out: list[Item]) -> None:
        try:
            for line in whole.split(b"\n"):
                if line.strip() and not self._done:
                    self._bound(len(line))
                    self._done = self._reader.take(load_object(line, "A line of the stream"), out)
        except ProviderError as error:
            error.partial = error.partial or self._reader.assembler.text
            raise


def _is_json(data: bytes) -> bool:
    try:
        loads(data)
    except JsonError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------- answering


def _parts(message: Message) -> dict[str, Any]:
    out: dict[str, Any] = {"role": "assistant", "content": message.text}
    if thought := "".join([part.content for part in message.parts if isinstance(part, Reasoning)]):
        out["thinking"] = thought
    if calls := message.tool_calls:
        out["tool_calls"] = [call_data(call) for call in calls]
    return out


def encode_tail(finish: Finish) -> dict[str, Any]:
    """Return what the last line says of an answer: why it ended, its counts, and its durations where they are known."""
    cut = finish.reason in ("length", "interrupted", "error")
    kept = as_dict((finish.provider_metadata or {}).get(KEY))
    return {
        "done": True,
        "done_reason": "length" if cut else "stop",
        "prompt_eval_count": finish.usage.input_tokens,
        "eval_count": finish.usage.output_tokens,
        **{name: kept[name] for name in _DURATIONS if isinstance(kept.get(name), int)},
    }


def encode_response(finish: Finish, *, model: str, created: int) -> bytes:
    """Return a whole answer; `created` is in Unix seconds."""
    head = {"model": model, "created_at": rfc3339(created * 1_000_000_000)}
    return dumps({**head, "message": _parts(finish.message), **encode_tail(finish)})


class OllamaStreamEncoder:
    """Write one stream (`StreamEncoder`). Calls go out whole, before the last line, as this dialect has no pieces."""

    def __init__(self, *, model: str, created: int) -> None:
        self._head: dict[str, Any] = {"model": model, "created_at": rfc3339(created * 1_000_000_000)}
        self._calls = Assembler()
        self._said = False

    def encode(self, item: Item) -> bytes:
        """Return the lines of one item; usage goes out at the end, notices not at all."""
        if isinstance(item, TextItem):
            return self._line({"content": item.text}) if item.text else b""
        if isinstance(item, ReasoningItem):
            return self._line({"content": "", "thinking": item.text}) if item.text else b""
        if isinstance(item, ToolCallItem):
            self._said = True
            self._calls.add(item)
            return b""
        return self._finish(item) if isinstance(item, Finish) else b""

    def error(self, exc: WindlassError) -> bytes:
        """Return the error line, on which the official SDK raises."""
        return _line_of({"error": str(exc)})

    def _message(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"message": {"role": "assistant", **fields}}

    def _line(self, fields: dict[str, Any]) -> bytes:
        self._said = True
        return _line_of({**self._head, **self._message(fields), "done": False})

    def _finish(self, finish: Finish) -> bytes:
        out = b""
        if not self._said:
            for part in finish.message.parts:
                if isinstance(part, Text):
                    out += self.encode(TextItem(part.content))
                elif isinstance(part, Reasoning):
                    out += self.encode(ReasoningItem(part.content))
        # The message at the end holds the calls as they were accepted; without it, those of the deltas.
        calls = finish.message.tool_calls or self._calls.message().tool_calls
        if calls:
            out += self._line({"content": "", "tool_calls": [call_data(call) for call in calls]})
        if finish.reason in ("interrupted", "error"):
            return out + self.error(
                StreamInterrupted("The answer was cut short upstream; what came before is partial.")
            )
        return out + _line_of({**self._head, **self._message({"content": ""}), **encode_tail(finish)})


# --------------------------------------------------------------------------------------------------------- errors


def _message_of(data: Mapping[str, Any]) -> str:
    error = data.get("error")
    return as_str(error) or as_str(as_dict(error).get("message")) or "no details were given"


def _error_in(data: Mapping[str, Any], partial: str) -> ProviderError:
    # Before the first byte the server would have answered 500: what it accepted, it failed to do.
    code = as_str(as_dict(data.get("error")).get("code")) or None
    return provider_error(500, code, _message_of(data), partial=partial)


def decode_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    provider: str | None,
    model: str | None,
    endpoint: str | None,
) -> ProviderError:
    """Return the typed error of an answer that is not 2xx. Never raises."""
    try:
        data = as_dict(loads(body))
    except JsonError:
        data = {}
    return provider_error(
        status,
        as_str(as_dict(data.get("error")).get("code")) or None,
        _message_of(data) if "error" in data else excerpt(body),
        provider=provider,
        model=model,
        endpoint=endpoint,
        retry_after=retry_after_seconds(headers, now_ns=now_ns()),
    )


_STATUS: tuple[tuple[type[WindlassError], int], ...] = (
    (ContextExceededError, 400),
    (BadRequestError, 400),
    (PermissionRefused, 403),
    (ModelNotFoundError, 404),
    (SessionNotFound, 404),
    (SessionBusy, 409),
    (BodyTooLarge, 413),
    (RateLimitError, 429),
    (OverloadedError, 503),
    (ProviderTimeoutError, 504),
    (TransportTimeout, 504),
    (ProviderError, 502),
    (TransportError, 502),
)


def encode_error(error: WindlassError) -> tuple[int, bytes]:
    """Return (HTTP status, `{"error": text}`)."""
    if isinstance(error, RequestRefused):
        return error.status, dumps({"error": str(error)})
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, AuthError):
        # A credential that the upstream refused is our fault, not the client's.
        status = 401 if error.provider is None else 502
    return status, dumps({"error": str(error)})
