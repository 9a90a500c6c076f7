"""Read what an OpenAI chat-completions server answers, chunk by chunk; a whole answer is read as one chunk.

Vendors differ in tool-call indexes and ids, in where usage and reasoning are, and in how they report failure. All of
it is taken and comes out as normal items: each call's id and name once, indexes dense from 0 in order of appearance.
"""

from __future__ import annotations

import re
from typing import Any

from msgspec import structs

from windlass.core.errors import WireError
from windlass.core.items import (
    Assembler,
    Finish,
    Item,
    ReasoningItem,
    TextItem,
    ToolCallItem,
    UsageItem,
    parse_arguments,
)
from windlass.core.json import dumps
from windlass.core.messages import Metadata, Part, ToolCall
from windlass.core.usage import Usage
from windlass.wire.base import as_dict, as_list, as_str, excerpt
from windlass.wire.openai_chat_answer import KEY, decode_cost, decode_usage, error_in, finish_reason

__all__ = ["AnswerReader"]

_TOP = frozenset(("id", "object", "created", "model", "choices", "usage", "obfuscation", "x_groq"))
_CHOICE = frozenset(("index", "message", "delta", "finish_reason", "text", "usage"))
_STREAM_CHOICE = _CHOICE | {"logprobs"}
#: DeepSeek, vLLM and llama.cpp; OpenRouter, Groq and Cerebras. Some send both.
_REASONING = ("reasoning_content", "reasoning")
_MESSAGE = frozenset(("role", "content", "refusal", "tool_calls", "function_call", "reasoning_details", *_REASONING))
_PLAIN = frozenset(("role", "content"))
_CALL = frozenset(("id", "type", "index", "function"))
#: Reasons after which the last call may have been cut before its arguments began.
_CUT = ("length", "interrupted", "error", "content_filter")


_GRAMMAR_NAME = re.compile(r'"_name"\s*:\s*"([^"\\]+)"')


