"""The list of things to do, and the outline of source files."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.helpers import Context, call, refused, text
from windlass.core.schema import compile_schema
from windlass.testing.tool_kit import FakeContext, call_tool
from windlass.tools.access import Refusal
from windlass.tools.outline import TABLES, Symbol, outline, symbols
from windlass.tools.todo import todo_write, todos
from windlass.workspaces.memory import MemoryWorkspace


async def test_the_list_is_replaced_and_shown() -> None:
    ctx = FakeContext()
    first = [{"content": "Look"}, {"id": "b", "content": "Fix", "status": "in_progress"}]
    assert await call_tool(todo_write, {"todos": first}, ctx) == "0 of 2 done.\n[ ] Look\n[>] Fix"
    assert todos(ctx.state) == [
        {"id": "1", "content": "Look", "status": "pending"},
        {"id": "b", "content": "Fix", "status": "in_progress"},
    ]
    assert ctx.progressed == [("", {"plan": todos(ctx.state)})]
    assert await call_tool(todo_write, {"todos": [{"content": "Look", "status": "completed"}]}, ctx) == (
        "1 of 1 done.\n[x] Look"
    )
    assert [each["status"] for each in todos(ctx.state)] == ["completed"]
    assert await call_tool(todo_write, {"todos": []}, ctx) == "The list is empty."
    assert todos(ctx.state) == []
    assert todos({}) == []
    assert len(ctx.progressed) == 3


async def test_a_list_that_makes_no_sense_is_refused() -> None:
    ctx = Context()
    twice = [{"id": "a", "content": "x"}, {"id": "a", "content": "y"}]
    assert await refused(todo_write, ctx, todos=twice) == "Two things to do have the id 'a'. Nothing was changed."
    assert await refused(todo_write, ctx, todos=[{"id": "2", "content": "x"}, {"content": "y"}]) == (
        "Two things to do have the id '2'. Nothing was changed."
    )
    check = compile_schema(todo_write.spec.input_schema).check
    assert check({"todos": [{"content": "x", "status": "soon"}]}).error is not None
    assert check({"todos": [{"content": ""}]}).error is not None
    assert check({"todos": [{"content": "x", "activeForm": "Doing x"}]}).error is None
    assert ctx.state == {}


SOURCES = {
    "a.py": (
        "X_MAX = 1\nx = 2\nLIMIT: int = 3\n\n@tool\nclass A(B):\n    Y = 1\n    def f(self):\n        def g(): ...\n"
        "    async def h(self): ...\nif True:\n    def cond(): ...\n",
        "1: constant X_MAX\n3: constant LIMIT\n6: class A\n8:   method f\n9:     function g\n10:   method h\n"
        "12: function cond",
    ),
    "a.ts": (
        "export class A extends B {\n  private async load(x: number): Promise<void> {\n    if (x) {\n    }\n  }\n}\n"
        "export default function main() {\n}\n"
        "const f = async (a) => {\nexport interface I {\ntype T = string\nenum E {\n"
        "export const g = x => x\n",
        "1: class A\n2:   method load\n7: function main\n9: function f\n10: interface I\n11: type T\n12: enum E\n"
        "13: function g",
    ),
    "a.go": (
        "package a\nfunc Run[T any](x int) {}\nfunc (s *Server) Serve(w W) error {\ntype Server struct {\n"
        "type R interface {\ntype ID int\n",
        "2: function Run\n3: method Serve\n4: struct Server\n5: interface R\n6: type ID",
    ),
    "a.rs": (
        "pub struct S;\nimpl<T> Trait for S {\n    pub(crate) async fn f() {}\n}\n"
        "enum E {}\nmod m;\nmacro_rules! mac {\n"
        "pub unsafe trait T {}\n",
        "1: struct S\n2: impl Trait for S\n3:   function f\n5: enum E\n6: mod m\n7: macro mac\n8: trait T",
    ),
    "A.java": (
        "public final class A {\n    @Override public String name(int x) {\n        return f(x);\n    }\n"
        "}\ninterface I {\n"
        "public enum E {\n",
        "1: class A\n2:   method name\n6: interface I\n7: enum E",
    ),
    "a.kt": ("data class P(val x: Int)\nfun <T> run(t: T): T {\n", "1: class P\n2: function run"),
    "a.cpp": (
        "#define MAX 1\nnamespace n {\nclass A : public B {\n  int f(int x) const {\n  return g(x);\n};\nstruct S {\n"
        "static inline void A::g(\n    int x) {\nint later(int);\nenum class E {\n",
        "1: macro MAX\n2: namespace n\n3: class A\n4:   function f\n7: struct S\n8: function A::g\n11: enum E",
    ),
    "a.rb": (
        "module M\n  class A < B\n    def self.make!(x)\n    end\n    def ok?\n",
        "1: module M\n2:   class A\n3:     method self.make!\n5:     method ok?",
    ),
    "a.md": (
        "# One\ntext\n## Two\n```\n# no heading\n```\n### Three\n## Four\n    # code\n",
        "1: heading One\n3:   heading Two\n7:     heading Three\n8:   heading Four",
    ),
}


@pytest.mark.parametrize("path", SOURCES)
async def test_the_outline_of_each_language(ctx: Context, path: str) -> None:
    assert ctx.workspace is not None
    body, wanted = SOURCES[path]
    await ctx.workspace.write(path, body.encode())
    assert await text(outline, ctx, path=path) == wanted


async def test_files_without_an_outline(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ctx.workspace is not None
    for path, data in {
        "a.py": b"def f(:\n", "nul.py": b"x = 1\x00", "x.bin": b"x", "d/e.py": b"1", "b.go": b"// nothing\n"
    }.items():  # fmt: skip
        await ctx.workspace.write(path, data)
    assert (await refused(outline, ctx, path="a.py")).startswith("No outline: this Python cannot be parsed (line 1): ")
    assert await refused(outline, ctx, path="nul.py") == "[Binary file: nul.py, 6 bytes]"
    assert (await refused(outline, ctx, path="x.bin")).startswith("No outline for x.bin: only for c, go, java, js, ")
    assert await refused(outline, ctx, path="d") == "Not a file: d is a folder. Use list_files."
    assert await refused(outline, ctx, path="aa.py") == "File not found: aa.py. Did you mean a.py?"
    assert await text(outline, ctx, path="b.go") == "(no symbols)"
    assert await text(outline, ctx, path="d/e.py") == "(no symbols)"
    monkeypatch.setattr("windlass.tools.outline.MAX_FILE", 3)
    assert "too large for an outline: 8 bytes" in await refused(outline, ctx, path="a.py")


def test_python_is_outlined_as_it_is_parsed() -> None:
    for path in sorted(Path("src/windlass/tools").glob("*.py"))[:12]:
        body = path.read_text()
        wanted = {
            (node.lineno, node.name)
            for node in ast.walk(ast.parse(body))
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        }
        found = symbols(body, "python")
        assert {(each.line, each.name) for each in found if each.kind != "constant"} == wanted
        assert [each.line for each in found] == sorted(each.line for each in found)


def test_deep_python_is_refused_not_fatal() -> None:
    body = "x = " + "(" * 5000 + ")" * 5000
    with pytest.raises(Refusal, match="cannot be parsed"):
        symbols(body, "python")


@given(st.sampled_from(sorted(TABLES)), st.text("af(){}<>:;=#& *\n\tclas", max_size=80))
def test_any_text_has_an_outline(language: str, body: str) -> None:
    found = symbols(body, language)
    assert all(isinstance(each, Symbol) and 1 <= each.line <= body.count("\n") + 1 and each.name for each in found)


@pytest.mark.parametrize("language", sorted(TABLES))
def test_hostile_lines_cost_little(language: str) -> None:
    begun = time.monotonic()
    for piece in ("a ", "a<", "(a", "a(", "public ", "a*&", "<a", "impl<", "const a:", "x =", "a::", "type A", "# "):
        symbols("\n".join([(piece * 400)[:399]] * 20), language)
        symbols("\n".join([("impl " + piece * 400)[:399]] * 20), language)
    assert time.monotonic() - begun < 20


async def test_a_long_outline_is_cut_and_counted() -> None:
    ctx = Context(MemoryWorkspace({"a.py": "def function_with_a_name(): ...\n" * 9000}))
    said = (await call(outline, ctx, path="a.py")).split("\n")
    assert said[0] == "1: function function_with_a_name"
    assert said[-1].endswith("bytes left out. Use grep or read_file for the rest.]")
    assert f"[{len(said) - 1} of 5000 or more symbols; " in said[-1]
