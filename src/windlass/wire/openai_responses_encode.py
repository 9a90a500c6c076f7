"""OpenAI Responses streams, to the client: items become the full sequence of events, numbered without gaps.

Source: platform.openai.com/docs/api-reference/responses-streaming. Output items follow each other; only calls whose
pieces come interleaved stay open beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from windlass.core.errors import StreamInterrupted, WindlassError
from windlass.core.items import Finish, Item, ReasoningItem, TextItem, ToolCallItem, merge_metadata
from windlass.core.json import dumps
from windlass.core.messages import Metadata, Reasoning, Text, ToolCall, UnknownPart
from windlass.wire.base import as_dict, as_list, as_str, load_object, wire_id
from windlass.wire.openai_chat_answer import encode_error
from windlass.wire.openai_responses_answer import (
    CUSTOM,
    IDS,
    KEY,
    call_item,
    custom_input,
    custom_names,
    encode_usage,
    failure_code,
    finish_status,
    item_id,
    message_item,
    own_fields,
    own_item,
    reasoning_item,
    response_object,
)
from windlass.wire.sse import encode_sse

__all__ = ["ResponsesStreamEncoder"]


class _Open:
    """A message or reasoning item that text is added to."""

    def __init__(self, place: int, identity: str, kind: str) -> None:
        self.place, self.identity, self.kind = place, identity, kind
        self.pieces: list[str] = []
        #: A reasoning item as its vendor made it.
        self.own: dict[str, Any] = {}
        self.metadata: Metadata | None = None
        self.signed = False


class _Call:
    """A call while its pieces arrive; `place` is None until it was announced."""

    def __init__(self) -> None:
        self.id = self.name = self.kind = self.identity = ""
        self.rest: dict[str, Any] = {}
        self.pieces: list[str] = []
        self.place: int | None = None
        self.closed = False

    def whole(self) -> bool:
        """True when the arguments are a whole JSON value: nothing more can come."""
        try:
            msgspec.json.decode("".join(self.pieces))
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            return False
        return True


class ResponsesStreamEncoder:
    """Write one stream (`StreamEncoder`). `echo` is what the response repeats of the request (`echo_fields`).

    `response` is the response object as it was told last, {} before anything was.
    """

    def __init__(self, *, model: str, response_id: str, created: int, echo: Mapping[str, Any] | None = None) -> None:
        self._head: dict[str, Any] = {"model": model, "response_id": response_id, "created": created}
        self._echo: dict[str, Any] = dict(echo or {})
        self.response: dict[str, Any] = {}
        self._custom = custom_names(self._echo)
        self._number = 0
        #: The output items by their place; None while one is made.
        self._output: list[dict[str, Any] | None] = []
        self._open: _Open | None = None
        self._calls: dict[int, _Call] = {}
        self._foreign: list[dict[str, Any]] = []
        #: How many items of the run of reasoning that goes on were begun.
        self._run = 0

    def encode(self, item: Item) -> bytes:
        """Return the events of one item; usage goes out at the end, notices not at all."""
        if isinstance(item, TextItem):
            return self._begin() + self._text(item.text) if item.text else b""
        if isinstance(item, ReasoningItem):
            return self._begin() + self._reasoning(item)
        if isinstance(item, ToolCallItem):
            return self._begin() + self._call(item)
        return self._finish(item) if isinstance(item, Finish) else b""

    def error(self, exc: WindlassError) -> bytes:
        """Return an `error` event, on which the official SDKs raise, and `response.failed`, which ends the response."""
        fields = as_dict(load_object(encode_error(exc)[1]).get("error"))
        flat = {"code": fields.get("code"), "message": fields.get("message"), "param": fields.get("param")}
        failed = {"code": failure_code(exc), "message": fields.get("message")}
        return self._event("error", **flat, error=fields) + self._lifecycle("failed", error=failed)

    # ------------------------------------------------------------------------------------------------- events

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return encode_sse(dumps({"type": kind, "sequence_number": self._number - 1, **fields}), kind)

    def _lifecycle(self, status: str, name: str = "", **fields: Any) -> bytes:
        output = [item for item in self._output if item is not None]
        self.response = response_object(**self._head, status=status, output=output, echo=self._echo, **fields)
        return self._event(f"response.{name or status}", response=self.response)

    def _begin(self) -> bytes:
        if self._number:
            return b""
        return self._lifecycle("in_progress", "created") + self._lifecycle("in_progress")

    def _added(self, item: dict[str, Any]) -> bytes:
        """Announce an item at the next place."""
        self._output.append(None)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _done(self, place: int, item: dict[str, Any]) -> bytes:
        self._output[place] = item
        return self._event("response.output_item.done", output_index=place, item=item)

    def _whole(self, item: dict[str, Any]) -> bytes:
        """Return the events of an item that has no deltas of ours."""
        item = {"id": self._identity(as_str(item.get("type"))), **item}
        return self._added(item) + self._done(len(self._output) - 1, item)

    def _identity(self, kind: str) -> str:
        return item_id(kind, self._head["response_id"], len(self._output))

    # ------------------------------------------------------------------------------------- text and reasoning

    def _text(self, text: str, kind: str = "output_text") -> bytes:
        out = b""
        if self._open is None or self._open.kind != kind:
            out = self._close() + self._open_message(kind)
        self._run = 0
        return out + self._delta(kind, text)

    def _open_message(self, kind: str) -> bytes:
        opened = self._open = _Open(len(self._output), self._identity("message"), kind)
        out = self._added(message_item(opened.identity, [], "in_progress"))
        return out + self._part("response.content_part.added", "content_index", _content(kind, ""))

    def _delta(self, kind: str, text: str) -> bytes:
        """Return the delta of what is open: kind is output_text, refusal or reasoning_summary_text."""
        opened = self._open
        assert opened is not None
        opened.pieces.append(text)
        index = "summary_index" if kind == "reasoning_summary_text" else "content_index"
        more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
        return self._event(f"response.{kind}.delta", **self._where(index), delta=text, **more)

    def _where(self, index: str) -> dict[str, Any]:
        opened = self._open
        assert opened is not None
        return {"item_id": opened.identity, "output_index": opened.place, index: 0}

    def _part(self, kind: str, index: str, part: dict[str, Any]) -> bytes:
        return self._event(kind, **self._where(index), part=part)

    def _reasoning(self, item: ReasoningItem) -> bytes:
        out = b""
        items = [as_dict(entry) for entry in as_list(own_fields(item.provider_metadata).get("items"))]
        for at, entry in enumerate(items):
            if entry.get("type") != "reasoning":
                if at >= self._run:
                    out += self._close() + self._whole(entry)
                    self._foreign.append(entry)
            elif at >= self._run:
                out += self._close() + self._open_reasoning(entry)
            elif self._open is not None and self._open.kind == "reasoning" and at == self._run - 1:
                self._open.own = entry
            self._run = max(self._run, at + 1)
        foreign = {key: value for key, value in (item.provider_metadata or {}).items() if key != KEY}
        if item.text or foreign:
            out += self._think(item.text, foreign)
        if items and not item.text:
            # As its vendor made it: nothing is added to it.
            out += self._close()
        return out

    def _think(self, text: str, foreign: Metadata) -> bytes:
        out = b""
        opened = self._open
        if opened is None or opened.kind != "reasoning" or opened.signed:
            # A signature is over what came before it: what follows is another item.
            out = self._close() + self._open_reasoning({})
            opened = self._open
        assert opened is not None
        if foreign:
            opened.metadata = merge_metadata(opened.metadata, foreign)
            opened.signed = not text
        if not text:
            return out
        if not opened.pieces:
            text = text.removeprefix("\n\n") or text
            part = {"type": "summary_text", "text": ""}
            out += self._part("response.reasoning_summary_part.added", "summary_index", part)
        return out + self._delta("reasoning_summary_text", text)

    def _open_reasoning(self, own: dict[str, Any]) -> bytes:
        identity = as_str(own.get("id")) or self._identity("reasoning")
        self._open = _Open(len(self._output), identity, "reasoning")
        self._open.own = own
        return self._added({"id": identity, "type": "reasoning", "summary": []})

    def _close(self, status: str = "completed", *, all_calls: bool = False) -> bytes:
        """Close the open text or reasoning, and the calls that are whole."""
        out = b""
        if self._open is not None:
            out = self._close_reasoning() if self._open.kind == "reasoning" else self._close_message(status)
            self._open = None
        for call in self._calls.values():
            if call.place is not None and not call.closed and (all_calls or call.whole()):
                out += self._close_call(call, status)
        return out

    def _close_message(self, status: str) -> bytes:
        opened = self._open
        assert opened is not None
        text, kind = _joined(opened.pieces), opened.kind
        part = _content(kind, text)
        done: dict[str, Any] = {"refusal": text} if kind == "refusal" else {"text": text, "logprobs": []}
        out = self._event(f"response.{kind}.done", **self._where("content_index"), **done)
        out += self._part("response.content_part.done", "content_index", part)
        return out + self._done(opened.place, message_item(opened.identity, [part], status))

    def _close_reasoning(self) -> bytes:
        opened = self._open
        assert opened is not None
        text, out = _joined(opened.pieces), b""
        if text:
            where = self._where("summary_index")
            part = {"type": "summary_text", "text": text}
            out = self._event("response.reasoning_summary_text.done", **where, text=text)
            out += self._event("response.reasoning_summary_part.done", **where, part=part)
        made = reasoning_item(opened.identity, text, opened.metadata)
        told = {**made, **opened.own}
        if not opened.own.get("summary") and not opened.own.get("content"):
            told["summary"] = made["summary"]
        return out + self._done(opened.place, {**told, "id": opened.identity})

    # -------------------------------------------------------------------------------------------------- calls

    def _call(self, item: ToolCallItem) -> bytes:
        call = self._calls.setdefault(item.index, _Call())
        call.id, call.name = call.id or item.id or "", call.name or item.name or ""
        call.rest.update(own_fields(item.provider_metadata))
        if item.arguments and not call.closed:
            call.pieces.append(item.arguments)
        if call.place is None:
            return self._open_call(call) if call.name else b""
        if not item.arguments or call.closed or call.kind == CUSTOM:
            return b""
        return self._argue(call, item.arguments)

    def _open_call(self, call: _Call) -> bytes:
        out = self._close()
        self._run = 0
        call.kind = CUSTOM if call.rest.get("type") == CUSTOM or call.name in self._custom else "function_call"
        call.place, call.identity = len(self._output), self._identity(call.kind)
        call.id = wire_id(call.id or f"call_{call.place}", IDS)
        out += self._added(self._call_item(call, "", "in_progress"))
        return out + self._argue(call, "".join(call.pieces)) if call.pieces and call.kind != CUSTOM else out

    def _call_item(self, call: _Call, text: str, status: str) -> dict[str, Any]:
        rest = {key: value for key, value in call.rest.items() if key != "type"}
        given = {"input": text} if call.kind == CUSTOM else {"arguments": text}
        head = {"id": call.identity, "type": call.kind, "call_id": call.id, "name": call.name}
        return {**rest, **head, **given, "status": status}

    def _argue(self, call: _Call, text: str) -> bytes:
        where = {"item_id": call.identity, "output_index": call.place}
        return self._event("response.function_call_arguments.delta", **where, delta=text)

    def _close_call(self, call: _Call, status: str) -> bytes:
        assert call.place is not None
        call.closed = True
        text, out = _joined(call.pieces), b""
        where = {"item_id": call.identity, "output_index": call.place}
        if call.kind == CUSTOM:
            try:
                arguments: Any = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
                arguments = None
            text = custom_input(as_dict(arguments), text)
            out = self._event("response.custom_tool_call_input.delta", **where, delta=text)
            out += self._event("response.custom_tool_call_input.done", **where, input=text)
            return out + self._done(call.place, self._call_item(call, text, status))
        if not text and status == "completed":
            # Clients read it as JSON.
            text, out = "{}", self._argue(call, "{}")
        out += self._event("response.function_call_arguments.done", **where, name=call.name, arguments=text)
        return out + self._done(call.place, self._call_item(call, text, status))

    # ---------------------------------------------------------------------------------------------- the end

    def _finish(self, finish: Finish) -> bytes:
        out = self._begin()
        silent = not self._output and not self._calls
        for call in self._calls.values():
            if call.place is None:
                out += self._open_call(call)
        for number, part in enumerate(finish.message.parts):
            # An answer that came whole was not streamed; items of the vendor's own kinds may not have been.
            if silent:
                out += self._whole_part(number, part, refused=finish.reason == "refusal")
            elif isinstance(part, UnknownPart):
                out += self._unknown(part)
        status, details = finish_status(finish.reason, refusal_told=silent and bool(finish.message.text))
        out += self._close("completed" if details is None else "incomplete", all_calls=True)
        if finish.reason in ("interrupted", "error"):
            return out + self.error(
                StreamInterrupted("The answer was cut short upstream; what came before is partial.")
            )
        self._echo.update(own_fields(finish.provider_metadata))
        usage = encode_usage(finish.usage, finish.cost)
        return out + self._lifecycle(status, incomplete_details=details, usage=usage)

    def _unknown(self, part: UnknownPart) -> bytes:
        item = own_item(part)
        return b"" if item is None or item in self._foreign else self._close() + self._whole(item)

    def _whole_part(self, number: int, part: Any, *, refused: bool) -> bytes:
        if isinstance(part, Text):
            # A new part is a new item, also where one of its kind is open.
            return self._close() + self._text(part.content, "refusal" if refused else "output_text")
        if isinstance(part, Reasoning):
            self._run = 0
            return self._close() + self._reasoning_part(part)
        if isinstance(part, ToolCall):
            text = as_str(call_item(part).get("arguments")) or dumps(part.arguments or {}).decode()
            return self._call(ToolCallItem(number, part.id, part.name, text, part.provider_metadata))
        return self._unknown(part) if isinstance(part, UnknownPart) else b""

    def _reasoning_part(self, part: Reasoning) -> bytes:
        items = as_list(own_fields(part.provider_metadata).get("items"))
        text = "" if items else part.content
        return self._reasoning(ReasoningItem(text, part.provider_metadata))


def _content(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _joined(pieces: list[str]) -> str:
    # The halves of a surrogate pair may have come in different pieces.
    return "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
