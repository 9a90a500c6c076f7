"""Logging in to remote MCP servers: the SDK's OAuth client with our files, our rules for addresses, our browser.

PKCE, state and issuer are the SDK's checks (RFC 7636, 6749, 9207); here: no address but https (or this machine's own),
no authorization server that does not offer S256, a browser started without a shell and only when somebody is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from windlass.core import clock
from windlass.core.errors import ProtocolError, ToolError
from windlass.core.version import __version__
from windlass.tools.mcp_config import McpServer
from windlass.tools.mcp_files import PrivateFiles
from windlass.tools.mcp_http import must_be_safe

__all__ = ["Login", "open_browser", "safe_to_open"]

#: Seconds that a person has to log in.
PATIENCE = 300.0
_PAGE = b"<!doctype html><title>Windlass</title><p>You may close this page."
_KEPT = ("oauth_metadata", "protected_resource_metadata")


def safe_to_open(url: str, server: str) -> str:
    """Return the URL when it may be opened in a browser. Raises ToolError (javascript:, file:, plain http, quotes)."""
    try:
        must_be_safe(url, server=server)
    except ProtocolError as error:
        raise ToolError(f"This address is not opened in a browser: {error.message}") from None
    return url


async def open_browser(url: str) -> bool:
    """Start the user's browser with the URL as one argument; False where there is none."""
    names = ("open",) if sys.platform == "darwin" else ("xdg-open", "wslview", "gio")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        return False
    argv = [found, "open", url] if found.endswith("gio") else [found, url]
    nothing = asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(*argv, stdin=nothing, stdout=nothing, stderr=nothing)
        async with clock.deadline(10.0):
            return await process.wait() == 0
    except (OSError, TimeoutError):
        return False


