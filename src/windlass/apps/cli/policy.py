"""`windlass policy`: show the rules, and explain what they say of a call. And what `--yolo` takes."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from windlass.agent.layers import permissions_from
from windlass.agent.policy import MODES, Permissions, call_hash
from windlass.agent.rules import rule_text
from windlass.apps.cli.common import OK, Parser, configure, plain
from windlass.core import json, registry
from windlass.core.config import Config
from windlass.core.config_files import config_home, load_config
from windlass.core.errors import ConfigError, PermissionRefused, UnknownNameError
from windlass.core.events import ConfigChanged, Event, Log
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.core.schema import compile_schema
from windlass.core.text import visible
from windlass.workspaces.paths import is_protected

__all__ = ["main", "parser", "protected_in", "yolo_allowed", "yolo_record"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Files that container engines put into a container.
_MARKERS = {".dockerenv": "a container (Docker)", "run/.containerenv": "a container (Podman)"}


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_intermixed_args(args)
    permissions = _permissions(options)
    return _show(permissions) if options.what == "show" else _explain(permissions, options)


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(
        f"windlass {name}",
        "Show the rules, or explain what they say of a call: which layer and rule, why, and what would allow it. "
        "Nothing is run.",
        "show | explain TOOL [NAME=VALUE ... | JSON]",
    )
    parser.add_argument("what", choices=("show", "explain"), metavar="WHAT")
    parser.add_argument("tool", nargs="?", type=plain, metavar="TOOL")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT")
    parser.add_argument("--mode", choices=MODES[:-1], help="decide in this mode")
    parser.add_argument("--folder", metavar="DIR", default=".", help="for this workspace (default: this folder)")
    parser.add_argument("--sandboxed", action="store_true", help="as if the workspace were a sandbox")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def _permissions(options: argparse.Namespace) -> Permissions:
    folder = Path(options.folder)
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {options.folder}.")
    config: Config = configure()
    if folder.resolve() != Path.cwd():
        home = config_home(config.environ) / "windlass.toml"
        config = load_config(files=((folder / "windlass.toml", False), (home, True)))
    return permissions_from(
        config.policies, mode=options.mode, confined=options.sandboxed, protected=protected_in(folder)
    )


def _show(permissions: Permissions) -> int:
    lines = [f"mode: {permissions.mode}", f"rule of two: {'on' if permissions.rule_of_two else 'off'}"]
    for layer in permissions.layers:
        lines.append(f"{layer.name}: {layer.origin}, default {layer.policy.default}")
        for rule in layer.policy.rules:
            why = f"  ({rule.reason})" if rule.reason else ""
            lines.append(f"  {rule_text(rule)}{why}")
    if not permissions.layers:
        lines.append("no rules: see docs/permissions.md for [policy]")
    lines.extend([f"notice: {notice}" for notice in permissions.notices])
    sys.stdout.write(visible("\n".join(lines)) + "\n")
    return OK


def _explain(permissions: Permissions, options: argparse.Namespace) -> int:
    if options.tool is None:
        parser("policy").error("explain needs the name of a tool")
    spec, known = _spec(options.tool)
    args = _arguments(spec, options.arguments)
    decision = permissions.decide(spec, args)
    lines = permissions.explain(spec, args)
    if not known:
        lines.append("note: it is no built-in tool, so only its name is known here")
    if options.json:
        data = {
            "tool": spec.name,
            "input": args,
            "action": decision.action,
            "reason": decision.reason,
            "sha256": call_hash(spec.name, args),
            "explanation": lines,
        }
        sys.stdout.write(json.dumps(data).decode() + "\n")
    else:
        sys.stdout.write(visible("\n".join(lines)) + "\n")
    return OK


def _spec(name: str) -> tuple[ToolSpec, bool]:
    try:
        return registry.resolve("tools", name).spec, True
    except UnknownNameError:
        # A tool of an MCP server acts outside, whatever it says of itself.
        outside = name.startswith("mcp_") or None
        return ToolSpec(name, annotations=ToolAnnotations(open_world=outside)), False


def _arguments(spec: ToolSpec, given: list[str]) -> dict[str, Any]:
    """Read NAME=VALUE words, one JSON object, or the one argument that a tool needs. Raises ConfigError."""
    properties: dict[str, Any] = spec.input_schema.get("properties", {})
    required: list[str] = spec.input_schema.get("required", [])
    if len(given) == 1 and given[0].lstrip().startswith("{"):
        try:
            args = json.loads(given[0])
        except json.JsonError as error:
            raise ConfigError(f"The arguments are not JSON: {error}.") from None
    else:
        args = dict[str, Any]()
        for word in given:
            name, equals, value = word.partition("=")
            if equals and _NAME.fullmatch(name) and (name in properties or not properties):
                args[name] = value
            elif len(given) == 1 and len(required) == 1:
                args[required[0]] = word
            else:
                names = ", ".join(properties) or "NAME=VALUE"
                raise ConfigError(f"{word!r} is no argument of {spec.name}.", hint=f"It takes: {names}.")
    if not properties:
        return args
    checked = compile_schema(spec.input_schema).check(args)
    if checked.error is not None:
        raise ConfigError(f"{spec.name}: {checked.error}")
    return checked.args


def protected_in(folder: str | Path) -> Callable[[str], str | None]:
    """Return what says why a path of that folder is protected: by its own name, and by where its links lead."""
    top = os.path.realpath(folder)

    def protected(path: str) -> str | None:
        if "\0" in path:
            return None  # no file has such a name
        if why := is_protected(path):
            return why
        real = os.path.realpath(Path(top, path))
        return is_protected(os.path.relpath(real, top))

    return protected


def yolo_allowed(environ: Mapping[str, str], confined: bool, *, root: Path = Path("/")) -> str:
    """Return what bounds a run that asks nothing: the sandbox, or the container that it is in.

    `--yolo` alone is not enough. A container is told by the files that Docker and Podman leave, or by the variable
    `container` (systemd-nspawn, Podman). Raises PermissionRefused where there is neither.
    """
    if confined:
        return "the sandbox"
    for marker, name in _MARKERS.items():
        if (root / marker).exists():
            return name
    if environ.get("container"):
        return f"a container ({visible(environ['container'])})"
    raise PermissionRefused(
        "--yolo needs something that bounds it: a sandbox, or a container.",
        hint="Use --sandbox as well, run it in a container, or leave --yolo out and choose --mode sandboxed-auto.",
    )


def yolo_record(bound: str) -> list[Event]:
    """Return what goes on record before such a run: a durable change of the mode, and a warning for people."""
    return [
        ConfigChanged(key="permission_mode", value={"mode": "yolo", "bounded_by": bound}),
        Log(
            message=f"--yolo: nothing is asked; {bound} is all that bounds what is done.",
            level="warning",
            data={"permission_mode": "yolo", "bounded_by": bound},
        ),
    ]
