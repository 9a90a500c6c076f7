"""Keep ledgers in whatever maps names to bytes: three functions, `get`, `save` and `delete` (reference C's fileMap).

Every session is a folder of two files, `SESSION/turns.jsonl` (its rows, one line each, as `windlass sessions export`
writes them) and `SESSION/meta.json` (what a list shows of it), with `SESSION/files/SHA256` for the contents that undo
needs; `index.json` names the sessions. Names are the ids with everything but letters, digits, `_` and `-` as %XX; a
tenant's are in `@TENANT/`.

An append saves `turns.jsonl` anew, so its cost grows with the session: meant for hundreds of rows, not for hundreds of
thousands. A map cannot compare and swap: one process at a time writes a session.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import re
import weakref
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from windlass.core.errors import ConfigError, SessionError, SessionNotFound, SessionVersionError, StoreError
from windlass.core.json import dumps_stored, loads_stored
from windlass.core.ports import Row, SessionInfo
from windlass.core.private import replace_private
from windlass.core.threads import run_in_thread
from windlass.stores.jsonl import decode_line, encode_line
from windlass.stores.rows import Fork, check_fork, check_rows, conflict, fork_of, is_sha256, title_of

__all__ = ["FileMapStore", "Get", "folder"]

#: None for a name that is not there.
Get = Callable[[str], Any]
#: The version of meta.json and index.json.
_VERSION = 1
_PLAIN = re.compile(rb"[A-Za-z0-9_-]")
#: Names longer than this are told by their SHA-256 instead: file systems take 255 bytes.
_LONGEST = 180


def _name(text: str) -> str:
    data = text.encode("utf-8", "surrogatepass")
    out = "".join([chr(byte) if _PLAIN.match(bytes([byte])) else f"%{byte:02X}" for byte in data]) or "%"
    return out if len(out) <= _LONGEST else f"%{hashlib.sha256(data).hexdigest()}"


class FileMapStore:
    """Keep sessions in a map, by the rules of the `Store` port; the functions may be `async`.

    `get(key)` returns bytes or text, None for a key that is not there; `save(key, data)` keeps bytes, all or nothing,
    durably before it returns; `delete(key)` forgets. It belongs to one event loop. What a function raises becomes
    StoreError. After `close` every call raises StoreError; the map itself is its owner's.
    """

    def __init__(self, get: Get, save: Callable[[str, bytes], Any], delete: Callable[[str], Any]) -> None:
        self._functions = {"get": get, "save": save, "delete": delete}
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()
        self._index_lock = asyncio.Lock()
        self._closed = False
        #: Contents of files, for undo.
        self.blobs = _Blobs(self)

    async def append(self, session: str, rows: Sequence[Row], expected_pos: int, *, tenant: str = "") -> None:
        """Keep all rows or none. Raises StoreConflict, ValueError, and SessionNotFound for a fork without parent."""
        rows = list(rows)
        check_rows(rows, expected_pos)
        fork = fork_of(rows)
        self._check_open()
        async with self.lock(tenant, session):
            before = await self._turns(tenant, session)
            if before is None and fork is not None:
                await self._create_fork(tenant, session, rows, fork)
                return
            length = 0 if before is None else before.count(b"\n")
            if length != expected_pos:
                raise conflict(session, length, expected_pos)
            if not rows:
                return
            lines = (before or b"") + b"".join([encode_line(row) for row in rows])
            if before is None:
                await self._create(tenant, session, rows, lines, {"title": title_of(rows[0])})
            else:
                await self._save(self.key(tenant, session, "turns.jsonl"), lines)
                await self.update(tenant, session, rows=len(rows) + length, updated=rows[-1].time)

    async def _create(self, tenant: str, session: str, rows: list[Row], lines: bytes, meta: dict[str, Any]) -> None:
        # First its name: a session that is in no list could never be found and deleted.
        async with self._index_lock:
            index = await self._json(_index(tenant)) or {"v": _VERSION, "count": 0, "sessions": {}}
            number = index["count"]
            index["sessions"][session], index["count"] = number, number + 1
            await self._save(_index(tenant), dumps_stored(index))
        # Then the rows, in one piece; the list comes last and shows nothing that is not there.
        await self._save(self.key(tenant, session, "turns.jsonl"), lines)
        meta = {
            "v": _VERSION, "id": session, "number": number, "created": rows[0].time, "updated": rows[-1].time,
            "rows": lines.count(b"\n"), "files": [], **meta,
        }  # fmt: skip
        await self._save(self.key(tenant, session, "meta.json"), dumps_stored(meta))

    async def _create_fork(self, tenant: str, session: str, rows: list[Row], fork: Fork) -> None:
        """Copy what a fork shares: then either may be deleted."""
        turns = await self._turns(tenant, fork.parent)
        check_fork(session, fork, None if turns is None else turns.count(b"\n"))
        lines, meta, files = b"", dict[str, Any](), list[str]()
        if turns is not None:
            lines = b"".join(turns.splitlines(keepends=True)[: fork.pos])
            of = await self._json(self.key(tenant, fork.parent, "meta.json")) or {}
            meta = {"title": of.get("title", "") if fork.pos else "", "parent": fork.parent, "parent_pos": fork.pos,
                    "parent_number": of.get("number"), "files": files}  # fmt: skip
            for sha256 in of.get("files", []) if fork.pos else []:
                data = await self._get(self.key(tenant, fork.parent, f"files/{sha256}"))
                if data is not None:
                    await self._save(self.key(tenant, session, f"files/{sha256}"), data)
                    files.append(sha256)
        await self._create(tenant, session, rows, lines + b"".join([encode_line(row) for row in rows]), meta)

    async def read(self, session: str, start: int = 0, end: int | None = None, *, tenant: str = "") -> list[Row]:
        """Return the rows of positions [start, end), [] for an unknown session."""
        self._check_open()
        turns = await self._turns(tenant, session)
        lines = (turns or b"").splitlines()[max(start, 0) : None if end is None else max(end, 0)]
        try:
            return [decode_line(line) for line in lines]
        except ValueError as error:
            where = self.key(tenant, session, "turns.jsonl")
            raise StoreError(f"{where} holds a line that is no row: {error}.", hint="Mend or delete it.") from error

    async def list(self, *, tenant: str = "", limit: int = 1000) -> list[SessionInfo]:
        """Return up to `limit` sessions of a tenant, the one with the newest last row first."""
        self._check_open()
        index = await self._json(_index(tenant)) or {}
        found: list[tuple[int, int, SessionInfo]] = []
        for name, number in dict[str, int](index.get("sessions", {})).items():
            meta = await self._meta(tenant, name, number)
            if meta is None:
                continue  # made or deleted only half, when the program died
            parent = meta.get("parent")
            if index["sessions"].get(parent) != meta.get("parent_number"):
                parent = None
            pos = None if parent is None else meta.get("parent_pos")
            info = SessionInfo(name, meta["rows"], meta["created"], meta["updated"], meta.get("title", ""), parent, pos)
            found.append((info.updated, number, info))
        found.sort(key=lambda one: one[:2], reverse=True)
        return [info for _, _, info in found[: max(limit, 0)]]

    async def delete(self, session: str, *, tenant: str = "") -> bool:
        """Delete a session and all its files. False when there was none."""
        self._check_open()
        async with self.lock(tenant, session):
            there = await self._turns(tenant, session) is not None
            meta = await self._json(self.key(tenant, session, "meta.json")) or {}
            for name in ("turns.jsonl", *[f"files/{sha256}" for sha256 in meta.get("files", [])], "meta.json"):
                await self._call("delete", self.key(tenant, session, name))
            async with self._index_lock:
                index = await self._json(_index(tenant)) or {"sessions": {}}
                if index["sessions"].pop(session, None) is not None:
                    await self._save(_index(tenant), dumps_stored(index))
            return there

    async def close(self) -> None:
        """End the use of it."""
        self._closed = True

    # -- for `blobs` -----------------------------------------------------------------------------------------------

    async def keep_file(self, tenant: str, session: str, data: bytes) -> str:
        """Keep a content for a session. Raises SessionNotFound."""
        self._check_open()
        sha256 = hashlib.sha256(data).hexdigest()
        async with self.lock(tenant, session):
            meta = await self._meta(tenant, session)
            if meta is None:
                raise SessionNotFound(f"There is no session {session!r} to keep a file for.")
            if sha256 not in meta["files"]:
                await self.update(tenant, session, files=[*meta["files"], sha256])
                await self._save(self.key(tenant, session, f"files/{sha256}"), data)
        return sha256

    async def kept_file(self, tenant: str, session: str, sha256: str) -> bytes | None:
        """Return a content that a session has."""
        self._check_open()
        return await self._get(self.key(tenant, session, f"files/{sha256}")) if is_sha256(sha256) else None

    # -- the map ---------------------------------------------------------------------------------------------------

    def lock(self, tenant: str, session: str) -> asyncio.Lock:
        """Return the lock of a session: first come, first served."""
        found = self._locks.get((tenant, session))
        if found is None:
            found = self._locks[tenant, session] = asyncio.Lock()
        return found

    @staticmethod
    def key(tenant: str, session: str, name: str) -> str:
        """Return the key of a session's file."""
        return f"{f'@{_name(tenant)}/' if tenant else ''}{_name(session)}/{name}"

    async def update(self, tenant: str, session: str, **fields: Any) -> None:
        """Change what the list shows of a session."""
        meta = await self._meta(tenant, session) or {}
        await self._save(self.key(tenant, session, "meta.json"), dumps_stored({**meta, **fields}))

    async def _meta(self, tenant: str, session: str, number: int | None = None) -> dict[str, Any] | None:
        """Return what is known of a session; made from its rows where a program died before it wrote that down."""
        found = await self._json(self.key(tenant, session, "meta.json"))
        if found is not None:
            return found
        rows = await self.read(session, tenant=tenant)
        if not rows:
            return None
        if number is None:
            number = (await self._json(_index(tenant)) or {"sessions": {}})["sessions"].get(session, 0)
        own = next((row for row in reversed(rows) if row.kind == "session.forked"), rows[0])
        fork = fork_of([own])
        parent = {} if fork is None else {"parent": fork.parent, "parent_pos": fork.pos}
        return {
            "v": _VERSION, "id": session, "number": number, "title": title_of(rows[0]), "created": own.time,
            "updated": rows[-1].time, "rows": len(rows), "files": [], **parent,
        }  # fmt: skip

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("This file map store is closed.", hint="Make a new one.")

    async def _turns(self, tenant: str, session: str) -> bytes | None:
        return await self._get(self.key(tenant, session, "turns.jsonl"))

    async def _json(self, key: str) -> dict[str, Any] | None:
        data = await self._get(key)
        if data is None:
            return None
        try:
            value = loads_stored(data)
            if not isinstance(value, dict):
                raise ValueError("no object")
        except ValueError as error:
            raise StoreError(
                f"{key} cannot be read: {error}.", hint="Put it back from a copy, or delete it."
            ) from error
        found: dict[str, Any] = value
        if found.get("v", 0) > _VERSION:
            raise SessionVersionError(
                f"{key} has version {found['v']}, newer than {_VERSION}.", hint="Upgrade windlass."
            )
        return found

    async def _get(self, key: str) -> bytes | None:
        data = await self._call("get", key)
        return data.encode() if isinstance(data, str) else data if data is None else bytes(data)

    async def _save(self, key: str, data: bytes) -> None:
        await self._call("save", key, data)

    async def _call(self, what: str, *args: Any) -> Any:
        try:
            out = self._functions[what](*args)
            return await out if inspect.isawaitable(out) else out
        except SessionError:
            raise
        except Exception as error:
            raise StoreError(f"The file map's {what} of {args[0]} failed: {type(error).__name__}: {error}.") from error