class Login:
    """The OAuth side of one server.

    `show(url)` is called with the page on which somebody logs in; without one (nobody is there) a login is refused with
    ToolError. `auth()` gives what the HTTP client takes. Tokens are in `files`, bound to the server's address.
    """

    def __init__(
        self, server: McpServer, files: PrivateFiles, show: Callable[[str], Awaitable[None]] | None = None
    ) -> None:
        self.server, self.files, self.show = server, files, show
        self._data = files.read(server.name, server.identity)
        self._provider: Any = None
        self._socket: socket.socket | None = None

    @property
    def logged_in(self) -> bool:
        """True when there is a token, which the server may still refuse."""
        return "tokens" in self._data

    def auth(self) -> Any:
        """Return the SDK's provider as an httpx2.Auth. Raises ProtocolError for an address that is not safe."""
        from mcp.client.auth import OAuthClientProvider
        from mcp.shared.auth import OAuthClientMetadata, OAuthMetadata, ProtectedResourceMetadata

        must_be_safe(self.server.url)
        self._uri = self._redirect_uri()
        metadata = OAuthClientMetadata.model_validate(
            {
                "client_name": "Windlass", "software_id": "windlass", "software_version": __version__,
                "redirect_uris": [self._uri], "grant_types": ["authorization_code", "refresh_token"],
                "response_types": ["code"], "application_type": "native",
            }
        )  # fmt: skip
        self._provider = provider = OAuthClientProvider(
            self.server.url, metadata, self, redirect_handler=self._redirect, callback_handler=self._callback
        )
        # The SDK keeps neither when a token ends nor where it is renewed: after a restart it would ask a person again.
        context = provider.context
        context.token_expiry_time = self._data.get("expires_at")
        context.auth_server_url = self._data.get("auth_server_url")
        for name, kind in zip(_KEPT, (OAuthMetadata, ProtectedResourceMetadata), strict=True):
            if (kept := self._data.get(name)) is not None:
                setattr(context, name, kind.model_validate(kept))
        return provider

    def _redirect_uri(self) -> str:
        known: Any = self._data.get("client", {}).get("redirect_uris") or []
        port = self.server.redirect_port or ((urlsplit(str(known[0])).port or 0) if known else 0)
        self.close()
        if self.show is not None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._socket.bind(("127.0.0.1", port))
            except OSError as error:
                if self.server.redirect_port:
                    self.close()
                    raise ToolError(f"Port {port}, where the login page answers, is taken: {error}.") from error
                # Somebody has the port that was registered: a new registration names a new one.
                self._socket.bind(("127.0.0.1", 0))
                self._data.pop("client", None)
            port = self._socket.getsockname()[1]
        return f"http://127.0.0.1:{port}/callback" if port else "http://127.0.0.1/callback"

    def close(self) -> None:
        """Free the port of the answer."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # -- the SDK's TokenStorage ------------------------------------------------------------------------------------

    async def get_tokens(self) -> Any:
        """Return the kept tokens, None without."""
        from mcp.shared.auth import OAuthToken

        kept = self._data.get("tokens")
        return None if kept is None else OAuthToken.model_validate(kept)

    async def set_tokens(self, tokens: Any) -> None:
        """Keep tokens, and what renewing them needs."""
        context = self._provider.context
        self._data["tokens"] = tokens.model_dump(mode="json", exclude_none=True)
        self._data["expires_at"] = context.token_expiry_time
        self._data["auth_server_url"] = context.auth_server_url
        for name in _KEPT:
            held = getattr(context, name)
            self._data[name] = None if held is None else held.model_dump(mode="json", exclude_none=True)
        self.files.write(self.server.name, self.server.identity, self._data)

    async def get_client_info(self) -> Any:
        """Return the kept registration, None without."""
        from mcp.shared.auth import OAuthClientInformationFull

        server, kept = self.server, self._data.get("client")
        if server.client_id:
            # RFC 7591: where nothing is said, a secret is sent as HTTP Basic.
            method = "client_secret_basic" if server.client_secret else "none"
            kept = {
                "client_id": server.client_id, "client_secret": server.client_secret or None,
                "token_endpoint_auth_method": method, "redirect_uris": [self._uri],
            }  # fmt: skip
        return None if kept is None else OAuthClientInformationFull.model_validate(kept)

    async def set_client_info(self, client_info: Any) -> None:
        """Keep a registration."""
        self._data["client"] = client_info.model_dump(mode="json", exclude_none=True)
        self.files.write(self.server.name, self.server.identity, self._data)

    # -- a person ----------------------------------------------------------------------------------------------------

    async def _redirect(self, url: str) -> None:
        if self.show is None or self._socket is None:
            raise ToolError(
                f"The MCP server {self.server.name!r} asks for a login.",
                hint=f"Run `windlass mcp login {self.server.name}` in a terminal.",
            )
        safe_to_open(url, self.server.url)
        metadata = self._provider.context.oauth_metadata
        methods = None if metadata is None else metadata.code_challenge_methods_supported
        if metadata is not None and "S256" not in (methods or ()):
            raise ToolError(f"The authorization server of {self.server.name!r} does not offer PKCE with S256.")
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ear = self._socket.dup()  # the server closes what it is given; the port stays ours for the next login
        try:
            self._listener = await asyncio.start_server(self._serve, sock=ear, limit=16_384)
        except BaseException:
            ear.close()
            raise
        try:
            await self.show(url)
        except BaseException:
            self._listener.close()
            raise

    async def _callback(self) -> Any:
        try:
            async with clock.deadline(PATIENCE):
                return await self._answer
        except TimeoutError:
            raise ToolError(f"Nobody has logged in within {PATIENCE:g} s.") from None
        finally:
            self._listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from mcp.shared.auth import AuthorizationCodeResult

        try:
            async with clock.deadline(10.0):
                line = (await reader.readline()).decode("latin-1").split(" ")
                while (await reader.readline()).strip():
                    pass
            target = urlsplit(line[1] if len(line) == 3 and line[0] == "GET" else "")
            asked = {key: values[0] for key, values in parse_qs(target.query).items()}
            known = target.path == "/callback" and ("code" in asked or "error" in asked)
            status = b"200 OK" if known else b"404 Not Found"
            writer.write(b"HTTP/1.1 %s\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n" % status + _PAGE)
            await writer.drain()
            if not known or self._answer.done():
                return
            if "error" in asked:
                about = asked.get("error_description", "")[:200]
                self._answer.set_exception(ToolError(f"The login was refused: {asked['error'][:80]} {about}".strip()))
            else:
                result = AuthorizationCodeResult(code=asked["code"], state=asked.get("state"), iss=asked.get("iss"))
                self._answer.set_result(result)
        except (OSError, TimeoutError, ValueError):
            return  # a half or strange request is not the answer
        finally:
            with contextlib.suppress(OSError):
                writer.close()
