"""The command line: `windlass COMMAND`. Each command is one module, imported when it is asked for."""

from __future__ import annotations

import importlib
import os
import sys

__all__ = ["COMMANDS", "GATES", "main", "switched_off", "usage", "user_file"]

#: Command -> (module, one line of help). Static, so that `windlass --help` imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "run a prompt: ask the model, let it use tools, show what happens"),
    "agent": ("chat", "talk to an agent, line by line"),
    "tui": ("tui", "the coding agent in a terminal (windlass alone starts it)"),
    "acp": ("acp", "serve the coding agent to an editor (Agent Client Protocol)"),
    "serve": ("serve", "serve models over HTTP in every dialect that clients speak"),
    "local": ("local", "models on this machine: info, chat, bench, quantize, embed"),
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


#: What `[features]` of the user's file switches off: commands, and first words of commands.
GATES: dict[tuple[str, ...], str] = {
    **dict.fromkeys([("run",), ("agent",), ("tui",), ("acp",)], "agents"),
    **dict.fromkeys([("local",), ("llm",)], "llm"),
    **dict.fromkeys([("train",), ("convert",), ("federate",)], "training"),
    **dict.fromkeys([("local", "embed"), ("llm", "embed"), ("convert", "embeddings")], "embeddings"),
}


def usage(off: dict[str, str] | None = None) -> str:
    """Return the text of `windlass --help`, without the commands of features that are `off`."""
    shown = {name: line for name, (_, line) in COMMANDS.items() if GATES.get((name,)) not in (off or {})}
    rows = "\n".join([f"  {name:<11} {line}" for name, line in shown.items()])
    example = """without a key or account:
  windlass run --yes 'write "hello" to hello.txt and read it back'
"""
    return f"""usage: windlass COMMAND [options]

commands:
{rows}

  windlass COMMAND --help   options of a command
  windlass --version        the version

{example if "run" in shown else ""}exit codes: 0 ok, 1 error, 2 usage, 3 refused, 4 limit, 5 provider,
  130 interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[0:1] in ([], ["-c"], ["--continue"], ["-r"], ["--resume"]) and _at_terminal(args):
            args.insert(0, "tui")
        if not args or args[0] in ("-h", "--help", "help"):
            return _print(usage(_off_for_help()))
        if args[0] in ("-V", "--version", "version"):
            return _version()
        # Reference A's program had options and no commands: they are those of `run`.
        name = "run" if args[0].startswith("-") else args.pop(0)
        if name not in COMMANDS:
            return _unknown(name)
        if (code := _gated(name, args)) is not None:
            return code
        module = importlib.import_module(f"windlass.apps.cli.{COMMANDS[name][0]}")
        return int(importlib.import_module("windlass.apps.cli.common").guarded(module.main, name, args))
    except KeyboardInterrupt:
        # Before the command had its own way of being stopped.
        return 130


def user_file() -> str:
    """Return the path of the user's settings: as `core.config_files.config_home`, without its imports."""
    env, expanded = os.environ, os.path.expanduser
    base = env.get("XDG_CONFIG_HOME", "")
    if env.get("WINDLASS_HOME"):
        folder = expanded(env["WINDLASS_HOME"])
    elif sys.platform == "win32" and env.get("APPDATA"):
        folder = f"{env['APPDATA']}/windlass"
    elif os.path.isabs(base):  # noqa: PTH117
        folder = f"{base}/windlass"
    else:
        folder = f"{env.get('HOME') or expanded('~')}/.config/windlass"
    return f"{folder}/windlass.toml"


def switched_off() -> dict[str, str]:
    """Return the features that the user's file switches off, each with that file. Raises ConfigError.

    A file without the word is not parsed: reading TOML costs more than all else that help needs.
    """
    path = user_file()
    try:
        with open(path, "rb") as file:
            if b"features" not in file.read(1 << 20):
                return {}
    except OSError:
        return {}  # there is none, or the command says why it cannot be read
    from windlass.core import config_files

    return config_files.switched_off(config_files.Path(path))


def _off_for_help() -> dict[str, str]:
    try:
        return switched_off()
    except Exception:
        # Help is what one asks for when something is broken: the command itself will say what.
        return {}


def _gated(name: str, args: list[str]) -> int | None:
    """Return the exit code of a command that is switched off, or whose settings cannot be read; None of all others."""
    wanted = {feature for row, feature in GATES.items() if row == (name, *args)[: len(row)]}
    try:
        off = switched_off() if wanted else {}
        refused = next((feature for feature in off if feature in wanted), None)
    except Exception as error:
        return _refused(error)
    if refused is None:
        return None
    from windlass.core.features import FeatureOff

    return _refused(FeatureOff(refused, off[refused]))


def _refused(error: Exception) -> int:
    def tell(*_: object) -> int:
        raise error

    return int(importlib.import_module("windlass.apps.cli.common").guarded(tell, "", []))


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
