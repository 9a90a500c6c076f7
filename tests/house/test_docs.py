"""The documents are true: every block in them runs, every link leads somewhere, what is generated is up to date.

How a page is read:

- `python` blocks of a page run in order, in one module of its name, with `await` at the top; a `text` block right after
  one is what it printed.
- `console` blocks run line by line (`$ command`) in a shell with `windlass` on its PATH and no key; what stands below
  a command is what it printed, on both streams; `# exit code N` at its end is what it must end with, else 0. `make`
  commands are only looked up (`make -n`). A command that ends in ` &` goes on until the page ends: a server, whose
  first line says where it listens.
- `toml` blocks are read by `load_config` as the user's own file, or are a part of a `pyproject.toml`.
- `...` in an expected output stands for anything.
- `<!-- not run: why -->` right before a block leaves it out; how many of those there may be is a ratchet.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import gc
import importlib
import importlib.util
import inspect
import io
import os
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from windlass.agent.hooks import HOOKS
from windlass.apps.cli import COMMANDS
from windlass.core import models
from windlass.core.config_files import load_config
from windlass.local.embedded import embedded_model
from windlass.providers.vendors import VENDORS
from windlass.server.settings import read_settings

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *[path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent.name not in ("api", "decisions")],
]
LANGUAGES = {"python", "console", "toml", "text", "json"}
#: How many blocks may be left out of the run. A ratchet: it goes down, never up.
MOST_NOT_RUN = 0
SECONDS = 120


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, line in the page, and why it is not run (None: it is)."""

    language: str
    text: str
    line: int
    not_run: str | None
    #: The `text` block right behind it.
    printed: str | None = None


_FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: ([^>]+) -->\s*\Z")


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    out: list[Block] = []
    for number, match in enumerate(found):
        reason = _NOT_RUN.search(text, 0, match.start())
        after = found[number + 1] if number + 1 < len(found) else None
        printed = after is not None and after[1] == "text" and not text[match.end() : after.start()].strip()
        out.append(
            Block(
                match[1],
                match[2],
                text.count("\n", 0, match.start(2)) + 1,
                reason[1] if reason else None,
                after[2] if printed and after is not None else None,
            )
        )
    return out


def pages_with(language: str) -> list[Any]:
    found = [page for page in PAGES if any(b.language == language and not b.not_run for b in blocks(page))]
    return [pytest.param(page, id=str(page.relative_to(ROOT))) for page in found]


