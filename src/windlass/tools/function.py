"""Functions as tools: the `tool` decorator, and `as_tool` for everything that can become one."""

from __future__ import annotations

import asyncio
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar, overload

import msgspec

from windlass.core.errors import ConfigError, UnknownNameError
from windlass.core.ports import Tool, ToolContext
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.core.schema import compile_schema
from windlass.core.signature import function_schema, schema_of
from windlass.core.threads import run_in_thread

__all__ = ["FunctionTool", "SpecTool", "as_tool", "tool"]

P = ParamSpec("P")
R = TypeVar("R")
Annotations = ToolAnnotations | Mapping[str, bool | None] | None

#: What every vendor takes as a tool's name.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class FunctionTool(Generic[P, R]):
    """A typed function as a tool; calling the object calls the function.

    `spec` is made from the signature and the docstring, see `core.schema.function_schema`. A function that is not
    async runs in a thread of our own (`runs_in_thread`); past its deadline it is abandoned. Raises ConfigError for a
    function, name or timeout that cannot be a tool's.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        title: str | None = None,
        timeout: float | None = None,
        annotations: Annotations = None,
    ) -> None:
        if isinstance(function, type) or not callable(function):
            raise ConfigError(f"{function!r} is no function.", hint="A tool is made from a typed function.")
        self._function = function
        self._schema = function_schema(function, name=name, description=description)
        self._asynchronous = _is_async(function, self._schema.name)
        self.spec = ToolSpec(
            name=_checked_name(self._schema.name),
            description=self._schema.description,
            input_schema=self._schema.schema,
            title=title,
            annotations=_annotations(annotations, self._schema.name),
        )
        self.timeout = _checked_timeout(timeout, self._schema.name)
        # Not its attributes: a callable object's own `spec` or `timeout` would overwrite ours.
        functools.update_wrapper(self, function, updated=())

    @property
    def runs_in_thread(self) -> bool:
        """True when the function is not async: at its deadline it cannot be stopped."""
        return not self._asynchronous

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<tool {self.spec.name}>"

    async def call(self, args: dict[str, Any], ctx: ToolContext, /) -> Any:
        """Call the function with checked JSON arguments, as the types it asks for. Raises what it raises."""
        kwargs = self._schema.bind(args)
        function: Callable[..., Any] = self._function
        context = self._schema.context
        if self._asynchronous:
            return await function(**kwargs, **dict.fromkeys(context, ctx))
        return await _call_in_thread(lambda here: function(**kwargs, **dict.fromkeys(context, here)), ctx)


class SpecTool:
    """A tool with a spec of its own and a `handler(args)` or `handler(args, ctx)`, async or not.

    Raises ConfigError for a broken schema, a bad name or timeout.
    """

    def __init__(self, spec: ToolSpec, handler: Callable[..., Any], *, timeout: float | None = None) -> None:
        compile_schema(spec.input_schema)
        _checked_name(spec.name)
        self.spec = spec
        self.timeout = _checked_timeout(timeout, spec.name)
        self._handler = handler
        self._asynchronous = _is_async(handler, spec.name)
        self._takes_context = _takes_two(handler)

    @property
    def runs_in_thread(self) -> bool:
        """True when the handler is not async: at its deadline it cannot be stopped."""
        return not self._asynchronous

    def __repr__(self) -> str:
        return f"<tool {self.spec.name}>"

    async def call(self, args: dict[str, Any], ctx: ToolContext, /) -> Any:
        """Call the handler with checked JSON arguments. Raises what it raises."""
        if self._asynchronous:
            return await self._run(args, ctx)
        return await _call_in_thread(lambda here: self._run(args, here), ctx)

    def _run(self, args: dict[str, Any], ctx: Any) -> Any:
        return self._handler(args, ctx) if self._takes_context else self._handler(args)


class _ThreadContext:
    """A ToolContext for a function that runs in a thread: `progress` goes to the loop, until the call has left."""

    def __init__(self, ctx: ToolContext) -> None:
        self._ctx, self._loop, self.open = ctx, asyncio.get_running_loop(), True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def progress(self, text: str = "", data: Any = None) -> None:
        if self.open:
            self._loop.call_soon_threadsafe(self._report, text, data)

    def _report(self, text: str, data: Any) -> None:
        if self.open:
            self._ctx.progress(text, data)


async def _call_in_thread(function: Callable[[_ThreadContext], Any], ctx: ToolContext) -> Any:
    here = _ThreadContext(ctx)
    try:
        result = await run_in_thread(function, here)
        # A plain function may hand back a coroutine (a lambda around an async one).
        return await result if inspect.isawaitable(result) else result
    finally:
        here.open = False


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    title: str | None = None,
    timeout: float | None = None,
    annotations: Annotations = None,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a tool from a typed function: `@tool`, or `@tool(name=…, description=…, timeout=…, annotations=…)`.

    The model is told the function's name, the first paragraph of its docstring and a JSON Schema of its parameters. A
    parameter annotated `ToolContext` receives the call's context. `timeout` is in seconds (None: the agent's),
    `annotations` the hints of MCP (read_only, destructive, idempotent, open_world). The function stays callable.
    Raises ConfigError that names function and parameter where a signature cannot be described.
    """
    if function is not None:
        return FunctionTool(function, **options)
    return functools.partial(_decorate, options)


