"""Every way a path gets into a built-in tool, found by looking at the tools: none of them leads out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tools.helpers import Context, call
from windlass.core import registry
from windlass.core.errors import PathEscape, ToolError, WindlassError, WorkspaceError
from windlass.core.ports import Tool, ToolResult
from windlass.tools import rg
from windlass.workspaces.local import LocalWorkspace
from windlass.workspaces.memory import MemoryWorkspace
from windlass.workspaces.paths import is_protected

#: The modules of the tools that work on files. Whoever makes another adds it here and answers for its parameters below.
MODULES = ("files", "search", "shell", "patching", "outline", "fileops", "todo", "basic")
TOOLS: dict[str, Tool] = {
    name: registry.resolve("tools", name)
    for name, target in registry.BUILTIN["tools"].items()
    if target.split(":")[0].rsplit(".", 1)[-1] in MODULES
}


def patch(text: str) -> dict[str, Any]:
    return {"patch": f"*** Begin Patch\n{text}\n*** End Patch"}


OPERATIONS = ("create", "append", "delete", "copy", "move", "mkdir", "rmdir", "exists", "stat", "chmod")
FILE = {"content": "x", "destination": "new", "mode": "755"}
#: (tool, parameter) -> the calls that put a path there, written `{p}`.
PATHS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("read_file", "path"): [{"path": "{p}"}],
    ("write_file", "path"): [{"path": "{p}", "content": "x"}],
    ("edit", "path"): [{"path": "{p}", "old_string": "x", "new_string": "y"}],
    ("multi_edit", "path"): [{"path": "{p}", "edits": [{"old_string": "x", "new_string": "y"}]}],
    ("list_files", "path"): [{"path": "{p}"}],
    ("glob", "path"): [{"path": "{p}", "pattern": "*"}],
    ("glob", "pattern"): [{"pattern": "{p}"}, {"pattern": "{p}/*"}],
    ("grep", "path"): [{"path": "{p}", "pattern": "root"}],
    ("outline", "path"): [{"path": "{p}"}],
    ("file", "path"): [{"operation": each, "path": "{p}", **FILE} for each in OPERATIONS],
    ("file", "destination"): [{"operation": each, "path": "there", "destination": "{p}"} for each in ("copy", "move")],
    ("apply_patch", "patch"): [
        patch("*** Add File: {p}\n+x"),
        patch("*** Update File: {p}\n-x\n+y"),
        patch("*** Delete File: {p}"),
        patch("*** Update File: there\n*** Move to: {p}"),
    ],
}


def filled(template: dict[str, Any], path: str) -> dict[str, Any]:
    return {key: value.replace("{p}", path) if isinstance(value, str) else value for key, value in template.items()}


#: Texts that are no paths. `glob` of grep only filters what was found below `path`; a shell is not confined here.
OTHERS = {
    ("write_file", "content"), ("edit", "old_string"), ("edit", "new_string"), ("multi_edit", "old_string"),
    ("multi_edit", "new_string"), ("glob", "sort"), ("grep", "pattern"), ("grep", "glob"), ("grep", "type"),
    ("grep", "output_mode"), ("shell", "command"), ("file", "operation"), ("file", "content"), ("file", "mode"),
    ("todo_write", "content"), ("todo_write", "status"), ("todo_write", "id"), ("echo", "text"),
}  # fmt: skip


def texts(schema: Mapping[str, Any]) -> set[str]:
    """Return the names of all parameters that are text, those of lists of objects too."""
    found: set[str] = set()
    for name, below in schema.get("properties", {}).items():
        if below.get("type") == "string" or "string" in str(below.get("anyOf", "")):
            found.add(name)
        found |= texts(below) | texts(below.get("items", {}))
    return found


def test_s03_every_text_that_a_tool_takes_is_known_to_be_a_path_or_not() -> None:
    taken = {(name, each) for name, tool in TOOLS.items() for each in texts(tool.spec.input_schema)}
    assert taken == {*PATHS, *OTHERS}
    assert {"read_file", "file", "apply_patch", "grep", "shell", "echo"} <= TOOLS.keys()


CALLS = [(tool, template) for (tool, _), templates in PATHS.items() for template in templates]
OUTSIDE = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "~/.ssh/id_rsa",
    "file:///etc/passwd",
    "..",
    "//etc/passwd",
    "/proc/self/environ",
]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize(("tool", "template"), CALLS)
async def test_s01_a_path_that_leaves_is_refused_by_every_parameter(
    ctx: Context, place: Path, tool: str, template: dict[str, Any], path: str
) -> None:
    assert ctx.workspace is not None
    await ctx.workspace.write("there", b"x\n")
    before = sorted(os.listdir(place.parent)) if isinstance(ctx.workspace, LocalWorkspace) else []
    with pytest.raises(PathEscape):
        await call(TOOLS[tool], ctx, **filled(template, path))
    assert ctx.events == []
    assert await ctx.workspace.read("there") == b"x\n"
    assert not before or place.parent.joinpath("x").exists() is ("x" in before)


@pytest.mark.parametrize(("tool", "template"), CALLS)
async def test_s11_a_link_that_leads_out_is_not_followed(
    local: Context, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, template: dict[str, Any]
) -> None:
    monkeypatch.setattr(rg, "LEAST_FILES", 0)
    (tmp_path / "secret").write_text("root x\n")
    (place / "there").write_text("x\n")
    (place / "out").symlink_to(tmp_path)
    (place / "file").symlink_to(tmp_path / "secret")
    (place / "loop").symlink_to(".")
    for path in ("out/secret", "file", "out", "out/new"):
        answer: Any = ""
        try:
            answer = await call(TOOLS[tool], local, **filled(template, path))
        except (WorkspaceError, ToolError):
            continue
        finally:
            assert (tmp_path / "secret").read_text() == "root x\n"
            assert os.listdir(tmp_path) == ["secret"]
        shown = str(answer.content if isinstance(answer, ToolResult) else answer)
        assert "root" not in shown
        # Removing a link removes the link; listing one names it.
        assert tool in ("glob", "file") or isinstance(answer, ToolResult), (tool, path, shown)


ODD = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.sampled_from(
    [
        "a\x00b",
        "a\nb",
        "x" * 300,
        "A",
        "a.",
        "a ",
        "e\u0301",
        "\u00e9",
        "a/\u202e",
        "con",
        "a\\b",
        "%2e%2e/x",
        "...",
        "-rf",
    ]
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ODD, st.sampled_from(CALLS))
async def test_s09_an_odd_name_is_refused_or_is_exactly_that_file(name: str, each: tuple[str, dict[str, Any]]) -> None:
    tool, template = each
    space = MemoryWorkspace({"a": "x\n", "there": "x\n", "\u00e9": "x\n"})
    before = space.files
    try:
        await call(TOOLS[tool], Context(space), **filled(template, name))
    except (WindlassError, AssertionError):
        assert space.files == before
        return
    asked = {os.path.normpath(part.strip()) for part in (name, *name.split("/"))} | {
        os.path.normpath(name),
        "new",
        "there",
    }
    touched = {path for path in {*before, *space.files} if before.get(path) != space.files.get(path)}
    assert all(path in asked or path.rsplit("/", 1)[-1] in asked or path in name for path in touched), (name, touched)


PROTECTED = [
    ".git/hooks/pre-commit",
    ".git/config",
    "AGENTS.md",
    ".mcp.json",
    ".envrc",
    ".windlass/x",
    ".vscode/tasks.json",
]
CHANGING = {"write_file", "edit", "multi_edit", "apply_patch", "file"}
WRITING = [each for each in CALLS if each[0] in CHANGING and each[1].get("operation") not in ("exists", "stat")]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(("tool", "template"), WRITING)
async def test_s12_what_is_protected_is_not_changed_by_any_tool(
    place: Path, tool: str, template: dict[str, Any], there: bool
) -> None:
    for path in PROTECTED:
        if there:
            (place / path).parent.mkdir(exist_ok=True, parents=True)
            (place / path).write_text("x\n")
    (place / "there").write_text("x\n")
    workspace = LocalWorkspace(place, protect=is_protected)
    refused: list[str] = []
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in place.rglob("*") if path.is_file()}
    for path in PROTECTED:
        args = filled(template, path)
        if args.get("operation") == "copy" and args["path"] == path:
            continue  # copies from there
        try:
            answer = await call(TOOLS[tool], Context(workspace), **args)
        except WorkspaceError as error:
            refused.append(error.message)
        else:
            assert isinstance(answer, ToolResult), (path, answer)
            assert answer.status == "error"
    left = {path: (path.read_bytes(), path.stat().st_mode) for path in place.rglob("*") if path.is_file()}
    assert {path: data for path, data in left.items() if path.name != "new"} == before
    assert all("protected" in message or "edits" in message for message in refused), refused
    await workspace.close()
