"""Check that an object is a Workspace, by what it does.

Use it in a test of your own workspace::

    async def test_my_workspace() -> None:
        await check_workspace(lambda: MyWorkspace(...))
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias, TypeVar

from windlass.core.errors import PathEscape, WorkspaceError
from windlass.core.ports import FileInfo, Workspace

__all__ = ["check_workspace"]

_Error = TypeVar("_Error", bound=BaseException)
_Check: TypeAlias = Callable[[Workspace], Coroutine[Any, Any, None]]

_ESCAPES = ("..", "../x", "a/../../x", "/etc/passwd", "//etc/passwd", "~", "~/.ssh/id_rsa", "~root/x")
_URLS = ("file:///etc/passwd", "FILE:/etc/passwd", "https://example.com/x", "C:\\Windows\\x", "c:/x")
_BAD_NAMES = ("", "a\0b", "a\nb", "a\x1b[2Jb", "n" * 256, "é" * 128)


async def check_workspace(make: Callable[[], Workspace | Awaitable[Workspace]]) -> list[str]:
    """Run every check on a fresh, empty workspace from `make` and return the checks' names.

    `make` may be a plain or an async function; each workspace is closed after its check. Raises AssertionError naming
    the check and what it saw.
    """
    for name, check in CHECKS.items():
        made = make()
        workspace = await made if inspect.isawaitable(made) else made
        try:
            await check(workspace)
        except Exception as error:
            text = str(error) or repr(error)
            raise AssertionError(f"check_workspace, {name}: {text}") from error
        finally:
            await workspace.close()
    return list(CHECKS)


async def _shape(ws: Workspace) -> None:
    _expect(isinstance(ws, Workspace), "the object lacks a method of the Workspace port")
    known = {"shell", "filesystem", "network"}
    _expect(ws.capabilities <= known, f"capabilities are {sorted(ws.capabilities)}, known are {sorted(known)}")
    _expect(bool(ws.root), "root must be a name for people")
    _same(await ws.list(), [], "a fresh workspace must be empty")


async def _write_then_read(ws: Workspace) -> None:
    for content in (b"one", b"", b"one and two\n", b"1"):
        await ws.write("a.txt", content)
        _same(await ws.read("a.txt"), content, "read gives what was written, no more and no less")


async def _binary(ws: Workspace) -> None:
    content = bytes(range(256)) * 1024
    await ws.write("data.bin", content)
    _same(await ws.read("data.bin"), content, "every byte comes back")
    _same(await ws.read("data.bin", limit=10), content[:10], "limit gives the first bytes")
    _same(await ws.read("data.bin", limit=0), b"", "a limit of 0 gives nothing")
    _same(await ws.read("data.bin", limit=len(content) * 2), content, "a limit past the end gives all")


async def _parents(ws: Workspace) -> None:
    await ws.write("a/b/c.txt", b"deep")
    _same(await ws.read("a/b/c.txt"), b"deep", "write makes the folders above")
    _same(await _kind(ws, "a/b"), "dir", "the folders above are folders")


async def _missing(ws: Workspace) -> None:
    for path in ("none.txt", "none/deeper.txt"):
        for action in (partial(ws.read, path), partial(ws.delete, path)):
            error = await _raises(WorkspaceError, action, f"{path!r} is not there")
            _expect(isinstance(error.__cause__, FileNotFoundError), f"the cause is {error.__cause__!r}")
        _same(await ws.stat(path), None, "stat of a missing file")
    error = await _raises(WorkspaceError, partial(ws.list, "none"), "a missing folder cannot be listed")
    _expect(isinstance(error.__cause__, FileNotFoundError), f"the cause is {error.__cause__!r}")


async def _expected_sha256(ws: Workspace) -> None:
    await ws.write("a.txt", b"one", expected_sha256="")
    await _raises(
        WorkspaceError, partial(ws.write, "a.txt", b"two", expected_sha256=""), "there must be none, but there is"
    )
    await _raises(
        WorkspaceError, partial(ws.write, "a.txt", b"two", expected_sha256=_sha(b"other")), "another file is there"
    )
    await _raises(WorkspaceError, partial(ws.write, "b.txt", b"two", expected_sha256=_sha(b"one")), "no file is there")
    _same(await ws.read("a.txt"), b"one", "a refused write changes nothing")
    _same(await ws.stat("b.txt"), None, "a refused write makes nothing")
    await ws.write("a.txt", b"two", expected_sha256=_sha(b"one"))
    _same(await ws.read("a.txt"), b"two", "the expected file is replaced")
    _same([info.path for info in await ws.list()], ["a.txt"], "nothing is left beside it")


async def _escape(ws: Workspace) -> None:
    for path in (*_ESCAPES, *_URLS):
        for action in _all_actions(ws, path):
            await _raises(PathEscape, action, f"{path!r} leaves the workspace")
    _same(await ws.list(), [], "a refused path makes nothing")


async def _bad_names(ws: Workspace) -> None:
    for path in _BAD_NAMES:
        for action in _all_actions(ws, path):
            error = await _raises(WorkspaceError, action, f"{path!r} is no usable name")
            _same(error.path, path, "the error's path is the caller's")
    _same(await ws.list(), [], "a refused name makes nothing")


async def _dots_inside(ws: Workspace) -> None:
    await ws.write("./a/../b//c.txt", b"x")
    _same(await ws.read("b/c.txt"), b"x", "`.` and `..` are resolved while they stay inside")
    _same(await ws.read("b/./c.txt"), b"x", "`.` means the folder itself")
    _same(await ws.stat("a"), None, "`a/..` makes no folder a")


async def _unicode(ws: Workspace) -> None:
    names = [
        "\u00e9.txt",
        "e\u0301.txt",
        "日本語.md",
        "🦜.py",
        "A.txt",
        "a.txt",
        " a.txt",
        "a.txt ",
        "a.txt.",
        "%2e%2e",
    ]
    for name in names:
        await ws.write(name, name.encode())
    _same([await ws.read(name) for name in names], [name.encode() for name in names], "names are exact")
    _same([info.path for info in await ws.list()], sorted(names), "each name is a file of its own")


async def _list(ws: Workspace) -> None:
    for path in ("b.txt", "a/x.txt", "a/c/y.txt", "a-b.txt"):
        await ws.write(path, b"12345")
    _same(await _paths(ws, "."), ["a", "a-b.txt", "b.txt"], "depth 1 lists the folder itself, sorted")
    everything = ["a", "a/c", "a/c/y.txt", "a/x.txt", "a-b.txt", "b.txt"]
    _same(await _paths(ws, ".", depth=9), everything, "a depth lists below, sorted name by name")
    _same(await _paths(ws, ".", depth=2), [path for path in everything if path.count("/") < 2], "depth bounds it")
    _same(await _paths(ws, "a"), ["a/c", "a/x.txt"], "paths are relative to the root, not to the listed folder")
    _same(await _paths(ws, ".", depth=9, limit=4), ["a", "a/c", "a-b.txt", "b.txt"], "limit keeps the shallow ones")
    _same(await _paths(ws, ".", depth=9, limit=0), [], "a limit of 0 lists nothing")
    kinds = {info.path: (info.kind, info.size) for info in await ws.list()}
    _same(kinds, {"a": ("dir", 0), "a-b.txt": ("file", 5), "b.txt": ("file", 5)}, "kinds and sizes")
    error = await _raises(WorkspaceError, partial(ws.list, "b.txt"), "a file cannot be listed")
    _expect(isinstance(error.__cause__, NotADirectoryError), f"the cause is {error.__cause__!r}")


async def _stat(ws: Workspace) -> None:
    await ws.write("a/b.txt", b"12345")
    info = await ws.stat("a/b.txt")
    _expect(isinstance(info, FileInfo), f"stat gives {info!r}")
    assert info is not None
    _same((info.path, info.kind, info.size), ("a/b.txt", "file", 5), "stat of a file")
    for path, shown in (("a", "a"), ("a/", "a"), (".", ".")):
        folder = await ws.stat(path)
        _same(folder and (folder.path, folder.kind), (shown, "dir"), f"stat of {path!r}")
    _same(await ws.stat("a/b.txt/c"), None, "nothing lies below a file")


async def _folder_is_no_file(ws: Workspace) -> None:
    await ws.write("a/b.txt", b"x")
    for path in ("a", "."):
        for action in (partial(ws.read, path), partial(ws.write, path, b"y")):
            error = await _raises(WorkspaceError, action, f"{path!r} is a folder")
            _expect(isinstance(error.__cause__, IsADirectoryError), f"the cause is {error.__cause__!r}")
    for action in (partial(ws.read, "a/b.txt/c"), partial(ws.write, "a/b.txt/c", b"y")):
        error = await _raises(WorkspaceError, action, "a file is no folder")
        _expect(isinstance(error.__cause__, NotADirectoryError), f"the cause is {error.__cause__!r}")
    _same(await ws.read("a/b.txt"), b"x", "a refused write changes nothing")


async def _delete(ws: Workspace) -> None:
    await ws.write("a/b.txt", b"x")
    await _raises(WorkspaceError, partial(ws.delete, "a"), "a folder with files is not deleted")
    await ws.delete("a/b.txt")
    _same(await ws.stat("a/b.txt"), None, "the file is gone")
    _same(await _kind(ws, "a"), "dir", "its folder stays")
    await ws.delete("a")
    _same(await ws.list(), [], "an empty folder is deleted")
    await _raises(WorkspaceError, partial(ws.delete, "."), "the root is not deleted")


async def _bounds(ws: Workspace) -> None:
    await ws.write("a.txt", b"x")
    await _raises(WorkspaceError, partial(ws.read, "a.txt", limit=-1), "a negative limit")
    await _raises(WorkspaceError, partial(ws.list, limit=-1), "a negative limit")
    await _raises(WorkspaceError, partial(ws.list, depth=-1), "a negative depth")


async def _shell(ws: Workspace) -> None:
    if "shell" not in ws.capabilities:
        await _raises(WorkspaceError, partial(ws.exec, "echo hello"), "there is no shell")
        return
    await ws.write("a.txt", b"from a file\n")
    seen: list[bytes] = []
    done = await ws.exec("cat a.txt && exit 3", on_output=seen.append)
    _same((done.exit_code, done.output, done.killed), (3, b"from a file\n", None), "a command sees the files")
    _same(b"".join(seen), b"from a file\n", "on_output gets what it writes")
    done = await ws.exec(["printf", "%s", "$HOME;x"])
    _same((done.exit_code, done.output), (0, b"$HOME;x"), "a list of words runs without a shell")


async def _close(ws: Workspace) -> None:
    await ws.write("a.txt", b"x")
    await ws.close()
    await ws.close()
    await _raises(WorkspaceError, partial(ws.read, "a.txt"), "a closed workspace reads nothing")


#: Name -> check. Each gets a workspace of its own.
CHECKS: dict[str, _Check] = {
    "shape": _shape,
    "write then read": _write_then_read,
    "binary and limit": _binary,
    "parents": _parents,
    "missing": _missing,
    "expected_sha256": _expected_sha256,
    "escape": _escape,
    "bad names": _bad_names,
    "dots inside": _dots_inside,
    "unicode": _unicode,
    "list": _list,
    "stat": _stat,
    "a folder is no file": _folder_is_no_file,
    "delete": _delete,
    "bounds": _bounds,
    "shell": _shell,
    "close": _close,
}


def _all_actions(ws: Workspace, path: str) -> list[Callable[[], Awaitable[object]]]:
    reads = [partial(ws.read, path), partial(ws.stat, path), partial(ws.list, path)]
    return [*reads, partial(ws.write, path, b"x"), partial(ws.delete, path)]


async def _raises(kind: type[_Error], action: Callable[[], Awaitable[object]], why: str) -> _Error:
    try:
        value = await action()
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"{why}: expected {kind.__name__}, got {error!r}") from error
    raise AssertionError(f"{why}: expected {kind.__name__}, got the value {value!r}")


async def _kind(ws: Workspace, path: str) -> str | None:
    info = await ws.stat(path)
    return info.kind if info is not None else None


async def _paths(ws: Workspace, path: str, *, depth: int = 1, limit: int = 10_000) -> list[str]:
    return [info.path for info in await ws.list(path, depth=depth, limit=limit)]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _same(got: object, wanted: object, why: str) -> None:
    _expect(got == wanted, f"{why}: expected {wanted!r:.300}, got {got!r:.300}")


def _expect(true: bool, why: str) -> None:
    if not true:
        raise AssertionError(why)
