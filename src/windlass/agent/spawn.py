"""Sub-agents: a run inside a tool call, whose events bubble up and whose usage counts for the parent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from windlass.agent.plan import RunResult
from windlass.agent.run import Run
from windlass.agent.session import Runner, Session
from windlass.core import clock, registry
from windlass.core.errors import ConfigError, WindlassError
from windlass.core.ports import Workspace

__all__ = ["spawn"]


class Spawner(Runner, Protocol):
    """An agent that can be a parent."""

    @property
    def name(self) -> str | None: ...
    def derived(self, **options: Any) -> Runner: ...


async def spawn(agent: Spawner, session: Session, parent: Run, spec: Mapping[str, Any]) -> RunResult:
    """Run `spec["prompt"]` as a child of `parent` and return its result.

    The child has its parent's model, tools, system text and behavior unless `spec` says otherwise, its own session in
    the same store, and its own history. `preset` holds options of an agent of its own, which has its parent's
    capabilities; `workspace` is another place to act in (a name, such as "memory", or a Workspace). A child that fails
    or is stopped gives its typed error to the caller; its usage counts either way, and against the budgets of every
    run above it. Raises ConfigError past the topmost run's `max_depth` generations or `max_children` in all.
    """
    _allowed(parent)
    options = dict(spec)
    prompt = options.pop("prompt", None)
    if not prompt:
        raise ConfigError("A sub-agent needs a prompt.")
    preset: Mapping[str, Any] | None = options.pop("preset", None)
    runner: Runner = options.pop("agent", None) or (agent.derived(**preset) if preset else agent)
    place: Workspace | None = registry.make("workspaces", options.pop("workspace", None))
    child_session = Session(
        runner, f"{session.id}.{clock.new_id()}", session.ledger.store, tenant=session.ledger.tenant, workspace=place
    )
    # What was allowed for this conversation holds for its children, and what they bring in concerns it.
    child_session.state.update({key: session.state.setdefault(key, {}) for key in ("permissions", "exposure")})
    if place is None and (runner is agent or preset is not None):
        options["workspace"] = parent.workspace
    child = child_session.run(prompt, parent=parent, **options)
    parent.family[0] += 1
    hooks = parent.hooks
    if hooks.wants("spawn:before"):
        await hooks.fire("spawn:before", id=child.id, task=prompt, depth=child.depth)
    try:
        result = await child
    except WindlassError as error:
        if hooks.wants("spawn:error"):
            await hooks.fire("spawn:error", id=child.id, task=prompt, error=error)
        raise
    finally:
        parent.stats.add_child(child.stats)
        if place is not None:
            await place.close()
    if hooks.wants("spawn:complete"):
        await hooks.fire("spawn:complete", id=child.id, task=prompt, stats=child.stats)
    return result


def _allowed(parent: Run) -> None:
    top = parent
    while top.plan.parent is not None:
        top = top.plan.parent
    if parent.depth + 1 >= top.behavior.max_depth:
        raise ConfigError(
            f"Sub-agents may be {top.behavior.max_depth} generations deep.", hint="Do this part of the work yourself."
        )
    if parent.family[0] >= top.behavior.max_children:
        raise ConfigError(
            f"This run has started {parent.family[0]} sub-agents, which is all that it may.",
            hint="Do the rest of the work yourself.",
        )
