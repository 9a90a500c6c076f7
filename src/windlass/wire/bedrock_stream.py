"""ConverseStream's frames, both ways (docs.aws.amazon.com/bedrock, API_runtime_ConverseStreamOutput)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from windlass.core.clock import monotonic
from windlass.core.errors import StreamInterrupted, WindlassError, WireError
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem, UsageItem, parse_arguments
from windlass.core.json import JsonError, dumps, loads
from windlass.core.messages import Part, Reasoning, Text, ToolCall, UnknownPart
from windlass.wire.base import as_dict, as_int, as_list, as_str, excerpt, wire_id
from windlass.wire.bedrock_answer import (
    build_finish,
    decode_response,
    decode_usage,
    encode_usage,
    error_body,
    error_of,
    error_word,
    extras_of,
    stop_reason,
)
from windlass.wire.bedrock_blocks import BEDROCK_IDS, KEY, own_fields, reasoning_block, tool_name
from windlass.wire.eventstream import MAX_FRAME, Frame, FrameDecoder, encode_frame

__all__ = ["BedrockStreamDecoder", "BedrockStreamEncoder"]


class _Block:
    """One content block while it grows: its kind, its start, its pieces of text or JSON, and what else came."""

    __slots__ = ("call", "kind", "more", "pieces", "start")

    def __init__(self, kind: str, start: dict[str, Any], call: int = 0) -> None:
        self.kind, self.start, self.call = kind, start, call
        self.pieces: list[str] = []
        self.more: list[Any] = []

    def part(self) -> Part | None:
        """Return the whole block as a part, None for an empty one."""
        text = "".join(self.pieces)
        if self.kind == "text":
            return Text(text, {KEY: {"citations": self.more}} if self.more else None)
        if self.kind == "reasoning":
            own = {key: value for key, value in self.start.items() if value}
            return Reasoning(text, {KEY: own} if own else None) if text or own else None
        block = dict(self.start)
        if self.kind == "toolUse":
            arguments, kept = parse_arguments(text)
            if "type" not in block:
                return ToolCall(block["toolUseId"], as_str(block.get("name")), arguments, kept)
            block["input"] = arguments or {}
        elif self.more:
            block["content"] = self.more
        # What ran at the vendor, and kinds that have no word of ours.
        return UnknownPart({"type": f"{KEY}.{self.kind}", "block": {self.kind: block}})


class BedrockStreamDecoder:
    """Turn a stream's bytes into items; the terminal event is `messageStop`, the usage comes after it in `metadata`.

    A stream that ends between the two is whole, and its usage estimated. A server that answers with one JSON object
    is read as well.
    """

    def __init__(self) -> None:
        self._frames = FrameDecoder()
        self._blocks: dict[int, _Block] = {}
        self._head: dict[str, Any] = {}
        self._text: list[str] = []
        self._calls = 0
        self._ids: set[str] = set()
        self._done = False
        self._plain: bytearray | None = None
        self._events: dict[str, Callable[[dict[str, Any], list[Item]], None]] = {
            "contentBlockDelta": self._delta,
            "contentBlockStart": self._start,
            "messageStop": self._stop,
            "metadata": self._metadata,
        }

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes, split anywhere, and return the items they complete.

        Raises the classified ProviderError on an exception and WireError on bytes that do not follow the dialect.
        """
        out: list[Item] = []
        if self._done:
            return out
        first = not self._frames.pending and not self._started()
        if self._plain is not None or (first and data.startswith((b"{", b" ", b"\r", b"\n", b"\t"))):
            # No frame begins so: its length would be past every bound.
            self._plain = (self._plain or bytearray()) + data
            if len(self._plain) > MAX_FRAME:
                raise WireError(f"The answer is larger than {MAX_FRAME} bytes.")
            return out
        try:
            for frame in self._frames.feed(data):
                if not self._done:
                    self._frame(frame, out)
        except WireError as error:
            error.partial = error.partial or "".join(self._text)
            raise
        return out

    def close(self) -> list[Item]:
        """End the stream. Raises StreamInterrupted when `messageStop` never came."""
        out: list[Item] = []
        if self._done:
            return out
        if self._plain is not None and self._plain.strip():
            self._done = True
            return _as_items(decode_response(bytes(self._plain)))
        if "stopReason" in self._head:
            self._finish(out)
            return out
        self.feed(b"")
        raise StreamInterrupted(
            "The stream ended before messageStop.",
            partial="".join(self._text),
            hint="The connection was cut, or a proxy ended it.",
        )

    def _started(self) -> bool:
        return bool(self._head or self._blocks)

    def _bad(self, message: str) -> WireError:
        return WireError(message, partial="".join(self._text))

    def _frame(self, frame: Frame, out: list[Item]) -> None:
        kind = frame.text(":message-type")
        if kind in ("exception", "error"):
            if "stopReason" in self._head:
                # The answer is whole; what failed is the counting.
                self._finish(out)
                return
            word = frame.text(":exception-type") or frame.text(":error-code")
            raise error_of(
                None, word, self._object(frame, lenient=True), fallback=frame.text(":error-message"),
                partial="".join(self._text),
            )  # fmt: skip
        event = frame.text(":event-type")
        if event == "messageStart":
            self._head.setdefault("role", "assistant")
        elif (reader := self._events.get(event)) is not None:
            reader(self._object(frame), out)

    def _object(self, frame: Frame, *, lenient: bool = False) -> dict[str, Any]:
        try:
            data = loads(frame.payload)
        except JsonError as error:
            if lenient:
                return {"message": excerpt(frame.payload)}
            raise self._bad(f"An event of the stream is {error}: {excerpt(frame.payload)!r}.") from None
        if not isinstance(data, dict) and not lenient:
            raise self._bad(f"An event of the stream is not an object: {excerpt(frame.payload)!r}.")
        return as_dict(data)

    def _start(self, data: dict[str, Any], out: list[Item]) -> None:
        start = as_dict(data.get("start"))
        kind = next((key for key, value in start.items() if isinstance(value, dict)), None)
        if kind is None:
            return
        fields: dict[str, Any] = {key: value for key, value in start[kind].items() if value is not None}
        block = _Block(kind, fields, self._calls)
        self._blocks[as_int(data.get("contentBlockIndex"))] = block
        if kind == "toolUse" and "type" not in fields:
            fields["toolUseId"] = self._new_id(as_str(fields.get("toolUseId")))
            self._calls += 1
            out.append(ToolCallItem(block.call, fields["toolUseId"], as_str(fields.get("name")) or None))

    def _new_id(self, call_id: str) -> str:
        # A call whose id is missing or another's could not be answered.
        number = self._calls
        while not call_id or call_id in self._ids:
            call_id = f"call_{number}"
            number += 1
        self._ids.add(call_id)
        return call_id

    def _delta(self, data: dict[str, Any], out: list[Item]) -> None:
        delta, index = as_dict(data.get("delta")), as_int(data.get("contentBlockIndex"))
        kind = next((key for key, value in delta.items() if value is not None), "")
        value = delta.get(kind)
        of = {"text": "text", "citation": "text", "reasoningContent": "reasoning"}.get(kind, kind)
        block = self._blocks.get(index)
        if block is None and of in ("text", "reasoning"):
            # Only tool calls have a start.
            block = self._blocks[index] = _Block(of, {})
        if block is None or block.kind != of:
            raise self._bad(f"A delta of the kind {excerpt(kind, 40)!r} belongs to no content block.")
        if kind == "text" and isinstance(value, str) and value:
            block.pieces.append(value)
            self._text.append(value)
            out.append(TextItem(value))
        elif kind == "reasoningContent":
            self._reasoning(block, as_dict(value), out)
        elif kind == "toolUse":
            piece = as_str(as_dict(value).get("input"))
            if piece:
                block.pieces.append(piece)
                out.extend([ToolCallItem(block.call, arguments=piece)] if "type" not in block.start else [])
        elif kind == "citation" or isinstance(value, list):
            block.more += as_list(value) if isinstance(value, list) else [value]
        elif kind != "text":
            block.start.update(as_dict(value))

    def _reasoning(self, block: _Block, value: dict[str, Any], out: list[Item]) -> None:
        if text := as_str(value.get("text")):
            block.pieces.append(text)
            out.append(ReasoningItem(text))
        for field, ours in (("signature", "signature"), ("redactedContent", "redacted_content")):
            if piece := as_str(value.get(field)):
                block.start[ours] = block.start.get(ours, "") + piece
                out.append(ReasoningItem("", {KEY: {ours: piece}}))

    def _stop(self, data: dict[str, Any], out: list[Item]) -> None:  # noqa: ARG002
        self._head.update({"stopReason": as_str(data.get("stopReason")) or "end_turn"})
        if (more := data.get("additionalModelResponseFields")) is not None:
            self._head["additionalModelResponseFields"] = more

    def _metadata(self, data: dict[str, Any], out: list[Item]) -> None:
        self._head.update({key: value for key, value in data.items() if key != "stopReason"})
        if (usage := decode_usage(data.get("usage"))) is not None:
            out.append(UsageItem(usage))
        if "stopReason" in self._head:
            self._finish(out)

    def _finish(self, out: list[Item]) -> None:
        self._done = True
        parts = [self._blocks[index].part() for index in sorted(self._blocks)]
        out.append(build_finish([part for part in parts if part is not None], self._head))


