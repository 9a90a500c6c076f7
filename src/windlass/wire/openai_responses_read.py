"""Read what an OpenAI Responses server answers, event by event; a whole answer is read as its items being done.

The output's items come out in the order of their `output_index`, whatever the order of their events. A server that
leaves out deltas, `done` events or the output in `response.completed` is read all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windlass.core.errors import WireError
from windlass.core.items import (
    Assembler,
    Finish,
    FinishReason,
    Item,
    ReasoningItem,
    TextItem,
    ToolCallItem,
    UsageItem,
    parse_arguments,
)
from windlass.core.json import dumps
from windlass.core.messages import Message, Part, Reasoning, Text, ToolCall, UnknownPart
from windlass.core.usage import Usage
from windlass.wire.base import as_dict, as_int, as_list, as_str, excerpt
from windlass.wire.openai_chat_answer import decode_cost
from windlass.wire.openai_responses_answer import (
    CUSTOM,
    KEY,
    decode_failure,
    decode_usage,
    own_fields,
    reasoning_text,
    unseal,
)

__all__ = ["AnswerReader"]

#: Fields of the response that tell of the answer and not of the request.
_KEPT = ("service_tier", "moderation", "tool_usage", "prompt_cache_diagnostics", "system_fingerprint")
_CALL_REST = frozenset(("id", "type", "status", "call_id", "name", "arguments", "input"))
_REASONS: dict[str, FinishReason] = {
    "max_output_tokens": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "steered": "stop",
}
#: Reasons after which the last call may have been cut before its arguments began.
_CUT = ("length", "interrupted", "content_filter")
_CALLS = ("function_call", CUSTOM)


class _Slot:
    """One output item while it is made. `said` holds the pieces told so far, by the part they belong to."""

    __slots__ = ("call", "done", "item", "said")

    def __init__(self) -> None:
        self.item: dict[str, Any] = {}
        self.said: dict[Any, list[str]] = {}
        self.call: int | None = None
        self.done = False

    @property
    def kind(self) -> str:
        return as_str(self.item.get("type"))


class AnswerReader:
    """Turn decoded events (or one whole answer) into items, and keep what `Finish` needs.

    `raw` is None until the answer has ended; `assembler` holds the text so far.
    """

    def __init__(self) -> None:
        self.assembler = Assembler()
        self.raw: str | None = None
        self._slots: dict[int, _Slot] = {}
        self._places: dict[str, int] = {}
        self._calls: list[str] = []
        #: The reasoning items, and those without a word of ours, since the last text or call.
        self._run: list[dict[str, Any]] = []
        self._thought = False
        self._usage: Usage | None = None
        self._head: dict[str, Any] = {}
        self._end: dict[str, Any] = {}

    def take(self, kind: str, event: dict[str, Any]) -> list[Item]:
        """Return the items of one event, the Finish with the last; unknown kinds give none. Raises what it reports."""
        out: list[Item] = []
        if kind in ("response.completed", "response.incomplete", "response.failed", "response.done"):
            self._finish(as_dict(event.get("response")), kind, out)
        elif kind in ("error", "response.error") or (not kind and event.get("error")):
            raise decode_failure(event.get("error") or event)
        elif (taker := self._takers.get(kind)) is not None:
            taker(self, event, out)
        return out

    def take_whole(self, response: dict[str, Any]) -> list[Item]:
        """Return the items and the Finish of a whole answer. Raises WireError when it is none."""
        status = response.get("status")
        if status == "failed" or response.get("error"):
            raise decode_failure(response.get("error") or {})
        if not isinstance(response.get("output"), list):
            raise WireError(f"The answer has no output: {excerpt(dumps(response))!r}.")
        if status in ("queued", "in_progress"):
            raise WireError("The answer is still being made: the server works in the background.")
        out: list[Item] = []
        self._finish(response, "response.done", out)
        return out

    # ------------------------------------------------------------------------------------------------- events

    def _begin(self, event: dict[str, Any], out: list[Item]) -> None:  # noqa: ARG002 - one signature for all takers
        self._head = self._head or as_dict(event.get("response"))

    def _place(self, event: dict[str, Any]) -> int:
        """Return the place of the item that an event is about; some servers leave `output_index` out."""
        index: Any = event.get("output_index")
        if isinstance(index, int) and not isinstance(index, bool):
            return index
        known = self._places.get(as_str(event.get("item_id")) or as_str(as_dict(event.get("item")).get("id")))
        if known is not None:
            return known
        return len(self._slots) if "item" in event else max(self._slots, default=0)

    def _added(self, event: dict[str, Any], out: list[Item]) -> None:
        item = as_dict(event.get("item"))
        slot = self._open(self._place(event), item)
        if slot.kind in _CALLS:
            self._call(slot, out)

    def _open(self, index: int, item: dict[str, Any]) -> _Slot:
        slot = self._slots.get(index)
        if slot is None:
            slot = self._slots[index] = _Slot()
        if not slot.item or item:
            slot.item = {**slot.item, **item}
        if identity := as_str(item.get("id")):
            self._places[identity] = index
        return slot

    def _slot(self, event: dict[str, Any], kind: str) -> _Slot:
        """Return the slot of a delta, opened where the server never announced it."""
        index = self._place(event)
        return self._slots.get(index) or self._open(index, {"type": kind, "id": event.get("item_id")})

    def _text(self, event: dict[str, Any], out: list[Item]) -> None:
        key = ("content", as_int(event.get("content_index")))
        self._say(self._slot(event, "message"), key, as_str(event.get("delta")), out)

    def _text_done(self, event: dict[str, Any], out: list[Item]) -> None:
        whole = as_str(event.get("text")) or as_str(event.get("refusal"))
        slot, key = self._slot(event, "message"), ("content", as_int(event.get("content_index")))
        self._say(slot, key, _rest(slot, key, whole), out)

    def _summary(self, event: dict[str, Any], out: list[Item]) -> None:
        self._think(self._slot(event, "reasoning"), ("summary", as_int(event.get("summary_index"))), _piece(event), out)

    def _thinking(self, event: dict[str, Any], out: list[Item]) -> None:
        self._think(self._slot(event, "reasoning"), ("content", as_int(event.get("content_index"))), _piece(event), out)

    def _arguments(self, event: dict[str, Any], out: list[Item]) -> None:
        slot = self._slot(event, "function_call")
        self._argue(slot, as_str(event.get("delta")), out)

    def _arguments_done(self, event: dict[str, Any], out: list[Item]) -> None:
        slot = self._slot(event, "function_call")
        self._argue(slot, _rest(slot, "arguments", as_str(event.get("arguments"))), out)

    def _input(self, event: dict[str, Any], out: list[Item]) -> None:
        self._argue(self._slot(event, CUSTOM), as_str(event.get("delta")), out)

    def _done(self, event: dict[str, Any], out: list[Item]) -> None:
        item = as_dict(event.get("item"))
        self._complete(self._open(self._place(event), item), out)

    _takers: dict[str, Callable[[AnswerReader, dict[str, Any], list[Item]], None]] = {
        "response.created": _begin,
        "response.in_progress": _begin,
        "response.output_item.added": _added,
        "response.output_item.done": _done,
        "response.output_text.delta": _text,
        "response.output_text.done": _text_done,
        "response.refusal.delta": _text,
        "response.refusal.done": _text_done,
        "response.reasoning_summary_text.delta": _summary,
        "response.reasoning_text.delta": _thinking,
        "response.function_call_arguments.delta": _arguments,
        "response.function_call_arguments.done": _arguments_done,
        "response.custom_tool_call_input.delta": _input,
    }

    # ------------------------------------------------------------------------------------------- what is told

    def _say(self, slot: _Slot, key: Any, text: str, out: list[Item]) -> None:
        if not text:
            return
        slot.said.setdefault(key, []).append(text)
        self._run, self._thought = [], False
        item = TextItem(text)
        self.assembler.add(item)
        out.append(item)

    def _think(self, slot: _Slot, key: Any, text: str, out: list[Item]) -> None:
        if not text:
            return
        pieces = slot.said.setdefault(key, [])
        metadata: dict[str, Any] | None = None
        if not pieces:
            text = f"\n\n{text}" if self._thought else text
            if not any(slot.said.values()) and slot.item.get("id"):
                # With the first words and not before: they are what makes an answer begun.
                stub = {"type": "reasoning", "id": slot.item["id"], "summary": []}
                metadata = {KEY: {"items": [*self._run, stub]}}
        pieces.append(text)
        self._thought = True
        out.append(ReasoningItem(text, metadata))

    def _call(self, slot: _Slot, out: list[Item]) -> None:
        """Tell of a call, once its name is known."""
        name = as_str(slot.item.get("name"))
        if slot.call is not None or not name:
            return
        slot.call = len(self._calls)
        call_id = as_str(slot.item.get("call_id")) or as_str(slot.item.get("id"))
        # An id that another call has could not be answered: left out, so that the assembler makes one.
        self._calls.append("" if call_id in self._calls else call_id)
        self._run, self._thought = [], False
        out.append(ToolCallItem(slot.call, self._calls[-1] or None, name, "", self._mark(slot)))
        if earlier := "".join(slot.said.get("arguments", ())):
            self._tell(slot, earlier, out, begun=False)

    def _mark(self, slot: _Slot) -> dict[str, Any] | None:
        rest = {key: value for key, value in slot.item.items() if key not in _CALL_REST and value is not None}
        if slot.kind == CUSTOM:
            rest["type"] = CUSTOM
        return {KEY: rest} if rest else None

    def _argue(self, slot: _Slot, text: str, out: list[Item]) -> None:
        if not text:
            return
        self._call(slot, out)
        pieces = slot.said.setdefault("arguments", [])
        begun = bool(pieces)
        pieces.append(text)
        if slot.call is not None:
            self._tell(slot, text, out, begun=begun)

    def _tell(self, slot: _Slot, text: str, out: list[Item], *, begun: bool) -> None:
        if slot.kind == CUSTOM:
            # The text that the tool takes is a string in the JSON that all others know.
            text = ("" if begun else '{"input":"') + dumps(text)[1:-1].decode()
        out.append(ToolCallItem(slot.call or 0, arguments=text))

    def _complete(self, slot: _Slot, out: list[Item]) -> None:
        """Tell what the deltas of an item left out."""
        if slot.done:
            return
        slot.done = True
        item, kind = slot.item, slot.kind
        if kind == "message":
            for at, part in enumerate(as_list(item.get("content"))):
                said = as_str(as_dict(part).get("text")) or as_str(as_dict(part).get("refusal"))
                self._say(slot, ("content", at), _rest(slot, ("content", at), said), out)
        elif kind in _CALLS:
            self._call(slot, out)
            self._argue(slot, _rest(slot, "arguments", as_str(item.get("arguments")) or as_str(item.get("input"))), out)
            if kind == CUSTOM and slot.call is not None:
                out.append(ToolCallItem(slot.call, arguments='"}' if "arguments" in slot.said else '{"input":""}'))
        else:
            if kind == "reasoning" and not any(slot.said.values()):
                self._think(slot, ("summary", 0), reasoning_text(item), out)
            self._run.append(item)
            if kind != "reasoning" or _worth_keeping(item):
                sealed = unseal(as_str(item.get("encrypted_content")))
                out.append(ReasoningItem("", sealed or {KEY: {"items": list(self._run)}}))

    # ---------------------------------------------------------------------------------------------- the end

    def _finish(self, response: dict[str, Any], kind: str, out: list[Item]) -> None:
        self._end = response
        status = as_str(response.get("status")) or kind.removeprefix("response.")
        if status == "failed" or kind == "response.failed":
            raise decode_failure(response.get("error") or {"message": "The response failed."})
        for index, item in enumerate(as_list(response.get("output"))):
            known = self._slots.get(index)
            if known is None or not known.done:
                self._complete(self._open(index, as_dict(item)), out)
        for slot in self._slots.values():
            if slot.kind == CUSTOM and not slot.done:
                self._complete(slot, out)
        usage = decode_usage(response.get("usage"))
        if usage is not None:
            self._usage = usage
            out.append(UsageItem(usage))
        details = as_str(as_dict(response.get("incomplete_details")).get("reason"))
        self.raw = details or status
        parts, refused = self._parts()
        reason = self._reason(status, details, refused)
        if reason in _CUT:
            parts = _without_cut(parts, self._slots)
        out.append(
            Finish(
                Message("assistant", tuple(parts), finish_reason=reason),
                usage=self._usage or Usage(estimated=True),
                reason=reason,
                model=as_str(response.get("model")) or as_str(self._head.get("model")) or None,
                response_id=as_str(response.get("id")) or as_str(self._head.get("id")) or None,
                cost=decode_cost(response.get("usage")),
                raw=self.raw,
                provider_metadata=self._kept(),
            )
        )

    def _reason(self, status: str, details: str, refused: bool) -> FinishReason:
        if status == "incomplete":
            return _REASONS.get(details, "interrupted")
        if status == "cancelled":
            return "interrupted"
        return "tool_call" if self._calls else "refusal" if refused else "stop"

    def _kept(self) -> dict[str, Any] | None:
        kept = {key: value for key in _KEPT if (value := self._end.get(key)) not in (None, "default", "auto")}
        return {KEY: kept} if kept else None

    def _parts(self) -> tuple[list[Part], bool]:
        """Return the message's parts, and whether one is a refusal."""
        out: list[Part] = []
        refused = False
        taken: set[str] = set()
        for index in sorted(self._slots):
            slot = self._slots[index]
            if slot.kind == "message":
                texts, no = _texts(slot)
                out, refused = out + texts, refused or no
            elif slot.kind == "reasoning":
                out = _thought(out, slot)
            elif slot.kind in _CALLS:
                out.append(self._tool_call(slot, taken))
            elif slot.kind:
                out.append(UnknownPart({"type": f"{KEY}.{slot.kind}", "item": slot.item}))
        return out, refused

    def _tool_call(self, slot: _Slot, taken: set[str]) -> ToolCall:
        number = slot.call or 0
        call_id = self._calls[number] if slot.call is not None else ""
        if not call_id or call_id in taken:
            call_id = f"call_{number}"
            while call_id in taken:
                call_id += "_"
        taken.add(call_id)
        name = as_str(slot.item.get("name"))
        if slot.kind == CUSTOM:
            given = as_str(slot.item.get("input")) or _joined(slot, "arguments")
            return ToolCall(call_id, name, {"input": given}, None, self._mark(slot))
        arguments, text = parse_arguments(as_str(slot.item.get("arguments")) or _joined(slot, "arguments"))
        return ToolCall(call_id, name, arguments, text, self._mark(slot))


