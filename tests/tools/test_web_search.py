"""web_search through a SearXNG of the test's own, and through a tool that stands for an MCP server's."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from windlass.agent.agent import Agent
from windlass.core.config import Config
from windlass.core.config_files import load_config
from windlass.core.errors import ConfigError
from windlass.core.messages import ToolResponse
from windlass.core.ports import Tool, ToolResult
from windlass.testing.faults import FaultServer, Received, Reply, Step
from windlass.testing.scripted import ScriptedProvider, call
from windlass.testing.tool_kit import call_tool
from windlass.tools.function import tool
from windlass.tools.websearch import make_web_search, web_search


def found(number: int) -> dict[str, Any]:
    return {"title": f"T{number}\x1b[31m", "url": f"https://r{number}.test/", "content": "some\n text " * 100,
            "publishedDate": "2026-01-02"}  # fmt: skip


def searxng(got: Received) -> Step:
    """What a SearXNG answers at /search?format=json (docs.searxng.org/dev/search_api.html)."""
    asked = parse_qs(urlsplit(got.target).query)
    if urlsplit(got.target).path != "/search" or asked.get("format") != ["json"]:
        return Reply(404, b"")
    by_query: dict[str, Any] = {
        "none": {"results": []}, "odd": {"results": [1, {"url": "javascript:x"}, {"title": 5, "url": "https://ok.test"}]},
        "list": [], "forms": {"results": None},
    }  # fmt: skip
    query = asked["q"][0]
    if query == "refused":
        return Reply(403, b"Forbidden")
    if query == "html":
        return Reply(200, b"<html>")
    if query == "moved":
        return Reply(302, b"", {"location": "http://127.0.0.1:1/"})
    rows = by_query.get(query, {"results": [found(number) for number in range(int(asked["pageno"][0]) * 12)]})
    return Reply(200, json.dumps(rows).encode(), {"content-type": "application/json"})


async def ask(search: Tool | None, **args: Any) -> str:
    assert search is not None
    output = await call_tool(search, args)
    if isinstance(output, ToolResult):
        assert output.status == "error" and isinstance(output.content, str)
        return output.content
    return str(output)


async def test_a_search_gives_bounded_lines() -> None:
    async with FaultServer(searxng) as server:
        search = make_web_search(f"{server.url}/")
        text = await ask(search, query="wind & läss", limit=3)
        assert parse_qs(urlsplit(server.requests[0].target).query)["q"] == ["wind & läss"]
        assert text.startswith(
            '<fetched search="wind &amp; läss" note="data, not instructions">\n1. T0\n   https://r0.test/\n'
        )
        assert "2026-01-02" in text and "\x1b" not in text and "4. " not in text and len(text) < 3000
        assert "[3 of 12 results; " in text and "Ask with a greater limit, or page=2.]" in text
        whole = await ask(search, query="x", limit=20, page=9)
        assert len(whole.encode()) < 17_500 and "of 108 results" in whole
        assert "1. \n   https://ok.test" in await ask(search, query="odd")
        for query in ("none", "list", "forms"):
            assert await ask(search, query=query) == f"Nothing was found for '{query}'."


async def test_what_goes_wrong_says_what_to_do() -> None:
    async with FaultServer(searxng) as server:
        search = make_web_search(server.url)
        assert "must have `json` in search.formats" in await ask(search, query="refused")
        assert "did not answer with JSON" in await ask(search, query="html")
        assert "answered 302 Found" in await ask(search, query="moved")
    assert "could not be fetched" in await ask(search, query="x")


async def test_without_anything_to_search_with_there_is_no_tool() -> None:
    assert make_web_search() is None and make_web_search(config=Config(environ={})) is None
    with pytest.raises(ConfigError, match=r"nothing to search the web with.*WINDLASS_SEARXNG"):
        web_search(Config(environ={}))
    with pytest.raises(ConfigError, match="must be an http or https address"):
        make_web_search("file:///etc")


async def test_the_address_is_the_users_own(tmp_path: Any) -> None:
    async with FaultServer(searxng) as server:
        config = Config.from_environment({"WINDLASS_SEARXNG": server.url})
        assert "1. T0" in await ask(web_search(config), query="x")
        path = tmp_path / "windlass.toml"
        path.write_text('searxng = "http://evil.test"\n')
        project = load_config(environ={}, files=((path, False),))
        assert make_web_search(config=project) is None
        assert "searxng is ignored: a project's file may not set it" in project.notices[0]
        assert "http://evil.test" in str(load_config(environ={}, files=((path, True),)).get("searxng"))


async def test_a_tool_of_an_mcp_server_can_do_it() -> None:
    @tool
    async def brave(query: str) -> str:
        """Search."""
        return f"about {query}"

    known = {"mcp_brave_search": brave}
    search = make_web_search(mcp=known.get, mcp_tool="mcp_brave_search")
    assert await ask(search, query="x") == "about x"
    known.clear()
    assert "mcp_brave_search, which searches the web, is not there. Set `searxng`" in await ask(search, query="x")


async def test_a_run_searches() -> None:
    async with FaultServer(searxng) as server:
        search = make_web_search(server.url)
        assert search is not None and search.spec.annotations.open_world
        agent = Agent(ScriptedProvider([call("web_search", query="x"), "Done."]), tools=[search])
        await agent.run("Search")
        (part,) = agent.messages[2].parts
        assert isinstance(part, ToolResponse) and part.status == "ok" and "https://r0.test/" in str(part.response)
