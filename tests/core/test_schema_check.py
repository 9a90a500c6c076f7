"""The schema engine against jsonschema-rs, and what it refuses to compile."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import ConfigError
from windlass.core.schema import Validator, coerce_and_validate, compile_schema, validate_output

TOOL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "offset": {"type": "integer", "minimum": 1},
        "mode": {"enum": ["a", "b"]},
    },
    "required": ["path"],
    "additionalProperties": False,
}

_NAMES = st.sampled_from(["a", "b", "c", "$ref", "x/y"])
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-20, 20),
    st.integers(2**60, 2**70),
    # No whole floats: JSON Schema takes 5.0 for an integer, we make it one first.
    st.sampled_from([0.5, -1.25, 2.5]),
    st.text("ab5é. ", max_size=4),
    st.sampled_from(["5", "-3", "5.5", "true", "null", "[1]", '{"a":1}', "1e400"]),
)
VALUES = st.recursive(
    _SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(_NAMES, below, max_size=3), max_leaves=6
)
_BOUNDS = st.integers(0, 3)


def _leaf() -> st.SearchStrategy[Any]:
    kinds = st.sampled_from(["string", "integer", "number", "boolean", "null", "object", "array"])
    bounds = st.fixed_dictionaries(
        {},
        optional={
            "minimum": st.integers(-5, 5),
            "exclusiveMaximum": st.integers(0, 30),
            "multipleOf": st.sampled_from([1, 2, 5]),
            "minLength": _BOUNDS,
            "maxLength": _BOUNDS,
            "minItems": _BOUNDS,
            "maxItems": _BOUNDS,
            "maxProperties": _BOUNDS,
            "uniqueItems": st.booleans(),
            "pattern": st.sampled_from(["^a", "b$", "^[ab]{2}$"]),
        },
    )
    typed = st.tuples(kinds | st.lists(kinds, min_size=1, max_size=2, unique=True), bounds).map(_typed)
    options = st.lists(_SCALARS, min_size=1, max_size=3, unique_by=repr)
    fixed = st.one_of(_SCALARS.map(_keyed("const")), options.map(_keyed("enum")))
    return st.one_of(typed, fixed, st.booleans(), st.just({}))


def _typed(drawn: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
    return {"type": drawn[0], **drawn[1]}


def _keyed(key: str) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {key: value}


def _combined(drawn: tuple[str, list[Any], dict[str, Any]]) -> dict[str, Any]:
    return {**drawn[2], drawn[0]: drawn[1]}


def _grow(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(below, min_size=1, max_size=3)
    objects = st.fixed_dictionaries(
        {"type": st.just("object")},
        optional={
            "properties": st.dictionaries(_NAMES, below, max_size=3),
            "required": st.lists(_NAMES, max_size=2, unique=True),
            "additionalProperties": below,
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$"]), below, max_size=1),
        },
    )
    arrays = st.fixed_dictionaries({}, optional={"prefixItems": several, "items": below, "type": st.just("array")})
    combined = st.tuples(st.sampled_from(["anyOf", "oneOf", "allOf"]), several, objects).map(_combined)
    return st.one_of(objects, arrays, combined, below.map(_keyed("not")))


SCHEMAS = st.recursive(_leaf(), _grow, max_leaves=5)


def _document(schema: Any, shared: Any) -> dict[str, Any]:
    return {"allOf": [schema], "anyOf": [{"$ref": "#/$defs/s"}, {}], "$defs": {"s": shared}}


@settings(max_examples=400, deadline=None)
@given(SCHEMAS, SCHEMAS, VALUES)
def test_fits_exactly_what_an_independent_validator_accepts(schema: Any, shared: Any, value: Any) -> None:
    document = {"oneOf": [schema, {"$ref": "#/$defs/s"}], "$defs": {"s": shared}}
    for each in (document, _document(schema, shared)):
        oracle = jsonschema_rs.Draft202012Validator(each)
        assert compile_schema(each).fits(value) == oracle.is_valid(value)


@settings(max_examples=400, deadline=None)
@given(SCHEMAS, VALUES)
def test_what_passes_fits_and_what_was_clean_is_untouched(schema: Any, value: Any) -> None:
    document = _document(schema, True)
    oracle = jsonschema_rs.Draft202012Validator(document)
    before = repr(value)
    checked = compile_schema(document).check(value)
    assert repr(value) == before
    if oracle.is_valid(value):
        assert checked.error is None
        assert checked.args is value
        assert checked.coercions == ()
    elif checked.error is None:
        assert oracle.is_valid(checked.args)
        assert checked.coercions
    else:
        assert checked.error
        assert checked.coercions == ()


def test_r24_clean_arguments_are_returned_as_they_are() -> None:
    args = {"path": "x", "offset": 3, "mode": "b"}
    checked = compile_schema(TOOL).check(args)
    assert checked.args is args
    assert (checked.coercions, checked.error) == ((), None)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (None, "expected object, got null"),
        ([], "expected object, got an array of 0"),
        ({}, "Missing required field: path"),
        ({"path": None}, "Field path: expected string, got null"),
        ({"path": 1.5}, "Field path: expected string, got 1.5"),
        ({"path": {"a": 1}}, "Field path: expected string, got an object"),
        ({"path": "x", "offset": "x"}, 'Field offset: expected integer, got "x"'),
        ({"path": "x", "offset": "5.5"}, 'Field offset: expected integer, got "5.5"'),
        ({"path": "x", "offset": 5.5}, "Field offset: expected integer, got 5.5"),
        ({"path": "x", "offset": math.nan}, "Field offset: expected integer, got nan"),
        ({"path": "x", "offset": 0}, "Field offset: expected a value >= 1, got 0"),
        ({"path": "x", "mode": "c"}, 'Field mode: expected one of "a", "b", got "c"'),
        ({"path": "x", "ofset": 1}, "Unknown field: ofset (did you mean offset?)"),
        ({"path": "x", "zzz": 1}, "Unknown field: zzz (known: path, offset, mode)"),
        ({"pth": "x"}, "Missing required field: path; Unknown field: pth (did you mean path?)"),
        ({"path": 10**5000}, "Field path: expected string, got a huge number"),
        ({"path": "x", "offset": "9" * 100_000}, f'Field offset: expected integer, got "{"9" * 40}…"'),
    ],
)
def test_r24_wrong_arguments_are_named(args: Any, error: str) -> None:
    checked = compile_schema(TOOL).check(args)
    assert checked.error == error
    assert checked.args is args


def test_errors_name_nested_places_and_are_bounded() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {"type": "integer"}}}}},
    }
    value = {"a": [{"b": "x"}] * 9}
    error = compile_schema(schema).check(value).error
    assert error is not None
    assert error.startswith('Field a[0].b: expected integer, got "x"; Field a[1].b: ')
    assert error.count("Field") == 5
    assert error.endswith("; and more")


@pytest.mark.parametrize(
    ("schema", "value", "error"),
    [
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "x", 'expected integer or null, got "x"'),
        (
            {"anyOf": [{"type": "string", "minLength": 3}, {"type": "null"}]},
            "x",
            'expected at least 3 characters, got "x"',
        ),
        ({"oneOf": [{"minimum": 1}, {"minimum": 2}]}, 3, "fits 2 of the allowed forms, must fit exactly one"),
        ({"not": {"type": "string"}}, "x", 'expected another value, got "x"'),
        ({"pattern": "^a"}, "x", 'expected text matching ^a, got "x"'),
        ({"uniqueItems": True}, [1, 1.0], "expected items that differ, got an array of 2"),
        ({"maxProperties": 1}, {"a": 1, "b": 2}, "expected at most 1 fields, got an object"),
        ({"multipleOf": 0.1}, 0.25, "expected a multiple of 0.1, got 0.25"),
        ({"const": 1}, 2, "expected 1, got 2"),
        ({"const": True}, 1, "expected true, got 1"),
        ({"properties": {"a": False}}, {"a": 1}, "Field a: nothing is allowed here"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}}, [], "expected integer, got an array of 0"),
        ({"items": [{"type": "integer"}], "additionalItems": False}, [1, 2], "Field [1]: nothing is allowed here"),
        ({"minimum": 3, "exclusiveMinimum": True}, 3, "expected a value > 3, got 3"),
    ],
)
def test_every_keyword_explains_itself(schema: dict[str, Any], value: Any, error: str) -> None:
    assert validate_output(value, schema).error == error


def test_a_union_of_objects_is_explained_by_the_nearest_one() -> None:
    schema: dict[str, Any] = {
        "anyOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "x"}, "n": {"type": "integer"}},
                "required": ["kind", "n"],
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "y"}, "s": {"type": "array"}},
                "required": ["kind", "s"],
            },
        ]
    }
    assert validate_output({"kind": "y"}, schema).error == "Missing required field: s"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "text"}, "#/type"),
        ({"type": []}, "#/type"),
        ({"type": {"a": 1}}, "#/type"),
        ({"properties": []}, "#/properties"),
        ({"properties": {"a": 5}}, "#/properties/a"),
        ({"properties": {"a": {"items": {"minimum": "x"}}}}, "#/properties/a/items/minimum"),
        ({"required": "a"}, "#/required"),
        ({"required": [1]}, "#/required"),
        ({"anyOf": []}, "#/anyOf"),
        ({"anyOf": {"a": 1}}, "#/anyOf"),
        ({"enum": "a"}, "#/enum"),
        ({"multipleOf": 0}, "#/multipleOf"),
        ({"minLength": True}, "#/minLength"),
        ({"$ref": "http://127.0.0.1/x"}, "#/$ref"),
        ({"$ref": "#/$defs/x"}, "#/$ref"),
        ({"$ref": 5}, "#/$ref"),
        ({"$ref": "#"}, "#/$ref"),
        (
            {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
            "#/$defs/a/allOf/0/$ref",
        ),
        ({"properties": {"p": {"pattern": "(?=a)"}}}, "#/properties/p/pattern"),
        ({"patternProperties": {"(": {}}}, "#/patternProperties/("),
    ],
)
def test_a_broken_schema_names_the_place(schema: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compile_schema(schema)
    assert f"Broken JSON Schema at {place}: " in str(caught.value)


def test_lenient_skips_patterns_that_cannot_be_matched() -> None:
    schema = {"pattern": "(?=a)", "patternProperties": {"(?!b)": {}}, "additionalProperties": False}
    validator = compile_schema(schema, lenient=True)
    assert validator.fits("zzz")
    assert validator.fits({"any": 1})


def test_s76_deep_values_and_deep_schemas_are_refused() -> None:
    recursive: dict[str, Any] = {"type": "array", "items": {"$ref": "#"}}
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    assert compile_schema(recursive).check(value).error == "The value is nested too deeply or too large to check"
    assert not compile_schema(recursive).fits(value)
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(ConfigError, match="nested too deeply"):
        compile_schema(schema)
    while value:  # taken apart level by level: releasing it at once would recurse
        value = value.pop()
    while schema:
        schema = schema.pop("items")


def test_s76_huge_objects_and_numbers_are_bounded_work() -> None:
    validator = compile_schema(TOOL)
    assert validator.fits({"path": "x", "offset": 10**100_000})
    assert validator.check({"path": "x", **{str(n): n for n in range(1_000_000)}}).error is not None
    few = validator.check({"path": "x", **{f"pathx{n}": n for n in range(1000)}}).error
    assert few is not None
    assert few.count("Unknown field") == 5
    rows: dict[str, Any] = {"type": "array", "items": {"type": "integer"}}
    assert compile_schema(rows).check(["x"] * 1_000_000).error is not None


def test_references_cannot_multiply_without_bound() -> None:
    defs: dict[str, Any] = {"d0": {"type": "integer"}}
    for level in range(1, 60):
        defs[f"d{level}"] = {"anyOf": [{"$ref": f"#/$defs/d{level - 1}"}] * 2}
    validator = compile_schema({"$ref": "#/$defs/d59", "$defs": defs})
    assert validator.check("x").error == "The value is nested too deeply or too large to check"
    assert validator.fits(1)


def test_a_recursive_schema_is_followed() -> None:
    node: dict[str, Any] = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}}},
        "required": ["n"],
    }
    validator = compile_schema({"$ref": "#/$defs/a~1b", "$defs": {"a/b": node}})
    checked = validator.check({"n": 1, "kids": [{"n": "2"}, {"kids": []}]})
    assert checked.error == "Missing required field: kids[1].n"
    assert validator.check({"n": 1, "kids": [{"n": "2"}]}).coercions == ("kids[0].n",)


def test_a_schema_is_compiled_once_and_not_changed() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
    before = repr(schema)
    assert coerce_and_validate({"a": "1"}, schema).args == {"a": 1}
    assert repr(schema) == before
    validator = Validator(schema)
    schema["properties"]["a"]["type"] = "string"
    assert coerce_and_validate({"a": "1"}, validator).args == {"a": 1}
