"""Forced tool calls: the grammar that is made, the chunks that come out, and the real engine under it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.local.asking import ask, function, said
from windlass.local.engine import Engine, count_tokens
from windlass.local.forced import Forced, NotHeld, Rewriter, plan

WRAP = ("<tool_call>\n", "\n</tool_call>")
TOOLS = [function("read_file", "path"), function("write_file", "path", "content")]
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}
CALLS = Forced({}, frozenset(["f"]), False, *WRAP)
ANSWERS = Forced({}, frozenset(), True, *WRAP)
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def llguidance(schema: dict[str, Any]) -> str:
    return "%llguidance {}\nstart: %json " + msgspec.json.encode(schema).decode()


def gbnf(schema: dict[str, Any]) -> str:
    """What a build without llguidance makes of a call of `read_file`, written by hand."""
    return (
        'root ::= "{\\"name\\": \\"read_file\\", \\"arguments\\": {\\"path\\": " string "}}"\n'
        'string ::= "\\"" [a-z.]* "\\""\n'
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": "auto"},
        {"tools": [], "tool_choice": "required"},
        {"tools": TOOLS, "response_format": {"type": "text"}},
    ],
)
def test_nothing_is_forced_without_need(fields: dict[str, Any]) -> None:
    assert plan(said("x", **fields), WRAP, llguidance) is None


def test_required_keeps_the_tools_and_adds_a_grammar() -> None:
    body = said("x", tools=TOOLS, tool_choice="required", parallel_tool_calls=True)
    forced = plan(body, WRAP, llguidance)
    assert forced is not None
    assert forced.body["tools"] == TOOLS
    assert forced.body["tool_choice"] == "none"
    assert "parallel_tool_calls" not in forced.body
    lines = forced.body["grammar"].splitlines()
    assert lines[:3] == [
        "%llguidance {}",
        "start: call",
        'call: "<tool_call>\\n" (call0 | call1) "\\n</tool_call>" ',
    ]
    assert forced.names == {"read_file", "write_file"}
    assert body["tool_choice"] == "required"  # the caller's own is left alone


def test_shared_definitions_move_to_the_top_of_the_call() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"enum": ["x"]}}}
    forced = plan(said("x", tools=[function("f", **schema)], tool_choice="required"), WRAP, llguidance)
    assert forced is not None
    rule = msgspec.json.decode(forced.body["grammar"].splitlines()[3].removeprefix("call0: %json "))
    assert rule["$defs"] == {"A": {"enum": ["x"]}}
    assert "$defs" not in rule["properties"]["arguments"]


def test_objects_are_closed_where_the_schema_does_not_say() -> None:
    inner = {"type": "object", "properties": {"properties": {"type": "string"}}}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": inner, "b": {**inner, "additionalProperties": True}, "c": {**inner, "allOf": []}},
        "default": inner,
    }
    forced = plan(
        said("x", response_format={"type": "json_schema", "json_schema": {"schema": schema}}), WRAP, llguidance
    )
    assert forced is not None
    rule = msgspec.json.decode(forced.body["grammar"].splitlines()[2].removeprefix("answer: %json "))
    closed = {**inner, "additionalProperties": False}
    assert rule["properties"] == {**schema["properties"], "a": closed}
    assert (rule["additionalProperties"], rule["default"]) == (False, inner)


def test_without_llguidance_a_call_is_forced_but_not_a_choice() -> None:
    forced = plan(said("x", tools=TOOLS, tool_choice="required"), WRAP, gbnf)
    assert forced is not None
    assert forced.body["grammar"].startswith('root ::= "<tool_call>\\n" call "\\n</tool_call>" \ncall ::= "{')
    assert plan(said("x", tools=TOOLS, response_format=FORM), WRAP, gbnf) is None


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', ("f", '{"a":1}')),
        (' <tool_call>{"name": "f", "arguments": {}}</tool_call>\n', ("f", "{}")),
        ('{"name": "f", "arguments": {}}', None),
        ('<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>', None),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', None),
        ('<tool_call>\n["f"]\n</tool_call>', None),
        ('<tool_call>\n{"name": "f", "argum', None),
        ("", None),
    ],
)
def test_a_call_is_found_in_its_text(text: str, call: tuple[str, str] | None) -> None:
    assert CALLS.call_in(text) == call


def test_a_family_without_marks_writes_the_bare_object() -> None:
    forced = Forced({}, frozenset(["f"]), True, "", "")
    assert forced.call_in('{"name": "f", "arguments": {"a": [1]}}') == ("f", '{"a":[1]}')
    assert forced.call_in('{"answer": 3}') is None


def test_a_schema_alone_needs_no_tools_in_its_grammar() -> None:
    forced = plan(said("x", response_format=FORM), WRAP, llguidance)
    assert forced is not None
    assert forced.body["grammar"].splitlines()[1] == "start: answer"
    assert (forced.names, forced.answer, "response_format" in forced.body) == (frozenset(), True, False)
    assert plan(said("x", response_format=FORM), WRAP, gbnf) is None


def _rewrite(texts: list[str], reason: str, forced: Forced = CALLS) -> list[dict[str, Any]]:
    out: list[bytes] = []

    def take(chunk: bytes) -> bool:
        if chunk:
            out.append(chunk)
        return False

    rewriter = Rewriter(forced, take)
    deltas: list[tuple[dict[str, Any], str | None]] = [({"content": text}, None) for text in texts]
    for delta, finish in [({"role": "assistant", "content": None}, None), *deltas, ({}, reason)]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        rewriter.feed(msgspec.json.encode({"id": "chatcmpl-1", "choices": [choice]}))
    rewriter.feed(b'{"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":1}}')
    return [msgspec.json.decode(chunk) for chunk in out]


def test_the_text_of_a_call_becomes_a_call() -> None:
    first, last, usage = _rewrite(["<tool_", 'call>\n{"name": "f", "arguments"', ': {"a": 1}}\n</tool_call>'], "stop")
    (call,) = first["choices"][0]["delta"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert call["id"] == "call_chatcmpl-1"
    assert last["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    assert usage["usage"] == {"prompt_tokens": 1}


def test_r25_a_call_cut_by_the_limit_is_text_and_not_a_call() -> None:
    first, last, _ = _rewrite(['<tool_call>\n{"name": "f", "argu'], "length")
    assert first["choices"][0]["delta"] == {"content": '<tool_call>\n{"name": "f", "argu'}
    assert last["choices"][0]["finish_reason"] == "length"


def test_an_answer_streams_as_it_comes_and_thought_counts_as_text() -> None:
    *texts, last, _ = _rewrite(['{"a"', ": 1", "}"], "stop", ANSWERS)
    assert [chunk["choices"][0]["delta"] for chunk in texts] == [
        {"content": '{"a"'},
        {"content": ": 1"},
        {"content": "}"},
    ]
    assert last["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("texts", "forced"),
    [
        (["Hello"], ANSWERS),
        (["  ", "Hello"], ANSWERS),
        (["{", "oops"], ANSWERS),
        (["Hello"], CALLS),
        (['{"a": 1}'], CALLS),
        (["Hello"], Forced({}, frozenset(["f"]), True, *WRAP)),
    ],
)
def test_what_the_grammar_did_not_hold_is_refused(texts: list[str], forced: Forced) -> None:
    with pytest.raises(NotHeld, match="could not hold the model to the schema"):
        _rewrite(texts, "stop", forced)


def test_a_cut_answer_need_not_be_whole() -> None:
    *texts, last, _ = _rewrite(['{"a"'], "length", ANSWERS)
    assert [chunk["choices"][0]["delta"] for chunk in texts] == [{"content": '{"a"'}]
    assert last["choices"][0]["finish_reason"] == "length"
    assert _rewrite(['{"a"'], "stop", Forced({"stop": ["x"]}, frozenset(), True, *WRAP))


@pytest.mark.parametrize("prompt", ["hello", "what is love?", "tell me a story", 'write "hi" to a.txt'])
async def test_required_calls_a_tool_whatever_is_asked(engine: Engine, prompt: str) -> None:
    body = said(prompt, tools=TOOLS, tool_choice="required")
    answer = await ask(engine, body)
    assert answer.reasons == ["tool_calls"]
    ((name, arguments),) = answer.calls
    wanted = {"read_file": {"path"}, "write_file": {"path", "content"}}
    assert arguments.keys() == wanted[name]
    assert all(isinstance(value, str) for value in arguments.values())
    # The model reads the same prompt as with `auto`: the tools are in it.
    assert answer.usage["prompt_tokens"] == await count_tokens(engine, said(prompt, tools=TOOLS))


async def test_the_named_tool_is_called(engine: Engine) -> None:
    named = {"type": "function", "function": {"name": "write_file"}}
    answer = await ask(engine, said("show a.txt", tools=TOOLS, tool_choice=named))
    assert [name for name, _ in answer.calls] == ["write_file"]


async def test_tools_stay_usable_beside_an_output_schema(engine: Engine) -> None:
    called = await ask(engine, said("show a.txt", tools=TOOLS, response_format=FORM))
    assert called.calls == [("read_file", {"path": "a.txt"})]
    # This model would always rather call: it is kept from the words a call begins with.
    silent = {"logit_bias": [["<tool_call>", False], ["<", False]]}
    answered = await ask(engine, said("hello", tools=TOOLS, response_format=FORM, **silent))
    assert answered.text in ('{"answer": "yes"}', '{"answer": "no"}')
    assert (answered.calls, answered.reasons) == ([], ["stop"])


async def test_gbnf_made_for_other_builds_is_taken_by_the_engine(engine: Engine) -> None:
    forced = plan(said("what is love?", tools=TOOLS, tool_choice="required"), WRAP, gbnf)
    assert forced is not None
    call = forced.call_in((await ask(engine, forced.body)).text)
    assert call is not None
    assert call[0] == "read_file"
