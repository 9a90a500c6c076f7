"""JSON Schema from Python types and functions, and arguments back to Python values."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import pathlib
import uuid
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import jsonschema_rs
import msgspec
import pydantic
import pytest

from windlass.core.errors import ConfigError, ToolError
from windlass.core.ports import ToolContext
from windlass.core.schema import compile_schema
from windlass.core.signature import function_schema, schema_of


class Leaf(pydantic.BaseModel):
    n: int


class Tree(pydantic.BaseModel):
    leaf: Leaf
    kids: list[Tree] = []


class Point(msgspec.Struct):
    """A place."""

    x: int
    next: Point | None = None


@dataclasses.dataclass
class Job:
    tree: Tree
    leaf: Leaf
    where: pathlib.Path


class Opts(TypedDict):
    a: int
    b: NotRequired[str]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Duck:
    """Has pydantic's method, but not its options."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"}


def test_a_schema_is_taken_as_it_is_without_its_dialect() -> None:
    given = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object"}
    assert schema_of(given) == {"type": "object"}
    assert "$schema" in given
    assert schema_of(Duck) == {"type": "object"}


def test_simple_types() -> None:
    assert schema_of(int) == {"type": "integer"}
    assert schema_of(list[str]) == {"type": "array", "items": {"type": "string"}}
    assert schema_of(Literal["a", "b"]) == {"type": "string", "enum": ["a", "b"]}
    assert schema_of(Opts) == {
        "title": "Opts",
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "required": ["a"],
    }


@pytest.mark.parametrize(
    "kind", [Tree, Leaf, Point, Job, Opts, list[Tree], dict[str, Job], Point | None, tuple[int, Leaf]]
)
def test_every_schema_is_whole_and_compiles(kind: Any) -> None:
    schema = schema_of(kind)
    compile_schema(schema)
    jsonschema_rs.Draft202012Validator(schema)


def test_a_definition_used_once_stands_in_its_place_and_a_recursive_one_is_kept() -> None:
    assert "$defs" not in schema_of(list[Leaf])
    schema = schema_of(Point)
    assert schema["type"] == "object"
    assert list(schema["$defs"]) == ["Point"]
    assert compile_schema(schema).check({"x": 1, "next": {"x": "2"}}).args == {"x": 1, "next": {"x": 2}}


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Cannot make a JSON Schema of .*object"):
        schema_of(object)


def test_a_function_is_described() -> None:
    def search(query: str, limit: int = 10, tags: list[str] | None = None, *, exact: bool = False) -> str:
        """Search the index
        for pages.

        It is fast.

        Args:
            query: What to look for,
                in words.
            limit (int, optional): How many.

        Returns:
            query: not this one
        """
        return f"{query}{limit}{tags}{exact}"

    made = function_schema(search)
    assert (made.name, made.description, made.context) == ("search", "Search the index for pages.", ())
    assert made.schema == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for, in words."},
            "limit": {"type": "integer", "description": "How many.", "default": 10},
            "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
            "exact": {"type": "boolean", "default": False},
        },
        "required": ["query"],
        "additionalProperties": False,
    }


def test_numpy_and_rest_docstrings_and_annotated_words() -> None:
    def numpy(a: int, b: int, c: int) -> None:
        """Add.

        Parameters
        ----------
        a, b : int
            Two numbers
            to add.
        c : int
            Third.

        Returns
        -------
        c : int
            no
        """

    def rest(
        a: int, b: Annotated[int, "by metadata"], c: Annotated[int, msgspec.Meta(description="by Meta", ge=1)]
    ) -> None:
        """Add.

        :param int a: The
            first.
        :param b: not this
        :returns: nothing
        """

    def words(made: Any) -> list[str]:
        return [each["description"] for each in made.schema["properties"].values()]

    assert words(function_schema(numpy)) == ["Two numbers to add.", "Two numbers to add.", "Third."]
    made = function_schema(rest)
    assert words(made) == ["The first.", "by metadata", "by Meta"]
    assert made.schema["properties"]["c"]["minimum"] == 1
    assert made.description == "Add."


