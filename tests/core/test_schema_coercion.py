"""Arguments that are almost right: mended when nothing is lost, refused when something would be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.schema import compile_schema, validate_output

MENDED: list[tuple[dict[str, Any], Any, Any]] = [
    ({"type": "integer"}, "5", 5),
    ({"type": "integer"}, " -7 ", -7),
    ({"type": "integer"}, 5.0, 5),
    ({"type": "integer"}, "5.0", 5),
    ({"type": "number"}, "5", 5),
    ({"type": "number"}, "0.25", 0.25),
    ({"type": "number"}, "1e3", 1000.0),
    ({"type": "boolean"}, "true", True),
    ({"type": "boolean"}, "False", False),
    ({"type": "string"}, 5, "5"),
    ({"type": "string"}, True, "true"),
    ({"type": "null"}, "null", None),
    ({"type": ["integer", "null"]}, "null", None),
    ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
    ({"type": "array"}, " [1, 2]", [1, 2]),
    ({"type": "array", "items": {"type": "integer"}}, '["1", 2]', [1, 2]),
    ({"type": "array", "items": {"type": "string"}}, "a", ["a"]),
    ({"type": "array", "items": {"type": "string"}}, "[draft] a", ["[draft] a"]),
    ({"type": "array", "items": {"type": "integer"}}, "3", [3]),
    ({"type": "array", "items": {"type": "object", "required": ["a"]}}, {"a": 1}, [{"a": 1}]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}]}, ["1", "true"], [1, True]),
    ({"enum": [1, 2]}, "2", 2),
    ({"enum": ["1", "2"]}, 2, "2"),
    ({"const": True}, "true", True),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "5", 5),
    ({"type": "integer", "nullable": True}, "5", 5),
    ({"oneOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}, ["1"], [1]),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "5", 5),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": "1"}, {"a": 1}),
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, {"ab": "1", "b": "1"}, {"ab": 1, "b": "1"}),
    ({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": None}, {}),
]


@pytest.mark.parametrize(("schema", "given", "wanted"), MENDED)
def test_mended(schema: dict[str, Any], given: Any, wanted: Any) -> None:
    checked = validate_output(given, schema)
    assert checked.error is None
    assert (checked.args, type(checked.args)) == (wanted, type(wanted))
    assert checked.coercions


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, "5.5"),
        ({"type": "integer"}, "0x5"),
        ({"type": "integer"}, "05"),
        ({"type": "integer"}, "٥"),
        ({"type": "integer"}, ""),
        ({"type": "integer"}, True),
        ({"type": "integer"}, float("inf")),
        ({"type": "integer"}, "1" * 65),
        ({"type": "number"}, "NaN"),
        ({"type": "number"}, "1e400"),
        ({"type": "number"}, "1e-400"),
        ({"type": "number"}, "0.1234567890123456789"),
        ({"type": "boolean"}, 1),
        ({"type": "boolean"}, "yes"),
        ({"type": "string"}, 1.1),
        ({"type": "string"}, None),
        ({"type": "string"}, {"a": 1}),
        ({"type": "object"}, "[1]"),
        ({"type": "object"}, "{broken"),
        ({"type": "object"}, "{" + '"a":{' * 200 + "}" * 201),
        ({"type": "array"}, None),
        ({"type": "array", "items": {"type": "integer"}}, "x"),
        ({"type": "array", "items": {"type": "integer"}}, {"a": 1}),
        ({"type": "null"}, ""),
        ({"enum": [1.5]}, "1.5"),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": None}),
    ],
)
def test_refused_because_something_would_be_lost_or_guessed(schema: dict[str, Any], value: Any) -> None:
    checked = validate_output(value, schema)
    assert checked.error
    assert checked.args is value


def test_null_stays_where_it_is_allowed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}, "b": {"type": "integer"}}}
    checked = compile_schema(schema).check({"a": None, "b": None})
    assert checked.args == {"a": None}
    assert checked.coercions == ("b",)


def test_a_text_stays_a_text_where_texts_are_allowed() -> None:
    schema = {
        "properties": {"a": {"type": ["integer", "string"]}, "b": {"anyOf": [{"type": "array"}, {"type": "string"}]}}
    }
    value = {"a": "5", "b": "[1]"}
    assert compile_schema(schema).check(value).args is value


def test_the_branch_with_the_fewest_conversions_wins() -> None:
    one = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
    two = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a", "b"]}
    checked = compile_schema({"anyOf": [one, two]}).check({"a": "1", "b": "2"})
    assert checked.args == {"a": 1, "b": "2"}
    assert checked.coercions == ("a",)


def test_extra_fields_are_kept_where_the_schema_allows_them() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert compile_schema(schema).check({"a": "1", "x": 2}).args == {"a": 1, "x": 2}


def test_the_input_is_never_changed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    value = {"a": ["1", 2]}
    assert compile_schema(schema).check(value).args == {"a": [1, 2]}
    assert value == {"a": ["1", 2]}


@given(st.integers(-(10**30), 10**30))
def test_numbers_in_text_come_back_exactly(number: int) -> None:
    assert validate_output(str(number), {"type": "integer"}).args == number
    assert validate_output(number, {"type": "string"}).args == str(number)


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: len(repr(x)) < 15))
def test_short_decimals_in_text_come_back_exactly(number: float) -> None:
    checked = validate_output(repr(number), {"type": "number"})
    assert checked.error is None
    assert checked.args == number
