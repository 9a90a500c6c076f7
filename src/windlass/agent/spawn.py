"""Sub-agents: a run inside a tool call, whose events bubble up and whose usage counts for the parent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from windlass.agent.plan import RunResult
from windlass.agent.run import Run
from windlass.agent.session import Runner, Session
from windlass.core import clock
from windlass.core.errors import ConfigError, WindlassError

__all__ = ["MAX_DEPTH", "spawn"]

#: How many generations of sub-agents there may be.
MAX_DEPTH = 4


class Spawner(Runner, Protocol):
    """An agent that can be a parent."""

    @property
    def name(self) -> str | None: ...


async def spawn(agent: Spawner, session: Session, parent: Run, spec: Mapping[str, Any]) -> RunResult:
    """Run `spec["prompt"]` as a child of `parent` and return its result.

    The child has its parent's model, tools, system text and behavior unless `spec` says otherwise, its own session in
    the same store, and its own history. A child that fails or is stopped gives its typed error to the caller; its usage
    counts either way. Raises ConfigError past `MAX_DEPTH` generations.
    """
    depth, at = 1, parent
    while at.plan.parent is not None:
        depth, at = depth + 1, at.plan.parent
    if depth >= MAX_DEPTH:
        raise ConfigError(f"Sub-agents may be {MAX_DEPTH} generations deep.", hint="Do this part of the work yourself.")
    options = dict(spec)
    prompt = options.pop("prompt", None)
    if not prompt:
        raise ConfigError("A sub-agent needs a prompt.")
    runner: Runner = options.pop("agent", None) or agent
    child_session = Session(
        runner, f"{session.id}.{clock.new_id()}", session.ledger.store, tenant=session.ledger.tenant
    )
    child_session.state.update({"permissions": session.state.get("permissions", {})})
    child = child_session.run(prompt, parent=parent, **options)
    hooks = parent.hooks
    if hooks.wants("spawn:before"):
        await hooks.fire("spawn:before", id=child.id, task=prompt, depth=depth)
    try:
        result = await child
    except WindlassError as error:
        if hooks.wants("spawn:error"):
            await hooks.fire("spawn:error", id=child.id, task=prompt, error=error)
        raise
    finally:
        parent.stats.add_child(child.stats)
    if hooks.wants("spawn:complete"):
        await hooks.fire("spawn:complete", id=child.id, task=prompt, stats=child.stats)
    return result
