"""Reference A's `cmd` and `bash`: find a command in a prompt, refuse what must not run, run it and tell how it went.

The guard is A's, and a seat belt, not a wall: a command that it lets pass runs with the server's own rights. That is
why nothing runs unless `[server] tool_exec` says so. Unlike A's, the timeout holds: the command's whole tree ends.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Literal

from windlass.core import clock
from windlass.core.errors import WorkspaceError
from windlass.core.ports import ExecResult
from windlass.core.text import truncate
from windlass.core.threads import run_in_thread
from windlass.server.settings import ServerSettings
from windlass.workspaces.process import Limits, run_command

__all__ = ["CommandRefused", "Shell", "check_command", "find_command", "run_prompt", "run_shell"]

Shell = Literal["cmd", "bash"]
#: Bytes of a command.
MAX_COMMAND = 1024
#: Bytes that a command may write to any one file, its errors' own among them.
_MAX_FILE = 64 * 1024 * 1024
_EDGE = " \t\r\n\"'"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f&|;><`$]")
_DENIED: dict[Shell, frozenset[str]] = {
    "cmd": frozenset(
        ("format", "diskpart", "shutdown", "reboot", "bcdedit", "reg", "vssadmin", "wbadmin", "cipher", "takeown",
         "icacls")
    ),
    "bash": frozenset(("shutdown", "reboot", "halt", "poweroff", "mkfs", "fdisk", "dd", "sudo")),
}  # fmt: skip
#: Each row: all of these parts, in lower case. Those with `|` and `;` are refused as characters first.
_PATTERNS = (
    ("curl ", "| sh"), ("wget ", "| sh"), ("rm -rf /",), ("del /f /s /q c:\\",), ("rmdir /s /q c:\\windows",),
    (":(){ :|:& };:",),
)  # fmt: skip
_WORDS = frozenset(
    ("what", "why", "how", "when", "where", "who", "please", "can", "could", "would", "should", "tell", "show",
     "explain", "get")
)  # fmt: skip
_PREFIXES = ("run the ", "execute the ", "run ", "execute ", "please run ", "please execute ", "can you run ",
             "can you execute ", "command: ", "cmd: ", "bash: ")  # fmt: skip
_INLINE = (" run ", " execute ", " command: ")
_MESSAGES = {
    "EmptyCommand": "command is empty",
    "CommandTooLong": "command exceeds max length",
    "UnsafeCharacter": "command contains unsafe shell control characters",
    "DangerousCommand": "command is blocked by denylist",
    "DangerousPattern": "command matches a blocked dangerous pattern",
}
#: Keep both outputs apart: `run_command` hands them over as one.
_APART = 'exec bash -lc "$1" 2>"$2"'


class CommandRefused(ValueError):
    """Say by A's name why a command is not run: EmptyCommand, CommandTooLong, UnsafeCharacter and so on."""


def check_command(text: str, shell: Shell) -> str:
    """Return the command without blanks and quotes around it. Raises CommandRefused."""
    command = text.strip(_EDGE)
    if not command:
        raise CommandRefused("EmptyCommand")
    if len(command.encode("utf-8", "surrogatepass")) > MAX_COMMAND:
        raise CommandRefused("CommandTooLong")
    if _UNSAFE.search(command):
        raise CommandRefused("UnsafeCharacter")
    # A compares the first word as it is: `/sbin/reboot` and `"reboot"` are the same program.
    name = re.split(r"[/\\]", _first(command).strip("\"'"))[-1].lower().removesuffix(".exe")
    if name in _DENIED[shell]:
        raise CommandRefused("DangerousCommand")
    lower = " ".join(command.lower().split())
    if any(all(part in lower for part in parts) for parts in _PATTERNS):
        raise CommandRefused("DangerousPattern")
    return command


def _first(text: str) -> str:
    return re.split(r"[ \t\r\n]", text, maxsplit=1)[0]


def _is_command(text: str) -> bool:
    """Tell whether a text looks like a command and not like a sentence."""
    text = text.strip(_EDGE)
    return bool(text) and not re.search(r"[\r\n?!]", text) and _first(text).lower() not in _WORDS


