"""What a run is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from msgspec import Struct, field

from windlass.agent.behavior import Behavior
from windlass.agent.bound import Bound
from windlass.agent.conversation import Conversation
from windlass.agent.hooks import Hooks
from windlass.agent.ledger import Ledger
from windlass.agent.policy import Decider, Policy
from windlass.agent.stats import RunStats
from windlass.core.events import StopReason
from windlass.core.messages import Message, Part
from windlass.core.ports import Approver, Capability, Provider, Sink, Workspace
from windlass.core.usage import NANO, Usage

__all__ = ["AbortSignal", "RunPlan", "RunResult"]


class AbortSignal:
    """A switch that aborts every run it was given to; may be thrown from any thread."""

    __slots__ = ("_callbacks", "aborted", "reason")

    def __init__(self) -> None:
        self.aborted = False
        self.reason = ""
        self._callbacks: list[Callable[[str], None]] = []

    def abort(self, reason: str = "") -> None:
        """Abort; a second time does nothing."""
        if not self.aborted:
            self.aborted, self.reason = True, reason
            for callback in tuple(self._callbacks):
                callback(reason)

    def subscribe(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call back on abort, at once if it already happened; returns a function that forgets the callback."""
        self._callbacks.append(callback)
        if self.aborted:
            callback(self.reason)

        def forget() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return forget


class RunPlan(Struct, frozen=True, kw_only=True):
    """Everything a run needs, resolved: nothing here is a name any more."""

    provider: Provider
    model: str
    model_name: str
    system: str
    prompt: tuple[Part, ...] | None
    tools: Mapping[str, Bound]
    behavior: Behavior
    hooks: Hooks
    conversation: Conversation
    ledger: Ledger
    agent_name: str | None = None
    capabilities: tuple[Capability, ...] = ()
    aliases: Mapping[str, str] = {}
    sinks: tuple[Sink, ...] = ()
    policy: Decider = Policy()
    approver: Approver | None = None
    workspace: Workspace | None = None
    state: dict[str, Any] = field(default_factory=dict[str, Any])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    signal: AbortSignal | None = None
    parent: Any = None
    prompt_source: str = "prompt"
    #: Awaited before the first step: loads the session.
    prepare: Any = None
    #: Makes the run of a sub-agent; the session that owns this run provides it.
    spawn: Any = None
    on_start: Any = None
    on_end: Any = None


class RunResult(Struct, frozen=True, kw_only=True):
    """How a run ended.

    `text` is the last answer, `output` the structured one, `stop_reason` why the agent rests. `refused` names the tools
    that policy or a person refused. `error` is set when the run failed; awaiting the run raises it.
    """

    run_id: str
    session_id: str
    text: str
    stop_reason: StopReason
    stats: RunStats
    message: Message | None = None
    output: Any = None
    error: BaseException | None = None
    refused: tuple[str, ...] = ()
    detail: str = ""
    workspace: Workspace | None = None

    @property
    def usage(self) -> Usage:
        """Tokens of this run and its children."""
        return self.stats.usage

    @property
    def cost(self) -> Decimal | None:
        """Dollars of this run and its children, exact; None when a price is unknown."""
        return None if self.stats.cost is None else Decimal(self.stats.cost) / NANO

    @property
    def files(self) -> dict[str, Any]:
        """The files of a virtual workspace, path -> content; empty for a real one."""
        return dict(getattr(self.workspace, "files", {}))