# ---------------------------------------------------------------------------------------------------------- encoding

#: What the SDKs know inside a stream, by the name of the exception outside of one.
_INSIDE: Final = {
    "ValidationException": "validationException",
    "ThrottlingException": "throttlingException",
    "ServiceUnavailableException": "serviceUnavailableException",
    "ModelTimeoutException": "serviceUnavailableException",
}


class _Call:
    """One tool call on its way out: whether it was begun and ended, and its JSON so far."""

    __slots__ = ("begun", "ended", "id", "name", "pieces", "sent")

    def __init__(self) -> None:
        self.begun = self.ended = False
        self.id = self.name = ""
        self.pieces: list[str] = []
        self.sent = 0

    def whole(self) -> bool:
        """True when the JSON so far is an object: nothing can follow."""
        return bool(self.pieces) and parse_arguments("".join(self.pieces))[0] is not None


class BedrockStreamEncoder:
    """Turn items into frames that AWS's SDKs take.

    Blocks follow each other and never overlap, because clients keep one call at a time: what comes of another call
    meanwhile waits until the first one's JSON is whole.
    """

    def __init__(self) -> None:
        self._began = monotonic()
        self._started = False
        self._index = -1
        self._open = ""
        self._signed = False
        self._calls: dict[int, _Call] = {}

    def encode(self, item: Item) -> bytes:
        """Return the frames of one item; b"" for usage so far and for a notice."""
        if isinstance(item, TextItem):
            return self._begin() + self._piece("text", item.text, {"text": item.text}) if item.text else b""
        if isinstance(item, ReasoningItem):
            return self._begin() + self._reasoning(item)
        if isinstance(item, ToolCallItem):
            return self._begin() + self._call(item)
        return self._end(item) if isinstance(item, Finish) else b""

    def error(self, exc: WindlassError) -> bytes:
        """Return the exception that ends the stream; the SDKs raise it, and do not on a stream that just ends."""
        kind = _INSIDE.get(error_word(exc)[1], "internalServerException")
        headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
        return encode_frame(headers, dumps(error_body(exc)))

    def _begin(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return _event("messageStart", {"role": "assistant"})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("contentBlockDelta", {"delta": delta, "contentBlockIndex": self._index})

    def _close(self) -> bytes:
        """End the open text or reasoning block."""
        if self._open in ("", "toolUse"):
            return b""
        self._open, self._signed = "", False
        return _event("contentBlockStop", {"contentBlockIndex": self._index})

    def _piece(self, kind: str, text: str, delta: dict[str, Any]) -> bytes:
        if not text:
            return b""
        out = b""
        if self._open != kind:
            # Text between calls has to wait for none: a call that is not whole yet is ended as it is.
            out = self._close() + self._settle(all_calls=True)
            self._index += 1
            self._open = kind
        return out + self._delta(delta)

    def _reasoning(self, item: ReasoningItem) -> bytes:
        # A signature, which may come in pieces, is over its own block alone: further text is another one.
        out = self._close() if item.text and self._signed else b""
        out += self._piece("reasoning", item.text, {"reasoningContent": {"text": item.text}})
        block = reasoning_block(Reasoning("", item.provider_metadata), "")
        fields = as_dict((block or {}).get("reasoningContent"))
        if redacted := as_str(fields.get("redactedContent")):
            out += self._close() + self._piece("reasoning", redacted, {"reasoningContent": fields}) + self._close()
        elif signature := as_str(as_dict(fields.get("reasoningText")).get("signature")):
            out += self._piece("reasoning", signature, {"reasoningContent": {"signature": signature}})
            self._signed = True
        return out

    def _call(self, item: ToolCallItem) -> bytes:
        call = self._calls.setdefault(item.index, _Call())
        call.id, call.name = call.id or item.id or "", call.name or item.name or ""
        if item.arguments and not call.ended:
            call.pieces.append(item.arguments)
        return self._close() + self._settle()

    def _settle(self, *, all_calls: bool = False) -> bytes:
        """Send what waits: the first call that has not ended, and the next ones as far as those before are whole."""
        out = b""
        waiting = [call for call in self._calls.values() if not call.ended]
        for number, call in enumerate(waiting):
            if not (call.name or all_calls):
                break
            if not call.begun:
                call.begun = True
                self._index += 1
                call_id = wire_id(call.id or f"call_{self._index}", BEDROCK_IDS)
                start = {"toolUse": {"toolUseId": call_id, "name": tool_name(call.name or "unknown")}}
                out += _event("contentBlockStart", {"start": start, "contentBlockIndex": self._index})
                self._open = "toolUse"
            if fresh := "".join(call.pieces[call.sent :]):
                call.sent = len(call.pieces)
                out += self._delta({"toolUse": {"input": fresh}})
            if not all_calls and (number == len(waiting) - 1 or not call.whole()):
                break
            out += self._end_call(call)
        return out

    def _end_call(self, call: _Call) -> bytes:
        # Clients parse what they collected: nothing at all would not be JSON.
        out = b"" if call.sent else self._delta({"toolUse": {"input": "{}"}})
        call.ended, self._open = True, ""
        return out + _event("contentBlockStop", {"contentBlockIndex": self._index})

    def _end(self, finish: Finish) -> bytes:
        silent = not self._started
        out = self._begin()
        for number, part in enumerate(finish.message.parts):
            # An answer that came whole was not streamed; the vendor's own kinds of blocks have no form here.
            if silent and not isinstance(part, UnknownPart):
                out += self._close() + b"".join([self.encode(item) for item in _items(number, part)])
                out += self._cited(part)
        out += self._close() + self._settle(all_calls=True)
        if finish.reason in ("interrupted", "error"):
            return out + self.error(StreamInterrupted("The answer was cut short upstream; what came is partial."))
        extras = extras_of(finish)
        more = extras.pop("additionalModelResponseFields", None)
        stop = {"stopReason": stop_reason(finish)}
        out += _event("messageStop", stop if more is None else {**stop, "additionalModelResponseFields": more})
        latency = {"metrics": {"latencyMs": max(0, round((monotonic() - self._began) * 1000))}}
        return out + _event("metadata", {"usage": encode_usage(finish.usage), **latency, **extras})

    def _cited(self, part: Part) -> bytes:
        if not isinstance(part, Text):
            return b""
        cited = as_list(own_fields(part.provider_metadata).get("citations"))
        return b"".join([self._delta({"citation": citation}) for citation in cited])


def _items(number: int, part: Part) -> list[Item]:
    """Return the items of a part that came without deltas."""
    if isinstance(part, Text):
        return [TextItem(part.content)]
    if isinstance(part, Reasoning):
        return [ReasoningItem(part.content, part.provider_metadata)]
    if isinstance(part, ToolCall):
        text = part.arguments_text or (dumps(part.arguments).decode() if part.arguments else "")
        return [ToolCallItem(number, part.id, part.name, text)]
    return []


def _as_items(finish: Finish) -> list[Item]:
    return [*[item for number, part in enumerate(finish.message.parts) for item in _items(number, part)], finish]


def _event(name: str, fields: dict[str, Any]) -> bytes:
    headers = {":event-type": name, ":content-type": "application/json", ":message-type": "event"}
    return encode_frame(headers, dumps(fields))
