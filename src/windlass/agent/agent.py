"""The agent: immutable configuration, shared freely, with one default conversation of its own."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from windlass.agent.behavior import BehaviorOptions, behavior
from windlass.agent.bound import Bound
from windlass.agent.hooks import Handler, Hooks
from windlass.agent.loop import Loop
from windlass.agent.plan import AbortSignal, RunPlan, RunResult
from windlass.agent.policy import Decider, Policy
from windlass.agent.run import Run
from windlass.agent.session import Session, prompt_parts
from windlass.agent.spawn import spawn
from windlass.agent.sync import run_in_background
from windlass.core import clock, registry
from windlass.core.errors import ConfigError, UnknownNameError, WindlassError
from windlass.core.events import Event
from windlass.core.messages import Blob, Message, Prompt, Uri
from windlass.core.ports import Approver, Capability, Provider, Sink, Store, Tool, Workspace

__all__ = ["DEFAULT_SYSTEM", "Agent", "Tools"]

DEFAULT_SYSTEM = "You are a helpful assistant."
#: Seconds that one capability may take to open.
OPENING = 300.0
#: A toolset's name, or tools: functions, Tool objects, names of built-in tools, toolset names.
Tools = str | Sequence[Any] | Mapping[str, Any] | None
E_ = TypeVar("E_", bound=Event)
_RUN_OPTIONS = frozenset(
    {
        "model",
        "system",
        "tools",
        "behavior",
        "images",
        "signal",
        "sinks",
        "hooks",
        "workspace",
        "prompt_source",
        "parent",
    }
)


class Agent:
    """Ask a model and let it use tools until the task is done.

    `model` is "provider:model-id", an object with `stream(request)`, or None for the configured default; `api_key` is
    its provider's key, where none is configured. `tools` is a toolset's name ("files", "basic") or a list of functions,
    Tool objects and names. `workspace` is where tools act: a folder's path, a Workspace, or None for none. Further
    keywords are behaviors (`max_turns`, `thinking`, …), and `behavior` holds the same as a mapping. `tool_aliases` maps
    a tool's name to the one the model sees. `skills` are folders of skills, `mcp_servers` the MCP servers by name;
    both are capabilities that are made for you.

    An agent is configuration: sessions hold what changes. `run` continues its default session.

    Raises UnknownNameError, MissingKeyError or ConfigError for names, keys and values that do not fit.
    """

    def __init__(
        self,
        model: str | Provider | None = None,
        *,
        name: str | None = None,
        system: str | None = None,
        tools: Tools = None,
        tool_aliases: Mapping[str, str] | None = None,
        workspace: str | Workspace | None = None,
        capabilities: Sequence[Capability] = (),
        skills: Any = None,
        mcp_servers: Any = None,
        behavior: BehaviorOptions | None = None,
        hooks: Mapping[str, Handler | Sequence[Handler]] | None = None,
        sinks: Sequence[Sink] = (),
        policy: Decider | None = None,
        approver: Approver | None = None,
        store: str | Store | None = None,
        config: Any = None,
        api_key: str | None = None,
        **behaviors: Any,
    ) -> None:
        self.name, self.system = name, system
        self.config = config
        self.provider, self.model, self.model_name = registry.model(model, config, api_key)
        self.tool_aliases = dict(tool_aliases or {})
        #: What the model may call, by the name it sees.
        self.tools = self._bound(resolve_tools(tools))
        self.workspace: Workspace | None = registry.make("workspaces", workspace)
        given = {"skills": skills, "mcp": mcp_servers}
        made = [registry.resolve("capabilities", name)(what) for name, what in given.items() if what]
        self.capabilities: tuple[Capability, ...] = (*capabilities, *made)
        self._to_open = list(self.capabilities)
        self._opening: asyncio.Future[None] | None = None
        self.options: dict[str, Any] = {**(behavior or {}), **behaviors}
        self.behavior = _behavior(self.options)
        self.sinks: list[Sink] = list(sinks)
        self.policy: Decider = policy or Policy()
        self.approver = approver
        self.store = store
        self.hooks = Hooks()
        for hook, handlers in (hooks or {}).items():
            for handler in handlers if isinstance(handlers, Sequence) else (handlers,):
                self.hooks.add(hook, handler)
        for capability in self.capabilities:
            for hook, handler in capability.hooks().items():
                self.hooks.add(hook, handler)
        self._session: Session | None = None

    def _bound(self, tools: Sequence[Tool]) -> Mapping[str, Bound]:
        bound: dict[str, Bound] = {}
        for tool in tools:
            name = self.tool_aliases.get(tool.spec.name, tool.spec.name)
            if name in bound and bound[name].tool is tool:
                continue  # a set and one of its tools by name
            if name in bound:
                raise ConfigError(f"Two tools are called {name!r}.", hint="Rename one, or give it an alias.")
            bound[name] = Bound(tool, name)
        return bound

    # -- running ---------------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: Prompt | None = None,
        *,
        model: str | Provider | None = None,
        system: str | None = None,
        tools: Tools | None = None,
        behavior: BehaviorOptions | None = None,
        images: Sequence[Blob | Uri] = (),
        signal: AbortSignal | None = None,
        **behaviors: Any,
    ) -> Run:
        """Run a prompt in the default session; without one, resume it.

        What is given here wins over the agent's own: `tools=[]` means none. Raises SessionBusy while a run is active.
        """
        options = {"model": model, "system": system, "tools": tools, "images": images, "signal": signal}
        given = {key: value for key, value in options.items() if value is not None and value != ()}
        return self.session.run(prompt, **given, behavior={**(behavior or {}), **behaviors})

    def run_sync(self, prompt: Prompt | None = None, **options: Any) -> RunResult:
        """Run from ordinary, blocking code; from any thread, but not inside a running event loop."""

        async def go() -> RunResult:
            return await self.run(prompt, **options)

        return run_in_background(go)

    def once(self, prompt: Prompt, **options: Any) -> Run:
        """Run a prompt on its own: nothing is remembered or kept."""
        return Session(self).run(prompt, **options)

    @property
    def session(self) -> Session:
        """The default session, made at first use."""
        if self._session is None:
            self._session = Session(self, None, self.store or "memory")
        return self._session

    def session_for(self, id: str | None = None, store: str | Store | None = None) -> Session:
        """Make a session of this agent, kept in `store` (None: the agent's own, else memory)."""
        return Session(self, id, store if store is not None else self.store or "memory")

    # -- the default session's face --------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """True while a run of the default session is active."""
        return self._session is not None and self._session.active is not None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The default session's conversation."""
        return self._session.messages if self._session is not None else ()

    @property
    def turns(self) -> int:
        """How many answers the default session holds."""
        return self._session.conversation.turns if self._session is not None else 0

    def steer(self, message: str | Message) -> None:
        """Talk to the active run before its next request."""
        self.session.steer(message)

    def follow_up(self, message: str | Message) -> None:
        """Give the active run something to do when it would rest."""
        self.session.follow_up(message)

    def abort(self, reason: str = "") -> None:
        """Abort the active run of the default session."""
        if self._session is not None:
            self._session.abort(reason)

    def reset(self) -> None:
        """Empty the default session and its queues."""
        if self._session is not None:
            self._session.reset()

    async def wait_for_idle(self) -> None:
        """Wait until the default session rests."""
        if self._session is not None:
            await self._session.wait_for_idle()

    async def warmup(self, session: Session | None = None) -> None:
        """Open what the first run would have to open; may be called any number of times, also at once.

        What is told meanwhile goes to the active run of `session` (None: of the default one), or to the sinks.
        """
        if not self.capabilities:
            return
        opening = self._opening
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            # One task opens them all, whoever asks first; a failure is raised to everybody and tried again next time.
            opening = self._opening = asyncio.ensure_future(self._open(_Host(self, session)))
        await asyncio.shield(opening)

    async def _open(self, host: _Host) -> None:
        while self._to_open:
            capability = self._to_open[0]
            scope = clock.deadline(OPENING)
            try:
                async with scope:
                    await capability.open(host)
            except Exception as error:
                if isinstance(error, (WindlassError, OSError)) and not scope.expired():
                    raise
                why = f"no end within {OPENING:g} s" if scope.expired() else f"{type(error).__name__}: {error}"
                name = type(capability).__qualname__
                raise ConfigError(f"Capability {name} could not be opened: {why}.") from error
            self._to_open.pop(0)

    async def destroy(self) -> None:
        """Stop what runs, and close capabilities, workspace and provider."""
        if self._session is not None:
            await self._session.close()
        for part in (*self.capabilities, self.workspace, self.provider):
            close: Any = getattr(part, "close", None)
            closing = None if close is None else close()
            if inspect.isawaitable(closing):
                await closing

    def extended(self, *more: Capability) -> Agent:
        """Return an agent like this one with further capabilities, which its own first run opens; all else is shared.

        Capabilities that this one has not opened yet would be opened by both: `warmup` it before.
        """
        other, hooks = copy.copy(self), Hooks()
        other.capabilities = (*self.capabilities, *more)
        other._to_open, other._opening, other._session = [*self._to_open, *more], None, None
        for capability in more:
            for hook, handler in capability.hooks().items():
                hooks.add(hook, handler)
        other.hooks = self.hooks.extended(hooks)
        return other

    def derived(
        self,
        *,
        name: str | None = None,
        model: str | Provider | None = None,
        system: str | None = None,
        tools: Tools = None,
        behavior: BehaviorOptions | None = None,
        policy: Decider | None = None,
        **behaviors: Any,
    ) -> Agent:
        """Return an agent like this one but for what is given: a sub-agent's. Capabilities and hooks are shared."""
        other = copy.copy(self)
        other._session, other.name = None, name or self.name
        if model is not None:
            other.provider, other.model, other.model_name = registry.model(model, self.config)
        if system is not None:
            other.system = system
        if tools is not None:
            other.tools = other._bound(resolve_tools(tools))
        if behavior or behaviors:
            other.options = {**self.options, **(behavior or {}), **behaviors}
            other.behavior = _behavior(other.options)
        if policy is not None:
            other.policy = policy
        return other

    # -- listening and asking --------------------------------------------------------------------------------------

    def on(self, kind: type[E_], listener: Callable[[E_], None]) -> Callable[[], None]:
        """Call `listener` with every event of a kind (`Event`: all); returns a function that stops it."""

        def sink(event: Event) -> None:
            if isinstance(event, kind):
                listener(event)

        self.sinks.append(sink)

        def remove() -> None:
            if sink in self.sinks:
                self.sinks.remove(sink)

        return remove

    def hook(self, name: str, *, priority: int = 0) -> Callable[[Handler], Handler]:
        """Register a hook: `@agent.hook("tool:gate")`. Lower priorities are called first."""

        self.hooks.check(name)

        def register(handler: Handler) -> Handler:
            self.hooks.add(name, handler, priority)
            return handler

        return register

    # -- for sessions ----------------------------------------------------------------------------------------------

    def plan(self, session: Session, prompt: Prompt | None, options: Mapping[str, Any]) -> RunPlan:
        """Resolve everything for one run: run over agent over defaults."""
        given = dict(options)
        layered = {
            **(given.pop("behavior", None) or {}),
            **{k: given.pop(k) for k in list(given) if k not in _RUN_OPTIONS},
        }
        provider, model, model_name = self.provider, self.model, self.model_name
        if (asked := given.get("model")) is not None:
            provider, model, model_name = registry.model(asked, self.config)
        tools = self.tools if given.get("tools") is None else self._bound(resolve_tools(given["tools"]))
        system = given.get("system")
        if system is None:
            system = self.system if self.system is not None else DEFAULT_SYSTEM
        return RunPlan(
            provider=provider,
            model=model,
            model_name=model_name,
            system=system,
            prompt=prompt_parts(prompt, given.get("images", ())),
            tools=tools,
            behavior=_behavior(self.options, layered) if layered else self.behavior,
            hooks=self.hooks.extended(given.get("hooks")),
            conversation=session.conversation,
            ledger=session.ledger,
            agent_name=self.name,
            capabilities=self.capabilities,
            aliases=self.tool_aliases,
            sinks=(*self.sinks, *given.get("sinks", ())),
            policy=self.policy,
            approver=self.approver,
            workspace=given.get("workspace", self.workspace),
            state=session.state,
            metadata=session.metadata,
            signal=given.get("signal"),
            parent=given.get("parent"),
            prompt_source=given.get("prompt_source", "prompt"),
            prepare=partial(self._ready, session),
            spawn=partial(spawn, self, session),
            on_start=session.started,
            on_end=session.ended,
        )

    async def _ready(self, session: Session) -> None:
        await self.warmup(session)
        await session.load()

    def turn(self, run: Run) -> Loop:
        """Make the loop of a run."""
        return Loop(run)


_behavior = behavior


class _Host:
    """What capabilities are opened with."""

    def __init__(self, agent: Agent, session: Session | None) -> None:
        self._agent, self._session = agent, session
        self.config: Any = agent.config

    @property
    def workspace(self) -> Workspace | None:
        return self._agent.workspace

    @property
    def approver(self) -> Approver | None:
        return self._agent.approver

    async def fire(self, hook: str, /, **values: Any) -> Any:
        return await self._agent.hooks.fire(hook, **values)

    def emit(self, event: Event) -> None:
        session = self._session or self._agent.session
        active = session.active
        if active is not None:
            active.emit(event)
            return
        for sink in self._agent.sinks:
            sink(event)


def resolve_tools(tools: Tools) -> list[Tool]:
    """Return Tool objects for names of tools and toolsets, functions, and Tool objects."""
    if tools is None or not tools:
        return []
    if isinstance(tools, Mapping):
        tools = list(tools.values())
    if isinstance(tools, str):
        tools = [tools]
    out: list[Tool] = []
    for item in tools:
        if not isinstance(item, str):
            out.append(_as_tool(item))
        elif item in registry.BUILTIN["toolsets"]:
            out.extend([_as_tool(tool) for tool in registry.resolve("toolsets", item)])
        else:
            try:
                out.append(_as_tool(registry.resolve("tools", item)))
            except UnknownNameError:
                raise UnknownNameError("tool", item, [*registry.names("tools"), *registry.names("toolsets")]) from None
    return out


def _as_tool(item: Any) -> Tool:
    if hasattr(item, "spec") and hasattr(item, "call"):
        return item
    return registry.load("windlass.tools.function:as_tool")(item)
