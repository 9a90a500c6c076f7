"""Hold a model to a form: `tool_choice: required`, a named tool, an output schema, or tools beside one.

The engine takes a grammar or tools, never both; its own `required` leaves the text before the call free, so that a
model may talk until its context is full; and a schema it cannot use makes it print to stderr. So the tools stay in the
prompt (`tool_choice: none` renders them all the same), a grammar of llguidance allows nothing but the call or the
answer, and the text that comes back is turned into the call it spells.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from windlass.core.json import dumps

__all__ = ["Forced", "NotHeld", "Rewriter", "plan", "tightened"]

Schema = dict[str, Any]
# What models are trained on: `json.dumps` with its default spacing, and nothing in between.
_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_DATA: Final = frozenset(("const", "enum", "default", "examples"))
_OPEN: Final = frozenset(
    (
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "$ref",
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "if",
    )
)
_JSON_STARTS: Final = '{["-0123456789tfn'
_decode = msgspec.json.Decoder().decode


class NotHeld(Exception):
    """Report that the grammar did not take hold: llguidance says nothing of a schema that it cannot use."""


class Forced(Struct, frozen=True):
    """The body to send instead, and how to read what comes back.

    `names` are the tools that may be called, written between `opening` and `closing`; `answer` tells whether JSON
    that is no call is right too.
    """

    body: dict[str, Any]
    names: frozenset[str]
    answer: bool
    opening: str
    closing: str

    def call_in(self, text: str) -> tuple[str, str] | None:
        """Return (name, JSON text of the arguments) when the text spells a call, else None."""
        inner = text.strip()
        if not inner.startswith(self.opening.strip()):
            return None
        call = _parsed(inner.removeprefix(self.opening.strip()).removesuffix(self.closing.strip()))
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"} or call["name"] not in self.names:
            return None
        return call["name"], dumps(call["arguments"]).decode()


def _parsed(text: str) -> Any:
    try:
        return _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def plan(body: dict[str, Any], wrap: tuple[str, str], to_grammar: Callable[[Schema], str]) -> Forced | None:
    """Return the request to send instead of `body`; None when the engine's own way is right.

    `wrap` is what the model writes around a call. `to_grammar` is the engine's converter of a JSON Schema, which tells
    whether it was built with llguidance; without that, only calls are forced.
    """
    tools = [tool["function"] for tool in body.get("tools") or ()]
    choice: Any = body.get("tool_choice", "auto")
    answer = _output_schema(body)
    must = bool(tools) and (choice == "required" or isinstance(choice, dict))
    if not must and answer is None:
        return None
    if isinstance(choice, dict):
        only: Any = choice["function"]["name"]  # pyright: ignore[reportUnknownVariableType]
        tools = [tool for tool in tools if tool["name"] == only]
    calls = [_call_schema(tool) for tool in tools]
    grammar = _grammar(calls, None if must else answer, wrap, to_grammar)
    if grammar is None:
        return None
    left_out = ("response_format", "parallel_tool_calls", "tool_choice")
    changed = {key: value for key, value in body.items() if key not in left_out}
    # Thinking would come first, and the grammar leaves no room for it.
    template: dict[str, Any] = {**body.get("chat_template_kwargs", {}), "enable_thinking": False}
    changed.update(grammar=grammar, chat_template_kwargs=template)
    if tools:
        changed["tool_choice"] = "none"
    return Forced(changed, frozenset(tool["name"] for tool in tools), not must, *wrap)


def _output_schema(body: dict[str, Any]) -> Schema | None:
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        return form["json_schema"]["schema"]
    return {"type": "object"} if form.get("type") == "json_object" else None


def _call_schema(tool: dict[str, Any]) -> Schema:
    arguments = dict(tool.get("parameters") or {"type": "object", "properties": {}})
    # References name the top of the document, which is now the call.
    shared = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
    return {
        "type": "object",
        "properties": {"name": {"const": tool["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **shared,
    }


def _grammar(
    calls: list[Schema], answer: Schema | None, wrap: tuple[str, str], to_grammar: Callable[[Schema], str]
) -> str | None:
    """Return a Lark grammar for llguidance, else GBNF for calls alone; None when neither can be made."""
    opening, closing = (f"{json.dumps(text)} " if text else "" for text in wrap)
    converted = to_grammar({"anyOf": calls} if calls else {"type": "object"})
    if not converted.startswith("%llguidance"):
        if answer is not None:
            return None
        return f"root ::= {opening}call {closing}\n" + converted.replace("root ::=", "call ::=", 1)
    starts = ["call"] if calls else []
    rules: list[str] = []
    if calls:
        names = " | ".join(f"call{number}" for number in range(len(calls)))
        rules.append(f"call: {opening}({names}) {closing}")
        rules += [_rule(f"call{number}", schema) for number, schema in enumerate(calls)]
    if answer is not None:
        starts.append("answer")
        rules.append(_rule("answer", answer))
    return "\n".join(["%llguidance {}", f"start: {' | '.join(starts)}", *rules, ""])


def _rule(name: str, schema: Schema) -> str:
    return f"{name}: %json {json.dumps(tightened(schema))}"


def tightened(schema: Schema) -> Schema:
    """Return the schema for llguidance: one way of spacing, and objects closed where the schema does not say."""
    return {"x-guidance": _SPACING, **_closed(schema)}


def _closed(schema: Any) -> Any:
    """Return the schema with its plain objects closed where it does not say: else a small model never stops adding."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out: Schema = {key: value if key in _DATA else _closed(value) for key, value in schema.items()}
    if out.get("type") == "object" and isinstance(out.get("properties"), dict) and not _OPEN & out.keys():
        out["additionalProperties"] = False
    return out


