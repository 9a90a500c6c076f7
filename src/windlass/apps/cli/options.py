"""The options of `windlass run`, and what they mean together."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from pathlib import Path
from typing import Any

from windlass.apps.cli.common import Parser, configure, plain, read_text
from windlass.core import json
from windlass.core.attachments import blob
from windlass.core.config import Config
from windlass.core.errors import ConfigError, UnsupportedInputError
from windlass.core.messages import Blob

__all__ = ["behavior_of", "configuration_of", "images_of", "prompt_of", "run_parser", "schema_of_option"]

#: How much piped text is taken as context.
MAX_STDIN = 8 << 20
#: How large an attachment may be.
MAX_ATTACHMENT = 64 << 20
#: Settings that are behaviors of the agent.
_BEHAVIORS = (
    "max_tokens", "max_turns", "max_cost", "max_total_tokens", "run_seconds", "temperature", "top_p", "thinking",
    "tool_timeout", "max_attempts",
)  # fmt: skip


def run_parser(command: str, description: str) -> Parser:
    """Build the parser of `windlass run` (and of `windlass agent`, which has the same options)."""
    parser = Parser(f"windlass {command}", description, "[PROMPT ...]")
    parser.add_argument("prompt_words", nargs="*", metavar="PROMPT", help="what to do; after -- it may start with -")
    _asking_options(parser)
    _tool_options(parser)
    _session_options(parser)
    _output_options(parser)
    return parser


def _asking_options(parser: Parser) -> None:
    add = parser.add_argument_group("what is asked, and of whom").add_argument
    add("--prompt", metavar="TEXT", help="the same as PROMPT, and asks again until DONE (reference A)")
    add("--message", metavar="TEXT", help="the same as PROMPT (reference E)")
    add("--image", metavar="FILE", action="append", default=[], help="attach an image, a PDF or a text file")
    add("-m", "--model", type=plain, metavar="MODEL", help="provider:model-id, a provider, or the name of a route")
    add("--provider", type=plain, metavar="NAME", help="the provider of a model without one")
    add("--system", metavar="TEXT", help="the system text")
    add("--thinking", choices=("off", "minimal", "low", "medium", "high", "adaptive"), help="how much it may reason")
    add("--schema", metavar="FILE", help="answer as JSON of this JSON Schema (a file, or the schema itself)")
    add("--until", metavar="MARKER", help="ask again until the answer contains MARKER")
    add("--max-turns", type=int, metavar="N", help="model requests; with a loop: iterations")
    add("--loop-mode", choices=("basic", "agent"), help="ask again after each answer")
    add("--agent-loop", action="store_true", help="the same as --loop-mode agent")
    add("--use-env", action="store_true", help="read provider variables from ./.env")
    add("--env-file", metavar="FILE", help="read provider variables from FILE")


def _tool_options(parser: Parser) -> None:
    add = parser.add_argument_group("what it may do").add_argument
    add("--tools", metavar="NAMES", help="tools or sets, with commas: files, basic, none, ...")
    add("--yes", action="store_true", help="allow every call of these tools without asking")
    add("--workspace", metavar="DIR", help="the folder the tools act in (default: this one)")
    add("--mode", choices=("plan", "ask", "auto-edit", "sandboxed-auto"), help="what is done without asking")
    add("--sandbox", metavar="KIND", help="how commands are held: auto, bubblewrap, landlock, docker:IMAGE or none")
    add("--bare", action="store_true", help="no skills, MCP servers and instruction files")
    add("--yolo", action="store_true", help="ask nothing; only in a sandbox or a container")
    add("--memory-files", metavar="PATH", action="append", help="act on a copy of these files or folders in memory")


def _session_options(parser: Parser) -> None:
    add = parser.add_argument_group("which conversation").add_mutually_exclusive_group().add_argument
    add("-c", "--continue", dest="continue_", action="store_true", help="continue the last session of this folder")
    add("-r", "--resume", metavar="ID", nargs="?", const="", help="continue a session (the last one without an ID)")
    add("--session", type=plain, metavar="ID", help="continue this session, or start it")


def _output_options(parser: Parser) -> None:
    add = parser.add_argument_group("what is shown and kept").add_argument
    add("--output", choices=("text", "json", "stream-json"), default="text", help="what stdout gets")
    add("--record", metavar="FILE", help="write every event to FILE, for windlass replay")
    add("-v", "--verbose", action="store_true", help="show reasoning and whole tool results")


def configuration_of(options: argparse.Namespace) -> Config:
    """Read the configuration under the options; a provider that is named with no model brings its own."""
    env_file = options.env_file or (".env" if options.use_env else None)
    model = options.model or options.provider
    return configure({"model": model, "provider": options.provider, "tools": options.tools}, env_file)


def prompt_of(options: argparse.Namespace, parser: Parser) -> str | None:
    """Return the prompt with what was piped in; None where a session is to be resumed without one."""
    given = [text for text in (" ".join(options.prompt_words), options.prompt, options.message) if text]
    if len(given) > 1:
        parser.error("the prompt is given twice; use PROMPT, --prompt or --message")
    piped = _piped()
    if not given and not piped:
        if options.continue_ or options.resume is not None or options.session:
            return None
        parser.error("a prompt is needed: windlass run PROMPT")
    return "\n\n".join([*given, *([piped] if piped else [])])


def _piped() -> str:
    """Return what is piped in; a terminal, /dev/null and an inherited socket are not."""
    try:
        handle = sys.stdin.fileno()
        mode = os.fstat(handle).st_mode
    except (OSError, ValueError, AttributeError):
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return ""
    raw = bytearray()
    # Piece by piece: one long read would not notice an interrupt that comes while the pipe is full.
    while data := os.read(handle, 1 << 16):
        raw += data
        if len(raw) > MAX_STDIN:
            raise ConfigError(
                f"More than {MAX_STDIN >> 20} MiB are piped in.", hint="Put it into a file and name that."
            )
    return raw.decode("utf-8", "replace").strip()


def behavior_of(options: argparse.Namespace, config: Config) -> dict[str, Any]:
    """Return the behavior that options and configuration ask for.

    `--until`, `--loop-mode`, `--agent-loop` and reference A's `--prompt` start a loop, whose iterations `--max-turns`
    then counts (8 by default).
    """
    out: dict[str, Any] = {}
    for key in _BEHAVIORS:
        found = config.where(key)
        if found.origin != "default" and found.value is not None:
            out[key] = found.value
    mode = "agent" if options.agent_loop else options.loop_mode
    if mode or options.until or options.prompt:
        out["loop_mode"] = mode or "basic"
        out["loop_max_turns"] = config.get("loop_max_turns") if options.max_turns is None else options.max_turns
        if options.until:
            out["loop_until"] = options.until
    elif options.max_turns is not None:
        out["max_turns"] = options.max_turns
    if options.thinking:
        out["thinking"] = options.thinking
    if options.schema:
        out["output"] = schema_of_option(options.schema)
    return out


def schema_of_option(text: str) -> dict[str, Any]:
    """Read a JSON Schema from a file, or from the text itself. Raises ConfigError naming it."""
    inline = text.lstrip().startswith("{")
    where = "--schema" if inline else f"schema {text}"
    try:
        value = json.loads(text if inline else read_text(text, "the schema"))
    except json.JsonError as error:
        raise ConfigError(f"{where}: {error}.") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: a JSON Schema is an object.")
    return value


def images_of(paths: list[str]) -> list[Blob]:
    """Read attachments. Raises ConfigError naming the file."""
    out: list[Blob] = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_ATTACHMENT + 1)
        except OSError as error:
            raise ConfigError(f"Cannot read the attachment {path}: {error.strerror}.") from error
        if len(data) > MAX_ATTACHMENT:
            raise ConfigError(f"The attachment {path} is larger than {MAX_ATTACHMENT >> 20} MiB.")
        try:
            out.append(blob(data, filename=Path(path).name))
        except UnsupportedInputError as error:
            # No provider was asked: it is what the user named that does not fit.
            raise ConfigError(error.message, hint=error.hint) from None
    return out
