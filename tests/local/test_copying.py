"""Copy-guided decoding: what the grammar takes, what the engine makes of it, and what comes out."""

from __future__ import annotations

import json
import re
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.local.asking import ask, function, said
from tests.local.gbnf import Matcher
from windlass.core.messages import user
from windlass.core.request import Request, Settings, ToolSpec
from windlass.local.copying import Guided, Reader, Spans, guide, literal
from windlass.local.engine import Engine
from windlass.providers.local import LocalProvider

ATOM = re.compile(r"(?:(?<!\w)\.)?\w+(?:[.@+-]\w+)*|\W", re.DOTALL)
WRAP = ("<tool_call>\n", "\n</tool_call>")
READ, WRITE = function("read_file", "path"), function("write_file", "path", "content")
TOOLS = [READ, WRITE, function("utc"), function("echo", "text")]
FORMS = ["Created {}.", "{} contains:\n{}", "I cannot do that."]


def guided(text: str, **fields: Any) -> Guided:
    found = guide(said(text, **{"tools": TOOLS, "copy_arguments": True, **fields}), WRAP)
    assert found is not None
    return found


def grammar(text: str, **fields: Any) -> Matcher:
    return Matcher(guided(text, **fields).body["grammar"])


def call(tool: str, **arguments: Any) -> str:
    spelt = json.dumps(arguments, ensure_ascii=False)
    return f'{WRAP[0]}{{"name": "{tool}", "arguments": {spelt}}}{WRAP[1]}'


# -- the grammar ------------------------------------------------------------------------------------------------------


def test_an_argument_is_a_span_of_the_prompt_or_a_dot() -> None:
    taken = grammar('write "hello big world" to notes-1.txt please')
    for text in ("hello", "hello big world", "big world", "notes-1.txt", ".", "to notes-1.txt please"):
        assert taken.accepts(call("write_file", path=text, content="hello")), text
    for text in ("hell", "hello world", "notes", "notes-1", "txt", "big  world", "", "hello ", "Hello", ".."):
        assert not taken.accepts(call("write_file", path=text, content="hello")), text


def test_only_offered_tools_and_their_parameters_in_order() -> None:
    taken = grammar("read a.txt")
    assert taken.accepts(call("read_file", path="a.txt"))
    assert taken.accepts(call("utc"))
    assert not taken.accepts(call("shell", command="read"))
    assert not taken.accepts(call("read_file"))
    assert not taken.accepts(call("read_file", path="a.txt", more="read"))
    assert not taken.accepts(call("write_file", content="read", path="a.txt"))
    assert not taken.accepts(call("write_file", path=1, content="read"))


def test_other_types_follow_the_schema() -> None:
    tool = function(
        "f",
        type="object",
        properties={
            "kind": {"enum": ["x", "y"]},
            "count": {"type": "integer"},
            "on": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "to": {"type": "object", "properties": {"name": {"type": "string", "default": "me"}}},
        },
        required=["kind", "count"],
    )
    taken = grammar("use a and b", tools=[tool])
    assert taken.accepts(call("f", kind="x", count=-12))
    assert taken.accepts(call("f", kind="y", count=0, on=True, tags=["a", "b"], to={"name": "me"}))
    assert taken.accepts(call("f", kind="y", count=0, tags=[], to={}))
    for wrong in ({"kind": "z"}, {"count": 1.5}, {"count": "1"}, {"on": 1}, {"tags": ["c"]}, {"to": {"name": "us"}}):
        assert not taken.accepts(call("f", **{"kind": "x", "count": 1, **wrong})), wrong
    # What is optional stays in its order.
    assert not taken.accepts(call("f", kind="x", count=1, tags=[], on=True))


def test_tool_results_and_parts_count_but_the_models_own_text_does_not() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "secret"},
            {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {}}]},
            {"role": "assistant", "content": "invented"},
            {"role": "tool", "tool_call_id": "1", "content": "found.txt"},
        ],
        "tools": TOOLS,
        "copy_arguments": True,
    }
    found = guide(body, WRAP)
    assert found is not None
    taken = Matcher(found.body["grammar"])
    for text, right in (
        ("look", True),
        ("found.txt", True),
        ("secret", False),
        ("invented", False),
        ("look found.txt", False),
    ):
        assert taken.accepts(call("read_file", path=text)) is right, text


