"""What a provider's stream is made of, and the assembler that turns items into a message.

`Provider.stream(request)` yields any number of text, reasoning, tool-call, usage and notice items, then exactly one
`Finish`. Only the loop turns items into events; a gateway without a loop passes items on.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from windlass.core.messages import Message, Metadata, Part, Reasoning, Text, ToolCall
from windlass.core.usage import Usage

__all__ = [
    "Assembler",
    "Finish",
    "FinishReason",
    "Item",
    "NoticeItem",
    "ReasoningItem",
    "TextItem",
    "ToolCallItem",
    "UsageItem",
    "parse_arguments",
]

#: Why the model stopped (a superset of `gen_ai.response.finish_reasons`).
FinishReason = Literal["stop", "length", "tool_call", "content_filter", "refusal", "interrupted", "error"]


class TextItem(Struct, frozen=True, tag="text"):
    """A piece of text."""

    text: str


class ReasoningItem(Struct, frozen=True, tag="reasoning", omit_defaults=True):
    """A piece of reasoning, or the vendor's signature over it (in `provider_metadata`, with empty text)."""

    text: str
    provider_metadata: Metadata | None = None


class ToolCallItem(Struct, frozen=True, tag="tool_call", omit_defaults=True):
    """A piece of a tool call. `index` tells parallel calls apart; `arguments` is a piece of the JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    provider_metadata: Metadata | None = None


class UsageItem(Struct, frozen=True, tag="usage"):
    """Usage so far; a later one replaces an earlier one, and that of `Finish` wins."""

    usage: Usage


class NoticeItem(Struct, frozen=True, tag="notice", omit_defaults=True):
    """What happened on the way: a retry, a switch to another provider, a substituted model, a dropped setting.

    With "refreshed" a login was renewed; `detail` then has what the hook `oauth:refresh` tells, which holds secrets and
    goes nowhere else.
    """

    kind: Literal["retry", "switched", "substituted", "warning", "refreshed"]
    message: str
    provider: str | None = None
    model: str | None = None
    attempt: int | None = None
    delay: float | None = None
    detail: Any = None


class Finish(Struct, frozen=True, tag="finish", omit_defaults=True):
    """The end of a stream: the whole message, what it used, and why it ended.

    `model` is the id the provider says it used; `cost` is in nano-dollars when the provider reports one; `raw` is the
    vendor's own word for the reason.
    """

    message: Message
    usage: Usage = Usage(estimated=True)
    reason: FinishReason = "stop"
    model: str | None = None
    response_id: str | None = None
    cost: int | None = None
    raw: str | None = None
    provider_metadata: Metadata | None = None


Item: TypeAlias = TextItem | ReasoningItem | ToolCallItem | UsageItem | NoticeItem | Finish

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def parse_arguments(text: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """Return (arguments, text to keep) for the JSON text of a tool call.

    No text at all means no arguments: `{}`. The text is kept only where the compact form of the arguments differs
    from it. Text that is not a JSON object gives (None, text): the caller tells the model.
    """
    if text is None or not text.strip():
        return {}, None
    try:
        value = _decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None, text
    if not isinstance(value, dict):
        return ({}, text) if value is None else (None, text)
    try:
        same = _encode(value) == text.encode()  # pyright: ignore[reportUnknownArgumentType]
    except (OverflowError, UnicodeEncodeError):
        same = False
    return value, None if same else text  # pyright: ignore[reportUnknownVariableType]


class Assembler:
    """Collect items into a message: text and reasoning in order of arrival, calls in order of their index.

    Ids that are missing or repeated are replaced by `call_N`, unique within the message, so that every call can be
    answered exactly once.
    """

    __slots__ = ("_calls", "_order", "_run", "_run_kind", "_run_metadata")

    def __init__(self) -> None:
        self._order: list[Part | int] = []
        self._calls: dict[int, tuple[list[str | None], list[str], list[str], Metadata]] = {}
        self._run: list[str] = []
        self._run_kind: type[TextItem] | type[ReasoningItem] | None = None
        self._run_metadata: Metadata | None = None

    def add(self, item: Item) -> None:
        """Take one item; usage, notices and finish change nothing."""
        kind = type(item)
        if kind is TextItem:
            if self._run_kind is not TextItem:
                self._close()
                self._run_kind = TextItem
            self._run.append(item.text)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
        elif isinstance(item, ReasoningItem):
            if self._run_kind is not ReasoningItem:
                self._close()
                self._run_kind = ReasoningItem
            if item.text:
                self._run.append(item.text)
            if item.provider_metadata:
                self._run_metadata = merge_metadata(self._run_metadata, item.provider_metadata)
        elif isinstance(item, ToolCallItem):
            self._close()
            call = self._calls.get(item.index)
            if call is None:
                call = self._calls[item.index] = ([None], [], [], {})
                self._order.append(item.index)
            if item.id and call[0][0] is None:
                call[0][0] = item.id
            # Names come whole, or once more with each delta; some servers split them.
            if item.name and "".join(call[1]) != item.name:
                call[1].append(item.name)
            if item.arguments:
                call[2].append(item.arguments)
            if item.provider_metadata:
                call[3].update(item.provider_metadata)

    def block(self, part: Part) -> None:
        """Take a finished part that has no delta form (a vendor's own block)."""
        self._close()
        self._order.append(part)

    def end_block(self) -> None:
        """End the current text or reasoning part: what follows starts a new one."""
        self._close()

    def _close(self) -> None:
        if self._run_kind is TextItem:
            if self._run:
                self._order.append(Text(_whole("".join(self._run))))
        elif self._run_kind is ReasoningItem and (self._run or self._run_metadata):
            self._order.append(Reasoning("".join(self._run), self._run_metadata))
        self._run, self._run_kind, self._run_metadata = [], None, None

    @property
    def text(self) -> str:
        """The text so far."""
        done = "".join([part.content for part in self._order if isinstance(part, Text)])
        return done + "".join(self._run) if self._run_kind is TextItem else done

    def parts(self, *, calls: bool = True) -> tuple[Part, ...]:
        """Return the parts so far; `calls=False` leaves tool calls out (the stream broke before they were whole)."""
        self._close()
        if not self._calls:
            return tuple([part for part in self._order if not isinstance(part, int)])
        taken: set[str] = set()
        built: dict[int, ToolCall] = {}
        for number, index in enumerate(sorted(self._calls)):
            ids, names, pieces, extra = self._calls[index]
            call_id = ids[0]
            if call_id is None or call_id in taken:
                call_id = f"call_{number}"
                while call_id in taken:
                    call_id += "_"
            taken.add(call_id)
            arguments, text = parse_arguments("".join(pieces))
            built[index] = ToolCall(call_id, "".join(names), arguments, text, extra or None)
        ordered = iter(sorted(built))
        out: list[Part] = []
        for part in self._order:
            if not isinstance(part, int):
                out.append(part)
            elif calls:
                out.append(built[next(ordered)])
        return tuple(out)

    def message(self, *, calls: bool = True, finish_reason: str | None = None) -> Message:
        """Return the assistant message so far."""
        return Message("assistant", self.parts(calls=calls), finish_reason=finish_reason)


def _whole(text: str) -> str:
    """Join the halves of surrogate pairs that came in different pieces."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return text


def merge_metadata(old: Metadata | None, new: Metadata) -> Metadata:
    """Merge vendor metadata two levels deep: later keys win, strings of one key are joined (signatures come split)."""
    merged: Metadata = dict(old or {})
    for vendor, fields in new.items():
        before = merged.get(vendor)
        if isinstance(before, dict) and isinstance(fields, dict):
            both: dict[str, Any] = {**before}  # pyright: ignore[reportUnknownVariableType]
            for key, value in fields.items():  # pyright: ignore[reportUnknownVariableType]
                known = both.get(key)  # pyright: ignore[reportUnknownArgumentType]
                both[key] = known + value if isinstance(known, str) and isinstance(value, str) else value
            merged[vendor] = both
        else:
            merged[vendor] = fields
    return merged
