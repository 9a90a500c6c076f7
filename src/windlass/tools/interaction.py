"""A tool that asks somebody: a person at a screen, another program."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from windlass.core.errors import ConfigError, ToolError
from windlass.core.json import dumps
from windlass.core.ports import ToolContext
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.core.signature import schema_of
from windlass.tools.function import SpecTool

__all__ = ["create_interaction_tool"]


class _Interaction(SpecTool):
    """Calls `on_request` with checked arguments; a text is the answer, anything else is answered as JSON."""

    async def call(self, args: dict[str, Any], ctx: ToolContext, /) -> str:
        """Ask and wait. Raises ToolError for what JSON cannot carry, and what `on_request` raises."""
        answer = await super().call(args, ctx)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is None or isinstance(answer, str):
            return answer or ""
        try:
            return dumps(answer).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolError(f"The answer to {self.spec.name} cannot be read by a model: {error}.") from error


def create_interaction_tool(
    name: str,
    schema: Any,
    on_request: Callable[..., Any],
    *,
    description: str = "",
    title: str | None = None,
    timeout: float | None = 3600.0,
) -> SpecTool:
    """Make a tool whose answer comes from `on_request(args)` or `on_request(args, ctx)`, async or not.

    `schema` is a JSON Schema of an object, or a Python type for one; arguments are checked before `on_request` sees
    them. A text is the answer; anything else is answered as JSON. `timeout` is how long to wait, in seconds: an hour,
    since people think; None is the agent's own. A cancelled run cancels an async `on_request`; one that is not async
    runs in a thread and is left behind. It is reference C's `createInteractionTool`. Raises ConfigError for a name,
    schema or function that cannot be a tool's.
    """
    if not callable(on_request):
        raise ConfigError(f"The on_request of {name!r} is {on_request!r}.", hint="Give a function of the arguments.")
    given = schema_of(schema)
    if given.get("type", "object") != "object":
        raise ConfigError(f"The schema of {name!r} is no object's.", hint='{"type": "object", "properties": {…}}')
    spec = ToolSpec(
        name,
        description or "Ask the person you work for, and wait for the answer.",
        {"type": "object", **given},
        title=title,
        annotations=ToolAnnotations(read_only=True, open_world=False),
    )
    return _Interaction(spec, on_request, timeout=timeout)
