"""Lazy disclosure: tools of MCP servers are named in a short catalogue, and their schemas come when they are asked for.

A model that needs one calls `tool_search`; what it finds is offered for the rest of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from windlass.core.ports import ToolContext, ToolResult
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.tools.mcp_tools import STATE, McpTool
from windlass.tools.mcp_words import escape, first_words, share

__all__ = ["CATALOG_BYTES", "TOOL_SEARCH", "SearchTool", "catalogue", "not_loaded", "unlock", "unlocked"]

TOOL_SEARCH = "tool_search"
#: Bytes of the catalogue in the system text.
CATALOG_BYTES = 2048
LIMIT = 20
_CALL = "Their schemas are not loaded: call {} (query, or names) before you use one."
_LENGTHS = (160, 80, 40, 20, 0)


def unlocked(state: Mapping[str, Any], run_id: str) -> set[str]:
    """Return the canonical names that a run has found so far."""
    kept = state.get(STATE, {})
    return kept.get("unlocked", set()) if kept.get("run") == run_id else set()


def unlock(state: dict[str, Any], run_id: str, names: Sequence[str]) -> None:
    """Offer tools, by canonical names, for the rest of a run."""
    kept = state.setdefault(STATE, {})
    if kept.get("run") != run_id:
        kept.update(run=run_id, unlocked=set())
    kept["unlocked"].update(names)


def catalogue(
    tools: Mapping[str, Sequence[McpTool]],
    aliases: Mapping[str, str],
    *,
    search: str | None = TOOL_SEARCH,
    limit: int = CATALOG_BYTES,
) -> str:
    """Return the list of tools by server, under the names that the model sees, in at most `limit` bytes.

    Descriptions are shortened until all fit, then dropped; then names stand without elements of their own; at last
    every server shows as many as its share allows and counts the rest. `search` is the wire name of tool_search, None
    for no word about it.
    """
    close = f"</searchable_tools>\n{_CALL.format(search)}" if search else "</searchable_tools>"
    rows = {server: [(aliases.get(tool.spec.name, tool.spec.name), tool) for tool in tools[server]] for server in tools}
    for length in _LENGTHS:
        text = _full(rows, length) + close
        if len(text.encode()) <= limit:
            return text
    counts = [len(row) for row in rows.values()]
    best, low, high = "", 1, sum(counts)
    while low <= high:
        middle = (low + high) // 2
        text = _compact(rows, share(counts, middle)) + close
        if len(text.encode()) <= limit:
            best, low = text, middle + 1
        else:
            high = middle - 1
    return best or _counts(rows, close, limit)


def _full(rows: Mapping[str, Sequence[tuple[str, McpTool]]], length: int) -> str:
    out = "<searchable_tools>\n"
    for server, tools in rows.items():
        out += f'<server name="{escape(_short(server))}">\n'
        for name, tool in tools:
            about = escape(first_words(tool.spec.description, length)) if length else ""
            out += f'<tool name="{escape(name)}">{about}</tool>\n' if about else f'<tool name="{escape(name)}"/>\n'
        out += "</server>\n"
    return out


def _compact(rows: Mapping[str, Sequence[tuple[str, McpTool]]], counts: Sequence[int]) -> str:
    out = "<searchable_tools>\n"
    for (server, tools), count in zip(rows.items(), counts, strict=True):
        names = ", ".join([name for name, _ in tools[:count]])
        more = f" and {len(tools) - count} more" if count < len(tools) else ""
        out += f'<server name="{escape(_short(server))}">{escape(names)}{more}</server>\n'
    return out


def _counts(rows: Mapping[str, Sequence[Any]], close: str, limit: int) -> str:
    """Where not even the servers fit: the number of both."""
    text = _compact({server: list(row) for server, row in rows.items()}, [0] * len(rows)) + close
    if len(text.encode()) <= limit:
        return text
    total = sum([len(row) for row in rows.values()])
    return f"<searchable_tools>\n{total} tools of {len(rows)} servers\n{close}"


def _short(server: str) -> str:
    return " ".join(server.split())[:60]


def not_loaded(name: str, search: str | None) -> str:
    """Return what a model reads that calls a tool which it has not asked for."""
    if search is None:
        return f"The tool {name} is not loaded in this run."
    return f'The tool {name} is not loaded. Call {search} with {{"names": ["{name}"]}} first, then call it.'


class SearchTool:
    """`tool_search`: finds hidden tools and unlocks them for the rest of the run."""

    timeout: float | None = 30.0

    def __init__(self) -> None:
        self.spec = ToolSpec(
            name=TOOL_SEARCH,
            description="Find tools listed in <searchable_tools> and load them; what is found can be called from the "
            "next turn on. Give names as listed, or a query: text in their names or descriptions.",
            input_schema={
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "Text to look for; * or nothing means any."},
                    "names": {"type": "array", "items": {"type": "string"}, "description": "Exact names."},
                    "server": {"type": "string", "description": "Only tools of this server."},
                    "limit": {"type": "integer", "minimum": 1, "description": "At most this many."},
                },
                "additionalProperties": False,
            },
            annotations=ToolAnnotations(read_only=True, idempotent=True),
        )

    async def call(self, args: dict[str, Any], ctx: ToolContext, /) -> Any:
        """Find, unlock, and tell what was found."""
        kept: dict[str, Any] = ctx.state.get(STATE, {})
        hidden: Mapping[str, McpTool] = kept.get("hidden", {})
        most = int(kept.get("limit", LIMIT))
        found = _find(hidden, args, min(int(args.get("limit") or most), most))
        if not found:
            known = ", ".join(list(hidden)[:20])
            return ToolResult(f"No tool matches. Try another word. Some that there are: {known}", "error")
        unlock(ctx.state, ctx.run_id, [tool.spec.name for tool in found.values()])
        rows = [f"{wire}: {first_words(tool.spec.description, 200)}" for wire, tool in found.items()]
        return "Loaded; call them in your next turn:\n" + "\n".join(rows)


def _find(hidden: Mapping[str, McpTool], args: Mapping[str, Any], limit: int) -> dict[str, McpTool]:
    names, server = args.get("names") or [], args.get("server")
    query = (args.get("query") or "").strip().lower()
    words = [] if query == "*" else query.split()
    scored: list[tuple[int, str]] = []
    for wire, tool in hidden.items():
        if server is not None and tool.origin[0] != server:
            continue
        if names and (wire in names or tool.spec.name in names or tool.origin[1] in names):
            scored.append((-100, wire))
        elif names and not query:
            continue
        else:
            text, title = tool.spec.description.lower(), f"{wire} {tool.origin[1]}".lower()
            hits = sum([3 * (word in title) + (word in text) for word in words])
            if hits or not words:
                # The whole phrase counts most: a query is a substring first.
                whole = 10 * (bool(query) and (query in title or query in text))
                scored.append((-hits - whole, wire))
    scored.sort(key=lambda item: item[0])
    return {wire: hidden[wire] for _, wire in scored[:limit]}
