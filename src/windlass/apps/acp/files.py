"""A workspace as an editor has it: text that is not saved yet is read from the editor, and it hears of every write.

Source: https://agentclientprotocol.com/protocol/file-system. The folder on the disk stays what decides: where a path
may lead, what is protected, and whether a file is as it was expected to be. A write goes to the disk first, through all
of that, and then to the editor, so that its buffer does not keep an old text.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from acp import RequestError

from windlass.apps.acp.looks import absolute, kind_of
from windlass.core.errors import WorkspaceError
from windlass.core.messages import ToolCall
from windlass.core.ports import Workspace

__all__ = ["ClientFiles", "merged"]

log = logging.getLogger("windlass.acp")
ReadText = Callable[[str], Awaitable[str]]
WriteText = Callable[[str, str], Awaitable[Any]]
_PATHS = ("path", "destination", "file_path")
_IN_PATCH = re.compile(r"^\*\*\* (?:Add File|Update File|Delete File|Move to): (.+?)\s*$", re.MULTILINE)
_BOM = b"\xef\xbb\xbf"
#: How many named files are remembered.
_NAMED = 500


class ClientFiles:
    """Wraps the workspace `inner`, the folder `cwd`; `read_text` and `write_text` are the client's, None: not offered.

    The client is asked only about files that a call names (`expect`): a search must not open a thousand buffers. What
    is not text, is not on the disk, or is cut by a limit comes from the disk; so does everything when the client fails.
    """

    def __init__(
        self, inner: Workspace, cwd: str, read_text: ReadText | None = None, write_text: WriteText | None = None
    ) -> None:
        self._inner, self._cwd = inner, cwd
        self._read_text, self._write_text = read_text, write_text
        self._named: OrderedDict[str, None] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        # All that a workspace may have beyond the port (real_path, confined) is the inner one's.
        return getattr(self._inner, name)

    def expect(self, calls: Iterable[ToolCall]) -> None:
        """Take note of the files that these calls name."""
        for call in calls:
            args = call.arguments or {}
            if kind_of(call.name, args) in ("search", "execute"):
                continue
            paths = [args[key] for key in _PATHS if isinstance(args.get(key), str)]
            paths += _IN_PATCH.findall(args["patch"]) if isinstance(args.get("patch"), str) else []
            for path in paths:
                self._named[absolute(self._cwd, path)] = None
                self._named.move_to_end(absolute(self._cwd, path))
        while len(self._named) > _NAMED:
            self._named.popitem(last=False)

    async def read(self, path: str, *, limit: int | None = None) -> bytes:
        """Return the text that the person sees in their editor, else the file's content."""
        data = await self._inner.read(path, limit=limit)
        full = absolute(self._cwd, path)
        if self._read_text is None or full not in self._named or (limit is not None and len(data) >= limit):
            return data
        if b"\0" in data or not _is_text(data):
            return data
        try:
            buffer = await self._read_text(full)
        except (RequestError, ConnectionError) as error:
            log.debug("The client did not read %s: %s", full, error)
            return data
        found = merged(data, buffer)
        return found if limit is None else found[:limit]

    async def write(self, path: str, data: bytes, *, expected_sha256: str | None = None) -> None:
        """Write to the disk, then tell the editor. Raises as the inner workspace does."""
        expected = expected_sha256
        if expected_sha256:
            disk = await self._inner.read(path)
            seen = await self.read(path)
            if seen != disk:
                # The tools have seen the editor's text: that must still be the same, and so must the disk.
                if _sha256(seen) != expected_sha256:
                    raise WorkspaceError(f"{path} was changed in the editor since it was read.", path=path)
                expected = _sha256(disk)
        await self._inner.write(path, data, expected_sha256=expected)
        if self._write_text is not None and b"\0" not in data and _is_text(data):
            try:
                await self._write_text(absolute(self._cwd, path), data.decode())
            except (RequestError, ConnectionError) as error:
                log.warning("%s is on the disk, but the client did not take it: %s", path, error)

    # The rest of the port is the inner workspace's; said here, so that this is one for the type checker as well.

    @property
    def capabilities(self) -> frozenset[str]:
        """What the inner workspace can do."""
        return self._inner.capabilities

    @property
    def root(self) -> str:
        """The inner workspace's root."""
        return self._inner.root

    async def delete(self, path: str) -> None:
        """Delete on the disk; an editor sees that by itself."""
        await self._inner.delete(path)

    async def stat(self, path: str) -> Any:
        """Describe what is on the disk."""
        return await self._inner.stat(path)

    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 10_000) -> Any:
        """List what is on the disk."""
        return await self._inner.list(path, depth=depth, limit=limit)

    async def exec(self, command: Any, **options: Any) -> Any:
        """Run a command where the inner workspace does; it sees the disk only."""
        return await self._inner.exec(command, **options)

    async def close(self) -> None:
        """Close the inner workspace."""
        await self._inner.close()


def merged(disk: bytes, buffer: str) -> bytes:
    r"""Return the bytes of an editor's text: the file's own where they say the same, in the file's line ends and mark.

    >>> merged(b"a\r\nb\r\n", "a\nb\n"), merged(b"a\r\n", "a\nc\n")
    (b'a\r\nb\r\n', b'a\r\nc\r\n')
    """
    head = _BOM if disk.startswith(_BOM) else b""
    own = disk[len(head) :]
    told = _lf(buffer.encode("utf-8", "replace"))
    if told in (_lf(own), _lf(disk)):
        return disk
    plain, crlf = told.removeprefix(_BOM), own.count(b"\r\n")
    return head + (plain.replace(b"\n", b"\r\n") if crlf and crlf == own.count(b"\n") else plain)


def _lf(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