def matches(expected: str, got: str) -> bool:
    """Compare outputs; `...` stands for anything, spaces at the ends of lines do not count."""
    plain = "\n".join([line.rstrip() for line in expected.strip().splitlines()])
    seen = "\n".join([line.rstrip() for line in got.strip().splitlines()])
    return re.fullmatch(".*?".join([re.escape(part) for part in plain.split("...")]), seen, re.DOTALL) is not None


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, a home beside it, and none of the person's own settings."""
    for name in list(os.environ):
        if name.endswith(("_API_KEY", "_BASE_URL", "_TOKEN", "_MODEL", "_HOST")) or name.startswith("WINDLASS_"):
            monkeypatch.delenv(name)
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for name, value in {
        "HOME": str(home),
        "WINDLASS_HOME": str(home / "windlass"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        # Threads that wait for each other on a busy machine spin: a small model is trained ten times as fast by one.
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(work)
    return work


def run_python(block: Block, page: Path, namespace: dict[str, Any], runner: asyncio.Runner) -> str:
    """Run a block and return what it printed."""
    source = "\n" * (block.line - 1) + block.text
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(out):
        waiting = eval(code, namespace)
        if inspect.iscoroutine(waiting):
            runner.run(waiting)
    buffer = out.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page: Path, empty_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType(f"page_{page.stem.lower()}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with asyncio.Runner() as runner:
        for block in blocks(page):
            if block.language == "python" and block.not_run is None:
                printed = run_python(block, page, module.__dict__, runner)
                if block.printed is not None:
                    assert matches(block.printed, printed), f"{page.name}:{block.line} printed\n{printed}"
    module.__dict__.clear()
    gc.collect()  # what the page left open is this page's fault


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield (command, expected output) of a console block."""
    command: str | None = None
    lines: list[str] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, "\n".join(lines)
            command, lines = line[2:], []
        elif command is not None and command.endswith("\\"):
            command = f"{command}\n{line}"
        else:
            lines.append(line)
    assert command is not None, "a console block holds `$ command` lines"
    yield command, "\n".join(lines)


@pytest.mark.parametrize("page", pages_with("console"))
def test_console_blocks_run(page: Path, empty_machine: Path) -> None:
    with contextlib.ExitStack() as servers:
        run_console(page, empty_machine, servers)


def serve_on(command: str, folder: Path, servers: contextlib.ExitStack) -> str:
    """Start a server that runs until the page ends; returns its first line."""
    server = servers.enter_context(
        subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=folder, stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    )  # fmt: skip
    servers.callback(server.kill)
    assert server.stdout is not None
    return server.stdout.readline()


def run_console(page: Path, empty_machine: Path, servers: contextlib.ExitStack) -> None:
    for block in blocks(page):
        if block.language != "console" or block.not_run is not None:
            continue
        for command, expected in commands(block):
            if command.endswith(" &"):
                line = serve_on(command.removesuffix(" &"), empty_machine, servers)
                assert matches(expected, line), f"{page.name}:{block.line}: $ {command}\n{line}"
                continue
            looked_up = command.startswith("make ")
            done = subprocess.run(
                ["bash", "-c", command.replace("make ", "make -n ", 1) if looked_up else command],
                cwd=ROOT if looked_up else empty_machine,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=SECONDS,
            )
            where = f"{page.name}:{block.line}: $ {command}\nexit code {done.returncode}\n{done.stdout}"
            stated = re.search(r"# exit code (\d+)$", command)
            assert done.returncode == (int(stated[1]) if stated else 0), where
            assert looked_up or not expected.strip() or matches(expected, done.stdout), where


@pytest.mark.parametrize("page", pages_with("toml"))
def test_toml_blocks_are_settings(page: Path, empty_machine: Path) -> None:
    overrides: dict[str, Any] = vars(models)["_overrides"]
    before = dict(overrides)
    try:
        for block in blocks(page):
            if block.language == "toml" and block.not_run is None and "project" not in tomllib.loads(block.text):
                path = empty_machine / "windlass.toml"
                path.write_text(block.text, encoding="utf-8")
                config = load_config(environ={}, files=((path, True),))
                assert config.notices == (), f"{page.name}:{block.line}: {config.notices}"
                read_settings(config.server)
    finally:
        overrides.clear()
        overrides.update(before)
        models.facts_of.cache_clear()


def test_every_block_says_what_it_is_and_few_are_not_run() -> None:
    every = [(page, block) for page in PAGES for block in blocks(page)]
    assert [
        f"{page.name}:{block.line}: {block.language!r}" for page, block in every if block.language not in LANGUAGES
    ] == []
    left_out = [f"{page.name}:{block.line}: {block.not_run}" for page, block in every if block.not_run is not None]
    assert len(left_out) <= MOST_NOT_RUN, left_out
    # The run must be worth something: pages without blocks would pass as well.
    assert sum(block.language == "python" for _, block in every) >= 30
    assert sum(block.language == "console" for _, block in every) >= 5


def test_the_comparison_of_outputs_can_fail() -> None:
    assert matches("a ... c\n", "a b\nb c  \n") and matches("...", "anything")
    assert not matches("a", "a\nb") and not matches("a ... c", "a b") and not matches("a.c", "abc")


# -- links -----------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs" / "api").glob("*.md"))],
    ids=lambda path: str(path.relative_to(ROOT)),
)  # fmt: skip
def test_links_lead_somewhere(page: Path) -> None:
    broken: list[str] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_found_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert sorted(name for name in names if f"({name})" not in index) == []


# -- what is generated -----------------------------------------------------------------------------------------------


def make_docs() -> Any:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_generated_is_up_to_date() -> None:
    made = make_docs()
    differing = [
        str(path.relative_to(ROOT))
        for path, text in made.pages()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    assert differing == [], "run `make docs`"
    used = {name for page in PAGES for name in re.findall(r"<!-- made:([a-z-]+) -->", page.read_text(encoding="utf-8"))}
    assert used == set(made.TABLES)


def test_every_public_name_says_what_it_is() -> None:
    made = make_docs()
    wrong: list[str] = []
    for room in made.ROOMS:
        for path in made.modules_of(room):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            known = made.definitions(tree)
            described: list[tuple[str, Any]] = [(made.module_name(path), tree)]
            described += [(f"{made.module_name(path)}.{name}", known.get(name)) for name in made.public_names(tree)]
            for name, node in described:
                if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    continue
                first = (ast.get_docstring(node) or "").split("\n", 1)[0].rstrip()
                # "Return x." or "Check that …" in one line; a first line may go on where the sentence is long.
                if not first.endswith((".", ":")):
                    wrong.append(f"{name}: {first!r}")
    assert wrong == []


def test_architecture_lists_the_arrows_by_name() -> None:
    found: set[tuple[str, str]] = set()
    for path in (ROOT / "src" / "windlass").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("registry.load", "load") and node.args:
                target = node.args[0]
                if isinstance(target, ast.Constant) and isinstance(target.value, str):
                    found.add((module, target.value))
    listed = set(re.findall(r"^\| `(windlass[\w.]+)` \| `([\w.:]+)` \|", ARCHITECTURE.read_text(), re.MULTILINE))
    assert found == listed


def test_the_numbers_in_the_documents_are_still_true() -> None:
    readme, changelog = (ROOT / "README.md").read_text(), (ROOT / "CHANGELOG.md").read_text()
    assert ("twenty vendors" in readme, "twenty vendors" in changelog, len(VENDORS)) == (True, True, 20)
    assert ("Forty-one hooks" in readme, "41 hooks" in changelog, len(HOOKS)) == (True, True, 41)
    assert [name for name in COMMANDS if f"`{name}`" not in changelog] == []
    profile = embedded_model().profile
    for name, words in (("one call, plain family", "one-step"), ("two-step tasks, plain family", "two-step")):
        figures = profile.measured[name]
        assert f"{figures['calls_exact']} of {figures['n']} {words}" in " ".join(readme.split())


WITH_DOCTESTS = sorted(
    made
    for path in (ROOT / "src" / "windlass").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
    for made in [".".join(path.relative_to(ROOT / "src").with_suffix("").parts)]
)


@pytest.mark.parametrize("name", WITH_DOCTESTS)
def test_examples_in_docstrings_are_true(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_are_programs_that_run(path: Path, empty_machine: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], cwd=empty_machine, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip(), "an example shows something"


@pytest.mark.parametrize(
    ("page", "at_least"), [("reference-a", 36), ("reference-c", 95), ("reference-d", 19), ("reference-e", 55)]
)
def test_every_row_of_a_reference_names_tests_that_exist(page: str, at_least: int) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| (?![A-E] \|)", line)]
    assert len(rows) >= at_least
    for row in rows:
        assert len(re.split(r"(?<!\\)\|", row)) == 5, row
        named = re.findall(r"`(test_\w+)\.py(?:::(test_\w+))?`", row.split("|")[-2])
        assert named, row
        for file, test in named:
            found = list((ROOT / "tests").rglob(f"{file}.py"))
            assert found, row
            assert not test or any(f"def {test}(" in path.read_text(encoding="utf-8") for path in found), row
