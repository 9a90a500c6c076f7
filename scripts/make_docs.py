"""`make docs`: write the API reference and the generated tables of the pages from the sources.

The reference comes from the docstrings of everything in a module's `__all__`, read with `ast`: nothing is imported for
it, and the same sources give the same bytes. Tables between `<!-- made:NAME -->` and `<!-- end -->` come from the
program's own data; the help texts in docs/cli.md are written by `scripts/cli_help.py`. `--check` writes nothing and
fails where a file differs.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "windlass"
ROOMS = (
    "core",
    "wire",
    "agent",
    "tools",
    "workspaces",
    "stores",
    "sinks",
    "local",
    "testing",
    "providers",
    "accounts",
    "training",
    "server",
    "apps",
)
Function = ast.FunctionDef | ast.AsyncFunctionDef

# -- the API reference -------------------------------------------------------------------------------------------------


def modules_of(room: str) -> list[Path]:
    """Return the public modules of a room: those with an `__all__` and a name without a leading underscore."""
    paths = sorted((SRC / room).rglob("*.py"))
    return [path for path in paths if not path.stem.startswith("_") or path.stem == "__init__"]


def public_names(tree: ast.Module) -> list[str]:
    """Return `__all__` of a module, [] when it has none or makes it up at run time."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names = ast.literal_eval(node.value) if isinstance(node.value, (ast.List, ast.Tuple)) else []
            return [str(name) for name in names]
    return []


def definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Return what defines each name at the top of a module; of overloads the last one, which is the function itself."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
        elif isinstance(node, ast.Assign):
            found.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
    return found


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_page(room: str) -> str:
    """Return the reference page of a room."""
    sentence = ast.get_docstring(ast.parse((SRC / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    out = [f"# windlass.{room}", "", sentence, "", "Made from the sources by `make docs`; [all rooms](index.md).", ""]
    for path in modules_of(room):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        names = public_names(tree)
        if not names:
            continue
        out += [f"## {module_name(path)}", "", *prose(ast.get_docstring(tree) or ""), ""]
        known = definitions(tree)
        for name in names:
            if name in known:
                # Headings alone would make one anchor of `Blob` and `blob`.
                out += [f'<a id="{anchor(path, name)}"></a>', "", *entry(name, known[name], source.splitlines())]
    return "\n".join(out).rstrip() + "\n"


def anchor(path: Path, name: str) -> str:
    """Return the anchor of a name on its room's page."""
    return f"{module_name(path).split('.', 2)[-1]}.{name}"


def entry(name: str, node: ast.stmt, lines: list[str]) -> list[str]:
    """Return the lines about one public name."""
    if isinstance(node, ast.ClassDef):
        return class_entry(node)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [f"### {name}", "", *fenced(signature(node)), "", *prose(ast.get_docstring(node) or ""), ""]
    comment = constant_comment(node, lines)
    text = ast.unparse(node)
    shown = text if len(text) <= 200 else text.split("=", 1)[0].rstrip() + " = …"
    return [f"### {name}", "", *fenced(shown), "", *([comment, ""] if comment else [])]


def constant_comment(node: ast.stmt, lines: list[str]) -> str:
    """Return the `#:` comment above a constant."""
    above: list[str] = []
    at = node.lineno - 2
    while at >= 0 and lines[at].startswith("#:"):
        above.insert(0, lines[at][2:].strip())
        at -= 1
    return " ".join(above)


def class_entry(node: ast.ClassDef) -> list[str]:
    """Return the lines about a class: how it is made, what it is, its methods and properties."""
    out = [f"### {node.name}", "", *fenced(constructor(node)), "", *prose(ast.get_docstring(node) or ""), ""]
    rows: list[str] = []
    for item in node.body:
        if not isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef)) or item.name.startswith("_"):
            continue
        if "overload" not in decorators(item):
            rows.append(member(item))
    return [*out, *rows, ""] if rows else out


def member(node: Function) -> str:
    """Return a line about a method or property, with the first paragraph of its docstring."""
    first = " ".join((ast.get_docstring(node) or "").split("\n\n", 1)[0].split())
    text = f": {first}" if first else ""
    if {"property", "cached_property"} & set(decorators(node)):
        kind = f" → `{ast.unparse(node.returns)}`" if node.returns is not None else ""
        return f"- `{node.name}`{kind}{text}"
    return f"- `{signature(node, method=True)}`{text}"


def decorators(node: ast.ClassDef | Function) -> list[str]:
    """Return the bare names of what decorates a definition."""
    return [re.split(r"[(\s]", ast.unparse(item))[0].rsplit(".", 1)[-1] for item in node.decorator_list]


def signature(node: Function, *, method: bool = False) -> str:
    """Return `name(arguments) -> result` of a function; a method is shown without its `self`."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    word = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
    bound = method and "staticmethod" not in decorators(node)
    return f"{word}{spread(node.name, arguments(node)[bound:], method)}{result}"


def arguments(node: Function) -> list[str]:
    """Return the arguments of a function as they are written, with `/` and `*` among them."""
    args = node.args
    places = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(places) - len(args.defaults)) + list(args.defaults)
    out = [argument(arg, default) for arg, default in zip(places, defaults, strict=True)]
    if args.posonlyargs:
        out.insert(len(args.posonlyargs), "/")
    if args.vararg is not None:
        out.append("*" + argument(args.vararg, None))
    elif args.kwonlyargs:
        out.append("*")
    out += [argument(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return out if args.kwarg is None else [*out, "**" + argument(args.kwarg, None)]


def argument(arg: ast.arg, default: ast.expr | None) -> str:
    """Return one argument with its annotation and default."""
    text = arg.arg if arg.annotation is None else f"{arg.arg}: {ast.unparse(arg.annotation)}"
    return text if default is None else f"{text}{' = ' if arg.annotation is not None else '='}{ast.unparse(default)}"


def spread(name: str, pieces: list[str], on_one_line: bool = False) -> str:
    """Return `name(pieces)`, each on a line of its own where that would be long."""
    pieces = pieces[1:] if pieces[:1] == ["/"] else pieces
    whole = f"{name}({', '.join(pieces)})"
    if on_one_line or len(whole) <= 100:
        return whole
    return f"{name}(\n" + "".join([f"    {piece},\n" for piece in pieces]) + ")"


def constructor(node: ast.ClassDef) -> str:
    """Return how a class is made: from its `__init__`, or from the fields of a Struct or dataclass; else its bases."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return spread(node.name, arguments(item)[1:])
    fields = [
        f"{ast.unparse(item.target)}: {ast.unparse(item.annotation)}"
        + (f" = {ast.unparse(item.value)}" if item.value is not None else "")
        for item in node.body
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
    ]
    bases = [ast.unparse(base) for base in node.bases]
    made = any(base in ("Struct", "TypedDict") or base.endswith("Event") for base in bases)
    if fields and (made or "dataclass" in decorators(node)):
        return spread(node.name, fields)
    return f"class {node.name}({', '.join(bases)})" if bases else f"class {node.name}"


def fenced(code: str) -> list[str]:
    """Return code as a block that is shown and not run."""
    return ["```text", code, "```"]


def prose(text: str) -> list[str]:
    """Return a docstring as Markdown: a literal block (after `::`, or indented) becomes a block that is not run."""
    out: list[str] = []
    block: list[str] = []

    def end_block() -> None:
        if block:
            while block and not block[-1].strip():
                block.pop()
            out.extend(["```text", *textwrap.dedent("\n".join(block)).splitlines(), "```", ""])
            block.clear()

    in_list = False
    for line in text.expandtabs().splitlines():
        if line.startswith("    ") and not in_list:
            block.append(line)
            continue
        if line.startswith(">>>") or (block and line.strip() and block[-1].lstrip().startswith(">>>")):
            block.append(line)
            continue
        if block and not line.strip():
            block.append(line)
            continue
        end_block()
        in_list = line.startswith(("- ", "* ", "Args:")) or (in_list and line.startswith("  "))
        # The sources use reST's `::` to announce a literal block.
        out.append(re.sub(r"::$", ":", line) if line != "::" else "")
    end_block()
    while out and not out[-1].strip():
        out.pop()
    return out


def index_page() -> str:
    """Return the page of all rooms, with the names that `import windlass` offers and where each is explained."""
    out = ["# API reference", "", "Made from the sources by `make docs`. What is not listed here is private.", ""]
    out += ["| room | what it is |", "|---|---|"]
    for room in ROOMS:
        sentence = ast.get_docstring(ast.parse((SRC / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        out.append(f"| [{room}]({room}.md) | {sentence} |")
    out += ["", "## import windlass", "", "| name | what it is |", "|---|---|"]
    for name, module in sorted(face().items(), key=lambda item: item[0].lower()):
        room = module.split(".")[1]
        path = SRC.joinpath(*module.split(".")[1:]).with_suffix(".py")
        out.append(f"| [`{name}`]({room}.md#{anchor(path, name)}) | {summary(path, name)} |")
    return "\n".join(out) + "\n"


def face() -> dict[str, str]:
    """Return the names of the lazy face, from its table, with their modules."""
    tree = ast.parse((SRC / "__init__.py").read_text(encoding="utf-8"))
    table = definitions(tree)["_FACE"]
    assert isinstance(table, ast.Assign)
    rows: dict[str, str] = ast.literal_eval(table.value)
    return {name: module for module, names in rows.items() for name in names.split()}


def summary(path: Path, name: str) -> str:
    """Return the first sentence about a name, for a table's cell."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    node = definitions(tree).get(name)
    if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = (ast.get_docstring(node) or "").split("\n\n", 1)[0]
    else:
        text = constant_comment(node, source.splitlines()) if node is not None else ""
        if not text and isinstance(node, ast.Assign):
            text = f"The same as `{ast.unparse(node.value)}`." if isinstance(node.value, ast.Name) else ""
    text = text or (ast.get_docstring(tree) or "").split("\n\n", 1)[0]
    first = re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0]
    return first.replace("|", "\\|")


# -- the tables in the pages -------------------------------------------------------------------------------------------


def hook_table() -> str:
    """Return every hook, in the order of their table."""
    from windlass.agent.hooks import HOOKS

    failure = {
        "gate": "blocks the call",
        "transform": "keeps the original",
        "before": "ends the run",
        "watch": "is logged",
    }
    out = ["| hook | its context has | may change | the event beside it | when it fails |", "|---|---|---|---|---|"]
    for name, spec in HOOKS.items():
        fields = " ".join([f"`{field}`" for field in spec.fields])
        mutable = " ".join([f"`{field}`" for field in spec.mutable]) or "–"
        out.append(f"| `{name}` | {fields} | {mutable} | `{spec.fact}` | {failure[spec.kind]} |")
    return "\n".join(out)


def vendor_table() -> str:
    """Return every vendor, in the order of their table."""
    from windlass.core.config import Config
    from windlass.providers.vendors import VENDORS

    config = Config(environ={})
    out = ["| provider | dialect | address | key | its own default model |", "|---|---|---|---|---|"]
    for name, row in VENDORS.items():
        names = [key for key in config.provider_settings(name).key_names if not key.startswith(("WINDLASS_", "ABI_"))]
        key = f"`{names[0]}`" if names else ""
        shown = key if row.key == "required" else f"none needed ({key})"
        model = f"`{row.default_model}`" if row.default_model else "–"
        out.append(f"| `{name}` | {row.dialect} | `{row.base_url}` | {shown} | {model} |")
    return "\n".join(out)


def tool_table() -> str:
    """Return every built-in tool with its parameters."""
    from windlass.core import registry

    out = ["| tool | parameters | in one line |", "|---|---|---|"]
    for name in registry.BUILTIN["tools"]:
        spec = registry.resolve("tools", name).spec
        required = spec.input_schema.get("required", [])
        shown = [f"`{key}`" + ("" if key in required else "?") for key in spec.input_schema.get("properties", {})]
        out.append(f"| `{name}` | {' '.join(shown) or 'none'} | {spec.description.splitlines()[0]} |")
    return "\n".join(out)


def settings_table() -> str:
    """Return every setting with its default and the variable of ours that sets it."""
    from windlass.core.settings import SETTINGS

    out = ["| setting | default | variable | meaning |", "|---|---|---|---|"]
    for row in SETTINGS.values():
        default = "unset" if row.default is None else f"`{row.default}`"
        out.append(f"| `{row.key}` | {default} | `{row.env[0]}` | {row.doc} |")
    return "\n".join(out)


def server_table() -> str:
    """Return every setting of the `[server]` table, and the limits of the edge."""
    from windlass.server.settings import ABOUT, VARIABLES, ServerSettings

    plain, variables = ServerSettings(), {key: name for name, (key, _) in VARIABLES.items()}
    out = ["| setting | default | meaning | reference A's variable |", "|---|---|---|---|"]
    for name, text in ABOUT.items():
        value: Any = plain
        for part in name.split("."):
            value = getattr(value, part)
        shown = "none" if value in ("", ()) else f"`{str(value).lower() if isinstance(value, bool) else value}`"
        out.append(f"| `{name}` | {shown} | {text} | {f'`{variables[name]}`' if name in variables else ''} |")
    return "\n".join(out)


def behavior_table() -> str:
    """Return every behavior with its default."""
    from windlass.agent.behavior import Behavior

    plain = Behavior()
    out = ["| behavior | default |", "|---|---|"]
    out += [f"| `{name}` | `{getattr(plain, name)!r}` |" for name in Behavior.__struct_fields__]
    return "\n".join(out)


def error_tree() -> str:
    """Return the tree of errors with each one's code, as it stands in the docstring of core/errors."""
    text = ast.get_docstring(ast.parse((SRC / "core" / "errors.py").read_text(encoding="utf-8"))) or ""
    return "\n".join(["```text", textwrap.dedent(text.split("::\n\n", 1)[1]).rstrip(), "```"])


TABLES: dict[str, Callable[[], str]] = {
    "hooks": hook_table,
    "vendors": vendor_table,
    "tools": tool_table,
    "behaviors": behavior_table,
    "server": server_table,
    "settings": settings_table,
    "errors": error_tree,
}
_MADE = re.compile(r"(<!-- made:([a-z-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


#: The tables of docs/configuration.md, which the command line prints too.
_PRINTED = re.compile(r"(<!-- (defaults|vendors) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def printed(name: str) -> str:
    """Return a table as `windlass config --defaults` and its like print it."""
    from windlass.apps.cli.info import defaults_page, vendors_page

    return defaults_page() if name == "defaults" else vendors_page()


def filled(text: str) -> str:
    """Return a page with its generated tables made again."""
    text = _MADE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)
    return _PRINTED.sub(lambda found: found[1] + printed(found[2]) + found[3], text)


def pages() -> Iterator[tuple[Path, str]]:
    """Yield (path, content) of everything that is made."""
    yield ROOT / "docs" / "api" / "index.md", index_page()
    for room in ROOMS:
        yield ROOT / "docs" / "api" / f"{room}.md", room_page(room)
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        if "<!-- " in text:
            yield path, filled(text)


def main() -> int:
    """Write the files that differ; with `--check` only tell which do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file differs")
    check = parser.parse_args().check
    differing = [
        (path, text) for path, text in pages() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in differing:
        print(f"{'differs' if check else 'wrote'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
