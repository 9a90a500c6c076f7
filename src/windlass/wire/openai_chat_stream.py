"""OpenAI chat-completions streams, both ways, and whole answers.

Source: platform.openai.com/docs/api-reference/chat-streaming.
"""

from __future__ import annotations

from typing import Any

from windlass.core.errors import ProviderError, StreamInterrupted, WindlassError, WireError
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem
from windlass.core.json import dumps
from windlass.core.messages import Message, Reasoning, Text, ToolCall
from windlass.wire.base import OPENAI_IDS, as_list, load_json, load_object, wire_id
from windlass.wire.openai_chat_answer import (
    call_data,
    encode_chat_error,
    encode_usage,
    told_finish_reason,
    vendor_fields,
)
from windlass.wire.openai_chat_read import AnswerReader
from windlass.wire.sse import MAX_EVENT, SseDecoder, SseEvent, encode_sse

__all__ = ["ChatStreamDecoder", "ChatStreamEncoder", "decode_response"]


def decode_response(body: bytes) -> Finish:
    """Read a whole answer; the choices after the first are kept in `provider_metadata["openai"]["choices"]`.

    Raises WireError, or the classified ProviderError when the body holds an error.
    """
    finish = AnswerReader().take_whole(load_object(body))[-1]
    assert isinstance(finish, Finish)
    return finish


class ChatStreamDecoder:
    """Read one stream (`StreamDecoder`): `[DONE]` ends it, and so does its end once a finish_reason was seen.

    A server that ignores `stream` and answers with one JSON object is read as well; a web page is a WireError.
    """

    __slots__ = ("_done", "_plain", "_reader", "_sniffed", "_sse")

    def __init__(self) -> None:
        self._sse = SseDecoder()
        self._reader = AnswerReader()
        self._done = False
        self._sniffed = False
        self._plain: bytearray | None = None

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes, split anywhere, and return the items they complete."""
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
            for event in self._sse.feed(data):
                if self._event(event, out):
                    break
        except ProviderError as error:
            error.partial = self._reader.assembler.text
            raise
        return out

    def close(self) -> list[Item]:
        """End the body. Raises StreamInterrupted, with the text so far, when nothing said that the answer is whole."""
        out: list[Item] = []
        if self._done:
            return out
        self._done = True
        reader = self._reader
        if self._plain is not None:
            return reader.take_whole(load_object(bytes(self._plain)))
        try:
            # Some servers leave out the last blank line; half an event is not one.
            for event in self._sse.close():
                if self._event(event, out):
                    return out
        except WireError:
            pass
        except ProviderError as error:
            error.partial = reader.assembler.text
            raise
        if reader.raw is None:
            raise StreamInterrupted(
                "The stream ended before the model had finished.",
                partial=reader.assembler.text,
                hint="The text so far is kept; ask again for the rest.",
            )
        return reader.finish(out)

    def _sniff(self, data: bytes) -> None:
        start = data.lstrip(b"\xef\xbb\xbf \t\r\n")
        if not start:
            return
        self._sniffed = True
        if start[:1] == b"{":
            self._plain = bytearray()
        elif start[:1] == b"<":
            load_json(data, "The stream")

    def _event(self, event: SseEvent, out: list[Item]) -> bool:
        name, data = event
        if len(data) < 16 and (word := data.strip()) in (b"[DONE]", b""):
            if word:
                self._done = True
                self._reader.finish(out)
            return bool(word)
        chunk = load_object(data, "A chunk of the stream")
        if name == "error" and not chunk.keys() & {"error", "choices"}:
            chunk = {"error": chunk}
        out += self._reader.take(chunk)
        return False


class ChatStreamEncoder:
    """Write one stream (`StreamEncoder`). `include_usage` adds OpenAI's last chunk, which has usage and no choices.

    `begun` goes on with a stream of which the client has the beginning: no role comes again.
    """

    def __init__(
        self, *, model: str, response_id: str, created: int, include_usage: bool = True, begun: bool = False
    ) -> None:
        head = {"id": response_id, "object": "chat.completion.chunk", "created": created, "model": model}
        # Everything but the delta is the same in every chunk: encoded once.
        self._head = dumps(head)[:-1] + b',"choices":['
        self._begun = begun
        self._usage = include_usage
        self._names: dict[int, str] = {}
        self._at: dict[int, int] = {}

    def encode(self, item: Item) -> bytes:
        """Return the chunks of one item; usage goes out at the end, notices not at all."""
        if isinstance(item, TextItem):
            return self._delta(b'"content":' + dumps(item.text)) if item.text else b""
        if isinstance(item, ReasoningItem):
            fields: dict[str, Any] = {"reasoning_content": item.text} if item.text else {}
            details = as_list(vendor_fields(item.provider_metadata).get("reasoning_details"))
            if details:
                fields["reasoning_details"] = details
            return self._delta(dumps(fields)[1:-1]) if fields else b""
        if isinstance(item, ToolCallItem):
            return self._call(item)
        return self._finish(item) if isinstance(item, Finish) else b""

    def error(self, exc: WindlassError) -> bytes:
        """Return the error event; no `[DONE]` follows, so that no client takes the answer for whole."""
        return encode_sse(encode_chat_error(exc)[1])

    def _delta(self, fields: bytes, reason: bytes = b"null") -> bytes:
        if not self._begun:
            self._begun = True
            fields = b'"role":"assistant"' + (b"," + fields if fields else b"")
        choice = b'{"index":0,"delta":{' + fields + b'},"logprobs":null,"finish_reason":' + reason + b"}]}"
        return b"data: " + self._head + choice + b"\n\n"

    def _call(self, item: ToolCallItem) -> bytes:
        at = self._at.setdefault(item.index, len(self._at))
        entry: dict[str, Any] = {"index": at}
        function: dict[str, Any] = {"arguments": item.arguments}
        known = self._names.get(at)
        if known is None:
            entry["id"] = wire_id(item.id or f"call_{at}", OPENAI_IDS)
            entry["type"] = "function"
            function["name"] = self._names[at] = item.name or ""
        elif item.name and item.name != known:
            self._names[at] = known + item.name
            function["name"] = item.name
        entry["function"] = function
        entry.update(vendor_fields(item.provider_metadata))
        return self._delta(dumps({"tool_calls": [entry]})[1:-1])

    def _finish(self, finish: Finish) -> bytes:
        out = b"" if self._begun else b"".join([self.encode(item) for item in _items(finish.message)])
        if finish.reason in ("interrupted", "error"):
            return out + self.error(
                StreamInterrupted("The answer was cut short upstream; what came before is partial.")
            )
        out += self._delta(b"", dumps(told_finish_reason(finish)))
        if self._usage:
            usage = dumps(encode_usage(finish.usage, finish.cost))
            out += b"data: " + self._head + b'],"usage":' + usage + b"}\n\n"
        return out + b"data: [DONE]\n\n"


def _items(message: Message) -> list[Item]:
    """Return the items of a message that came without deltas."""
    out: list[Item] = []
    calls = 0
    for part in message.parts:
        if isinstance(part, Text):
            out.append(TextItem(part.content))
        elif isinstance(part, Reasoning):
            out.append(ReasoningItem(part.content, part.provider_metadata))
        elif isinstance(part, ToolCall):
            text = call_data(part)["function"]["arguments"]
            out.append(ToolCallItem(calls, part.id, part.name, text, part.provider_metadata))
            calls += 1
    return out
