"""The `[server.workspaces]` table: whether this server makes workspaces for its clients, which, and how many."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["WORKSPACES_ABOUT", "WorkspaceSettings"]


class WorkspaceSettings(Struct, frozen=True, kw_only=True):
    """What `[server.workspaces]` may say. Nothing is offered until `allow` names a kind.

    `sandbox` confines commands by the operating system; this server refuses to start where it cannot. `memory` has
    files and no commands. `local` runs commands with this server's own rights, and asks for a key also on this machine.

    `folder` is where the folders of sandboxes are made ("": the system's temporary folder). `network` and `level` are
    those of a `SandboxWorkspace`. Counts are per key and of the server; seconds and bytes. `memory_mb` is the most RAM
    for a command (0: half of what there is).
    """

    allow: tuple[Literal["sandbox", "memory", "local"], ...] = ()
    folder: str = ""
    network: Literal["none", "host"] | tuple[str, ...] = "none"
    level: Literal["auto", "bubblewrap", "landlock"] = "auto"
    per_key: int = 4
    total: int = 32
    commands: int = 4
    idle_seconds: float = 3600.0
    command_seconds: float = 600.0
    output_bytes: int = 1024 * 1024
    file_bytes: int = 16 * 1024 * 1024
    held_bytes: int = 64 * 1024 * 1024
    memory_mb: int = 0


#: What each setting means, for the documents.
WORKSPACES_ABOUT: dict[str, str] = {
    "allow": "kinds of workspaces that clients may make: `sandbox`, `memory`, `local`; none offers none",
    "folder": "where the folders of sandboxes are made; none is the system's temporary folder",
    "network": "what commands in sandboxes may reach: `none`, `host`, or a list of hosts",
    "level": "how commands in sandboxes are held: `auto`, `bubblewrap` or `landlock`",
    "per_key": "workspaces of one key at once",
    "total": "workspaces at once",
    "commands": "commands at once in one workspace",
    "idle_seconds": "seconds after which an unused workspace is deleted, at most",
    "command_seconds": "seconds for a command, at most",
    "output_bytes": "bytes of a command's output that are told, at most",
    "file_bytes": "bytes of a file that is read or written",
    "held_bytes": "bytes of a workspace of kind `memory`",
    "memory_mb": "megabytes of RAM for a command, at most; 0 is half of what there is",
}