class Rewriter:
    """Turn the chunks of a forced answer into those of a tool call or of the JSON text that was asked for.

    `feed` has the shape of what it wraps: it takes a chunk and says whether to stop. Where a call is possible the text
    is kept back until it is whole. Raises NotHeld when the model writes what is neither.
    """

    def __init__(self, forced: Forced, take: Callable[[bytes], bool]) -> None:
        self._forced, self._take = forced, take
        self._text: list[str] = []
        self._begun = ""

    def feed(self, chunk: bytes) -> bool:
        """Take a chunk; an empty one only asks whether to stop."""
        data: Any = _decode(chunk) if chunk else {}
        if not data.get("choices"):
            return self._take(chunk)
        choice = data["choices"][0]
        delta: dict[str, Any] = choice.get("delta") or {}
        # A template that opens a thought on its own makes the engine take all for reasoning.
        said = "".join([text for key in ("reasoning_content", "content") if (text := delta.get(key))])
        self._text.append(said)
        held = bool(self._forced.names)
        if not held and said and not self._begun:
            self._begun = said.lstrip()[:1]
            if self._begun and self._begun not in _JSON_STARTS:
                raise _not_held(said)
        if choice.get("finish_reason") is None:
            return self._take(b"" if held or not said else _with_delta(data, {"content": said}))
        text = "".join(self._text)
        call = self._forced.call_in(text) if choice["finish_reason"] != "length" else None
        if call is None:
            self._check(text, choice["finish_reason"])
            first = _with_delta(data, {"content": text if held else said}) if held or said else b""
        else:
            entry: dict[str, Any] = {"index": 0, "id": f"call_{data['id'][-24:]}", "type": "function"}
            entry["function"] = {"name": call[0], "arguments": call[1]}
            first = _with_delta(data, {"tool_calls": [entry]})
            choice["finish_reason"] = "tool_calls"
        choice["delta"] = {}
        return self._take(first) or self._take(dumps(data))

    def _check(self, text: str, reason: str) -> None:
        if reason == "length" or "stop" in self._forced.body:
            return  # cut: it need not be whole
        if not self._forced.answer or (_parsed(text) is None and text.strip() != "null"):
            raise _not_held(text)


def _not_held(text: str) -> NotHeld:
    return NotHeld(f"it could not hold the model to the schema; the answer began {text[:80]!r}")


def _with_delta(data: dict[str, Any], delta: dict[str, Any]) -> bytes:
    head = {key: value for key, value in data.items() if key != "timings"}
    return dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