def test_the_context_is_not_an_argument() -> None:
    def one(a: int, ctx: ToolContext) -> None: ...
    def two(anything: ToolContext | None, a: int) -> None: ...

    assert function_schema(one).context == ("ctx",)
    assert function_schema(two).context == ("anything",)
    assert list(function_schema(two).schema["properties"]) == ["a"]


def test_arguments_become_the_annotated_types() -> None:
    def run(
        when: datetime.datetime,
        id: uuid.UUID,
        color: Color,
        job: Job,
        points: list[Point],
        size: float,
        mixed: str | int,
    ) -> None: ...

    made = function_schema(run)
    args: dict[str, Any] = {
        "when": "2024-01-02T03:04:05Z",
        "id": "00000000-0000-0000-0000-000000000001",
        "color": "blue",
        "job": {"tree": {"leaf": {"n": 1}, "kids": [{"leaf": {"n": 2}}]}, "leaf": {"n": 3}, "where": "a/b"},
        "points": [{"x": 1}],
        "size": 2,
        "mixed": "5",
    }
    assert compile_schema(made.schema).check(args).error is None
    bound = made.bind(args)
    assert bound == {
        "when": datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "id": uuid.UUID(int=1),
        "color": Color.BLUE,
        "job": Job(Tree(leaf=Leaf(n=1), kids=[Tree(leaf=Leaf(n=2))]), Leaf(n=3), pathlib.Path("a/b")),
        "points": [Point(1)],
        "size": 2.0,
        "mixed": "5",
    }
    assert args["color"] == "blue"


def test_a_value_that_is_not_of_its_type_names_the_field() -> None:
    def run(when: datetime.date, job: Job) -> None: ...

    made = function_schema(run)
    with pytest.raises(ToolError, match=r"Field when: Invalid RFC3339"):
        made.bind({"when": "tomorrow"})
    with pytest.raises(ToolError, match=r"Field job: n: Input should be a valid integer, .* at `\$\.leaf`"):
        made.bind({"job": {"tree": {"leaf": {"n": 1}}, "leaf": {"n": "x"}, "where": "a"}})


def test_methods_partials_and_callable_objects() -> None:
    class Box:
        def put(self, a: int) -> None:
            """Put it."""

        def __call__(self, b: str) -> None:
            """Call it."""

    assert list(function_schema(Box().put).schema["properties"]) == ["a"]
    assert function_schema(Box()).name == "Box"
    assert list(function_schema(Box()).schema["properties"]) == ["b"]
    half = function_schema(functools.partial(Box.put, Box()))
    assert (half.name, half.description, list(half.schema["properties"])) == ("put", "Put it.", ["a"])


def test_names_and_words_can_be_given() -> None:
    def run(a: int) -> None:
        """Not this."""

    made = function_schema(run, name="go", description="This.")
    assert (made.name, made.description) == ("go", "This.")


def _variable(*args: int) -> None: ...
def _keywords(**kwargs: int) -> None: ...
def _positional(a: int, /) -> None: ...
def _object(a: int, b: object) -> None: ...
def _unknown(a: Nowhere) -> None: ...  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]
def _bare(a: int, b, ctx) -> None: ...  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]
def _context(a: int, ctx) -> None: ...  # pyright: ignore[reportUnknownParameterType, reportMissingParameterType]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_variable, "Parameter 'args' of _variable is variable"),
        (_keywords, "Parameter 'kwargs' of _keywords is variable"),
        (_positional, "Parameter 'a' of _positional is positional-only"),
        (_object, "Cannot make a JSON Schema of parameter 'b' of _object"),
        (_unknown, "annotations of _unknown cannot be read: name 'Nowhere'"),
        (_bare, "Parameter 'b' of _bare has no annotation"),
        (_context, "Annotate it as ToolContext"),
    ],
)
def test_what_cannot_be_a_tool_names_function_and_parameter(function: Any, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        function_schema(function)
    assert text in str(caught.value)
