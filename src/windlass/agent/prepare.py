"""What the next request holds: history, system text, tools and settings, after the hooks that may change them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from windlass.agent.bound import Bound
from windlass.agent.modes import Iterations
from windlass.agent.output import FINAL_TOOL, OutputSpec
from windlass.agent.plan import RunPlan
from windlass.agent.prefix import watch_prefix
from windlass.agent.run import Run
from windlass.core import registry
from windlass.core.errors import WindlassError
from windlass.core.ports import Capability, Tool, TurnView
from windlass.core.request import Budget, Request, Settings, ToolSpec

__all__ = ["MAX_TOKENS", "Preparation", "wanted_output"]

log = logging.getLogger("windlass.agent")
#: Output tokens of one request where nobody says otherwise (reference C's default).
MAX_TOKENS = 16384


def wanted_output(plan: RunPlan) -> OutputSpec | None:
    """Return what the answer must be, None for free text. Raises ConfigError for a broken schema."""
    mode = plan.behavior
    if mode.output is None:
        return None
    native = bool(getattr(plan.provider, "structured_output", False))
    return OutputSpec(mode.output, mode.output_mode, native, mode.output_retries)


def _asked(capability: Capability, view: TurnView) -> tuple[Sequence[Tool], str]:
    """Return what a capability offers now: nothing where it fails by accident, which is named and ends no run."""
    try:
        return capability.tools(view), capability.instructions(view)
    except WindlassError:
        raise
    except Exception as error:
        name = type(capability).__qualname__
        log.warning("Capability %s raised %s: %s; this turn goes on without it.", name, type(error).__name__, error)
        return (), ""


class Preparation:
    """Makes the requests of one run. What does not change between turns is made once."""

    __slots__ = ("context", "deadline", "decay", "iterations", "run", "settings", "specs", "tools", "wanted")

    def __init__(self, run: Run, tools: Mapping[str, Bound], wanted: OutputSpec | None, iterations: Iterations) -> None:
        self.run, self.tools, self.wanted, self.iterations = run, tools, wanted, iterations
        mode = run.behavior
        usual = getattr(run.plan.provider, "default_max_tokens", None) or MAX_TOKENS
        self.settings = Settings(
            max_tokens=mode.max_tokens or usual, temperature=mode.temperature, top_p=mode.top_p,
            thinking=mode.thinking, thinking_budget=mode.thinking_budget, extra=dict(mode.extra),
        )  # fmt: skip
        self.deadline = Budget(mode.run_seconds).deadline
        self.specs = self._specs()
        # By name: few agents ask for these, and every agent would import them.
        self.context: Any = None
        if mode.compact_strategy != "off":
            self.context = registry.load("windlass.agent.context:Context")(run, self.settings)
        self.decay: Any = None
        if mode.thinking_decay is not None and mode.thinking_budget:
            self.decay = registry.load("windlass.agent.decay:thinking_tokens")

    def _specs(self) -> tuple[ToolSpec, ...]:
        specs = tuple([bound.spec for bound in self.tools.values()])
        return (*specs, self.wanted.tool) if self.wanted is not None and not self.wanted.native else specs

    def _capabilities(self, turn: int) -> str:
        """Take over the tools that capabilities offer now; returns what they add to the system text."""
        plan, tools = self.run.plan, self.tools
        assert isinstance(tools, dict)
        view = TurnView(
            run_id=self.run.id, session_id=self.run.session_id, turn=turn, state=plan.state, workspace=plan.workspace,
            aliases=plan.aliases, disclosure=self.run.behavior.tool_disclosure,
            tool_search=self.run.behavior.tool_search,
        )  # fmt: skip
        offered: dict[str, Bound] = dict(plan.tools)
        added = ""
        for capability in plan.capabilities:
            brought, text = _asked(capability, view)
            for tool in brought:
                name = plan.aliases.get(tool.spec.name, tool.spec.name)
                if name not in offered:
                    known = tools.get(name)
                    offered[name] = known if known is not None and known.tool is tool else Bound(tool, name)
            if text:
                added += f"\n\n{text}"
        tools.clear()
        tools.update(offered)
        self.specs = self._specs()
        return added

    def _settings(self, turn: int) -> Settings:
        if self.decay is None:
            return self.settings
        mode = self.run.behavior
        tokens = self.decay(mode.thinking_decay, turn, mode.thinking_budget)
        return msgspec.structs.replace(self.settings, thinking_budget=tokens)

    async def request(self, system: str, turn: int) -> Request:
        """Make the request of a turn.

        Raises HookError when a hook that must not fail does, ContextExceededError when the history cannot be made fit.
        """
        run, hooks, conversation = self.run, self.run.hooks, self.run.conversation
        if run.plan.capabilities:
            system += self._capabilities(turn)
        if guidance := self.iterations.guidance:
            system += f"\n\n{guidance}"
        if self.context is not None:
            await self.context.fit(system, self.specs)
        messages, encoded = conversation.messages, conversation.encoded
        if hooks.wants("context:transform"):
            ctx = await hooks.fire("context:transform", messages=list(messages))
            if ctx.messages != messages:
                # The wire form kept so far belongs to the real history.
                messages, encoded = list(ctx.messages), None
        if hooks.wants("system:transform"):
            ctx = await hooks.fire(
                "system:transform", system=system, messages=tuple(messages), turn=turn, turn_id=run.turn_id,
                session=run.session_id,
            )  # fmt: skip
            system = ctx.system
        if run.behavior.cache:
            await watch_prefix(run, system, self.specs, messages, turn)
        settings = self._settings(turn)
        wanted, choice = self.wanted, run.behavior.tool_choice
        if wanted is not None and not wanted.native and len(self.specs) == 1:
            choice = FINAL_TOOL
        return Request(
            model=run.plan.model, messages=messages, system=system, tools=self.specs, tool_choice=choice,
            settings=settings, output_schema=wanted.schema if wanted is not None and wanted.native else None,
            cache=run.behavior.cache, session_id=run.session_id, encoded=encoded,
            budget=Budget.until(self.deadline, run.behavior.max_attempts),
        )  # fmt: skip
