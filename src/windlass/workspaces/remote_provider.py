"""What a service of sandboxes has to do, so that a workspace can be made of it: seven functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from msgspec import Struct

from windlass.core.ports import ExecResult, FileInfo

__all__ = ["SandboxProvider", "SpawnOptions", "takes"]


class SpawnOptions(Struct, frozen=True, omit_defaults=True):
    """What is asked of a new sandbox; None and "" leave it to the service.

    `template` is the service's word for an image, `memory_mb` and `cpu` (cores) bound it, `idle_seconds` is for how
    long it may lie unused before the service takes it away. `more` is for what only one service knows.
    """

    template: str = ""
    memory_mb: int | None = None
    cpu: float | None = None
    idle_seconds: float | None = None
    more: Mapping[str, Any] = {}


@runtime_checkable
class SandboxProvider(Protocol):
    """Makes sandboxes elsewhere, and acts in them: reference C's `SandboxProvider`, in snake case.

    `spawn` returns whatever the other functions need to find the sandbox again; it raises WorkspaceError for an option
    that it cannot keep. Paths are relative to the sandbox's working folder, cleaned (`a/b`, `.`), in which `exec` runs
    too: a text by a shell, words without one. `write_file` makes the folders above. `list_files` gives the entries of
    one folder, their paths relative to the working folder. Cancelling a call ends what it does; of `exec` the command.

    A fault of a file is an OSError of its class (FileNotFoundError, PermissionError ...). One that cannot tell a
    folder or a file in the way from nothing there raises FileNotFoundError: it is looked up then.

    More is used where it is there: `exec(..., on_output=, max_output=)`, `read_file(..., limit=)`,
    `write_file(..., expected_sha256=)`, which then is the one to be atomic, `list_files(..., depth=, limit=)`, the
    methods `stat_file(handle, path) -> FileInfo | None` and `delete_file(handle, path)`, and an attribute
    `capabilities` of the provider or of what `spawn` returns (none: shell, filesystem, network).
    """

    @property
    def name(self) -> str: ...

    async def spawn(self, options: SpawnOptions, /) -> Any: ...

    async def exec(
        self, handle: Any, command: str | Sequence[str], /, *, timeout: float | None, env: Mapping[str, str]
    ) -> ExecResult: ...

    async def read_file(self, handle: Any, path: str, /) -> bytes: ...
    async def write_file(self, handle: Any, path: str, data: bytes, /) -> None: ...
    async def list_files(self, handle: Any, path: str, /) -> Sequence[FileInfo]: ...
    async def destroy(self, handle: Any, /) -> None: ...


def takes(function: Callable[..., Any], *names: str) -> bool:
    """Tell whether a function takes all of these keywords.

    >>> takes(sorted, "key", "reverse")
    True
    """
    known = inspect.signature(function).parameters
    return all(name in known for name in names) or any(one.kind is one.VAR_KEYWORD for one in known.values())
