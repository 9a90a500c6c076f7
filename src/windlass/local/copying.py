"""Copy-guided decoding: a model's tool calls may hold no text but what stands in the conversation.

Small models choose the right tool and then misspell the name that they were to copy. So a grammar is made from the
request: each string argument is a span of what the user and the tools said, from the edge of a word to the edge of a
word, or a value that the tool's schema names. A model with fixed forms of answers is held to those too, and what it
tells of a result is then a true copy. All spans of a text of n words are the paths of its suffix automaton, which has
at most 2 n states (Blumer et al. 1985, doi:10.1016/0304-3975(85)90157-4): the grammar grows with the text, not with
its square.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from windlass.core.json import dumps

__all__ = ["Guided", "Reader", "Spans", "guide"]

#: Words, signs and spaces of all texts together; a longer conversation leaves string arguments free.
MOST_ATOMS: Final = 3000
#: Characters of the whole grammar; above it the request goes as it is.
_MOST_TEXT: Final = 1 << 19
_MOST_DEPTH: Final = 8
#: What a path may be that nobody wrote.
_CONSTANTS: Final = (".",)
# A name with its dots and hyphens is one: nobody means the half of `notes.txt`.
_ATOM: Final = re.compile(r"(?:(?<!\w)\.)?\w+(?:[.@+-]\w+)*|\W", re.DOTALL)
_PLAIN: Final = {"integer": "int", "number": "num", "boolean": "bool", "null": '"null"'}
#: JSON with the spacing of `json.dumps`, as models are trained on.
_JSON: Final = r"""
str ::= "\"" ([^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F]))* "\""
int ::= "-"? ("0" | [1-9] [0-9]*)
num ::= int ("." [0-9]+)? ([eE] [-+]? [0-9]+)?
bool ::= "true" | "false"
val ::= str | num | bool | "null" | arr | obj
arr ::= "[" (val (", " val)*)? "]"
obj ::= "{" (str ": " val (", " str ": " val)*)? "}"
""".strip().splitlines()
_decode: Final = msgspec.json.Decoder().decode


class Spans:
    """All spans of some texts that begin and end at edges of words, as grammar rules.

    A span neither begins nor ends with white space. `size` counts the words, signs and spaces.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._link, self._length = [-1], [0]
        self._last = [""]  # the atom that leads to a state: the same for all its spans
        self.size = 0
        for text in texts:
            at = 0
            for atom in _ATOM.findall(text):
                at = self._extend(at, atom)
                self.size += 1

    def _state(self, length: int, atom: str, follow: dict[str, int], link: int) -> int:
        self._next.append(follow)
        self._link.append(link)
        self._length.append(length)
        self._last.append(atom)
        return len(self._next) - 1

    def _extend(self, last: int, atom: str) -> int:
        """Add one atom behind state `last`; return the state of the text so far. Each text begins at the root."""
        known = self._next[last].get(atom)
        if known is not None:
            return known if self._length[known] == self._length[last] + 1 else self._clone(last, atom, known)
        made = self._state(self._length[last] + 1, atom, {}, 0)
        at = last
        while at >= 0 and atom not in self._next[at]:
            self._next[at][atom] = made
            at = self._link[at]
        if at >= 0:
            target = self._next[at][atom]
            exact = self._length[target] == self._length[at] + 1
            self._link[made] = target if exact else self._clone(at, atom, target)
        return made

    def _clone(self, at: int, atom: str, target: int) -> int:
        made = self._state(self._length[at] + 1, atom, dict(self._next[target]), self._link[target])
        self._link[target] = made
        while at >= 0 and self._next[at].get(atom) == target:
            self._next[at][atom] = made
            at = self._link[at]
        return made

    def rules(self, name: str, spell: Callable[[str], str]) -> list[str]:
        """Return rules whose `name` is any span; `spell` gives an atom as it is written."""
        starts = [(atom, state) for atom, state in self._next[0].items() if not atom.isspace()]
        if not starts:
            return []
        found = [f"{name} ::= " + " | ".join([self._step(name, spell, atom, state) for atom, state in starts])]
        for state, follow in enumerate(self._next):
            if state and follow:
                ways = [self._step(name, spell, atom, target) for atom, target in follow.items()]
                # At a space more must come.
                ways += [] if self._last[state].isspace() else ['""']
                found.append(f"{name}{state} ::= " + " | ".join(ways))
        return found

    def _step(self, name: str, spell: Callable[[str], str], atom: str, target: int) -> str:
        if self._next[target]:
            return f"{literal(spell(atom))} {name}{target}"
        # Nothing follows a last space: no span ends there, so this way leads nowhere.
        return literal(spell(atom)) if not atom.isspace() else f"{literal(spell(atom))} [^\\x00-\\U0010FFFF]"


