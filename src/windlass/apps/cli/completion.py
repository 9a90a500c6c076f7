"""`windlass completion`: scripts for the shells, made from the commands' own options; nothing is imported at TAB."""

from __future__ import annotations

import argparse
import importlib
import sys

from windlass.apps.cli import COMMANDS, GATES, switched_off
from windlass.apps.cli.common import OK, Parser

__all__ = ["main", "parser_of", "script"]


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    sys.stdout.write(script(parser(name).parse_args(args).shell))
    return OK


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", 'Print a completion script: eval "$(windlass completion bash)".', "SHELL")
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    return parser


def parser_of(command: str) -> Parser:
    """Return the parser of a command."""
    return importlib.import_module(f"windlass.apps.cli.{COMMANDS[command][0]}").parser(command)


def script(shell: str) -> str:
    """Return the script of a shell."""
    off = switched_off()
    shown = {name: line for name, (_, line) in COMMANDS.items() if GATES.get((name,)) not in off}
    words = {name: _words(parser_of(name)) for name in shown}
    if shell == "fish":
        lines = [f"complete -c windlass -n __fish_use_subcommand -a {name} -d '{line}'" for name, line in shown.items()]
        lines += [
            f"complete -c windlass -n '__fish_seen_subcommand_from {name}' -a '{' '.join(found)}'"
            for name, found in words.items()
            if found
        ]
        return "\n".join(lines) + "\n"
    cases = "\n".join([f"        {name}) words='{' '.join(found)}' ;;" for name, found in words.items()])
    body = f"""_windlass() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(shown)}" -- "$word"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [ "${{#COMPREPLY[@]}}" -eq 0 ]; then COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -F _windlass windlass
"""
    return body if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{body}"


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options of a command, and the words it takes from a fixed list."""
    found: list[str] = []
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]
        found += [text for text in action.option_strings if text.startswith("--")]
        if not action.option_strings and action.choices is not None:
            found += [str(choice) for choice in action.choices]
    return found
