"""Sub-agents as a tool (reference C): give a part of the work to a run of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import ConfigError, WindlassError
from windlass.core.ports import ToolContext, ToolResult
from windlass.core.request import ToolAnnotations, ToolSpec

__all__ = ["SpawnTool", "create_spawn_tool", "spawn"]

_ABOUT = "Give a task to a sub-agent with its own context. It knows only what `task` says; its last answer comes back."


class _Family(Struct):
    """The sub-agents of one conversation: how many run now, and how many there were."""

    running: int = 0
    count: int = 0


class SpawnTool:
    """Runs sub-agents, at most `max_concurrent` of one conversation at a time.

    They inherit everything unless it is given here: `model`, `thinking`, `system`, `tools`, `max_turns`, or a `preset`
    with all of these. `agents` names several presets, of which the model chooses by `agent`. `workspace` is where they
    act instead ("memory": a place of their own that ends with them). `timeout` is in seconds, None: no limit of its
    own. How deep and how many in all is the topmost run's behavior (`max_depth`, `max_children`), as are its budgets.
    """

    def __init__(
        self,
        *,
        max_concurrent: int = 3,
        model: str | None = None,
        thinking: str | None = None,
        system: str | None = None,
        tools: Any = None,
        max_turns: int | None = None,
        preset: Mapping[str, Any] | None = None,
        agents: Mapping[str, Mapping[str, Any]] | None = None,
        workspace: str | None = None,
        timeout: float | None = None,
        name: str = "spawn",
    ) -> None:
        if max_concurrent < 1:
            raise ConfigError(f"spawn: max_concurrent is {max_concurrent}; it counts from 1.")
        self.max_concurrent, self.workspace = max_concurrent, workspace
        given = {"model": model, "system": system, "tools": tools, "thinking": thinking, "max_turns": max_turns}
        own = {key: value for key, value in given.items() if value is not None}
        self.preset: dict[str, Any] = {**(preset or {}), **own}
        self.agents = {key: dict(value) for key, value in (agents or {}).items()}
        # A tool without a limit of its own would get the agent's for one call, which is too short for a whole task.
        self.timeout: float | None = timeout if timeout is not None else 86_400.0
        properties: dict[str, Any] = {"task": {"type": "string"}}
        if self.agents:
            about = "; ".join([f"{key}: {value.get('description', key)}" for key, value in self.agents.items()])
            properties["agent"] = {"type": "string", "enum": sorted(self.agents), "description": about}
        schema = {"type": "object", "properties": properties, "required": ["task"], "additionalProperties": False}
        # It does nothing by itself: each call of a sub-agent meets the policy, which is never looser than its parent's.
        self.spec = ToolSpec(name, _ABOUT, schema, annotations=ToolAnnotations(read_only=True, open_world=False))

    def __repr__(self) -> str:
        return f"<tool {self.spec.name}>"

    async def call(self, args: dict[str, Any], ctx: ToolContext, /) -> Any:
        """Run one sub-agent and return its answer, with what it took; one that fails is told as an error."""
        family = ctx.state.setdefault("spawn", _Family())
        if family.running >= self.max_concurrent:
            text = f"Cannot spawn: {family.running}/{self.max_concurrent} sub-agents already running."
            return ToolResult(f"{text} Wait for one to complete.", "error")
        preset = {**self.preset, **self.agents.get(args.get("agent", ""), {})}
        preset.pop("description", None)
        options: dict[str, Any] = {"preset": preset} if preset else {}
        if self.workspace is not None:
            options["workspace"] = self.workspace
        family.running, family.count = family.running + 1, family.count + 1
        name, begun = f"child-{family.count}", clock.monotonic()
        ctx.progress(f"[sub-agent {name}] started\n")
        try:
            result = await ctx.run_child(prompt=args["task"], **options)
        except WindlassError as error:
            return ToolResult(f"[sub-agent {name}] Failed: {error}", "error")
        finally:
            family.running -= 1
        usage, took = result.stats.usage, (clock.monotonic() - begun) * 1000
        ended = "Completed" if result.stop_reason == "end_turn" else f"Stopped ({result.stop_reason})"
        turns = result.stats.turns
        return (
            f"[sub-agent {name}] {ended} in {turns} turns ({took:.0f}ms)\n"
            f"Tokens: {usage.input_tokens} in / {usage.output_tokens} out\n\n{result.text}"
        )


def create_spawn_tool(**options: Any) -> SpawnTool:
    """Make a spawn tool (reference C's createSpawnTool); options are those of `SpawnTool`. Raises ConfigError."""
    return SpawnTool(**options)


#: Sub-agents that inherit everything.
spawn = SpawnTool()
