"""What the OpenAPI document says of the routes of workspaces."""

from __future__ import annotations

from windlass.server.bodies import COUNT, FLAG, TEXT, Schema, array, either, number, obj, ref, some, word

__all__ = ["WORKSPACE_SCHEMAS"]

_PATH: Schema = {"type": "string", "pattern": "^[a-z][a-z0-9/._-]{0,80}$"}
_BASE64: Schema = {"type": "string", "pattern": "^([A-Za-z0-9+/]{4}){0,20}$"}
_KINDS = ("sandbox", "memory", "local")
_ENTRY = obj(
    "path kind size mtime_ns", path=TEXT, kind=word("file", "dir", "symlink", "other"), size=COUNT, mtime_ns=COUNT
)
_LIMIT = {"type": "integer", "minimum": 0, "maximum": 100_000}
#: Bodies; they take no further fields.
_ASKED: dict[str, Schema] = {
    "WorkspaceRequest": obj(
        kind=word(*_KINDS),
        memory_mb=some({"type": "integer", "minimum": 16, "maximum": 1 << 30}),
        idle_seconds=some(number(1, 86_400)),
    ),
    "WorkspacePath": obj("path", path=_PATH),
    "WorkspaceRead": obj("path", path=_PATH, limit=some({"type": "integer", "minimum": 0, "maximum": 1 << 50})),
    "WorkspaceWrite": obj(
        "path data", path=_PATH, data=_BASE64, expected_sha256=some({"type": "string", "pattern": "^([0-9a-f]{64})?$"})
    ),
    "WorkspaceList": obj(path=_PATH, depth={"type": "integer", "minimum": 0, "maximum": 64}, limit=_LIMIT),
    "WorkspaceCommand": obj(
        "command",
        command=either(TEXT, array(TEXT, minItems=1)),
        timeout=some(number(0, 86_400)),
        max_output={"type": "integer", "minimum": 0, "maximum": 1 << 50},
        env={"type": "object", "additionalProperties": TEXT},
    ),
}
WORKSPACE_SCHEMAS: dict[str, Schema] = {
    **{name: {**schema, "additionalProperties": False} for name, schema in _ASKED.items()},
    "Workspace": obj(
        "id object kind capabilities confinement idle_seconds",
        id=TEXT,
        object=word("workspace"),
        kind=word(*_KINDS),
        capabilities=array(word("shell", "filesystem", "network")),
        confinement=TEXT,
        idle_seconds={"type": "number"},
    ),
    "WorkspaceDeleted": obj("id object deleted", id=TEXT, object=word("workspace.deleted"), deleted=FLAG),
    "WorkspaceFile": obj("object data", object=word("workspace.file"), data=TEXT),
    "WorkspaceWritten": obj("object bytes", object=word("workspace.written"), bytes=COUNT),
    "WorkspaceFileDeleted": obj("object deleted", object=word("workspace.file_deleted"), deleted=FLAG),
    "WorkspaceEntry": _ENTRY,
    "WorkspaceStat": obj("object entry", object=word("workspace.entry"), entry=some(ref("WorkspaceEntry"))),
    "WorkspaceEntries": obj("object entries", object=word("list"), entries=array(ref("WorkspaceEntry"))),
}
