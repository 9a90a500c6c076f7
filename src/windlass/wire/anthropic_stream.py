"""Anthropic's event stream, both ways (docs.anthropic.com/en/docs/build-with-claude/streaming)."""

from __future__ import annotations

from typing import Any

from windlass.core.errors import BadRequestError, StreamInterrupted, WindlassError, WireError
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem, UsageItem, parse_arguments
from windlass.core.json import JsonError, dumps, loads
from windlass.core.messages import Part, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.usage import Usage
from windlass.wire.anthropic_answer import (
    answer_block,
    answer_head,
    applied_edits,
    build_finish,
    decode_usage,
    encode_usage,
    error_data,
    error_of,
    response_from_data,
)
from windlass.wire.anthropic_blocks import KEY, decode_block, own_fields
from windlass.wire.base import (
    ANTHROPIC_IDS,
    as_dict,
    as_int,
    as_list,
    as_str,
    excerpt,
    load_json,
    load_object,
    wire_id,
)
from windlass.wire.sse import MAX_EVENT, SseDecoder, encode_sse

__all__ = ["AnthropicStreamDecoder", "AnthropicStreamEncoder"]


class _Block:
    """One content block while it grows: its start, its pieces of text or JSON, and what else its deltas brought."""

    __slots__ = ("call", "citations", "pieces", "signature", "start")

    def __init__(self, start: dict[str, Any], call: int) -> None:
        self.start = start
        self.call = call
        self.pieces: list[str] = []
        self.signature: list[str] = []
        self.citations: list[Any] = []

    def part(self) -> Part:
        """Return the whole block as a part. Raises BadRequestError when its start is malformed."""
        data = dict(self.start)
        kind = data.get("type")
        joined = "".join(self.pieces)
        if kind == "text":
            data["text"] = joined
            if self.citations:
                data["citations"] = [*as_list(data.get("citations")), *self.citations]
        elif kind == "thinking":
            data["thinking"] = joined
            data["signature"] = "".join(self.signature)
        elif "input" in data and joined:
            arguments, text = parse_arguments(joined)
            data["input"] = arguments if arguments is not None else {}
            part = decode_block(data, "content_block")
            if isinstance(part, ToolCall):
                part = ToolCall(part.id, part.name, arguments, text, part.provider_metadata)
            return part
        return decode_block(data, "content_block")


