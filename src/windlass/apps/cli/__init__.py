"""The command line: `windlass COMMAND`. Each command is one module, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys

__all__ = ["COMMANDS", "main"]

#: Command -> (module, one line of help). Static, so that `windlass --help` imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "run a prompt: ask the model, let it use tools, show what happens"),
    "agent": ("chat", "talk to an agent, line by line"),
    "tui": ("tui", "the coding agent in a terminal (windlass alone starts it)"),
    "acp": ("acp", "serve the coding agent to an editor (Agent Client Protocol)"),
    "serve": ("serve", "serve models over HTTP in every dialect that clients speak"),
    "local": ("local", "models on this machine: info, generate, chat, bench, quantize, embed"),
    "llm": ("local", "the same, by reference E's name"),
    "convert": ("convert", "write datasets, models and embeddings in another format"),
    "federate": ("federate", "federated training: the coordinator, a node, the status"),
    "train": ("train", "train a local model, go on with it, look at and export checkpoints"),
    "replay": ("replay", "show a recorded run again, byte for byte"),
    "sessions": ("sessions", "list, show, fork, export, import and delete kept conversations"),
    "keys": ("keys", "keys of the gateway: create, list, revoke, rotate, limits, usage"),
    "auth": ("auth", "log in to a provider with a client of your own; log out"),
    "trust": ("trust", "trust a folder: what in it may run or connect"),
    "policy": ("policy", "show the rules, and explain what they say of a call"),
    "models": ("models", "list providers, and the models a provider offers"),
    "tools": ("info", "list the built-in tools"),
    "skills": ("skills", "list, check and make skills"),
    "mcp": ("mcp", "offer tools over MCP; list, approve, log in to MCP servers"),
    "config": ("info", "show settings and where each comes from"),
    "doctor": ("doctor", "check this installation"),
    "completion": ("completion", "print a completion script for bash, zsh or fish"),
}


def usage() -> str:
    """Return the text of `windlass --help`."""
    rows = "\n".join([f"  {name:<11} {line}" for name, (_, line) in COMMANDS.items()])
    return f"""usage: windlass COMMAND [options]

commands:
{rows}

  windlass COMMAND --help   options of a command
  windlass --version        the version

without a key or account:
  windlass run --yes 'write "hello" to hello.txt and read it back'
exit codes: 0 ok, 1 error, 2 usage, 3 refused, 4 limit, 5 provider,
  130 interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[0:1] in ([], ["-c"], ["--continue"], ["-r"], ["--resume"]) and _at_terminal(args):
            args.insert(0, "tui")
        if not args or args[0] in ("-h", "--help", "help"):
            return _print(usage())
        if args[0] in ("-V", "--version", "version"):
            return _version()
        # Reference A's program had options and no commands: they are those of `run`.
        name = "run" if args[0].startswith("-") else args.pop(0)
        if name not in COMMANDS:
            return _unknown(name)
        module = importlib.import_module(f"windlass.apps.cli.{COMMANDS[name][0]}")
        return int(importlib.import_module("windlass.apps.cli.common").guarded(module.main, name, args))
    except KeyboardInterrupt:
        # Before the command had its own way of being stopped.
        return 130


def _at_terminal(args: list[str]) -> bool:
    """Tell whether a person at a terminal asks for a conversation: nothing, or only which one to go on with."""
    alone = len(args) < 2 or (len(args) == 2 and args[0] in ("-r", "--resume") and not args[1].startswith("-"))
    return alone and all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _print(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        importlib.import_module("windlass.apps.cli.common").quiet()
    return 0


def _version() -> int:
    from windlass.core.version import __version__

    return _print(f"windlass {__version__}\n")


def _unknown(name: str) -> int:
    import difflib

    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else " See windlass --help."
    sys.stderr.write(f"windlass: unknown command {name!r}.{hint}\n")
    return 2
