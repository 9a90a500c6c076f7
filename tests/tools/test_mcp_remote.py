"""Remote MCP servers: streamable HTTP, SSE, and logging in, against servers on this machine."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import ClientSession, web

from windlass.agent.agent import Agent
from windlass.core.errors import ToolError
from windlass.core.messages import ToolResponse
from windlass.testing.scripted import ScriptedProvider, call
from windlass.tools.mcp import Mcp
from windlass.tools.mcp_config import McpServer
from windlass.tools.mcp_connection import McpConnection
from windlass.tools.mcp_files import PrivateFiles
from windlass.tools.mcp_oauth import Login, safe_to_open
from windlass.tools.mcp_wishes import Wishes

Change = Callable[[dict[str, Any]], None]


class Remote:
    """An MCP server over HTTP and its authorization server, with what a test wants to be wrong with them."""

    def __init__(self) -> None:
        self.url = ""
        self.secured = False
        self.tokens: set[str] = set()
        self.asked: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.forget_session = False
        self.short_lived = False
        self.metadata: dict[str, Any] = {}
        self.resource: str | None = None
        self.redirect: Callable[[str], str] = lambda where: where
        self.challenges: dict[str, str] = {}
        self.calls: list[str] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/mcp", self.post)
        app.router.add_get("/mcp", self.get)
        app.router.add_delete("/mcp", self.get)
        app.router.add_get("/.well-known/oauth-protected-resource/mcp", self.protected)
        app.router.add_get("/.well-known/oauth-authorization-server", self.authority)
        app.router.add_post("/register", self.register)
        app.router.add_get("/authorize", self.authorize)
        app.router.add_post("/token", self.token)
        return app

    async def get(self, request: web.Request) -> web.Response:
        return web.Response(status=405)

    async def post(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.secured and given not in self.tokens:
            where = f'Bearer resource_metadata="{self.url}/.well-known/oauth-protected-resource/mcp"'
            return web.Response(status=401, headers={"www-authenticate": where})
        message = await request.json()
        method = message.get("method")
        self.calls.append(method)
        session = {"mcp-session-id": f"s{len(self.calls)}"}
        if method != "initialize" and "mcp-session-id" in request.headers and self.forget_session:
            self.forget_session = False
            return web.Response(status=404)
        if "id" not in message:
            return web.Response(status=202)
        if method == "initialize":
            info = {"name": "remote", "version": "1"}
            version = message["params"]["protocolVersion"]
            said: Any = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
            return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": said}, headers=session)
        if method == "tools/list":
            said = {"tools": [{"name": "echo", "description": "Echo.", "inputSchema": {"type": "object"}}]}
        elif method == "tools/call":
            said = {"content": [{"type": "text", "text": json.dumps(message["params"]["arguments"])}]}
        else:
            error = {"code": -32601, "message": "no"}
            return web.json_response({"jsonrpc": "2.0", "id": message["id"], "error": error})
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": said})

    async def protected(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "resource": self.resource or f"{self.url}/mcp",
                "authorization_servers": [self.url],
                "scopes_supported": ["x"],
            }
        )

    async def authority(self, request: web.Request) -> web.Response:
        known = {
            "issuer": self.url, "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "registration_endpoint": f"{self.url}/register", "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"], "grant_types_supported": ["authorization_code"],
            "authorization_response_iss_parameter_supported": True,
        }  # fmt: skip
        return web.json_response({**known, **self.metadata})

    async def register(self, request: web.Request) -> web.Response:
        asked = await request.json()
        return web.json_response({**asked, "client_id": "client-1", "token_endpoint_auth_method": "none"}, status=201)

    async def authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        self.asked.append(query)
        code = f"code{len(self.asked)}"
        self.challenges[code] = query["code_challenge"]
        where = f"{query['redirect_uri']}?code={code}&state={query['state']}&iss={self.url}"
        return web.Response(status=302, headers={"location": self.redirect(where)})

    async def token(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        self.asked.append(form)
        if form["grant_type"] == "authorization_code":
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
            if self.challenges.pop(form["code"], None) != challenge:
                return web.json_response({"error": "invalid_grant"}, status=400)
        token = f"token{len(self.asked)}"
        self.tokens = {token}
        seconds = -10 if self.short_lived else 3600
        self.short_lived = False
        return web.json_response(
            {
                "access_token": token,
                "token_type": "Bearer",
                "expires_in": seconds,
                "refresh_token": "again",
                "scope": "x",
            }
        )


@pytest.fixture
async def remote() -> AsyncGenerator[Remote]:
    """Serve a fresh Remote."""
    made = Remote()
    runner = web.AppRunner(made.app())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


def answers(agent: Agent) -> list[tuple[Any, str]]:
    parts = [part for message in agent.messages for part in message.parts]
    return [(part.response, part.status) for part in parts if isinstance(part, ToolResponse)]


async def test_a_remote_server_is_used_with_its_headers(remote: Remote, tmp_path: Path) -> None:
    mcp = Mcp({"far": {"url": f"{remote.url}/mcp", "headers": {"X-Team": "blue"}}}, home=tmp_path)
    agent = Agent(ScriptedProvider([call("mcp_far_echo", a=1), "done"]), capabilities=[mcp])
    await agent.run("go")
    assert answers(agent) == [('{"a": 1}', "ok")]
    assert {headers["x-team"] for headers in [{k.lower(): v for k, v in row.items()} for row in remote.headers]} == {
        "blue"
    }
    await agent.destroy()


async def test_r66_a_session_that_the_server_forgot_is_made_anew_and_the_call_repeated(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("windlass.tools.mcp_connection.BACKOFF", 0.01)
    mcp = Mcp({"far": {"url": f"{remote.url}/mcp"}}, home=tmp_path)
    agent = Agent(ScriptedProvider([call("mcp_far_echo", a=1), "done"]), capabilities=[mcp])
    await agent.warmup()
    remote.forget_session = True
    await agent.run("go")
    assert answers(agent) == [('{"a": 1}', "ok")]
    assert remote.calls.count("initialize") == 2
    await agent.destroy()


async def test_a_server_that_is_not_there_and_one_that_wants_a_login_say_so(remote: Remote, tmp_path: Path) -> None:
    remote.secured = True
    mcp = Mcp({"none": {"url": "http://127.0.0.1:9/mcp"}, "locked": {"url": f"{remote.url}/mcp"}}, home=tmp_path)
    await mcp.warmup()
    status = dict(mcp.status({}))
    assert status["none"].startswith("failed: Cannot connect to 127.0.0.1:9")
    assert status["locked"] == "failed: HTTP 401; log in with: windlass mcp login locked"
    await mcp.close()


# -- logging in (S84) --------------------------------------------------------------------------------------------------


async def browser(url: str) -> None:
    async with ClientSession() as session, session.get(url, allow_redirects=False) as answer:
        where = answer.headers.get("location", "")
        if where.startswith("http://127.0.0.1"):
            async with session.get(where) as page:
                await page.text()


def connection(remote: Remote, home: Path, show: Callable[[str], Awaitable[None]] | None = browser) -> McpConnection:
    server = McpServer(name="far", transport="http", url=f"{remote.url}/mcp", timeout=10.0)
    login = Login(server, PrivateFiles(home / "mcp-oauth"), show)
    return McpConnection(server, wishes=Wishes(server, None, None, lambda: None), login=login)


async def test_s84_logging_in_keeps_a_token_that_later_runs_use_and_renew(remote: Remote, tmp_path: Path) -> None:
    remote.secured = True
    first = connection(remote, tmp_path)
    await first.connected()
    await first.close()
    authorize, token = remote.asked
    assert authorize["code_challenge_method"] == "S256" and len(authorize["state"]) >= 32
    assert authorize["resource"] == token["resource"] == f"{remote.url}/mcp"
    assert authorize["redirect_uri"].startswith("http://127.0.0.1:")
    (kept,) = PrivateFiles(tmp_path / "mcp-oauth")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    # A run has nobody to ask, and needs nobody.
    mcp = Mcp({"far": {"url": f"{remote.url}/mcp"}}, home=tmp_path)
    agent = Agent(ScriptedProvider([call("mcp_far_echo", a=1), "done"]), capabilities=[mcp])
    await agent.run("go")
    assert answers(agent) == [('{"a": 1}', "ok")] and len(remote.asked) == 2
    await agent.destroy()
    # A token past its end is renewed where it was given, also by another process.
    data = json.loads(kept.read_text())
    data["expires_at"] = 1.0
    kept.write_text(json.dumps(data))
    again = Mcp({"far": {"url": f"{remote.url}/mcp"}}, home=tmp_path)
    await again.warmup()
    assert again.status({})[0][1] == "ready, 1 tools"
    assert remote.asked[2]["grant_type"] == "refresh_token"
    await again.close()


async def test_s84_without_a_person_nothing_is_opened(remote: Remote, tmp_path: Path) -> None:
    remote.secured = True
    first = connection(remote, tmp_path)
    await first.connected()
    await first.close()
    remote.tokens = set()
    kept = Mcp({"far": {"url": f"{remote.url}/mcp"}}, home=tmp_path)
    remote.asked.clear()
    await kept.warmup()
    assert "Run `windlass mcp login far` in a terminal" in kept.status({})[0][1]
    assert [row for row in remote.asked if "state" in row] == []
    await kept.close()


WRONG: dict[str, tuple[Change, str]] = {
    "issuer": (lambda m: m.update(issuer="http://127.0.0.1:1/other"), "issuer mismatch"),
    "no PKCE": (lambda m: m.update(code_challenge_methods_supported=None), "PKCE"),
    "plain PKCE": (lambda m: m.update(code_challenge_methods_supported=["plain"]), "PKCE"),
    "javascript": (lambda m: m.update(authorization_endpoint="javascript:alert(1)"), "cannot be used"),
    "plain http": (lambda m: m.update(authorization_endpoint="http://evil.example/a"), "not opened in a browser"),
    "token by http": (lambda m: m.update(token_endpoint="http://evil.example/t"), "not https"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_s84_a_strange_authorization_server_is_refused(remote: Remote, tmp_path: Path, name: str) -> None:
    change, says = WRONG[name]
    remote.secured = True
    change(remote.metadata)
    wrong = connection(remote, tmp_path)
    with pytest.raises(ToolError) as caught:
        await wrong.connected()
    assert says in str(caught.value)
    assert not any("code_verifier" in row for row in remote.asked)
    await wrong.close()


async def test_s84_a_token_for_another_audience_is_not_asked_for(remote: Remote, tmp_path: Path) -> None:
    remote.secured, remote.resource = True, "https://bank.example/api"
    wrong = connection(remote, tmp_path)
    with pytest.raises(ToolError, match="does not match"):
        await wrong.connected()
    assert remote.asked == []
    await wrong.close()


def other_state(where: str) -> str:
    return where.replace("state=", "state=old")


def other_issuer(where: str) -> str:
    return where.split("&iss=")[0] + "&iss=http://127.0.0.1:1"


def no_issuer(where: str) -> str:
    return where.split("&iss=")[0]


def refused(where: str) -> str:
    return where.split("?")[0] + "?error=access_denied&error_description=No"


@pytest.mark.parametrize(
    ("mix", "says"),
    [(other_state, "State"), (other_issuer, "iss"), (no_issuer, "iss"), (refused, "refused: access_denied No")],
)  # fmt: skip
async def test_s84_a_mixed_up_answer_of_the_login_page_is_refused(
    remote: Remote, tmp_path: Path, mix: Callable[[str], str], says: str
) -> None:
    remote.secured, remote.redirect = True, mix
    wrong = connection(remote, tmp_path)
    with pytest.raises(ToolError, match=says):
        await wrong.connected()
    assert not any(row.get("grant_type") for row in remote.asked)
    await wrong.close()


async def test_s84_the_listener_answers_only_its_own_path(remote: Remote, tmp_path: Path) -> None:
    remote.secured = True
    pages: list[int] = []

    async def careful(url: str) -> None:
        back = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        async with ClientSession() as session:
            for path in ("/", "/callback", "/callback?x=1", "/other?code=1&state=2"):
                async with session.get(back.replace("/callback", path)) as page:
                    pages.append(page.status)
        await browser(url)

    first = connection(remote, tmp_path, careful)
    await first.connected()
    await first.close()
    assert pages == [404, 404, 404, 404]


def is_bound(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", urlsplit(address).port or 0))
        except OSError:
            return True
    return False


async def test_a_login_holds_one_port_and_frees_it(remote: Remote, tmp_path: Path) -> None:
    server = McpServer(name="far", transport="http", url=f"{remote.url}/mcp")
    login = Login(server, PrivateFiles(tmp_path), browser)
    asked = [str(login.auth().context.client_metadata.redirect_uris[0]) for _ in range(2)]
    assert [is_bound(address) for address in asked] == [False, True]
    login.close()
    assert [is_bound(address) for address in asked] == [False, False]


async def test_a_page_that_cannot_be_shown_leaves_no_listener(remote: Remote, tmp_path: Path) -> None:
    remote.secured = True
    shown: list[str] = []

    async def blind(url: str) -> None:
        shown.append(parse_qs(urlsplit(url).query)["redirect_uri"][0])
        raise ToolError("there is no browser")

    wrong = connection(remote, tmp_path, blind)
    with pytest.raises(ToolError, match="no browser"):
        await wrong.connected()
    await wrong.close()
    assert [is_bound(address) for address in shown] == [False]


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "file:///x", "https://a/b c", "http://example.org/", "-x", "https://u:p@h/"]
)
def test_s84_only_safe_addresses_are_opened(url: str) -> None:
    with pytest.raises(ToolError, match="not opened in a browser"):
        safe_to_open(url, "https://mcp.example/mcp")


# -- events over SSE ---------------------------------------------------------------------------------------------------


async def test_the_old_sse_transport_still_works(tmp_path: Path) -> None:
    queue: asyncio.Queue[str] = asyncio.Queue()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"event: endpoint\ndata: /messages\n\n")
        while True:
            await response.write(f"event: message\ndata: {await queue.get()}\n\n".encode())

    async def post(request: web.Request) -> web.Response:
        message = await request.json()
        method = message.get("method")
        said: dict[str, Any] | None = None
        if method == "initialize":
            version = message["params"]["protocolVersion"]
            info = {"name": "old", "version": "1"}
            said = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        elif method == "tools/list":
            said = {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}
        elif method == "tools/call":
            said = {"content": [{"type": "text", "text": "over sse"}]}
        if said is not None:
            queue.put_nowait(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": said}))
        elif "id" in message:
            error = {"code": -32601, "message": "no"}
            queue.put_nowait(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}))
        return web.Response(status=202)

    app = web.Application()
    app.router.add_get("/sse", stream)
    app.router.add_post("/messages", post)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/sse"
    mcp = Mcp([{"name": "old", "transport": "sse", "url": url}], home=tmp_path)
    agent = Agent(ScriptedProvider([call("mcp_old_echo"), "done"]), capabilities=[mcp])
    await agent.run("go")
    assert answers(agent) == [("over sse", "ok")]
    await agent.destroy()
    await runner.cleanup()