def literal(text: str) -> str:
    """Return text as a literal of a GBNF grammar."""
    out = [
        f"\\x{ord(char):02X}" if ord(char) < 32 or ord(char) == 127 else "\\" + char if char in '"\\' else char
        for char in text
    ]
    return '"' + "".join(out) + '"'


def _spelt(text: str) -> str:
    """Return text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


class Guided(Struct, frozen=True):
    """The body to send instead; `names` are the tools that may be called, `opening` and `closing` go around a call."""

    body: dict[str, Any]
    names: frozenset[str]
    opening: str
    closing: str

    def reader(self, take: Callable[[bytes], bool]) -> Reader:
        """Return what turns the chunks of the answer into those of a tool call."""
        return Reader(self, take)


def guide(body: dict[str, Any], wrap: tuple[str, str]) -> Guided | None:
    """Return the request to send instead of one with `copy_arguments`; None when there is nothing to guide.

    `wrap` is what the model writes around a call; a model that writes none is not guided, nor is a request without
    tools, with a schema for its answer or with a grammar of its own. `answer_forms` are the forms of its answers, if it
    has such: texts in which `{}` is a span.
    """
    left_out = ("copy_arguments", "answer_forms", "tool_choice", "parallel_tool_calls")
    tools = [tool["function"] for tool in body.get("tools") or ()]
    choice: Any = body.get("tool_choice", "auto")
    if not body.get("copy_arguments") or not tools or not wrap[0] or choice == "none":
        return None
    if "grammar" in body or "json_schema" in body or body.get("response_format", {}).get("type", "text") != "text":
        return None
    if isinstance(choice, dict):
        only: Any = choice["function"]["name"]  # pyright: ignore[reportUnknownVariableType]
        tools = [tool for tool in tools if tool["name"] == only]
    must = choice == "required" or isinstance(choice, dict)
    spans = Spans(_texts(body["messages"]))
    grammar = _Grammar(spans if spans.size <= MOST_ATOMS else None)
    forms: list[str] = body.get("answer_forms") or []
    grammar.calls(tools, wrap)
    several = not forms and body.get("parallel_tool_calls", True)
    rest = f" ({literal(chr(10))} {literal(wrap[0])} call)*" if several else ""
    changed = {key: value for key, value in body.items() if key not in left_out}
    changed["tool_choice"] = "none"  # the tools stay in the prompt; the engine takes a grammar or tools, not both
    calls = f"{literal(wrap[0])} call{rest}"
    if must:
        # Thinking would come first, and the grammar leaves no room for it.
        changed["chat_template_kwargs"] = {**body.get("chat_template_kwargs", {}), "enable_thinking": False}
        root = calls
    elif forms and grammar.spans is not None:
        root = f"{calls} | {grammar.answers(forms)}"
    else:
        root = grammar.free(wrap[0], f"call{rest}")
    changed["grammar"] = grammar.text(root)
    if len(changed["grammar"]) > _MOST_TEXT:
        return None
    return Guided(changed, frozenset([tool["name"] for tool in tools]), *[text.strip() for text in wrap])


def _texts(messages: Iterable[dict[str, Any]]) -> list[str]:
    """Return what the user and the tools said."""
    found: list[str] = []
    for message in messages:
        if message.get("role") not in ("user", "tool"):
            continue
        content: Any = message.get("content") or ""
        parts: list[Any] = content if isinstance(content, list) else [{"text": content}]
        found += [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return found


class _Grammar:
    """The rules of one request."""

    def __init__(self, spans: Spans | None) -> None:
        rules = spans.rules("j", _spelt) if spans is not None else []
        self.spans = spans if rules else None
        self._rules = [*_JSON, *rules]

    def text(self, root: str) -> str:
        return "\n".join([f"root ::= {root}", *self._rules, ""])

    def calls(self, tools: Sequence[dict[str, Any]], wrap: tuple[str, str]) -> None:
        """Add `call`: what comes behind the opening of a call."""
        ways: list[str] = []
        for number, tool in enumerate(tools):
            head = literal(f'{{"name": {json.dumps(tool["name"])}, "arguments": ')
            self._rules.append(
                f"call{number} ::= {head} {self._object(tool.get('parameters') or {})} {literal('}' + wrap[1])}"
            )
            ways.append(f"call{number}")
        self._rules.append(f"call ::= {' | '.join(ways)}")

    def free(self, opening: str, call: str) -> str:
        """Return any text up to `opening`, and behind that a call: the states of a search (Knuth, Morris, Pratt)."""
        letters = sorted(set(opening))
        others = "[^" + "".join([f"\\U{ord(letter):08X}" for letter in letters]) + "] free0"
        for state in range(len(opening)):
            ways = ['""', others]
            for letter in letters:
                seen = opening[:state] + letter
                size = next(size for size in range(len(seen), -1, -1) if seen.endswith(opening[:size]))
                ways.append(f"{literal(letter)} " + (call if size == len(opening) else f"free{size}"))
            self._rules.append(f"free{state} ::= {' | '.join(ways)}")
        return "free0"

    def _object(self, schema: dict[str, Any], depth: int = 0) -> str:
        """Return an object: what is required in its order, then what is optional in its order."""
        properties: dict[str, Any] = schema.get("properties") or {}
        if not properties:
            return "obj" if schema.get("additionalProperties") else '"{}"'
        must = [name for name in properties if name in schema.get("required", ())]
        may = [name for name in properties if name not in must]
        pairs = {
            name: f"{literal(json.dumps(name) + ': ')} {self._value(properties[name], depth + 1)}"
            for name in properties
        }
        comma = literal(", ")
        if must:
            inner = f" {comma} ".join([pairs[name] for name in must]) + "".join(
                [f" ({comma} {pairs[name]})?" for name in may]
            )
            return f'"{{" {inner} "}}"'
        # The first that is there has no comma before it.
        ways = [
            pairs[name] + "".join([f" ({comma} {pairs[later]})?" for later in may[at + 1 :]])
            for at, name in enumerate(may)
        ]
        return f'"{{" ({" | ".join(ways)})? "}}"'

    def _value(self, schema: Any, depth: int) -> str:
        if not isinstance(schema, dict) or depth > _MOST_DEPTH:
            return "val"
        named: Any = [schema["const"]] if "const" in schema else schema.get("enum")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if named:
            return "(" + " | ".join([literal(json.dumps(each, ensure_ascii=False)) for each in named]) + ")"
        kind: Any = schema.get("type")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if kind == "string":
            return self._string(schema)  # pyright: ignore[reportUnknownArgumentType]
        if kind == "array":
            item = self._value(schema.get("items"), depth + 1)  # pyright: ignore[reportUnknownMemberType]
            return f'"[" ({item} ({literal(", ")} {item})*)? "]"'
        if kind == "object":
            return self._object(schema, depth)  # pyright: ignore[reportUnknownArgumentType]
        return _PLAIN.get(kind, "val")

    def _string(self, schema: dict[str, Any]) -> str:
        if self.spans is None:
            return "str"
        usual = [*_CONSTANTS, *[each for each in (schema.get("default"),) if isinstance(each, str)]]
        return '"\\"" (' + " | ".join(["j", *[literal(_spelt(each)) for each in dict.fromkeys(usual)]]) + ') "\\""'

    def answers(self, forms: Sequence[str]) -> str:
        """Return texts of one or more forms, each on a line of its own."""
        assert self.spans is not None
        self._rules += self.spans.rules("t", str)
        self._rules.append(f"told ::= {' | '.join(['t', *[literal(each) for each in _CONSTANTS]])}")
        ways = [" told ".join([literal(part) for part in form.split("{}")]) for form in forms]
        self._rules += [f"form ::= {' | '.join(ways)}", f"answer ::= form ({literal(chr(10))} form)*"]
        return "answer"


class Reader:
    """Turn the text of a guided answer into what the engine would have said itself: text, then calls.

    `feed` takes a chunk and says whether to stop, as what it wraps does. Text goes on at once; from the first sign of
    a call on it is kept back until the answer is whole.
    """

    def __init__(self, guided: Guided, take: Callable[[bytes], bool]) -> None:
        self._guided, self._take = guided, take
        self._held = ""

    def feed(self, chunk: bytes) -> bool:
        """Take a chunk; an empty one only asks whether to stop."""
        data: Any = _decode(chunk) if chunk else {}
        if not data.get("choices"):
            return self._take(chunk)
        choice = data["choices"][0]
        delta: dict[str, Any] = choice.get("delta") or {}
        content: str | None = delta.get("content")
        finish: str | None = choice.get("finish_reason")
        if content:
            said = self._free(content)
            if not said and finish is None:
                return self._take(b"")
            delta["content"] = said
            chunk = dumps(data)
        if finish is None:
            return self._take(chunk)
        calls, rest = self._calls() if finish == "stop" else ([], self._held)
        for more in ({"content": rest} if rest else {}, {"tool_calls": calls} if calls else {}):
            if more and self._take(_with_delta(data, more)):
                return True
        if calls:
            choice["finish_reason"] = "tool_calls"
        return self._take(dumps(data))

    def _free(self, content: str) -> str:
        """Return what of the text so far is no part of a call, and keep the rest."""
        self._held += content
        opening = self._guided.opening
        at = self._held.find(opening)
        if at < 0:
            # Its end may be the beginning of a call.
            at = next(
                (
                    len(self._held) - size
                    for size in range(len(opening) - 1, 0, -1)
                    if self._held.endswith(opening[:size])
                ),
                len(self._held),
            )
        said, self._held = self._held[:at], self._held[at:]
        return said

    def _calls(self) -> tuple[list[dict[str, Any]], str]:
        """Return the calls in what was kept, and the text that is none."""
        calls: list[dict[str, Any]] = []
        rest = self._held
        while rest.startswith(self._guided.opening):
            inner, _, after = rest.removeprefix(self._guided.opening).partition(self._guided.closing)
            call: Any = _parsed(inner)
            if (
                not isinstance(call, dict)
                or call.keys() != {"name", "arguments"}
                or call["name"] not in self._guided.names
            ):
                break
            function = {"name": call["name"], "arguments": dumps(call["arguments"]).decode()}
            calls.append({"index": len(calls), "type": "function", "function": function})
            rest = after.lstrip("\n")
        return calls, rest


def _parsed(text: str) -> Any:
    try:
        return _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def _with_delta(data: dict[str, Any], delta: dict[str, Any]) -> bytes:
    head = {key: value for key, value in data.items() if key != "timings"}
    for number, call in enumerate(delta.get("tool_calls", ())):
        call["id"] = f"call_{data['id'][-24:]}{number or ''}"
    return dumps({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