class AnthropicStreamDecoder:
    """Turn a stream's bytes into items; the terminal event is `message_stop`.

    A server that ignores `stream` and answers with one JSON object is read as well; a web page is a WireError.
    """

    def __init__(self) -> None:
        self._sse = SseDecoder()
        self._blocks: dict[int, _Block] = {}
        self._head: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._text: list[str] = []
        self._calls = 0
        self._ids: set[str] = set()
        self._done = False
        self._sniffed = False
        self._plain: bytearray | None = None

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes, split anywhere, and return the items they complete.

        Raises the classified ProviderError on an error event and WireError on bytes that do not follow the dialect.
        """
        out: list[Item] = []
        if self._done:
            return out
        if not self._sniffed:
            self._sniff(data)
        if self._plain is not None:
            self._plain += data
            if len(self._plain) > MAX_EVENT:
                raise WireError(f"The answer is larger than {MAX_EVENT} bytes.")
            return out
        try:
            for name, payload in self._sse.feed(data):
                if self._done:
                    break
                self._event(name, payload, out)
        except WireError as error:
            error.partial = error.partial or "".join(self._text)
            raise
        return out

    def _sniff(self, data: bytes) -> None:
        start = data.lstrip(b"\xef\xbb\xbf \t\r\n")
        self._sniffed = bool(start)
        if start[:1] == b"{":
            self._plain = bytearray()
        elif start[:1] == b"<":
            load_json(data, "The stream")

    def close(self) -> list[Item]:
        """End the stream. Raises StreamInterrupted when `message_stop` never came."""
        out: list[Item] = []
        if self._plain is not None and not self._done:
            self._done = True
            return _as_items(response_from_data(load_object(bytes(self._plain))))
        if not self._done:
            try:
                # Some servers leave out the last blank line; half an event is a cut stream, not a bad one.
                for name, payload in self._sse.close():
                    self._event(name, payload, out)
            except WireError:
                self._done = False
        if not self._done:
            raise StreamInterrupted(
                "The stream ended before message_stop.",
                partial="".join(self._text),
                hint="The connection was cut, or a proxy ended it.",
            )
        return out

    def _event(self, name: str | None, payload: bytes, out: list[Item]) -> None:
        if name == "ping":
            return
        try:
            data = loads(payload)
        except JsonError as error:
            raise self._bad(f"An event of the stream is {error}: {excerpt(payload)!r}.") from None
        if not isinstance(data, dict):
            raise self._bad(f"An event of the stream is not an object: {excerpt(payload)!r}.")
        kind = data.get("type", name)
        if kind == "error" or name == "error" or (kind is None and "error" in data):
            raise error_of(data, partial="".join(self._text))
        if kind == "content_block_delta":
            self._delta(as_int(data.get("index")), as_dict(data.get("delta")), out)
        elif kind == "content_block_start":
            self._start(as_int(data.get("index")), as_dict(data.get("content_block")), out)
        elif kind == "content_block_stop":
            self._stop(as_int(data.get("index")), out)
        elif kind == "message_start":
            message = as_dict(data.get("message"))
            self._head = {key: value for key, value in message.items() if key not in ("content", "usage")}
            self._count(message.get("usage"), out)
        elif kind == "message_delta":
            self._head.update({key: value for key, value in as_dict(data.get("delta")).items() if value is not None})
            if isinstance(edits := data.get("context_management"), dict):
                self._head["context_management"] = edits
            self._count(data.get("usage"), out)
        elif kind == "message_stop":
            self._finish(out)

    def _bad(self, message: str) -> WireError:
        return WireError(message, partial="".join(self._text))

    def _count(self, usage: Any, out: list[Item]) -> None:
        # The counts are totals so far: a later one replaces an earlier one, a missing one leaves it.
        fresh = {key: value for key, value in as_dict(usage).items() if value is not None}
        if fresh:
            self._usage.update(fresh)
            counted = decode_usage(self._usage)
            if counted is not None:
                out.append(UsageItem(counted))

    def _start(self, index: int, start: dict[str, Any], out: list[Item]) -> None:
        kind = start.get("type")
        if kind == "tool_use":
            start = {**start, "id": self._new_id(as_str(start.get("id")))}
        block = self._blocks[index] = _Block(start, self._calls)
        if kind == "tool_use":
            self._calls += 1
            out.append(ToolCallItem(block.call, start["id"], as_str(start.get("name")) or None))
        elif kind == "redacted_thinking":
            out.append(ReasoningItem("", {KEY: {"redacted_data": as_str(start.get("data"))}}))
        elif kind == "text":
            self._piece(block, TextItem(as_str(start.get("text"))), out)
        elif kind == "thinking":
            self._piece(block, ReasoningItem(as_str(start.get("thinking"))), out)
            self._sign(block, as_str(start.get("signature")), out)

    def _new_id(self, call_id: str) -> str:
        # A call whose id is missing or another's could not be answered.
        number = self._calls
        while not call_id or call_id in self._ids:
            call_id = f"call_{number}"
            number += 1
        self._ids.add(call_id)
        return call_id

    def _piece(self, block: _Block, item: TextItem | ReasoningItem, out: list[Item]) -> None:
        if item.text:
            block.pieces.append(item.text)
            if isinstance(item, TextItem):
                self._text.append(item.text)
            out.append(item)

    def _sign(self, block: _Block, signature: str, out: list[Item]) -> None:
        if signature:
            block.signature.append(signature)
            out.append(ReasoningItem("", {KEY: {"signature": signature}}))

    def _delta(self, index: int, delta: dict[str, Any], out: list[Item]) -> None:
        kind = delta.get("type")
        block = self._blocks.get(index)
        if block is None:
            # Some compatible servers leave out the start of a text block.
            if kind not in ("text_delta", "thinking_delta"):
                raise self._bad(f"A delta of type {excerpt(as_str(kind), 40)!r} belongs to no content block.")
            start = {"type": "text", "text": ""} if kind == "text_delta" else {"type": "thinking", "thinking": ""}
            block = self._blocks[index] = _Block(start, 0)
        of = block.start.get("type")
        if kind == "text_delta" and of == "text":
            self._piece(block, TextItem(as_str(delta.get("text"))), out)
        elif kind == "thinking_delta" and of == "thinking":
            self._piece(block, ReasoningItem(as_str(delta.get("thinking"))), out)
        elif kind == "signature_delta" and of == "thinking":
            self._sign(block, as_str(delta.get("signature")), out)
        elif kind == "input_json_delta":
            piece = as_str(delta.get("partial_json"))
            if piece:
                block.pieces.append(piece)
                if of == "tool_use":
                    out.append(ToolCallItem(block.call, arguments=piece))
        elif kind == "citations_delta" and of == "text":
            block.citations.append(delta.get("citation"))

    def _stop(self, index: int, out: list[Item]) -> None:
        block = self._blocks.get(index)
        # Some compatible servers send the whole input with the start.
        if (
            block is not None
            and block.start.get("type") == "tool_use"
            and not block.pieces
            and block.start.get("input")
        ):
            text = dumps(block.start["input"]).decode()
            block.pieces.append(text)
            out.append(ToolCallItem(block.call, arguments=text))

    def _finish(self, out: list[Item]) -> None:
        self._done = True
        try:
            parts = [self._blocks[index].part() for index in sorted(self._blocks)]
        except BadRequestError as error:
            raise self._bad(f"The stream does not follow the dialect: {error.message}.") from None
        out.append(build_finish(parts, {**self._head, "usage": self._usage}))


class _Call:
    """One tool call on its way out: its block's index once it was opened, and its JSON so far."""

    __slots__ = ("block", "closed", "id", "name", "pieces")

    def __init__(self) -> None:
        self.block: int | None = None
        self.closed = False
        self.id = self.name = ""
        self.pieces: list[str] = []

    def whole(self) -> bool:
        """True when the JSON so far is an object: nothing can follow."""
        return bool(self.pieces) and parse_arguments("".join(self.pieces))[0] is not None


