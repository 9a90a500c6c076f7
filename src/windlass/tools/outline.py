"""The symbols of a source file: Python as it is parsed, other languages by how their lines begin.

The second kind is a reading aid: what a macro makes, or a definition that is spread over lines, is not found.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from windlass.core.ports import ToolContext
from windlass.core.threads import run_in_thread
from windlass.tools.access import Refusal, not_found, workspace_of
from windlass.tools.builtin import builtin
from windlass.tools.cutting import listed
from windlass.tools.text import decode_text, is_binary

__all__ = ["Symbol", "outline", "symbols"]

MAX_FILE = 2 * 1024 * 1024
_MAX_SYMBOLS = 5000
_SHOWN = 16 * 1024
#: Longer lines are data, not definitions.
_MAX_LINE = 400
_NAME = r"(?P<name>[A-Za-z_$][\w$]*)"


class Symbol(Struct, frozen=True):
    """One definition: its line (from 1), how deep it stands, what it is and its name."""

    line: int
    depth: int
    kind: str
    name: str


def _table(**rows: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple([(kind.rstrip("_"), re.compile(rf"\s*{pattern}")) for kind, pattern in rows.items()])


_JS = _table(
    class_=rf"(?:export\s+)?(?:default\s+)?(?:declare\s+)?(?:abstract\s+)?class\s+{_NAME}",
    interface=rf"(?:export\s+)?(?:declare\s+)?interface\s+{_NAME}",
    enum=rf"(?:export\s+)?(?:declare\s+)?(?:const\s+)?enum\s+{_NAME}",
    type=rf"(?:export\s+)?(?:declare\s+)?type\s+{_NAME}\s*(?:<[^=]*>)?\s*=",
    namespace=rf"(?:export\s+)?(?:declare\s+)?(?:namespace|module)\s+{_NAME}",
    function=rf"(?:export\s+)?(?:default\s+)?(?:declare\s+)?(?:async\s+)?function\s*\*?\s*{_NAME}",
    function_=rf"(?:export\s+)?(?:const|let|var)\s+{_NAME}\s*(?::[^=]{{1,100}})?=\s*(?:async\s*)?(?:\([^()]*\)|[\w$]+)\s*"
    r"(?::[^=]{1,100})?=>",
    method=r"(?:(?:public|private|protected|static|async|override|readonly|get|set)\s+)*\*?"
    r"(?!(?:if|for|while|switch|catch|return|function|with|new|await|typeof)\b)#?"
    rf"{_NAME}\s*(?:<[^>]{{0,80}}>)?\([^()]*\)\s*(?::[^{{;]{{1,100}})?\{{\s*$",
)
_C = _table(
    macro=rf"#\s*define\s+{_NAME}",
    namespace=rf"namespace\s+{_NAME}",
    class_=rf"(?:template\s*<[^>]{{0,100}}>\s*)?class\s+{_NAME}\s*(?:final\s*)?(?:[:{{]|$)",
    struct=rf"(?:typedef\s+)?struct\s+{_NAME}\s*(?:[:{{]|$)",
    union=rf"(?:typedef\s+)?union\s+{_NAME}\s*(?:{{|$)",
    enum=rf"(?:typedef\s+)?enum\s+(?:class\s+)?{_NAME}",
    function=r"(?!(?:return|else|if|for|while|switch|case|do|goto|throw|delete|new|typedef|using)\b)"
    r"(?:[A-Za-z_][\w:<>,]*[\s*&]+){1,6}(?P<name>[A-Za-z_~][\w:~]*)\s*\([^;]*$",
)
#: Language -> (kind, how a line begins), tried in order.
TABLES: dict[str, tuple[tuple[str, re.Pattern[str]], ...]] = {
    "js": _JS,
    "c": _C,
    "go": _table(
        function=rf"func\s+{_NAME}\s*[\[(]",
        method=rf"func\s*\([^)]*\)\s*{_NAME}\s*\(",
        struct=rf"type\s+{_NAME}(?:\[[^\]]*\])?\s+struct\b",
        interface=rf"type\s+{_NAME}(?:\[[^\]]*\])?\s+interface\b",
        type=rf"type\s+{_NAME}\b",
    ),
    "rust": _table(
        function=r"(?:pub(?:\([^)]*\))?\s+)?(?:(?:const|async|unsafe|default)\s+)*(?:extern\s+\"[^\"]*\"\s+)?fn\s+"
        + _NAME,
        struct=rf"(?:pub(?:\([^)]*\))?\s+)?struct\s+{_NAME}",
        enum=rf"(?:pub(?:\([^)]*\))?\s+)?enum\s+{_NAME}",
        trait=rf"(?:pub(?:\([^)]*\))?\s+)?(?:unsafe\s+)?trait\s+{_NAME}",
        impl=r"(?:unsafe\s+)?impl\b(?:<[^{]{0,100}?>)?\s*(?P<name>[^{]{1,120}?)\s*(?:\{|where\b|$)",
        mod=rf"(?:pub(?:\([^)]*\))?\s+)?mod\s+{_NAME}",
        type=rf"(?:pub(?:\([^)]*\))?\s+)?type\s+{_NAME}",
        macro=rf"macro_rules!\s*{_NAME}",
    ),
    "java": _table(
        class_=rf"(?:(?:public|private|protected|static|final|abstract|sealed|data|open|internal)\s+)*class\s+{_NAME}",
        interface=rf"(?:(?:public|private|protected|static|sealed)\s+)*@?interface\s+{_NAME}",
        enum=rf"(?:(?:public|private|protected|static)\s+)*enum\s+(?:class\s+)?{_NAME}",
        record=rf"(?:(?:public|private|protected|static|final)\s+)*record\s+{_NAME}",
        function=rf"(?:(?:public|private|protected|internal|override|suspend|inline)\s+)*fun\s+(?:<[^>]*>\s*)?{_NAME}",
        method=r"(?!(?:return|new|throw|else|if|for|while|switch|catch)\b)(?:@\w+\s+)?"
        r"(?:(?:public|private|protected|static|final|abstract|synchronized|native|default)\s+)*"
        rf"(?:<[^>]{{1,60}}>\s*)?[\w.<>\[\],?]+\s+{_NAME}\s*\([^;]*$",
    ),
    "ruby": _table(
        module=r"module\s+(?P<name>[A-Z][\w:]*)",
        class_=r"class\s+(?P<name>[A-Z][\w:]*)",
        method=r"def\s+(?P<name>(?:self\.)?[\w]+[?!=]?)",
    ),
    "markdown": _table(heading=r"(?P<name>#{1,6}\s.*)"),
}
_SUFFIXES = {
    suffix: language
    for language, suffixes in {
        "python": ".py .pyi",
        "js": ".js .jsx .mjs .cjs .ts .tsx .mts .cts .vue .svelte",
        "go": ".go",
        "rust": ".rs",
        "java": ".java .kt .kts .cs .scala",
        "c": ".c .h .cc .cpp .cxx .hh .hpp .hxx .m .mm",
        "ruby": ".rb .rake",
        "markdown": ".md .markdown .mdx",
    }.items()
    for suffix in suffixes.split()
}


@builtin(read_only=True)
async def outline(ctx: ToolContext, path: str) -> Any:
    """List the symbols of a source file: line, kind, name."""
    workspace = workspace_of(ctx)
    info = await workspace.stat(path)
    if info is None:
        raise await not_found(ctx, path)
    if info.kind == "dir":
        raise Refusal(f"Not a file: {path} is a folder. Use list_files.")
    language = _SUFFIXES.get(posixpath.splitext(path)[1].lower())
    if language is None:
        raise Refusal(f"No outline for {path}: only for {', '.join(sorted(set(_SUFFIXES.values())))}. Use grep.")
    if info.size > MAX_FILE:
        raise Refusal(f"{path} is too large for an outline: {info.size} bytes, at most {MAX_FILE}. Use grep.")
    data = await workspace.read(path, limit=MAX_FILE)
    if is_binary(data):
        raise Refusal(f"[Binary file: {path}, {len(data)} bytes]")
    found = await run_in_thread(symbols, decode_text(data).text, language)
    if not found:
        return "(no symbols)"
    lines = [f"{each.line}: {'  ' * each.depth}{each.kind} {each.name}" for each in found]
    what = "or more symbols" if len(found) == _MAX_SYMBOLS else "symbols"
    return listed(lines, _SHOWN, what, "Use grep or read_file for the rest.")


def symbols(text: str, language: str) -> list[Symbol]:
    """Return the definitions of a source text, in order, at most 5000. Raises Refusal for Python that is none."""
    found = _python(text) if language == "python" else _by_lines(text, language)
    out: list[Symbol] = []
    for symbol in found:
        out.append(symbol)
        if len(out) == _MAX_SYMBOLS:
            break
    return out


def _python(text: str) -> Iterator[Symbol]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        raise Refusal(f"No outline: this Python cannot be parsed{where}: {error}") from None
    waiting: list[tuple[ast.stmt, int, bool]] = [(node, 0, False) for node in reversed(tree.body)]
    while waiting:
        node, depth, in_class = waiting.pop()
        below = depth
        if isinstance(node, ast.ClassDef):
            yield Symbol(node.lineno, depth, "class", node.name)
            in_class, below = True, depth + 1
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield Symbol(node.lineno, depth, "method" if in_class else "function", node.name)
            in_class, below = False, depth + 1
        elif depth == 0 and isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id.isupper():
                    yield Symbol(node.lineno, depth, "constant", target.id)
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        waiting += [(child, below, in_class) for child in reversed(inner)]


def _by_lines(text: str, language: str) -> Iterator[Symbol]:
    fenced = False
    depths: list[int] = []
    for number, line in enumerate(text.split("\n"), 1):
        if language == "markdown":
            if line.lstrip().startswith(("```", "~~~")):
                fenced = not fenced
            if fenced or line.startswith("    "):
                continue
        if len(line) > _MAX_LINE:
            continue
        for kind, pattern in TABLES[language]:
            match = pattern.match(line)
            if match is None:
                continue
            indent = len(match["name"].split(" ", 1)[0]) if language == "markdown" else _indent(line)
            while depths and depths[-1] >= indent:
                depths.pop()
            name = match["name"].lstrip("# ") if language == "markdown" else match["name"]
            yield Symbol(number, len(depths), kind, name.strip())
            depths.append(indent)
            break


def _indent(line: str) -> int:
    wide = line.expandtabs(4)
    return len(wide) - len(wide.lstrip(" "))