class _Call:
    """What is known of one call while its deltas arrive."""

    __slots__ = ("begun", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.begun = False


class AnswerReader:
    """Turn decoded chunks (or one whole answer) into items, and keep what `Finish` needs."""

    def __init__(self) -> None:
        self.assembler = Assembler()
        self.raw: str | None = None
        self._usage: Usage | None = None
        self._cost: int | None = None
        self._refused = False
        self._model: str | None = None
        self._id: str | None = None
        self._kept: Metadata = {}
        self._details: list[dict[str, Any]] = []
        self._calls: list[_Call] = []
        self._at: dict[int, int] = {}
        self._grammar: list[str] = []
        self._width = 0

    def take(self, data: dict[str, Any], key: str = "delta") -> list[Item]:
        """Return the items of one chunk; `key` is `message` for a whole answer. Raises the error a chunk holds."""
        if data.get("error"):
            raise error_in(data)
        # As many fields as the last chunk that was read in full: no new one to keep.
        if len(data) == self._width and (text := _plain_text(data)) is not None:
            out: list[Item] = []
            if text:
                self._end_reasoning(out)
                self._add(TextItem(text), out)
            return out
        self._width = len(data)
        if self._model is None:
            self._id, self._model = as_str(data.get("id")) or None, as_str(data.get("model")) or None
        if not data.keys() <= _TOP:
            self._kept.update({k: v for k, v in data.items() if k not in _TOP and v is not None})
        out = []
        usage: Any = data.get("usage") or as_dict(data.get("x_groq")).get("usage")
        choice = self._choice(data.get("choices"))
        if choice is not None:
            if choice.get("error"):
                raise error_in(choice)
            message = choice.get(key)
            if isinstance(message, dict):
                self._message(message, out, whole=key == "message")
            raw = choice.get("finish_reason")
            if isinstance(raw, str) and raw:
                self.raw = raw
            usage = usage or choice.get("usage")  # Moonshot
            if not choice.keys() <= _CHOICE:
                # A stream's logprobs come piece by piece; the last piece alone would mislead.
                self._keep("choice", choice, _CHOICE if key == "message" else _STREAM_CHOICE)
        if usage:
            self._take_usage(usage, out)
        return out

    def _choice(self, choices: Any) -> dict[str, Any] | None:
        # With n > 1 chunks of several choices come mixed: ours is the first.
        for choice in as_list(choices):
            if isinstance(choice, dict) and not choice.get("index"):
                return choice  # pyright: ignore[reportUnknownVariableType]
        return None

    def _take_usage(self, data: Any, out: list[Item]) -> None:
        usage, cost = decode_usage(data), decode_cost(data)
        self._cost = self._cost if cost is None else cost
        # Some repeat it with every chunk: each is the total so far, never to be added up.
        if usage is not None and usage != self._usage:
            self._usage = usage
            out.append(UsageItem(usage))

    def _keep(self, name: str, fields: dict[str, Any], known: frozenset[str]) -> None:
        rest = {k: v for k, v in fields.items() if k not in known and v is not None and v != []}
        if rest:
            self._kept[name] = {**as_dict(self._kept.get(name)), **rest}

    def _message(self, message: dict[str, Any], out: list[Item], *, whole: bool) -> None:
        content = message.get("content")
        text, thought = (content, "") if isinstance(content, str) else _chunks(content)
        if not message.keys() <= _PLAIN:
            thought = next((found for name in _REASONING if (found := as_str(message.get(name)))), thought)
            details = as_list(message.get("reasoning_details"))
            if details:
                thought = thought or _details_text(details)
                _merge_details(self._details, details)
            refusal = as_str(message.get("refusal"))
            self._refused = self._refused or bool(refusal)
            text += refusal
            if not message.keys() <= _MESSAGE:
                self._keep("message", message, _MESSAGE)
        if thought:
            self._add(ReasoningItem(thought), out)
        if text:
            self._end_reasoning(out)
            self._add(TextItem(text), out)
        calls = self._listed(message.get("tool_calls"))
        if not calls and isinstance(message.get("function_call"), dict):
            calls = [{"index": 0, "function": message["function_call"]}]
        if calls:
            self._end_reasoning(out)
            for position, entry in enumerate(calls):
                self._call(as_dict(entry), out, first=position == 0, whole=whole)

    def _listed(self, calls: Any) -> list[Any]:
        """Return the entries of `tool_calls`; TGI before 3.2 streams one object instead of an array.

        Without a name it holds a piece of `{"function": {"_name": ..., <arguments>}}`, which says what is called only
        once it is whole: kept until then.
        """
        if not isinstance(calls, dict):
            return as_list(calls)
        function = as_dict(calls.get("function"))
        if function.get("name") or (self._calls and not self._grammar):
            return [calls]
        self._grammar.append(as_str(function.get("arguments")))
        return []

    def _end_grammar(self, out: list[Item]) -> None:
        text, self._grammar = "".join(self._grammar), []
        # The end-of-turn token may stand behind the JSON.
        arguments = as_dict(as_dict(parse_arguments(text[: text.rfind("}") + 1])[0]).get("function"))
        name = as_str(arguments.pop("_name", None))
        if not name and (found := _GRAMMAR_NAME.search(text)):
            # Cut before its end: the call is told and cannot be run.
            name, arguments = found[1], text
        if name == "no_tool":
            self._add(TextItem(as_str(as_dict(arguments).get("content"))), out)
        elif name:
            self._call({"function": {"name": name, "arguments": arguments}}, out, first=True, whole=True)

    def _add(self, item: Item, out: list[Item]) -> None:
        self.assembler.add(item)
        out.append(item)

    def _end_reasoning(self, out: list[Item]) -> None:
        if self._details:
            self._add(ReasoningItem("", {KEY: {"reasoning_details": self._details}}), out)
            self._details = []

    def _call(self, entry: dict[str, Any], out: list[Item], *, first: bool, whole: bool) -> None:
        function = as_dict(entry.get("function"))
        call_id, name = as_str(entry.get("id")), as_str(function.get("name"))
        arguments: Any = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else dumps(arguments).decode()
        at = self._open(None if whole else _number(entry.get("index")), call_id, name, first=first, whole=whole)
        call = self._calls[at]
        new_id = new_name = None
        if call_id and not call.id:
            # An id that another call has could not be answered: left out, so that the assembler makes one.
            new_id = None if any(other.id == call_id for other in self._calls) else call_id
            call.id = call_id
        if name and name != call.name:
            call.name += name
            new_name = name
        call.begun = call.begun or bool(arguments)
        rest = {k: v for k, v in entry.items() if k not in _CALL and v is not None}
        if new_id or new_name or arguments or rest:
            self._add(ToolCallItem(at, new_id, new_name, arguments, {KEY: rest} if rest else None), out)

    def _open(self, index: int | None, call_id: str, name: str, *, first: bool, whole: bool) -> int:
        """Return our index of the call that a delta belongs to, opening it when it is new."""
        calls = self._calls
        last = len(calls) - 1 if calls else None
        if whole:
            at = None
        elif index is not None:
            at = self._at.get(index)
            # Google's endpoint sends every parallel call as index 0, whole and with its own id.
            if at is not None and name and call_id and calls[at].id not in ("", call_id):
                at = None
        elif call_id:
            known = (number for number, call in enumerate(calls) if call.id == call_id)
            at = next(known, None if name else last)
        else:
            # Neither index nor id: a name begins a call unless it can only be the rest of a split name.
            fresh = last is None or (name and (not first or calls[last].begun))
            at = None if fresh else last
        if at is None:
            at = len(calls)
            calls.append(_Call())
        if index is not None:
            self._at[index] = at
        return at

    def finish(self, out: list[Item]) -> list[Item]:
        """Append what is still held back and the Finish."""
        self._end_reasoning(out)
        if self._grammar:
            self._end_grammar(out)
        reason = finish_reason(self.raw, calls=bool(self._calls), refused=self._refused)
        message = self.assembler.message(finish_reason=reason)
        if reason in _CUT and self._calls and not self._calls[-1].begun:
            message = structs.replace(message, parts=_cut_last(message.parts))
        out.append(
            Finish(
                message,
                usage=self._usage or Usage(estimated=True),
                reason=reason,
                model=self._model,
                response_id=self._id,
                cost=self._cost,
                raw=self.raw,
                provider_metadata={KEY: self._kept} if self._kept else None,
            )
        )
        return out

    def take_whole(self, data: dict[str, Any]) -> list[Item]:
        """Return the items and the Finish of a whole answer. Raises WireError when it is none."""
        choices = data.get("choices")
        if not isinstance(choices, list) and not data.get("error"):
            raise WireError(f"The answer has no choices: {excerpt(dumps(data))!r}.")
        out = self.take(data, "message")
        first = self._choice(choices)
        others = [choice for choice in as_list(choices) if choice is not first]
        if others:
            self._kept["choices"] = others
        return self.finish(out)


def _plain_text(data: dict[str, Any]) -> str | None:
    """Return the text of a chunk that holds nothing else, which most chunks are; None for every other chunk."""
    choices = data.get("choices")
    if type(choices) is not list or len(choices) != 1 or data.get("usage"):
        return None
    choice = choices[0]
    if type(choice) is not dict or choice.get("finish_reason") or choice.get("index") or choice.get("error"):
        return None
    delta = choice.get("delta")
    if type(delta) is not dict or not delta.keys() <= _PLAIN:
        return None
    text = delta.get("content")
    return text if type(text) is str else None


def _number(index: Any) -> int | None:
    if isinstance(index, str):
        return int(index) if index.isdecimal() and len(index) < 9 else None
    return index if isinstance(index, int) else None


def _chunks(content: Any) -> tuple[str, str]:
    """Return (text, reasoning) of Mistral's array content."""
    text, thought = "", ""
    for chunk in as_list(content):
        fields = as_dict(chunk)
        inner = fields.get("thinking")
        if inner is not None:
            thought += (
                inner if isinstance(inner, str) else "".join([as_str(as_dict(c).get("text")) for c in as_list(inner)])
            )
        else:
            text += as_str(fields.get("text"))
    return text, thought


def _details_text(details: list[Any]) -> str:
    fields = [as_dict(item) for item in details]
    return "".join([as_str(item.get("text")) or as_str(item.get("summary")) for item in fields])


def _merge_details(known: list[dict[str, Any]], more: list[Any]) -> None:
    """Join the pieces of one streamed `reasoning_details` block; the vendor wants them back whole and in order."""
    for item in more:
        piece = as_dict(item)
        last = known[-1] if known else {}
        same = last.get("type") == piece.get("type") and last.get("index") == piece.get("index")
        if not known or not same or piece.get("type") not in ("reasoning.text", "reasoning.summary"):
            known.append(dict(piece))
            continue
        for key, value in piece.items():
            if key in ("text", "summary") and isinstance(value, str):
                last[key] = as_str(last.get(key)) + value
            elif value is not None:
                last[key] = value


def _cut_last(parts: tuple[Part, ...]) -> tuple[Part, ...]:
    last = max(at for at, part in enumerate(parts) if isinstance(part, ToolCall))
    call = parts[last]
    assert isinstance(call, ToolCall)
    return (*parts[:last], structs.replace(call, arguments=None, arguments_text=""), *parts[last + 1 :])
