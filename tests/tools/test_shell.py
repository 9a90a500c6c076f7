"""shell: real commands in a real folder, and what the model reads of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest

from tests.tools.helpers import Context, call, text
from windlass.core.errors import ConfigError, ToolError
from windlass.core.ports import ExecResult, ToolResult
from windlass.tools.shell import ShellTool, shell
from windlass.workspaces.memory import MemoryWorkspace


async def test_output_exit_codes_and_silence(local: Context) -> None:
    assert await text(shell, local, command="echo hello; echo world >&2") == "hello\nworld"
    assert await text(shell, local, command="true") == "(no output)"
    assert await text(shell, local, command="exit 3") == "Exit code 3"
    assert await text(shell, local, command="echo no; exit 1") == "Exit code 1\nno"
    assert await text(shell, local, command="printf '\\033[31mred\\033[0m\\n'") == "red"
    assert "hello" in "".join(local.reported)


async def test_r61_long_output_is_cut_and_its_file_named(local: Context) -> None:
    small = ShellTool(max_output_bytes=200)
    said = await text(small, local, command="seq 1 1000")
    assert said.startswith("1\n2\n")
    assert "bytes cut ...]" in said
    last = said.splitlines()[-1]
    assert last.startswith("[3893 bytes in all; all of it is in ")
    with open(last.removesuffix("]").rsplit(" ", 1)[1]) as file:
        assert file.read() == "".join([f"{n}\n" for n in range(1, 1001)])
    assert (await text(ShellTool(max_output_bytes=0), local, command="seq 1 10000")).count("\n") == 9999


async def test_r58_a_command_past_its_time_is_stopped_and_shown(local: Context) -> None:
    output = await call(shell, local, command="echo partial; sleep 60", timeout=0.3)
    assert output == ToolResult("Timed out after 0.3 s; it was stopped.\npartial", "timeout")


async def test_a_cancelled_command_is_stopped(local: Context) -> None:
    task = asyncio.create_task(call(shell, local, command="echo started; sleep 60; touch ended"))
    while not local.reported:
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await text(shell, local, command="ls") == "(no output)"


class Told(MemoryWorkspace):
    """Answers every command alike, and notes what it was asked."""

    def __init__(self, result: ExecResult) -> None:
        super().__init__()
        self.result = result
        self.asked: list[tuple[float | None, int]] = []

    @property
    def capabilities(self) -> frozenset[str]:
        return frozenset({"shell"})

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = 30.0,
        max_output: int = 8192,
        env: Mapping[str, str] | None = None,
        on_output: Callable[[bytes], None] | None = None,
    ) -> ExecResult:
        self.asked.append((timeout, max_output))
        assert on_output is not None
        for piece in (b"h\xc3", b"\xa9", b"!"):
            on_output(piece)
        return self.result


async def test_limits_are_passed_on_and_characters_are_not_split() -> None:
    workspace = Told(ExecResult(None, b"x" * 5, 9, killed="memory"))
    ctx = Context(workspace)
    output = await call(shell, ctx, command="x", timeout="9999")
    assert output == ToolResult("Stopped: it went past the limit (memory).\nxxxxx\n[9 bytes in all]", "error")
    assert await call(shell, ctx, command="x") == output
    assert workspace.asked == [(600.0, 8192), (120.0, 8192)]
    assert ctx.reported == ["h", "é", "!"] * 2


async def test_without_a_shell_the_error_says_so() -> None:
    with pytest.raises(ToolError, match="no shell"):
        await call(shell, Context(MemoryWorkspace()), command="ls")
    for command in ("  ", "a\x00b"):
        with pytest.raises(ToolError, match="empty, or holds a NUL"):
            await call(shell, Context(Told(ExecResult(0, b"", 0))), command=command)


def test_the_spec_tells_what_it_does() -> None:
    assert shell.spec.annotations.destructive is True
    assert shell.spec.annotations.open_world is True
    assert shell.timeout is not None
    assert shell.timeout > shell.max_seconds
    for options in ({"max_output_bytes": -1}, {"seconds": 0.0}, {"seconds": 700.0}):
        with pytest.raises(ConfigError):
            ShellTool(**options)  # pyright: ignore[reportArgumentType]
