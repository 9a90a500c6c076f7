"""What the tests of the loop share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from windlass.core.events import Event
from windlass.core.ports import ToolContext
from windlass.core.request import ToolSpec


class Tool:
    """A tool made of a function of (args, ctx), sync or async, with string or given parameters."""

    def __init__(
        self,
        name: str,
        body: Callable[[dict[str, Any], ToolContext], Any],
        *,
        timeout: float | None = None,
        **properties: dict[str, Any],
    ) -> None:
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        self.spec = ToolSpec(name, f"The tool {name}.", schema)
        self.timeout = timeout
        self.body = body
        self.inputs: list[dict[str, Any]] = []

    async def call(self, args: dict[str, Any], ctx: ToolContext) -> Any:
        self.inputs.append(args)
        out = self.body(args, ctx)
        return await out if isinstance(out, Awaitable) else out


def kinds(events: list[Event]) -> list[str]:
    """Return the kinds of events, deltas left out."""
    return [str(type(e).__struct_config__.tag) for e in events if not type(e).__name__.endswith("Delta")]