def _decorate(options: dict[str, Any], function: Callable[..., Any], /) -> FunctionTool[..., Any]:
    return FunctionTool(function, **options)


_DICT_KEYS: dict[str, str] = {
    **{key: key for key in ("name", "description", "title", "timeout", "annotations", "input_schema", "output_schema")},
    "parameters": "input_schema",
    "inputSchema": "input_schema",
    "outputSchema": "output_schema",
    "call": "call",
    "handler": "call",
    "execute": "call",
}


def as_tool(thing: Any) -> Tool:
    """Return a Tool for a tool, a typed function, or a dict.

    A dict holds `name`, `call` (a function of the arguments' dict, and of the context where it takes two), and
    optionally `description`, `input_schema` (a JSON Schema or a Python type), `output_schema`, `title`, `timeout`,
    `annotations`; also in the form of OpenAI's `{"type": "function", "function": {…}, "call": …}`. Raises ConfigError
    for anything else.
    """
    if isinstance(thing, dict):
        return _from_dict(thing)
    if not isinstance(thing, type):
        if isinstance(thing, Tool):
            return thing
        if callable(thing):
            return FunctionTool(thing)
    raise ConfigError(
        f"{thing!r} cannot be a tool.", hint="Give a typed function, an object with `spec` and `call`, or a dict."
    )


def _from_dict(given: dict[Any, Any]) -> SpecTool:
    if given.get("type") == "function" and isinstance(given.get("function"), dict):
        given = {**given["function"], **{key: given[key] for key in given if key not in ("type", "function")}}
    known: dict[str, Any] = {}
    for key, value in given.items():
        if key == "strict":
            continue  # OpenAI's request flag; arguments are always checked here
        if key not in _DICT_KEYS:
            raise UnknownNameError("field of a tool", str(key), _DICT_KEYS)
        known[_DICT_KEYS[key]] = value
    name = known.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"A tool without a name: {given!r:.200}.", hint="Give it a `name`.")
    handler = known.get("call")
    if not callable(handler):
        raise ConfigError(f"The tool {name!r} has no `call`.", hint="Add the function that does it: {'call': f}.")
    output = known.get("output_schema")
    spec = ToolSpec(
        name=name,
        description=known.get("description") or "",
        input_schema=schema_of(known.get("input_schema") or {"type": "object", "properties": {}}),
        title=known.get("title"),
        output_schema=None if output is None else schema_of(output),
        annotations=_annotations(known.get("annotations"), name),
    )
    return SpecTool(spec, handler, timeout=known.get("timeout"))


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be a tool's name.", hint="Use 1 to 64 letters, digits, `_` and `-`; pass name=… ."
        )
    return name


def _checked_timeout(timeout: Any, name: str) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ConfigError(f"The timeout of {name} is {timeout!r}; it must be a positive number of seconds.")
    return float(timeout)


def _annotations(given: Any, name: str) -> ToolAnnotations:
    if given is None:
        return ToolAnnotations()
    if isinstance(given, ToolAnnotations):
        return given
    for key in given:
        if key not in ToolAnnotations.__struct_fields__:
            raise UnknownNameError(f"annotation of {name}", str(key), ToolAnnotations.__struct_fields__)
    try:
        return msgspec.convert(dict(given), ToolAnnotations)
    except msgspec.ValidationError as error:
        raise ConfigError(f"The annotations of {name}: {error}.") from None


def _is_async(function: Any, name: str) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    inner = function if inspect.isroutine(function) else getattr(type(function), "__call__", function)  # noqa: B004
    if inspect.isasyncgenfunction(inner) or inspect.isgeneratorfunction(inner):
        raise ConfigError(f"{name} is a generator.", hint="Return the whole result; report parts by ctx.progress.")
    return inspect.iscoroutinefunction(inner)


def _takes_two(handler: Callable[..., Any]) -> bool:
    parameters = inspect.signature(handler).parameters.values()
    places = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return len(places) >= 2 or any(each.kind is each.VAR_POSITIONAL for each in parameters)
