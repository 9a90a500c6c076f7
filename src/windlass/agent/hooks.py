"""Hooks: questions asked before or after a step. Only hooks may change what happens; sinks just listen.

Every name of reference C is here, with the fields its handlers see and those they may change. Handlers of one name
share one context, are called by priority (lower first, default 0, ties in order of registration) and awaited one after
the other; the last writer wins. A field that may not be changed raises AttributeError when set.

A handler that raises or passes its deadline is isolated and named: at a gate the call is *blocked*; a transform keeps
the original; a context, system or before hook ends the run with HookError; a watcher is reported and the run goes on.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from msgspec import Struct

from windlass.core import clock
from windlass.core.errors import HookError, UnknownNameError
from windlass.core.ports import Workspace

__all__ = ["HOOKS", "Handler", "HookContext", "HookScope", "HookSpec", "Hooks"]

log = logging.getLogger("windlass.hooks")
#: How long one handler may take, in seconds.
DEADLINE = 30.0

Kind = Literal["gate", "transform", "before", "watch"]


class HookSpec(Struct, frozen=True):
    """One hook name: how its failure is treated, what its context holds, and what of it may be changed."""

    kind: Kind
    fields: tuple[str, ...]
    mutable: tuple[str, ...] = ()
    #: The event kind that tells sinks the same fact, or the decision point where there is none.
    fact: str = ""


def _spec(kind: Kind, fields: str, mutable: str = "", fact: str = "") -> HookSpec:
    return HookSpec(kind, tuple(fields.split()), tuple(mutable.split()), fact)


class HookScope(Struct, frozen=True):
    """Whose question it is, beside the fields of the hook: `ctx.scope`.

    `state` lives as long as the session. `depth` is 0 in a run of its own and counts up in sub-agents, whose hooks
    are asked first and their parents' after them.
    """

    run_id: str = ""
    session_id: str = ""
    depth: int = 0
    agent: str | None = None
    state: dict[str, Any] = {}
    workspace: Workspace | None = None


_CALL = "turn_id call_id name input"
_MCP = "turn_id call_id server tool input"
HOOKS: dict[str, HookSpec] = {
    "system:before": _spec("before", "system", "system", "run.started"),
    "system:transform": _spec("before", "system messages turn turn_id session", "system", "turn.started"),
    "context:transform": _spec("before", "messages", "messages", "turn.started"),
    "turn:before": _spec("before", "turn turn_id options", "", "turn.started"),
    "turn:after": _spec("watch", "turn turn_id usage message", "", "turn.finished"),
    "usage": _spec("watch", "turn turn_id usage total_in total_out", "", "turn.finished"),
    "stream:text": _spec("watch", "delta text turn_id", "", "text.delta"),
    "stream:end": _spec("watch", "text turn_id", "", "message.added"),
    "stream:thinking": _spec("watch", "delta thinking turn_id", "", "reasoning.delta"),
    "tool:gate": _spec("gate", f"{_CALL} run_tool_counts block reason result", "block reason result", "tool.started"),
    "tool:before": _spec("watch", f"{_CALL} coercions", "", "tool.started"),
    "tool:after": _spec("watch", f"{_CALL} result output_bytes run_tool_counts coercions", "", "tool.finished"),
    "tool:error": _spec("transform", f"{_CALL} error result", "result", "tool.finished"),
    "tool:transform": _spec(
        "transform", f"{_CALL} result is_error output_bytes coercions", "result is_error", "tool.finished"
    ),
    "tool:unknown": _spec("transform", f"{_CALL} result suppress_error", "result suppress_error", "tool.finished"),
    "validation:reject": _spec("watch", f"{_CALL} reason schema", "", "tool.finished"),
    "validation:coerce": _spec("watch", f"{_CALL} coercions", "", "tool.started"),
    "session:start": _spec("watch", "session_id run_id prompt", "", "run.started"),
    "session:turns": _spec("watch", "session_id turns count", "", "message.added"),
    "session:end": _spec("watch", "session_id run_id status turn_range", "", "run.finished"),
    "mcp:bootstrap:start": _spec("watch", "name transport", "", "mcp.connected"),
    "mcp:bootstrap:end": _spec("watch", "name transport duration_ms ok tool_count error", "", "mcp.connected"),
    "mcp:tool:gate": _spec("gate", f"{_MCP} block reason result", "block reason result", "tool.started"),
    "mcp:tool:before": _spec("watch", _MCP, "", "tool.started"),
    "mcp:tool:after": _spec("watch", f"{_MCP} result output_bytes", "", "tool.finished"),
    "mcp:tool:transform": _spec("transform", f"{_MCP} result output_bytes", "result", "tool.finished"),
    "mcp:tool:error": _spec("watch", f"{_MCP} error", "", "tool.finished"),
    "skills:catalog": _spec("transform", "catalog", "catalog", "turn.started"),
    "skills:activate": _spec("watch", "name path", "", "skill.activated"),
    "oauth:refresh": _spec("watch", "provider provider_id source previous_credentials credentials", "", "log"),
    "context:compact": _spec("watch", "strategy reason before_tokens after_tokens", "", "context.compacted"),
    "cache:bust": _spec("watch", "turn reason", "", "log"),
    "budget:exceeded": _spec("watch", "turn bytes budget", "", "budget.exceeded"),
    "tool-budget:exceeded": _spec("watch", "tool count max turn_id mode", "", "budget.exceeded"),
    "output": _spec("transform", "output schema", "output", "run.finished"),
    "agent:done": _spec("watch", "stats", "", "run.finished"),
    "agent:abort": _spec("watch", "reason", "", "run.finished"),
    "steer:inject": _spec("watch", "message", "", "message.added"),
    "spawn:before": _spec("watch", "id task depth", "", "run.started"),
    "spawn:complete": _spec("watch", "id task stats", "", "run.finished"),
    "spawn:error": _spec("watch", "id task error", "", "run.finished"),
}


class HookContext:
    """What the handlers of one firing share; `fields` of the hook are attributes, only the mutable ones can be set.

    A field whose value is unknown or empty by contract (`coercions` of clean input) is absent, not None.
    """

    __slots__ = ("__dict__", "_mutable", "hook", "scope")

    def __init__(self, hook: str, mutable: tuple[str, ...], values: dict[str, Any], scope: HookScope) -> None:
        object.__setattr__(self, "hook", hook)
        object.__setattr__(self, "_mutable", mutable)
        object.__setattr__(self, "scope", scope)
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._mutable:
            allowed = ", ".join(self._mutable) or "nothing"
            raise AttributeError(f"hook {self.hook!r} may change {allowed}, not {name!r}")
        self.__dict__[name] = value

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(self.__dict__)
        raise AttributeError(f"the context of {self.hook!r} has no {name!r}; it has {known}")

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__

    def __repr__(self) -> str:
        return f"HookContext({self.hook!r}, {self.__dict__!r})"


Handler = Callable[[HookContext], Awaitable[None] | None]


_NOWHERE = HookScope()


class Hooks:
    """The handlers of an agent: register with `add`, ask with `fire`; one dictionary look-up where nobody asks."""

    __slots__ = ("_by_name", "_count", "_parent", "deadline", "scope")

    def __init__(self, deadline: float = DEADLINE) -> None:
        self.deadline = deadline
        self.scope = _NOWHERE
        self._parent: Hooks | None = None
        self._by_name: dict[str, list[tuple[int, int, Handler]]] = {}
        self._count = 0

    def scoped(self, scope: HookScope, parent: Hooks | None = None) -> Hooks:
        """Return the same hooks as one run asks them; those of the `parent` run are asked after its own."""
        out = Hooks(self.deadline)
        out.scope, out._parent, out._by_name = scope, parent, self._by_name
        return out

    def add(self, name: str, handler: Handler, priority: int = 0) -> Callable[[], None]:
        """Register a handler; returns a function that removes it. Raises UnknownNameError for a name that is none."""
        self.check(name)
        entry = (priority, self._count, handler)
        self._count += 1
        entries = self._by_name.setdefault(name, [])
        entries.append(entry)
        entries.sort(key=lambda item: item[:2])

        def remove() -> None:
            if entry in entries:
                entries.remove(entry)

        return remove

    @staticmethod
    def check(name: str) -> None:
        """Raise UnknownNameError for a name that is no hook."""
        if name not in HOOKS:
            raise UnknownNameError("hook", name, HOOKS)

    def extended(self, more: Hooks | None) -> Hooks:
        """Return these hooks followed by `more`."""
        if more is None or not any(more._by_name.values()):
            return self
        out = Hooks(self.deadline)
        for source in (self, more):
            for name, entries in source._by_name.items():
                for priority, _, handler in entries:
                    out.add(name, handler, priority)
        return out

    def wants(self, name: str) -> bool:
        """Tell whether anybody asked for `name`."""
        return bool(self._by_name.get(name)) or (self._parent is not None and self._parent.wants(name))

    def _handlers(self, name: str) -> list[Handler]:
        own = [handler for _, _, handler in self._by_name.get(name, ())]
        if self._parent is None:
            return own
        # A child of the same agent has its parent's handlers already.
        return [*own, *[handler for handler in self._parent._handlers(name) if handler not in own]]

    async def fire(self, name: str, /, **values: Any) -> HookContext:
        """Call the handlers of `name` and return the shared context.

        Raises HookError, naming the function, when a `before` hook fails.
        """
        spec = HOOKS[name]
        ctx = HookContext(name, spec.mutable, values, self.scope)
        for handler in self._handlers(name):
            before = {key: ctx.__dict__.get(key) for key in spec.mutable}
            try:
                answer = handler(ctx)
                if inspect.isawaitable(answer):
                    async with clock.deadline(self.deadline):
                        await answer
            except Exception as error:
                self._failed(spec, ctx, handler, error, before)
        return ctx

    def _failed(
        self, spec: HookSpec, ctx: HookContext, handler: Handler, error: Exception, before: dict[str, Any]
    ) -> None:
        where = getattr(handler, "__qualname__", repr(handler))
        what = (
            f"took longer than {self.deadline:g} s"
            if isinstance(error, TimeoutError)
            else f"raised {type(error).__name__}: {error}"
        )
        text = f"Hook {where} of {ctx.hook!r} {what}."
        if spec.kind == "before":
            raise HookError(text, hint="Mend or remove the hook.") from error
        ctx.__dict__.update(before)
        if spec.kind == "gate":
            ctx.block, ctx.reason = True, text
        log.warning("%s", text)
