"""Run commands in the workspace."""

from __future__ import annotations

import codecs
from typing import Any

from windlass.core.errors import ConfigError, ToolError
from windlass.core.ports import ExecResult, ToolContext, ToolResult
from windlass.core.request import ToolAnnotations, ToolSpec
from windlass.core.text import strip_escapes
from windlass.tools.access import workspace_of
from windlass.tools.aliases import arguments_of
from windlass.tools.cutting import ends

__all__ = ["ShellTool", "shell"]

#: Seconds beyond the command's own limit in which the workspace ends it and hands over what it wrote.
_GRACE = 15.0


class ShellTool:
    """Runs a command line through the workspace's `exec`.

    `max_output_bytes` is how much of stdout and stderr together the model is given (0: all that the workspace keeps),
    `seconds` the time a command has unless the model asks for another, `max_seconds` the most it may ask for. Raises
    ConfigError for values that make no sense.
    """

    def __init__(self, *, max_output_bytes: int = 8192, seconds: float = 120.0, max_seconds: float = 600.0) -> None:
        if max_output_bytes < 0 or not 0 < seconds <= max_seconds:
            raise ConfigError(
                f"shell: max_output_bytes={max_output_bytes}, seconds={seconds:g}, max_seconds={max_seconds:g}.",
                hint="Bytes count from 0, and 0 < seconds <= max_seconds.",
            )
        self.max_output_bytes, self.seconds, self.max_seconds = max_output_bytes, seconds, max_seconds
        self.timeout: float | None = max_seconds + _GRACE
        self.spec = ToolSpec(
            "shell",
            "Run a shell command; returns stdout and stderr.",
            {
                "type": "object",
                "properties": {
                    "command": {"type": "string"},
                    "timeout": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "description": f"Seconds, at most {max_seconds:g}",
                        "default": seconds,
                    },
                },
                "required": ["command"],
                "additionalProperties": False,
            },
            annotations=ToolAnnotations(read_only=False, destructive=True, open_world=True),
        )
        self.validator = arguments_of("shell", self.spec.input_schema)

    def __repr__(self) -> str:
        return "<tool shell>"

    async def call(self, args: dict[str, Any], ctx: ToolContext, /) -> Any:
        """Run `command`; its output is streamed as progress. Raises ToolError where the workspace has no shell."""
        workspace = workspace_of(ctx)
        if "shell" not in workspace.capabilities:
            raise ToolError("This workspace has no shell.", hint="Use the file tools.")
        command: str = args["command"]
        if not command.strip() or "\x00" in command:
            raise ToolError("The command is empty, or holds a NUL.")
        seconds = min(float(args.get("timeout", self.seconds)), self.max_seconds)
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode

        def on_output(data: bytes) -> None:
            text = decode(data)
            if text:
                ctx.progress(text)

        result = await workspace.exec(command, timeout=seconds, max_output=self.max_output_bytes, on_output=on_output)
        return _told(result, seconds)


def _told(result: ExecResult, seconds: float) -> str | ToolResult:
    """Return what the model reads: why it ended, if not well, then the output."""
    text = strip_escapes(result.output.decode("utf-8", "replace")).rstrip("\n")
    # The workspace has cut it already, by the same rule: it alone saw all of it.
    total = result.total_bytes if result.total_bytes > len(result.output) else 0
    text = ends(text, 0, total=total, where=result.spool or "")
    if result.killed is None:
        if result.exit_code == 0:
            return text if text.strip() else "(no output)"
        return f"Exit code {result.exit_code}" + (f"\n{text}" if text.strip() else "")
    if result.killed == "timeout":
        first = f"Timed out after {seconds:g} s; it was stopped."
    else:
        first = f"Stopped: it went past the limit ({result.killed})."
    shown = text if text.strip() else "(no output)"
    return ToolResult(f"{first}\n{shown}", "timeout" if result.killed == "timeout" else "error")


#: The shell with its defaults.
shell = ShellTool()
