"""What the next request holds: history, system text, tools and settings, after the hooks that may change them."""

from __future__ import annotations

from collections.abc import Mapping

from windlass.agent.bound import Bound
from windlass.agent.modes import Iterations
from windlass.agent.output import FINAL_TOOL, OutputSpec
from windlass.agent.plan import RunPlan
from windlass.agent.run import Run
from windlass.core.ports import TurnView
from windlass.core.request import Budget, Request, Settings, ToolSpec

__all__ = ["MAX_TOKENS", "Preparation", "wanted_output"]

#: Output tokens of one request where nobody says otherwise (reference C's default).
MAX_TOKENS = 16384


def wanted_output(plan: RunPlan) -> OutputSpec | None:
    """Return what the answer must be, None for free text. Raises ConfigError for a broken schema."""
    mode = plan.behavior
    if mode.output is None:
        return None
    native = bool(getattr(plan.provider, "structured_output", False))
    return OutputSpec(mode.output, mode.output_mode, native, mode.output_retries)


class Preparation:
    """Makes the requests of one run. What does not change between turns is made once."""

    __slots__ = ("deadline", "iterations", "run", "settings", "specs", "tools", "wanted")

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
            for tool in capability.tools(view):
                name = plan.aliases.get(tool.spec.name, tool.spec.name)
                if name not in offered:
                    known = tools.get(name)
                    offered[name] = known if known is not None and known.tool is tool else Bound(tool, name)
            if text := capability.instructions(view):
                added += f"\n\n{text}"
        tools.clear()
        tools.update(offered)
        self.specs = self._specs()
        return added

    async def request(self, system: str, turn: int) -> Request:
        """Make the request of a turn. Raises HookError when a hook that must not fail does."""
        run, hooks, conversation = self.run, self.run.hooks, self.run.conversation
        messages, encoded = conversation.messages, conversation.encoded
        if run.plan.capabilities:
            system += self._capabilities(turn)
        if guidance := self.iterations.guidance:
            system += f"\n\n{guidance}"
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
        wanted, choice = self.wanted, run.behavior.tool_choice
        if wanted is not None and not wanted.native and len(self.specs) == 1:
            choice = FINAL_TOOL
        return Request(
            model=run.plan.model, messages=messages, system=system, tools=self.specs, tool_choice=choice,
            settings=self.settings, output_schema=wanted.schema if wanted is not None and wanted.native else None,
            cache=run.behavior.cache, session_id=run.session_id, encoded=encoded,
            budget=Budget.until(self.deadline, run.behavior.max_attempts),
        )  # fmt: skip
