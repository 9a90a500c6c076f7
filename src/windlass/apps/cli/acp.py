"""`windlass acp`: the coding agent for editors, over stdin and stdout."""

from __future__ import annotations

from typing import Any

from windlass.agent.policy import MODES
from windlass.apps.cli.common import Parser, plain, run_async
from windlass.core import registry
from windlass.core.errors import ConfigError

__all__ = ["main", "parser"]


def main(name: str, args: list[str]) -> int:
    """Run the command. Raises ConfigError where the extra is missing, or a person starts it at a terminal."""
    options = parser(name).parse_args(args)
    serve = _serve()
    chosen = {
        "model": options.model,
        "mode": options.mode,
        "tools": options.tools,
        "sandbox": options.sandbox,
        "client_files": not options.no_client_files,
    }
    return run_async(lambda: serve(**chosen))


def parser(name: str) -> Parser:
    """Build the parser."""
    made = Parser(
        f"windlass {name}",
        "Serve the coding agent to an editor that speaks the Agent Client Protocol (ACP). The editor starts this and "
        "talks to it over stdin and stdout.",
    )
    add = made.add_argument
    add("-m", "--model", type=plain, metavar="MODEL", help="provider:model-id, a provider, or the name of a route")
    add("--mode", choices=MODES[:-1], help="the permission mode that sessions begin in")
    add("--tools", metavar="NAMES", help="tools or sets, with commas: coding, files, ...")
    add("--sandbox", metavar="KIND", help="how commands are held: auto, bubblewrap, landlock, docker:IMAGE or none")
    add("--no-client-files", action="store_true", help="read and write the disk only, not the editor's unsaved text")
    return made


def _serve() -> Any:
    try:
        return registry.load("windlass.apps.acp.serve:serve")
    except ConfigError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and (missing.name or "").partition(".")[0] == "acp":
            raise ConfigError(
                "windlass acp needs agent-client-protocol, which is not installed.", hint='pip install "windlass[acp]"'
            ) from None
        raise
