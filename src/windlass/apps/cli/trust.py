"""`windlass trust`: whether what lies in a folder may run, connect or widen."""

from __future__ import annotations

import argparse
import sys

import msgspec

from windlass.apps.cli.common import OK, REFUSED, Parser
from windlass.core import clock, json
from windlass.core.config_files import data_home
from windlass.core.text import visible
from windlass.core.trust import PROJECT_PATHS, Trust, TrustStatus

__all__ = ["main", "parser"]

_STATES = {
    "trusted": "trusted",
    "untrusted": "not trusted: nothing of it runs, connects or widens",
    "changed": "changed since it was trusted: nothing of it runs, connects or widens until it is trusted again",
    "nothing": "holds nothing that would run, connect or widen",
}


def main(name: str, args: list[str]) -> int:
    """Run the command; `show` ends with 3 where something is there that is not trusted."""
    options = parser(name).parse_args(args)
    trust = Trust(data_home())
    if options.what == "list":
        return _list(trust, as_json=options.json)
    if options.what == "revoke":
        was = trust.revoke(options.folder)
        return _print(f"{visible(options.folder)}: {'no longer trusted' if was else 'was not trusted'}\n")
    if options.what == "grant":
        seen = trust.status(options.folder)
        return _show(trust.grant(options.folder, seen=seen), options)
    status = trust.status(options.folder)
    _show(status, options)
    return OK if status.state in ("trusted", "nothing") else REFUSED


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(
        f"windlass {name}",
        "Trust a folder: what in it may run, connect or widen what is allowed. Trust is bound to the folder's path and "
        "to the content of these files, so a change asks again.",
        "[show|grant|revoke|list] [FOLDER]",
    )
    parser.add_argument("what", nargs="?", choices=("show", "grant", "revoke", "list"), default="show", metavar="WHAT")
    parser.add_argument("folder", nargs="?", default=".", metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _show(status: TrustStatus, options: argparse.Namespace) -> int:
    if options.json:
        return _print(json.dumps({**msgspec.to_builtins(status), "trusted": status.trusted}).decode() + "\n")
    lines = [f"{visible(status.folder)}: {_STATES[status.state]}"]
    for each in status.files:
        what = PROJECT_PATHS.get(each.path.split("/", 1)[0], "")
        lines.append(
            f"  {each.sha256[:12]}  {visible(each.path)}  ({what}{'' if each.kind == 'file' else f', {each.kind}'})"
        )
    lines.extend([f"  changed: {visible(line)}" for line in status.changes])
    lines.extend([f"  instructions changed: {visible(line)}" for line in status.noted])
    if status.state in ("untrusted", "changed"):
        lines.append("Look at them, then: windlass trust grant")
    return _print("\n".join(lines) + "\n")


def _list(trust: Trust, *, as_json: bool) -> int:
    for folder in trust.folders():
        status = trust.status(folder)
        if as_json:
            _print(json.dumps({"folder": folder, "state": status.state}).decode() + "\n")
        else:
            _print(f"{status.state:<9} {clock.rfc3339(status.granted_ns)[:19]}Z  {visible(folder)}\n")
    return OK


def _print(text: str) -> int:
    sys.stdout.write(text)
    return OK
