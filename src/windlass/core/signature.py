"""JSON Schema from Python: types by msgspec, pydantic models by their own method, functions by their signature."""

from __future__ import annotations

import functools
import inspect
import pathlib
import types
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from windlass.core._docstring import parse_docstring
from windlass.core.errors import ConfigError, ToolError
from windlass.core.ports import ToolContext

__all__ = ["FunctionSchema", "function_schema", "schema_of"]

_DEFS = "#/$defs/"
#: JSON gives these as they are: there is nothing to convert.
_PLAIN: tuple[Any, ...] = (
    str,
    int,
    bool,
    dict,
    list,
    Any,
    dict[str, Any],
    list[Any],
    str | None,
    int | None,
    bool | None,
)


def schema_of(annotation: Any) -> dict[str, Any]:
    """Return the JSON Schema of a Python type.

    Takes what msgspec takes (builtins, Struct, dataclass, TypedDict, NamedTuple, attrs, Enum, Literal, unions,
    datetime, UUID, Decimal, …), pydantic models alone or inside those, paths as text, and a dict that is a JSON Schema
    already. `$schema` is left out; a definition used once stands where it is used. Raises ConfigError for other types.
    """
    if isinstance(annotation, dict):
        return {key: value for key, value in annotation.items() if key != "$schema"}
    (schema,), defs = _generate([annotation], repr(annotation))
    return _assemble(schema, defs)


