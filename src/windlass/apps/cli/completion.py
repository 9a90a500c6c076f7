"""`windlass completion`: scripts for the shells, made from the table of commands; nothing is imported at TAB."""

from __future__ import annotations

import argparse
import sys

from windlass.apps.cli import COMMANDS
from windlass.apps.cli.common import OK, Parser
from windlass.apps.cli.options import run_parser

__all__ = ["main"]


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    parser = Parser(f"windlass {name}", 'Print a completion script: eval "$(windlass completion bash)".', "SHELL")
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    sys.stdout.write(script(parser.parse_args(args).shell))
    return OK


def script(shell: str) -> str:
    """Return the script of a shell."""
    commands = " ".join(COMMANDS)
    options = " ".join(_options(run_parser("run", "")))
    if shell == "fish":
        lines = [
            f"complete -c windlass -n __fish_use_subcommand -a {name} -d '{line}'"
            for name, (_, line) in COMMANDS.items()
        ]
        lines.append(f"complete -c windlass -n '__fish_seen_subcommand_from run agent' -a '{options}'")
        return "\n".join(lines) + "\n"
    body = f"""_windlass() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}"
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    elif [[ "$word" == -* ]] && [[ "${{COMP_WORDS[1]}}" =~ ^(run|agent)$ ]]; then
        COMPREPLY=($(compgen -W "{options}" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -F _windlass windlass
"""
    return body if shell == "bash" else f"autoload -U +X bashcompinit && bashcompinit\n{body}"


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [text for action in parser._actions for text in action.option_strings if text.startswith("--")]  # pyright: ignore[reportPrivateUsage]
