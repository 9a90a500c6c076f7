"""A person logs in: the browser, the address on this machine that it comes back to, and what may be pasted instead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Self
from urllib.parse import parse_qs, urlsplit

from windlass.core import clock
from windlass.core.errors import ConfigError, ProtocolError
from windlass.core.http import parse_url
from windlass.core.oauth_settings import is_loopback, safe_url

__all__ = ["Redirect", "browser_argv", "open_browser", "pasted"]

#: Bytes of a line of a request, which holds the code; and seconds that it may take to come.
_LINE, _SLOW = 16_384, 10.0
_HEAD = (
    b"content-type: text/html; charset=utf-8\r\ncache-control: no-store\r\nreferrer-policy: no-referrer\r\n"
    b"content-security-policy: default-src 'none'\r\nx-content-type-options: nosniff\r\nconnection: close\r\n"
)
_PAGE = "<!doctype html><title>Windlass</title><p>{}"
_DONE = "You may close this page and go back to the terminal."
_OTHER = "This is not the login that is waited for."


def browser_argv(url: str, environ: Mapping[str, str]) -> list[str] | None:
    """Return the command that opens an address, which is one argument of it; None where there is no browser.

    `BROWSER` names programs, with colons between; `%s` in one stands for the address. Raises ConfigError for an address
    that is not https (or this machine's own).
    """
    safe_url(url, "The address to open")
    path = environ.get("PATH")
    for command in environ.get("BROWSER", "").split(os.pathsep):
        try:
            words = shlex.split(command)
        except ValueError:
            continue  # quotes without an end: no program's name
        if words and (found := shutil.which(words[0], path=path)):
            rest = [word.replace("%s", url) for word in words[1:]]
            return [found, *rest] if any("%s" in word for word in words[1:]) else [found, *rest, url]
    if environ.get("BROWSER"):
        return None
    if sys.platform == "darwin":
        names = ("open",)
    elif environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY") or environ.get("WSL_DISTRO_NAME"):
        names = ("xdg-open", "wslview")
    else:
        return None  # without a screen these start a browser in the terminal
    return next(([found, url] for name in names if (found := shutil.which(name, path=path))), None)


async def open_browser(url: str, environ: Mapping[str, str]) -> bool:
    """Open an address in the user's browser, without a shell; False where none could be started."""
    argv = browser_argv(url, environ)
    if argv is None:
        return False
    try:
        process = _started(argv, environ)
    except OSError:
        return False
    for _ in range(20):
        if (code := process.poll()) is not None:
            return code == 0
        await clock.sleep(0.05)
    process.returncode = 0  # it stays in the foreground, and is not ours to wait for
    return True


def _started(argv: list[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # Not asyncio's: that one ends what it started when the loop ends, and this may be the user's only browser.
    nothing = subprocess.DEVNULL
    return subprocess.Popen(
        argv, stdin=nothing, stdout=nothing, stderr=nothing, env=dict(environ), start_new_session=True
    )


def pasted(text: str, state: str) -> dict[str, str]:
    """Return what a pasted answer holds: the address one was sent to, its query, `code#state` or the code alone.

    A code alone is taken as one of the login with this `state`; that its PKCE fits is for the server to check.
    """
    text = text.strip()
    if "://" in text or "code=" in text or "error=" in text:
        query = urlsplit(text).query if "://" in text else text.lstrip("?")
        return {name: values[0] for name, values in parse_qs(query).items()}
    code, _, stated = text.partition("#")
    return {"code": code, "state": stated or state} if code else {}


class Redirect:
    """The address on this machine that the browser is sent to once somebody has logged in (RFC 8252, 7.3).

    `uri` is the configured one with the port in it. Only an answer with the `state` that is expected is taken, once;
    whatever else comes is told that it is not waited for. A `uri` on another host is not listened on: its page shows
    the code.
    """

    def __init__(self, uri: str) -> None:
        try:
            parsed = parse_url(uri)
        except ProtocolError:
            raise ConfigError(f"redirect_uri {uri!r} is no address.") from None
        self._path = parsed.target
        self._host = parsed.host
        self._listens = is_loopback(parsed.host)
        if not self._listens:
            safe_url(uri, "redirect_uri")
        self.uri = uri
        self._port = parsed.port if urlsplit(uri).port is not None else 0
        self._server: asyncio.Server | None = None
        self._state = ""
        self._answer: asyncio.Future[dict[str, str]] | None = None

    @property
    def listens(self) -> bool:
        """Whether answers come by themselves."""
        return self._listens

    async def __aenter__(self) -> Self:
        self._answer = asyncio.get_running_loop().create_future()
        if self._listens:
            six = self._host == "::1"
            sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
            try:
                if os.name == "posix":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("::1" if six else "127.0.0.1", self._port))
                self._port = sock.getsockname()[1]
                self._server = await asyncio.start_server(self._serve, sock=sock, limit=_LINE)
            except OSError as error:
                sock.close()
                text = f"Port {self._port}, which redirect_uri names, cannot be listened on: {error.strerror}."
                raise ConfigError(text, hint="Stop who has it, or use --no-browser.") from error
            shown = f"[{self._host}]" if six else self._host
            self.uri = f"http://{shown}:{self._port}{self._path}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
        if self._answer is not None:
            self._answer.cancel()

    def expect(self, state: str) -> None:
        """Take the answer to the login with this state, from now on: before its page is opened."""
        self._state = state

    async def answer(self) -> dict[str, str]:
        """Wait for the answer and return its fields."""
        assert self._answer is not None
        return await asyncio.shield(self._answer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with clock.deadline(_SLOW):
                fields = self._fields(*await _request(reader))
                status, text = (b"200 OK", _DONE) if fields else (b"404 Not Found", _OTHER)
                page = _PAGE.format(text).encode()
                length = b"content-length: %d\r\n\r\n" % len(page)
                writer.write(b"HTTP/1.1 %s\r\n%s%s%s" % (status, _HEAD, length, page))
                await writer.drain()
            if fields and self._answer is not None and not self._answer.done():
                self._answer.set_result(fields)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            return  # a half or strange request is not the answer
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    def _fields(self, line: list[str], host: str) -> dict[str, str]:
        """Return the answer in a request, nothing where it is none, belongs to another login, or has come before."""
        if len(line) != 3 or line[0] != "GET" or self._answer is None or self._answer.done():
            return {}
        # A page elsewhere may have its own name point to this machine.
        if not is_loopback(host.rpartition(":")[0] if not host.endswith("]") else host):
            return {}
        target = urlsplit(line[1])
        asked = {name: values[0] for name, values in parse_qs(target.query).items() if len(values) == 1}
        fits = bool(self._state) and asked.get("state") == self._state
        return asked if target.path == self._path and fits and ("code" in asked or "error" in asked) else {}


async def _request(reader: asyncio.StreamReader) -> tuple[list[str], str]:
    """Read the head of a request: its first line, and the host it is for."""
    line = (await reader.readuntil(b"\n")).decode("latin-1").split()
    host, size = "", 0
    while (header := (await reader.readuntil(b"\n")).decode("latin-1").strip()) and size < 4 * _LINE:
        size += len(header)
        name, _, value = header.partition(":")
        if name.lower() == "host":
            host = value.strip()
    return line, host