def _piece(event: dict[str, Any]) -> str:
    return as_str(event.get("delta"))


def _joined(slot: _Slot, key: Any) -> str:
    text = "".join(slot.said.get(key, ()))
    # The halves of a surrogate pair may have come in different pieces.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _rest(slot: _Slot, key: Any, whole: str) -> str:
    """Return what of a whole text was not told yet."""
    said = _joined(slot, key)
    return whole[len(said) :] if whole.startswith(said) else ""


def _texts(slot: _Slot) -> tuple[list[Part], bool]:
    """Return the texts of a message, and whether one is a refusal; one that never was done as far as it came."""
    content = [as_dict(part) for part in as_list(slot.item.get("content"))]
    told = sum(1 for key in slot.said if key != "arguments")
    content += [{"type": "output_text"} for _ in range(told - len(content))]
    kept = {"phase": slot.item["phase"]} if slot.item.get("phase") else {}
    out: list[Part] = []
    refused = False
    keys = [key for key in slot.said if key != "arguments"]
    for at, part in enumerate(content):
        refused = refused or part.get("type") == "refusal"
        said = as_str(part.get("text")) or as_str(part.get("refusal"))
        text = said or (_joined(slot, keys[at]) if at < len(keys) else "")
        own = {**kept, **{key: part[key] for key in ("annotations", "logprobs") if part.get(key)}}
        if text:
            out.append(Text(text, {KEY: own} if own else None))
    return out, refused