def test_text_is_free_until_a_call_begins() -> None:
    taken = grammar("read a.txt")
    assert taken.accepts("Anything <at> all, <tool_cal even.\n")
    assert taken.accepts("")
    assert taken.accepts("First this. " + call("read_file", path="a.txt"))
    assert taken.accepts(call("utc") + "\n" + call("utc"))
    assert not taken.accepts("<tool_call>\nno call")
    assert not taken.accepts("<<tool_call>\n" + '{"name": "nothing"}')
    single = grammar("read a.txt", parallel_tool_calls=False)
    assert not single.accepts(call("utc") + "\n" + call("utc"))


def test_a_required_or_named_tool_leaves_no_text() -> None:
    taken = grammar("read a.txt", tool_choice="required")
    assert taken.accepts(call("utc"))
    assert not taken.accepts("No.")
    named = guided("read a.txt", tool_choice={"type": "function", "function": {"name": "read_file"}})
    assert named.names == {"read_file"}
    assert not Matcher(named.body["grammar"]).accepts(call("utc"))


def test_answers_have_a_form_and_copy() -> None:
    taken = grammar("show a.txt: milk and\neggs", answer_forms=FORMS)
    for text in (
        "Created a.txt.",
        "a.txt contains:\nmilk and\neggs",
        "I cannot do that.",
        "Created a.txt.\nCreated milk.",
    ):
        assert taken.accepts(text), text
    for text in ("Created b.txt.", "a.txt contains:\nmilk and eggs", "Sure!", "", "Created a.txt.\n"):
        assert not taken.accepts(text), text
    assert taken.accepts(call("read_file", path="a.txt"))


@pytest.mark.parametrize(
    "fields",
    [
        {"copy_arguments": False},
        {"tools": []},
        {"tool_choice": "none"},
        {"grammar": 'root ::= "a"'},
        {"response_format": {"type": "json_object"}},
    ],
    ids=["off", "no tools", "none", "own grammar", "answer schema"],
)
def test_nothing_to_guide(fields: dict[str, Any]) -> None:
    assert guide(said("x", **{"tools": TOOLS, "copy_arguments": True, **fields}), WRAP) is None
    assert guide(said("x", tools=TOOLS, copy_arguments=True), ("", "")) is None


def test_a_long_conversation_leaves_strings_free() -> None:
    taken = grammar(" ".join([f"w{number}" for number in range(1600)]))
    assert taken.accepts(call("read_file", path='any "thing" \\ \u20ac'))
    assert not taken.accepts(call("shell", command="x"))


def test_the_grammar_grows_with_the_text_and_not_with_its_square() -> None:
    small, large = (len(guided("ab " * n + "end").body["grammar"]) for n in (200, 400))
    assert large < 2.2 * small
    spans = Spans([" ".join([f"w{number % 7}" for number in range(500)])])
    assert spans.size == 999
    assert len(spans.rules("j", str)) <= 2 * spans.size


texts = st.text(st.sampled_from('ab1 "\\\n\t.-_/{}<>|é日🎉`\u200b\x7f'), min_size=1, max_size=30)


@given(texts, texts, st.data())
def test_every_span_is_taken_and_nothing_else(one: str, other: str, data: st.DataObject) -> None:
    spans = Spans([one, other])
    rules = spans.rules("root", lambda atom: json.dumps(atom, ensure_ascii=False)[1:-1])
    cuts = {text: [0, *[found.end() for found in ATOM.finditer(text)]] for text in (one, other)}
    every = {
        text[start:end]
        for text, edges in cuts.items()
        for start in edges
        for end in edges
        if start < end and not text[start:end][0].isspace() and not text[start:end][-1].isspace()
    }
    if not rules:
        assert not every
        return
    taken = Matcher("\n".join(rules))
    probe = data.draw(st.one_of(texts, st.sampled_from(sorted(every)))) if every else data.draw(texts)
    for text in {probe, *sorted(every)[:20]}:
        assert taken.accepts(json.dumps(text, ensure_ascii=False)[1:-1]) is (text in every), text


# -- what comes out ---------------------------------------------------------------------------------------------------


