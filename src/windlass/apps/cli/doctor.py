"""`windlass doctor`: check this installation; prints what is wrong and what to do."""

from __future__ import annotations

import importlib.util
import platform
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import aclosing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from windlass.apps.cli.campaign import Case, run_campaign
from windlass.apps.cli.common import ERROR, OK, Parser, configure, open_store, run_async
from windlass.core import json, registry
from windlass.core.config import Config
from windlass.core.config_files import config_home, data_home, default_files
from windlass.core.errors import WindlassError
from windlass.local.embedded import embedded_model
from windlass.providers.oauth import has_login
from windlass.providers.vendors import VENDORS
from windlass.workspaces.sandbox import sandbox_level

__all__ = ["main", "parser"]

Finding = tuple[str, bool, str]
_ROW = "{:<17} {:<7} {:<24} {:<55} {}"
_EXTRAS = {"local": "xllamacpp", "train": "torch", "vectors": "sqlite_vec", "regex": "re2", "uvloop": "uvloop"}


def main(name: str, args: list[str]) -> int:
    """Run the command; the exit code is 1 when something is broken."""
    options = parser(name).parse_args(args)
    if options.gateway:
        return run_async(lambda: _gateway(as_json=options.json))
    found: list[Finding] = []
    for what, good, text in _checks(configure()):
        found.append((what, good, text))
        if not options.json:
            sys.stdout.write(f"{'ok ' if good else 'BAD'} {what:<10} {text}\n")
    if options.json:
        _print([{"what": what, "ok": good, "text": text} for what, good, text in found])
    return OK if all(good for _, good, _ in found) else ERROR


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "Check this installation: the exit code is 1 when something is broken.")
    parser.add_argument(
        "--gateway",
        action="store_true",
        help="start a gateway and sixteen faulty models on this machine, and see that every fault is rescued or told",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON document")
    return parser


def _print(rows: list[Any]) -> None:
    sys.stdout.write(json.dumps(rows).decode() + "\n")


async def _gateway(*, as_json: bool) -> int:
    """Run the faults and print a row for each."""
    cases: list[Case] = []
    if not as_json:
        sys.stdout.write(_ROW.format("fault", "asked", "expected", "what happened", "ok").rstrip() + "\n")
    async with aclosing(run_campaign()) as campaign:
        async for case in campaign:
            cases.append(case)
            if not as_json:
                told = _ROW.format(case.fault, case.mode, case.expected, case.happened, "ok" if case.ok else "BAD")
                sys.stdout.write(told.rstrip() + "\n")
                sys.stdout.flush()
    if as_json:
        _print([asdict(case) for case in cases])
    return OK if all(case.ok for case in cases) else ERROR


def _checks(config: Config) -> Iterator[Finding]:
    yield "windlass", True, f"{version('windlass')} on Python {platform.python_version()}, {platform.platform()}"
    yield (
        "config",
        True,
        ", ".join([f"{path}{'' if path.is_file() else ' (none)'}" for path, _ in default_files(config.environ)]),
    )
    yield "folders", True, f"settings {config_home(config.environ)}, data {data_home(config.environ)}"
    if config.off:
        yield "features", True, ", ".join([f"{name} is off ({where})" for name, where in config.off.items()])
    settings = [config.provider_settings(name) for name in dict.fromkeys([*VENDORS, *config.user_providers])]
    keys = [each.name for each in settings if each.api_key]
    logins = [f"{each.name} (login)" for each in settings if not each.api_key and has_login(each, config)]
    yield "keys", True, ", ".join([*keys, *logins]) or "no provider key is set: the built-in model answers"
    for extra, module in _EXTRAS.items():
        found = importlib.util.find_spec(module) is not None
        hint = "" if found else f": pip install 'windlass[{extra}]'"
        yield extra, True, ("installed" if found else "not installed") + hint
    yield _model()
    yield _workspace()
    yield _sandbox()
    yield "sqlite", sqlite3.sqlite_version_info >= (3, 35), sqlite3.sqlite_version
    yield _store(config)


def _model() -> Finding:
    try:
        model = embedded_model()
        model.verify()
    except WindlassError as error:
        return "model", False, str(error)
    return "model", True, f"built-in {model.profile.name}, {model.path.stat().st_size / 1e6:.1f} MB, digest checked"


def _workspace() -> Finding:
    try:
        space = registry.make("workspaces", "local:.")
    except WindlassError as error:
        return "workspace", False, str(error)
    return "workspace", True, f"file access confined by {getattr(space, 'confinement', 'path rules')}"


def _sandbox() -> Finding:
    try:
        level, program, reasons = sandbox_level(outside=str(Path.cwd()))
    except WindlassError as error:
        return "sandbox", sys.platform != "linux", str(error)
    if level == "bubblewrap":
        return "sandbox", True, f"commands are confined by bubblewrap ({program})"
    return "sandbox", True, f"commands are confined by {level}, which is weaker ({'; '.join(reasons)})"


def _store(config: Config) -> Finding:
    async def check() -> int:
        store = open_store(config)
        try:
            test = getattr(store, "check", None)
            problems = await test() if test is not None else []
            if problems:
                raise WindlassError(f"{'; '.join(map(str, problems))[:200]}.", hint="See docs on salvage.")
            return len(await store.list())
        finally:
            await store.close()

    try:
        count = run_async(check)
    except WindlassError as error:
        return "sessions", False, str(error)
    return "sessions", True, f"{count} kept, database sound"