def _generate(annotations: list[Any], what: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return one schema per type and their shared definitions."""
    defs: dict[str, Any] = {}
    owners: dict[str, Any] = {}

    def hook(kind: type) -> dict[str, Any]:
        if issubclass(kind, pathlib.PurePath):
            return {"type": "string"}
        model_schema = getattr(kind, "model_json_schema", None)
        if model_schema is None:
            raise NotImplementedError
        prefix = kind.__name__
        while owners.setdefault(prefix, kind) is not kind:
            prefix += "_"
        made = _model_schema(model_schema, f"{_DEFS}{prefix}.{{model}}")
        defs.update({f"{prefix}.{name}": schema for name, schema in made.pop("$defs", {}).items()})
        made.pop("$schema", None)
        return made

    try:
        schemas, own = msgspec.json.schema_components(annotations, schema_hook=hook, ref_template=_DEFS + "{name}")
    except (TypeError, RecursionError, NameError) as error:
        # The second line of msgspec's text names the type; the first ones are about its API.
        detail = str(error).strip().splitlines()[-1] if str(error) else type(error).__name__
        raise ConfigError(
            f"Cannot make a JSON Schema of {what}: {detail}.",
            hint="Use JSON-like types, dataclasses, TypedDicts, msgspec Structs or pydantic models.",
        ) from error
    return list(schemas), {**own, **defs}


def _model_schema(method: Callable[..., dict[str, Any]], ref_template: str) -> dict[str, Any]:
    try:
        return dict(method(ref_template=ref_template))
    except TypeError:
        return dict(method())  # only of pydantic's shape, without its options


def _assemble(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """Put each definition that is used once in its place, and keep the others under `$defs`."""
    uses: Counter[str] = Counter()
    seen: set[str] = set()

    def count(value: Any) -> None:
        for name in _references(value):
            uses[name] += 1
            if name not in seen:
                seen.add(name)
                count(defs.get(name))

    def place(value: Any) -> Any:
        if isinstance(value, list):
            return [place(item) for item in value]
        if not isinstance(value, dict):
            return value
        out = {key: place(item) for key, item in value.items()}
        options = out.get("enum")
        if isinstance(options, list) and options and "type" not in out:
            # A Literal or Enum: some vendors refuse an enum that does not say its type.
            kinds = {type(option) for option in options}
            out = {"type": "string", **out} if kinds == {str} else {"type": "integer", **out} if kinds == {int} else out
        name = _target(value)
        # What is used once is never recursive: a circle is entered from outside and from within.
        if name is not None and uses[name] == 1 and name in defs:
            out.pop("$ref")
            return {**place(defs[name]), **out}
        return out

    count(schema)
    placed = place(schema)
    kept = {name: place(defs[name]) for name in sorted(seen) if uses[name] > 1 and name in defs}
    root = _target(placed)
    if root in kept:
        # A tool's schema must be an object in its first line: vendors refuse a reference there.
        placed = {**kept[root], **{key: value for key, value in placed.items() if key != "$ref"}}
    return {**placed, "$defs": kept} if kept else placed


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [name for item in value for name in _references(item)]
    if not isinstance(value, dict):
        return []
    own = _target(value)
    return ([own] if own is not None else []) + [name for item in value.values() for name in _references(item)]


def _target(schema: dict[str, Any]) -> str | None:
    ref = schema.get("$ref")
    return ref[len(_DEFS) :] if isinstance(ref, str) and ref.startswith(_DEFS) else None


class FunctionSchema:
    """A function as a tool: its name, what it is for, and the JSON Schema of its arguments.

    `context` names the parameters that receive the ToolContext: they are not part of `schema`.
    """

    __slots__ = ("_converted", "context", "description", "name", "schema")

    def __init__(
        self,
        name: str,
        description: str,
        schema: dict[str, Any],
        context: tuple[str, ...],
        converted: dict[str, Any],
    ) -> None:
        self.name, self.description, self.schema, self.context = name, description, schema, context
        self._converted = converted

    def bind(self, args: dict[str, Any]) -> dict[str, Any]:
        """Return keyword arguments of the annotated Python types from checked JSON arguments.

        Raises ToolError that names the field when a value is not one of its type.
        """
        out = dict(args)
        for name, kind in self._converted.items():
            if name in out:
                out[name] = _convert(name, out[name], kind)
        return out


def _convert(name: str, value: Any, kind: Any) -> Any:
    try:
        try:
            return msgspec.convert(value, kind, dec_hook=_build)
        except msgspec.ValidationError:
            # Only second: lax conversion takes the "5" of a `str | int` for a number.
            return msgspec.convert(value, kind, strict=False, dec_hook=_build)
    except (ValueError, TypeError) as error:
        raise ToolError(f"Field {name}: {error}") from error


def _build(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        return kind(value)
    try:
        return kind.model_validate(value)
    except ValueError as error:
        errors: Any = getattr(error, "errors", None)
        if errors is None:
            raise
        # pydantic's own text has three lines and a link per problem.
        found = [f"{'.'.join([str(at) for at in each['loc']])}: {each['msg']}" for each in errors()[:5]]
        raise ValueError("; ".join(found)) from error


def function_schema(
    function: Callable[..., Any], *, name: str | None = None, description: str | None = None
) -> FunctionSchema:
    """Describe a function as a tool.

    The description is the docstring's first paragraph; parameters are described by its Google, NumPy or reST entries,
    by `Annotated[int, "words"]` or by a `description` in the metadata. Raises ConfigError that names function and
    parameter for one that is not annotated, is variable (`*args`, `**kwargs`) or positional-only, or has a type
    without a JSON form.
    """
    if name is None:
        name = str(getattr(_inner(function), "__name__", type(function).__name__))
    summary, described = parse_docstring(inspect.getdoc(_inner(function)) or "")
    hints = _hints(function, name)
    context: list[str] = []
    wanted: dict[str, inspect.Parameter] = {}
    for parameter in inspect.signature(function).parameters.values():
        _check_kind(name, parameter, hints)
        if _is_context(hints[parameter.name]):
            context.append(parameter.name)
        else:
            wanted[parameter.name] = parameter
    schemas, defs = _generate_each(name, {key: hints[key] for key in wanted})
    properties = {
        key: _property(schema, hints[key], wanted[key].default, described.get(key)) for key, schema in schemas.items()
    }
    required = [key for key, parameter in wanted.items() if parameter.default is parameter.empty]
    root: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        root["required"] = required
    root["additionalProperties"] = False
    converted = {key: hints[key] for key in wanted if _strip(hints[key]) not in _PLAIN}
    words = summary if description is None else description
    return FunctionSchema(name, words, _assemble(root, defs), tuple(context), converted)


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _hints(function: Any, name: str) -> dict[str, Any]:
    inner = _inner(function)
    if not inspect.isroutine(inner):
        inner = type(inner).__call__
    try:
        return get_type_hints(inner, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"The annotations of {name} cannot be read: {error}.",
            hint="Define the types they name at the top of the module.",
        ) from error


def _check_kind(name: str, parameter: inspect.Parameter, hints: dict[str, Any]) -> None:
    where = f"Parameter {parameter.name!r} of {name}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise ConfigError(f"{where} is variable.", hint="Name each argument: the model is told of them one by one.")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise ConfigError(f"{where} is positional-only.", hint="Remove the `/`: arguments are passed by name.")
    if parameter.name not in hints:
        hint = "Annotate it: its type becomes the JSON Schema that the model is given."
        if parameter.name in ("ctx", "context"):
            hint = "Annotate it as ToolContext to be given the call's context."
        elif parameter.name == "self":
            hint = "Make the tool from a bound method: tool(obj.method)."
        raise ConfigError(f"{where} has no annotation.", hint=hint)


def _strip(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _is_context(annotation: Any) -> bool:
    annotation = _strip(annotation)
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_is_context(each) for each in get_args(annotation))
    return annotation is ToolContext


def _generate_each(name: str, hints: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        schemas, defs = _generate(list(hints.values()), name)
    except ConfigError:
        for key, hint in hints.items():
            _generate([hint], f"parameter {key!r} of {name}")  # again one by one, to name the one that is wrong
        raise
    return dict(zip(hints, schemas, strict=True)), defs


def _property(schema: dict[str, Any], annotation: Any, default: Any, described: str | None) -> dict[str, Any]:
    out = dict(schema)
    words = _metadata_description(annotation) or described
    if words and "description" not in out:
        out["description"] = words
    if default is not inspect.Parameter.empty and default is not None:
        try:
            out["default"] = msgspec.json.decode(msgspec.json.encode(default))
        except (TypeError, ValueError, OverflowError):
            return out  # a default that JSON cannot carry is the function's own affair
    return out


def _metadata_description(annotation: Any) -> str | None:
    if get_origin(annotation) is not Annotated:
        return None
    for item in get_args(annotation)[1:]:
        words = item if isinstance(item, str) else getattr(item, "description", None)
        if isinstance(words, str) and words:
            return words
    return None