def chunk(content: str | None, reason: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    return msgspec.json.encode({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def read(*pieces: str, reason: str = "stop") -> tuple[str, list[tuple[str, str]], str]:
    out: list[bytes] = []
    reader = Reader(
        Guided({}, frozenset({"f", "g"}), "<tool_call>", "</tool_call>"), lambda each: bool(out.append(each))
    )
    for piece in pieces:
        assert reader.feed(chunk(piece)) is False
    assert reader.feed(b"") is False
    reader.feed(chunk(None, reason))
    choices = [msgspec.json.decode(each)["choices"][0] for each in out if each]
    calls = [call["function"] for choice in choices for call in choice["delta"].get("tool_calls", [])]
    text = "".join([choice["delta"].get("content") or "" for choice in choices])
    return text, [(each["name"], each["arguments"]) for each in calls], choices[-1]["finish_reason"]


def test_text_goes_on_at_once_and_a_call_when_it_is_whole() -> None:
    assert read("Hello ", "<b>", "!") == ("Hello <b>!", [], "stop")
    whole = '<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>'
    for size in (1, 3, 100):
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert read(*pieces) == ("", [("f", '{"a":"b"}')], "tool_calls")
    two = whole + '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert read("So: ", two) == ("So: ", [("f", '{"a":"b"}'), ("g", "{}")], "tool_calls")


def test_what_was_cut_or_is_no_call_stays_text() -> None:
    assert read("a <tool", reason="stop") == ("a <tool", [], "stop")
    assert read('<tool_call>\n{"name": "f"', reason="length") == ('<tool_call>\n{"name": "f"', [], "length")
    other = '<tool_call>{"name": "h", "arguments": {}}</tool_call>'
    assert read(other) == (other, [], "stop")


# -- the engine under it ----------------------------------------------------------------------------------------------

HOT = {"temperature": 8.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
PROMPTS = [
    'write "zork qux" to blarg.txt',
    "dump bork.md",
    'say "it is \\"new\\""',
    "grep flarnish in src/qub.py",
    "echo zibble zobble wonk frab",
    "write «é日本» to ünï.txt",
    "read a\nb\tc.txt | < > [x] \\ `y`",
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
async def test_the_engine_holds_the_model_to_spans(engine: Engine, prompt: str) -> None:
    body = said(prompt, tools=TOOLS, copy_arguments=True, tool_choice="required", temperature=1.3, seed=3)
    answer = await ask(engine, body)
    assert answer.reasons == ["tool_calls"]
    assert answer.text == ""
    for name, arguments in answer.calls:
        assert name in {"read_file", "write_file", "utc", "echo"}
        assert all(value == "." or value in prompt for value in arguments.values()), arguments


async def test_the_engine_reads_each_grammar_as_the_matcher_does(engine: Engine) -> None:
    """A hot model under the grammar writes only what our own reading of it takes."""
    taken = grammar(PROMPTS[0], answer_forms=FORMS)
    body = guided(PROMPTS[0], answer_forms=FORMS, max_tokens=80, **HOT).body
    seen: set[str] = set()
    for seed in range(12):
        answer = await ask(engine, {**body, "tools": [], "seed": seed})
        if answer.reasons == ["stop"]:
            assert taken.accepts(answer.text), answer.text
            seen.add(answer.text)
    assert len(seen) > 1


async def test_a_greeting_stays_text(engine: Engine) -> None:
    plain = await ask(engine, said("hello", tools=TOOLS))
    answer = await ask(engine, said("hello", tools=TOOLS, copy_arguments=True))
    assert answer.text == plain.text
    assert answer.reasons == ["stop"]
    assert answer.calls == []


async def test_a_user_of_the_provider_asks_for_it_in_extra() -> None:
    provider = LocalProvider()
    tools = (ToolSpec("read_file", "", READ["function"]["parameters"]),)
    settings = Settings(extra={"copy_arguments": True})
    request = Request(model="tiny-0", messages=(user("dump bork.md"),), tools=tools, settings=settings)
    async with aclosing(provider.stream(request)) as stream:  # pyright: ignore[reportArgumentType]
        *_, finish = [item async for item in stream]
    (made,) = finish.message.tool_calls  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    assert (made.name, made.arguments) == ("read_file", {"path": "bork.md"})  # pyright: ignore[reportUnknownMemberType]


def test_a_literal_holds_any_text() -> None:
    for text in ('"', "\\", "\n", "é", "a]b", "\x7f\x01"):
        assert Matcher(f"root ::= {literal(text)}").accepts(text)