def _thought(out: list[Part], slot: _Slot) -> list[Part]:
    """Add a reasoning item: those that follow each other are one part, as in a stream."""
    text = reasoning_text(slot.item) or "\n\n".join([_joined(slot, key).removeprefix("\n\n") for key in slot.said])
    sealed = unseal(as_str(slot.item.get("encrypted_content")))
    items = [slot.item] if sealed is None and _worth_keeping(slot.item) else []
    last = out[-1] if out else None
    if isinstance(last, Reasoning) and sealed is None:
        text = "\n\n".join([piece for piece in (last.content, text) if piece])
        items = [*as_list(own_fields(last.provider_metadata).get("items")), *items]
        out = out[:-1]
    metadata = sealed or ({KEY: {"items": items}} if items else None)
    return [*out, Reasoning(text, metadata)] if text or metadata else out


def _worth_keeping(item: dict[str, Any]) -> bool:
    """True for a reasoning item that holds more than what it says, which nobody needs to send back."""
    return bool(item.get("encrypted_content") or item.get("content"))


def _without_cut(parts: list[Part], slots: dict[int, _Slot]) -> list[Part]:
    """Mark a last call that was cut before its arguments began, so that it is not taken for one without any."""
    last = slots[max(slots)] if slots else None
    if last is None or last.kind != "function_call" or last.said or as_str(last.item.get("arguments")):
        return parts
    call = parts[-1]
    assert isinstance(call, ToolCall)
    return [*parts[:-1], ToolCall(call.id, call.name, None, "", call.provider_metadata)]
