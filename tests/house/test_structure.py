"""The bounds of the house, held by tests: sizes, circles, imports, names. A bound is a ratchet, not a target."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import windlass
from windlass.core import registry
from windlass.core.events import KINDS

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "windlass"
FILES = sorted(SRC.rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_LOOP, MAX_KINDS, MAX_DISTRIBUTIONS = 500, 90, 300, 30, 6
#: Optional packages, and modules that not every platform has: imported inside the function that needs them.
EXTRAS = {
    "xllamacpp", "re2", "uvloop", "termios", "botocore", "psycopg", "opentelemetry", "mcp", "mcp_types", "anyio",
    "httpx2", "uvicorn", "acp", "keyring", "gguf", "numpy", "jinja2", "torch", "tokenizers", "safetensors",
    "flwr", "tensorboard", "wandb", "sqlite_vec", "cryptography",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_files_functions_and_the_loop_keep_their_bounds() -> None:
    long_files = {
        str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > MAX_FILE
    }
    long_functions = {
        f"{name}.{node.name}": size
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (size := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    }
    assert long_files == {}
    assert long_functions == {}
    assert len((SRC / "agent" / "loop.py").read_text().splitlines()) <= MAX_LOOP
    assert len(KINDS) <= MAX_KINDS


def imports(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Yield every import of a module: at the top, in functions and under TYPE_CHECKING alike."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in TREES else node.module), node


def test_there_are_no_import_circles() -> None:
    graph = {
        name: {target for target, _ in imports(tree) if target in TREES and target != name}
        for name, tree in TREES.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_imports_inside_functions_are_extras_or_the_command_line() -> None:
    found: list[str] = []
    for name, tree in TREES.items():
        if name == "windlass.apps.cli":
            continue
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import):
                        found += [f"{name}: {a.name}" for a in node.names if a.name.split(".")[0] not in EXTRAS]
                    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in EXTRAS:
                        found.append(f"{name}: {node.module}")
    assert found == []


def test_nothing_is_imported_for_types_only() -> None:
    assert [name for name, tree in TREES.items() if "TYPE_CHECKING" in ast.unparse(tree)] == []


def test_nobody_imports_the_face() -> None:
    rooms = {name: tree for name, tree in TREES.items() if name != "windlass"}
    assert [name for name, tree in rooms.items() if any(target == "windlass" for target, _ in imports(tree))] == []


BANNED = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "yaml.load",
    "asyncio.wait_for", "pickle.loads", "pickle.load", "marshal.loads", "asyncio.get_event_loop", "asyncio.to_thread",
}  # fmt: skip
BANNED_MODULES = {"pickle", "marshal", "shelve", "dill"}


def test_s112_dangerous_calls_are_nowhere() -> None:
    found: list[str] = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                asked = [ast.unparse(keyword) for keyword in node.keywords]
                bad = called in BANNED or any(text == "shell=True" or text.startswith("preexec_fn") for text in asked)
                found.extend([f"{name}:{node.lineno} {called}"] if bad else [])
        found += [f"{name} imports {t}" for t, _ in imports(tree) if t.split(".")[0] in BANNED_MODULES]
    assert found == []


def test_every_room_says_its_sentence() -> None:
    rooms = {path.name: path for path in SRC.iterdir() if (path / "__init__.py").is_file()}
    plan = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for name, path in rooms.items():
        sentence = ast.get_docstring(ast.parse((path / "__init__.py").read_text())) or ""
        assert sentence and sentence in plan, f"{name}: ARCHITECTURE.md must hold {sentence!r}"


def test_architecture_lists_the_names_the_registry_resolves() -> None:
    plan = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    missing = [f"{port} {name} {target}" for port, rows in registry.BUILTIN.items() for name, target in rows.items()
               if f"| {port} | `{name}` | `{target}` |" not in plan]  # fmt: skip
    assert missing == []


def test_every_name_of_the_registry_resolves() -> None:
    for port, rows in registry.BUILTIN.items():
        for name in rows:
            assert registry.resolve(port, name) is not None


def test_core_installs_at_most_six_distributions() -> None:
    seen: set[str] = set()
    todo = ["windlass"]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        needed = [line for line in importlib.metadata.requires(name) or [] if "extra ==" not in line]
        todo.extend([re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0] for line in needed])
    assert len(seen) <= MAX_DISTRIBUTIONS, sorted(seen)


@pytest.mark.parametrize(
    ("code", "most"),
    [("import windlass", 2), ("from windlass.apps.cli import main; main(['--help'])", 4)],
)
def test_starting_imports_little(code: str, most: int) -> None:
    """Count modules of ours and of other distributions, not milliseconds."""
    script = f"import sys; before = set(sys.modules); {code}; print(chr(10).join(sorted(set(sys.modules) - before)))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = [line for line in out.splitlines() if line.startswith(("windlass", "msgspec", "asyncio", "httptools"))]
    assert len(loaded) <= most, loaded


def test_first_use_of_the_agent_stays_small() -> None:
    """asyncio with msgspec alone is about 158 modules."""
    script = "import sys, windlass; windlass.Agent; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert len(out) <= 215
    assert not {"sqlite3", "tomllib", "importlib.metadata", "httptools", "xllamacpp", "numpy"} & set(out)


def test_the_face_and_its_types_agree() -> None:
    stub = (SRC / "__init__.pyi").read_text()
    listed = sorted([line.rsplit(" as ", 1)[1] for line in stub.splitlines() if " as " in line])
    assert listed == windlass.__all__
    for name in windlass.__all__:
        assert getattr(windlass, name) is not None


def test_public_names_are_the_ones_agreed_on() -> None:
    kept = (Path(__file__).parent / "public_names.txt").read_text().split()
    assert windlass.__all__ == kept, "the public face changed: update public_names.txt and the changelog"