def find_command(prompt: str) -> str | None:
    """Return the command that a prompt asks to run, unchecked; None when it asks for none.

    In this order: what stands in backticks, what follows "run", "execute", "command:" and the like at the start, what
    follows such a word inside, the whole prompt where it looks like a command.
    """
    text = prompt.strip(_EDGE)
    if (quoted := re.search(r"`([^`]*)`", text)) and quoted[1].strip():
        return quoted[1].strip()
    lower = text.lower()
    for prefix in _PREFIXES:
        if lower.startswith(prefix) and (found := _trimmed(text[len(prefix) :])):
            return found
    for marker in _INLINE:
        # Lower case may have another length (U+0130): search in the text itself.
        if at := re.search(re.escape(marker), text, re.IGNORECASE):
            if (found := _trimmed(text[at.end() :])) and _is_command(found):
                return found
            break
    return text if _is_command(text) else None


def _trimmed(text: str) -> str:
    text = text.strip().rstrip(".,!?:;\"'")
    if text.lower().startswith("the "):
        text = text[4:].lstrip()
    return text[:-8].rstrip() if text.lower().endswith(" command") else text


async def run_prompt(shell: Shell, prompt: str, settings: ServerSettings) -> str:
    """Run what a prompt says, or tell in A's words why not."""
    if not settings.tool_exec:
        return _error(shell, "message=command execution disabled\nset LLM_ROUTER_TOOL_EXEC_ENABLED=1 to enable")
    if not prompt.strip():
        return _error(shell, "message=empty command prompt")
    if (found := find_command(prompt)) is None:
        return _error(shell, "message=no command-like input found in prompt")
    return await run_shell(shell, found, settings)


async def run_shell(shell: Shell, text: str, settings: ServerSettings) -> str:
    """Run one command in the server's working folder, for at most `tool_exec_timeout` seconds; returns A's report.

    Each of both outputs is told up to `tool_exec_max_output` bytes.
    """
    if not settings.tool_exec:
        return _error(shell, "message=command execution disabled\nset LLM_ROUTER_TOOL_EXEC_ENABLED=1 to enable")
    try:
        command = check_command(text, shell)
    except CommandRefused as refused:
        return _error(shell, f"validation_error={refused}\nmessage={_MESSAGES[str(refused)]}")
    begun = clock.monotonic()
    with tempfile.TemporaryDirectory(prefix="windlass-") as folder:
        errors = Path(folder) / "stderr"
        words = ["cmd", "/C", command]
        if shell == "bash":
            words = ["bash", "-c", _APART, "bash", command, str(errors)]
        try:
            result = await run_command(
                words,
                cwd=str(Path.cwd()),
                timeout=settings.tool_exec_timeout,
                max_output=settings.tool_exec_max_output,
                limits=Limits(file_bytes=_MAX_FILE),
            )
        except WorkspaceError as error:
            return _error(shell, f"spawn_error={error}")
        stderr = await run_in_thread(_read, errors, settings.tool_exec_max_output)
    return _report(shell, command, result, stderr, clock.monotonic() - begun, settings)


def _read(path: Path, most: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return truncate(file.read(_MAX_FILE), most)


def _report(
    shell: Shell, command: str, result: ExecResult, stderr: bytes, seconds: float, settings: ServerSettings
) -> str:
    code = result.exit_code
    term = result.killed or (f"signal:{code - 128}" if code is not None and code > 128 else f"exited:{code}")
    lines = [
        "DEBUG_TOOL_OK" if code == 0 else "DEBUG_TOOL_ERROR",
        f"tool={shell}",
        f"term={term}",
        f"duration_ms={int(seconds * 1000)}",
        f"max_output_bytes={settings.tool_exec_max_output}",
        f"timeout_policy_ms={int(settings.tool_exec_timeout * 1000)}",
        "timeout_enforced=true",
        f"command={command}",
        "--- stdout ---",
        result.output.decode("utf-8", "replace"),
        "--- stderr ---",
        stderr.decode("utf-8", "replace"),
    ]
    return "\n".join(lines)


def _error(shell: Shell, text: str) -> str:
    return f"DEBUG_TOOL_ERROR\ntool={shell}\n{text}"