def _index(tenant: str) -> str:
    return f"@{_name(tenant)}/index.json" if tenant else "index.json"


class _Blobs:
    """The store's face for contents of files."""

    def __init__(self, store: FileMapStore) -> None:
        self._store = store

    async def put(self, session: str, data: bytes, *, tenant: str = "") -> str:
        return await self._store.keep_file(tenant, session, bytes(data))

    async def get(self, session: str, sha256: str, *, tenant: str = "") -> bytes | None:
        return await self._store.kept_file(tenant, session, sha256)


def folder(path: str = "") -> FileMapStore:
    """Return a store over a folder of plain files: what `filemap:PATH` means. Raises ConfigError without a path."""
    if not path:
        raise ConfigError("filemap needs a folder.", hint='Write "filemap:PATH", or make a FileMapStore of functions.')
    root = Path(path).expanduser().resolve()

    def place(key: str) -> Path:
        return root.joinpath(*key.split("/"))

    def get(key: str) -> bytes | None:
        try:
            return place(key).read_bytes()
        except FileNotFoundError:
            return None

    def save(key: str, data: bytes) -> None:
        target = place(key)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_private(target, data)

    def delete(key: str) -> None:
        target = place(key)
        target.unlink(missing_ok=True)
        with suppress(OSError):
            target.parent.rmdir()  # with its last file

    def threaded(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        return partial(run_in_thread, function)

    return FileMapStore(threaded(get), threaded(save), threaded(delete))
