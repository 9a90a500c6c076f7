"""Searching the web, through what the user has: a SearXNG of their own, or a tool of an MCP server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlencode

from msgspec import Meta

from windlass.core.config import Config
from windlass.core.errors import ConfigError
from windlass.core.json import loads
from windlass.core.ports import Tool, ToolContext
from windlass.tools.access import Refusal
from windlass.tools.builtin import BuiltinTool
from windlass.tools.cutting import listed
from windlass.tools.fetch import Door
from windlass.tools.mcp_words import clean
from windlass.tools.web import framed

__all__ = ["SETUP", "make_web_search", "web_search"]

SETUP = (
    "Set `searxng` in your own config file (or WINDLASS_SEARXNG) to the address of a SearXNG whose settings.yml has "
    "`json` among search.formats; or add an MCP server with a search tool and call that one."
)
#: Results of one answer, bytes of it, and bytes of one result's text.
MOST, ANSWER_BYTES, SNIPPET_BYTES = 20, 16 * 1024, 400
_MAX_BYTES = 4 * 1024 * 1024
Count = Annotated[int, Meta(ge=1, le=MOST)]
Page = Annotated[int, Meta(ge=1, le=50)]


def make_web_search(
    searxng: str | None = None,
    *,
    config: Config | None = None,
    mcp: Callable[[str], Tool | None] | None = None,
    mcp_tool: str = "",
    seconds: float = 20.0,
) -> BuiltinTool[Any] | None:
    """Make the tool `web_search`, or None where nothing is set that could search.

    `searxng` is the address of a SearXNG, by default that of the configuration's setting `searxng`; being the user's
    own, it may be on a private network. Else `mcp_tool` names a tool of an MCP server that `mcp(name)` gives, called
    with `{"query": ...}`. Raises ConfigError for an address that is none.
    """
    address = searxng or (_configured(config) if config is not None else "")
    if address:
        return _through_searxng(address, seconds)
    if mcp_tool and mcp is not None:
        return _through_mcp(mcp_tool, mcp, seconds)
    return None


def web_search(config: Config | None = None) -> BuiltinTool[Any]:
    """Return the tool `web_search` that the user's settings give. Raises ConfigError that says how to set it up."""
    made = make_web_search(config=config if config is not None else Config.from_environment())
    if made is None:
        raise ConfigError("There is nothing to search the web with.", hint=SETUP)
    return made


def _configured(config: Config) -> str:
    return str(config.get("searxng") or "")


def _through_searxng(address: str, seconds: float) -> BuiltinTool[Any]:
    base = address.rstrip("/").removesuffix("/search")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"searxng is {address!r}; it must be an http or https address.")
    # A search that is redirected goes to somebody the user did not choose.
    door = Door(allow_private=True, max_redirects=0, max_bytes=_MAX_BYTES)

    async def web_search(query: str, limit: Count = 10, page: Page = 1) -> Any:
        """Search the web; returns titles, addresses and excerpts.

        Args:
            limit: Results.
        """
        asked = urlencode({"q": query, "format": "json", "pageno": page}, errors="replace")
        found = await door.fetch("GET", f"{base}/search?{asked}", headers={"accept": "application/json"},
                                 seconds=seconds)  # fmt: skip
        if found.status == 403:
            raise Refusal(f"The SearXNG at {base} refuses JSON. Its settings.yml must have `json` in search.formats.")
        if found.status != 200:
            raise Refusal(f"The SearXNG at {base} answered {found.line}.")
        try:
            data: Any = loads(found.body)
        except (ValueError, RecursionError):
            raise Refusal(f"The SearXNG at {base} did not answer with JSON.") from None
        return _results(data, query, limit, page)

    return _made(web_search, seconds)


def _results(data: Any, query: str, limit: int, page: int) -> str:
    given: Any = data.get("results") if isinstance(data, dict) else None
    rows: list[str] = []
    for item in given if isinstance(given, list) else ():
        url = _line(item.get("url"), 2000) if isinstance(item, dict) else ""
        if url.startswith(("http://", "https://")):
            about = [_line(item.get("content"), SNIPPET_BYTES), _line(item.get("publishedDate"), 40)]
            text = " | ".join([each for each in about if each])
            rows.append(
                f"{len(rows) + 1}. {_line(item.get('title'), 300)}\n   {url}" + (f"\n   {text}" if text else "")
            )
    if not rows:
        return f"Nothing was found for {query!r}."
    more = f"More with page={page + 1}." if len(rows) <= limit else f"Ask with a greater limit, or page={page + 1}."
    return framed(listed(rows, ANSWER_BYTES, "results", more, most=limit), {"search": query})


def _line(value: Any, limit: int) -> str:
    return " ".join(clean(value, limit).text.split()) if isinstance(value, str) else ""


def _through_mcp(name: str, find: Callable[[str], Tool | None], seconds: float) -> BuiltinTool[Any]:
    async def web_search(ctx: ToolContext, query: str) -> Any:
        """Search the web."""
        found = find(name)
        if found is None:
            raise Refusal(f"The tool {name}, which searches the web, is not there. {SETUP}")
        return await found.call({"query": query}, ctx)

    return _made(web_search, seconds)


def _made(function: Callable[..., Any], seconds: float) -> BuiltinTool[Any]:
    # A query can carry data out as well as a URL can: see `tools.web`.
    annotations = {"open_world": True, "read_only": True, "destructive": False, "idempotent": True}
    return BuiltinTool(function, timeout=seconds + 15.0, annotations=annotations)
