"""Two tools that need nothing: to try an agent with, and to debug one."""

from __future__ import annotations

from windlass.core import clock
from windlass.tools.function import tool

__all__ = ["echo", "utc"]


@tool(annotations={"read_only": True, "idempotent": True})
async def echo(text: str) -> str:
    """Return the text."""
    return text


@tool(annotations={"read_only": True})
async def utc() -> str:
    """Return the time in UTC (RFC 3339)."""
    return clock.rfc3339(clock.now_ns())
