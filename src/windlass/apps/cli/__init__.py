"""The command line: `windlass COMMAND`. Each command is one module, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys

__all__ = ["COMMANDS", "main"]

#: Command -> (module, one line of help). Static, so that `windlass --help` imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "run a prompt: ask the model, let it use tools, show what happens"),
    "replay": ("replay", "show a recorded run again, byte for byte"),
    "sessions": ("sessions", "list, show, fork, export and delete kept conversations"),
    "models": ("models", "list providers, and the models a provider offers"),
    "tools": ("info", "list the built-in tools"),
    "config": ("info", "show settings and where each comes from"),
    "doctor": ("doctor", "check this installation"),
    "completion": ("completion", "print a completion script for bash, zsh or fish"),
    "agent": ("chat", "talk to an agent, line by line"),
}
#: Options of reference A's program, which had no commands.
_RUN_OPTIONS = ("--prompt", "--provider", "--agent-loop", "--use-env", "--env-file", "--until", "--loop-mode")


def usage() -> str:
    """Return the text of `windlass --help`."""
    rows = "\n".join([f"  {name:<11} {line}" for name, (_, line) in COMMANDS.items()])
    return f"""usage: windlass COMMAND [options]

commands:
{rows}

  windlass COMMAND --help   options of a command
  windlass --version        the version

without a key or account: windlass run --yes "Write 'hello' to hello.txt, read it back and end with DONE"
exit codes: 0 ok, 1 error, 2 usage, 3 refused, 4 limit, 5 provider, 130 interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if args[0] in ("-V", "--version", "version"):
        return _version()
    name = args.pop(0)
    if name.split("=", 1)[0] in _RUN_OPTIONS:
        args.insert(0, name)
        name = "run"
    if name not in COMMANDS:
        return _unknown(name)
    module = importlib.import_module(f"windlass.apps.cli.{COMMANDS[name][0]}")
    return int(importlib.import_module("windlass.apps.cli.common").guarded(module.main, name, args))


def _version() -> int:
    from importlib.metadata import version

    sys.stdout.write(f"windlass {version('windlass')}\n")
    return 0


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else " See windlass --help."
    sys.stderr.write(f"windlass: unknown command {name!r}.{hint}\n")
    return 2
