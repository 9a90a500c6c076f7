"""A call that came over a connection of ours: how its answer is framed (RFC 9112, 6 and 7)."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from windlass.server.http import Call, HeaderPairs, encode_head

__all__ = ["WireCall"]


class WireCall(Call):
    """A call that came over `connection`. One answer: whole, or begun once and ended once; else RuntimeError."""

    connection: Any = None
    chunked: bool = False
    open: bool = False
    #: The head of a begun answer, until its first piece goes with it.
    pending: bytes = b""

    @property
    def answered(self) -> bool:
        """Whether the whole answer was given: what happens now changes nothing for the client."""
        return self.started and not self.open

    def respond(self, status: int, body: bytes, headers: HeaderPairs = (), *, kind: str = "application/json") -> None:
        """Send a whole answer in one write."""
        self._begin(status)
        self.sent += len(body)
        connection = self.connection
        close = "" if connection.persistent() else "connection: close\r\n"
        framing = f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n{close}{connection.listener.default_headers}"
        head = encode_head(status, (*headers, *self.extra_headers), framing)
        connection.send(head if self.head.method == "HEAD" else head + body)

    def respond_plainly(self, body: bytes, lines: str) -> None:
        """Send a whole answer of JSON with status 200; `lines` are header lines that are known to be sound."""
        self._begin(200)
        self.sent = len(body)
        connection = self.connection
        close = "" if connection.keep and connection.persistent() else "connection: close\r\n"
        connection.send(
            f"HTTP/1.1 200 OK\r\n{lines}content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"{close}{connection.listener.default_headers}\r\n".encode("latin-1")
            + body
        )

    def start(self, status: int, headers: HeaderPairs = (), *, kind: str) -> None:
        """Begin a chunked answer (for HTTP/1.0: one that the connection's end ends; for HEAD: none but its head)."""
        self._begin(status)
        self.open = True
        connection = self.connection
        self.chunked = not self.head.http10 and self.head.method != "HEAD"
        connection.keep = connection.keep and self.chunked
        framing = "transfer-encoding: chunked\r\n" if self.chunked else ""
        close = "" if connection.persistent() else "connection: close\r\n"
        framing = f"content-type: {kind}\r\n{framing}{close}{connection.listener.default_headers}"
        self.pending = encode_head(status, (*headers, *self.extra_headers), framing)

    def start_plainly(self, lines: str) -> None:
        """Begin a stream of events with status 200; `lines` are header lines that are known to be sound."""
        self._begin(200)
        self.open = self.chunked = True
        connection = self.connection
        close = "" if connection.persistent() else "connection: close\r\n"
        self.pending = (
            f"HTTP/1.1 200 OK\r\n{lines}cache-control: no-cache\r\nx-accel-buffering: no\r\n"
            f"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
            f"{close}{connection.listener.default_headers}\r\n"
        ).encode("latin-1")

    def _begin(self, status: int) -> None:
        if self.started:
            # A second head inside an answer would be read as the answer to another request.
            raise RuntimeError("The request has an answer already.")
        self.status, self.started = status, True

    def write(self, data: bytes, *, last: bool = False) -> Awaitable[None] | None:
        """Send a piece as one chunk, in one write with the head before it and the end behind it."""
        if not self.open:
            raise RuntimeError("There is no open answer to write to.")
        self.sent += len(data)
        if self.chunked:
            if data:
                data = b"%x\r\n%b\r\n%b" % (len(data), data, b"0\r\n\r\n" if last else b"")
            elif last:
                data = b"0\r\n\r\n"
        elif self.head.method == "HEAD":
            data = b""
        if self.pending:
            data, self.pending = self.pending + data, b""
        slow = self.connection.send(data) if data else None
        if last:
            self.open = False
        return slow

    def finish(self) -> None:
        """End a begun answer."""
        if self.open:
            self.write(b"", last=True)

    def cut(self) -> None:
        """Reset the connection."""
        self.connection.abort()