class AnthropicStreamEncoder:
    """Turn items into events that the official SDK takes; every event has its `event:` line.

    Blocks follow each other; only calls whose pieces come interleaved stay open beside each other.
    """

    def __init__(self, *, model: str, response_id: str) -> None:
        self._model, self._id = model, response_id
        self._usage = Usage()
        self._started = False
        self._next = 0
        self._open: tuple[str, int] | None = None
        self._calls: dict[int, _Call] = {}

    def encode(self, item: Item) -> bytes:
        """Return the events of one item; b"" for a notice."""
        if isinstance(item, UsageItem):
            self._usage = item.usage
            return b""
        if isinstance(item, TextItem):
            return self._begin() + self._piece("text", item.text) if item.text else b""
        if isinstance(item, ReasoningItem):
            return self._begin() + self._reasoning(item)
        if isinstance(item, ToolCallItem):
            return self._begin() + self._call(item)
        if isinstance(item, Finish):
            return self._end(item)
        return b""

    def error(self, exc: WindlassError) -> bytes:
        """Return the error event; the SDK raises on it, and does not on a stream that just ends."""
        return _event("error", **error_data(exc)[1])

    def _begin(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": encode_usage(self._usage),
        }
        return _event("message_start", message=message)

    def _close(self, *, all_calls: bool = False) -> bytes:
        """Close the open text or thinking block, and the calls that are whole."""
        out = b""
        if self._open is not None:
            out = _event("content_block_stop", index=self._open[1])
            self._open = None
        for call in self._calls.values():
            if call.block is not None and not call.closed and (all_calls or call.whole()):
                call.closed = True
                out += _event("content_block_stop", index=call.block)
        return out

    def _start(self, block: dict[str, Any]) -> bytes:
        self._next += 1
        return _event("content_block_start", index=self._next - 1, content_block=block)

    def _within(self, kind: str) -> bytes:
        """Open a text or thinking block unless one is open."""
        if self._open is not None and self._open[0] == kind:
            return b""
        start = {"type": "text", "text": ""} if kind == "text" else {"type": kind, "thinking": "", "signature": ""}
        out = self._close() + self._start(start)
        self._open = (kind, self._next - 1)
        return out

    def _piece(self, kind: str, text: str) -> bytes:
        opened = self._within(kind)
        return opened + _delta(self._next - 1, f"{kind}_delta", **{kind: text})

    def _reasoning(self, item: ReasoningItem) -> bytes:
        own = own_fields(item.provider_metadata)
        if data := as_str(own.get("redacted_data")):
            return self._whole({"type": "redacted_thinking", "data": data})
        out = self._piece("thinking", item.text) if item.text else b""
        if signature := as_str(own.get("signature")):
            out += self._within("thinking") + _delta(self._next - 1, "signature_delta", signature=signature)
            # The signature is over this block alone: what follows is another one.
            out += self._close()
        return out

    def _whole(self, block: dict[str, Any]) -> bytes:
        """Return a block that has no deltas."""
        return self._close() + self._start(block) + _event("content_block_stop", index=self._next - 1)

    def _call(self, item: ToolCallItem) -> bytes:
        call = self._calls.setdefault(item.index, _Call())
        call.id, call.name = call.id or item.id or "", call.name or item.name or ""
        if item.arguments:
            call.pieces.append(item.arguments)
        if call.block is None:
            return self._open_call(call) if call.name else b""
        if not item.arguments or call.closed:
            return b""
        return _delta(call.block, "input_json_delta", partial_json=item.arguments)

    def _open_call(self, call: _Call) -> bytes:
        call_id = wire_id(call.id or f"call_{self._next}", ANTHROPIC_IDS)
        out = self._close() + self._start({"type": "tool_use", "id": call_id, "name": call.name, "input": {}})
        call.block = self._next - 1
        if call.pieces:
            out += _delta(call.block, "input_json_delta", partial_json="".join(call.pieces))
        return out

    def _end(self, finish: Finish) -> bytes:
        self._usage = finish.usage
        out = self._begin()
        silent = not self._next and not self._calls
        for call in self._calls.values():
            out += self._open_call(call) if call.block is None else b""
        for number, part in enumerate(finish.message.parts):
            # An answer that came whole was not streamed; blocks of the vendor's own kinds never are.
            if silent or isinstance(part, UnknownPart):
                out += self._part(number, part)
        out += self._close(all_calls=True)
        if finish.reason in ("interrupted", "error"):
            cut = "The answer was cut short upstream; what came before is partial."
            return out + self.error(StreamInterrupted(cut))
        delta, usage = answer_head(finish), encode_usage(finish.usage)
        out += _event("message_delta", delta=delta, usage=usage, **applied_edits(finish))
        return out + _event("message_stop")

    def _part(self, number: int, part: Part) -> bytes:
        if isinstance(part, UnknownPart):
            block = answer_block(part)
            return b"" if block is None else self._whole(block)
        # A new part is a new block, also where one of its kind is open.
        return self._close() + b"".join([self.encode(item) for item in _items(number, part)])


def _items(number: int, part: Part) -> list[Item]:
    """Return the items of a part that came without deltas."""
    if isinstance(part, Text):
        return [TextItem(part.content)]
    if isinstance(part, Reasoning):
        return [ReasoningItem(part.content, part.provider_metadata)]
    if isinstance(part, ToolCall):
        return [ToolCallItem(number, part.id, part.name, dumps(part.arguments).decode() if part.arguments else "")]
    return []


def _as_items(finish: Finish) -> list[Item]:
    return [*[item for number, part in enumerate(finish.message.parts) for item in _items(number, part)], finish]


def _event(name: str, **fields: Any) -> bytes:
    return encode_sse(dumps({"type": name, **fields}), name)


def _delta(index: int, kind: str, **fields: str) -> bytes:
    return _event("content_block_delta", index=index, delta={"type": kind, **fields})
