"""`windlass tools` and `windlass config`: what there is, and where it comes from."""

from __future__ import annotations

import argparse
import sys

from windlass.apps.cli.common import OK, Parser, configure
from windlass.core import json, registry
from windlass.core.settings import PROVIDERS, SETTINGS

__all__ = ["main", "parser"]


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    return _tools(options) if name == "tools" else _config(options)


def parser(name: str) -> Parser:
    """Build the parser of `windlass tools` or `windlass config`."""
    if name == "tools":
        parser = Parser(f"windlass {name}", "List the built-in tools and toolsets.")
        parser.add_argument("--json", action="store_true", help="whole definitions, as a model gets them")
        return parser
    parser = Parser(f"windlass {name}", "Show every setting; keys are never shown.")
    parser.add_argument("--origins", action="store_true", help="where each value comes from")
    parser.add_argument("--defaults", action="store_true", help="defaults, and where the reference documents disagree")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _tools(options: argparse.Namespace) -> int:
    for name in registry.names("tools"):
        spec = registry.resolve("tools", name).spec
        if options.json:
            sys.stdout.write(json.dumps(spec).decode() + "\n")
        else:
            first = spec.description.strip().splitlines()[0]
            sys.stdout.write(f"{name:<12} {first}\n")
    if not options.json:
        for name in registry.names("toolsets"):
            members = ", ".join([tool.spec.name for tool in registry.resolve("toolsets", name)])
            sys.stdout.write(f"set {name:<8} {members or 'no tools'}\n")
    return OK


def _config(options: argparse.Namespace) -> int:
    if options.defaults:
        sys.stdout.write(defaults_page())
        return OK
    for key, value in configure().all().items():
        if options.json:
            row = {"key": key, "value": value.value, "origin": value.origin}
            sys.stdout.write(json.dumps(row).decode() + "\n")
        else:
            shown = "unset" if value.value is None else value.value
            sys.stdout.write(f"{key:<16} {shown}" + (f"    ({value.origin})" if options.origins else "") + "\n")
    return OK


def defaults_page() -> str:
    """Return the table of settings as Markdown: docs/configuration.md holds it, and a test compares the two."""
    rows = ["| setting | default | variables | meaning |", "|---|---|---|---|"]
    for row in SETTINGS.values():
        default = "" if row.default is None else row.default
        variables = ", ".join([f"`{name}`" for name in row.env])
        note = f" *({row.note})*" if row.note else ""
        rows.append(f"| `{row.key}` | {default} | {variables} | {row.doc}{note} |")
    return "\n".join(rows) + "\n"


def vendors_page() -> str:
    """Return the variables of every vendor as Markdown, for the same page."""
    rows = ["| vendor | key | address | model | others |", "|---|---|---|---|---|"]
    for name, row in PROVIDERS.items():
        others = tuple(variable for names in row.extra.values() for variable in names)
        cells = [
            ", ".join([f"`{variable}`" for variable in names if not variable.startswith("WINDLASS_")])
            for names in (row.api_key, row.base_url, row.model, others)
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
