"""Token discipline: how often a tool may be called, how much a turn's tools may say, and answers given twice.

Names are those of the tools themselves; where none fits, the name the model sees is looked up too.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

from windlass.agent.behavior import Behavior
from windlass.agent.bound import Bound
from windlass.agent.hooks import Hooks
from windlass.agent.ledger import Ledger
from windlass.core import clock
from windlass.core.events import BudgetExceeded, Event
from windlass.core.messages import Blob, Text, Uri

__all__ = ["Discipline", "DisciplineHost", "ToolBudgetHit"]

log = logging.getLogger("windlass.agent")
SUMMARISE = (
    "The tools of this turn returned {used} bytes, more than the budget of {limit}. Before you call further tools, "
    "summarise what you have learned so far and what is still missing."
)
COMMIT = "You have called {tool} {count} times; its budget is {max}. Work with what you have, and finish."
USED_UP = "the budget of {max} calls of {tool} in this run is used up; work with what you have"
#: How many results a session keeps for `dedup_tools`; the oldest go first.
KEPT = 256

Mode = Literal["steer", "block"]
Content = str | tuple[Text | Blob | Uri, ...]


class DisciplineHost(Protocol):
    """What this needs of the run that it serves."""

    id: str
    hooks: Hooks
    behavior: Behavior
    turn_id: str

    @property
    def session_id(self) -> str: ...
    @property
    def state(self) -> dict[str, Any]: ...
    @property
    def ledger(self) -> Ledger: ...

    async def record(self, kept: Sequence[Event], shown: Sequence[Event] | None = None) -> None: ...


class ToolBudgetHit(Struct, frozen=True):
    """A call past its tool's budget, for a function that decides about it; `count` includes this call."""

    tool: str
    count: int
    max: int
    turn_id: str
    run_id: str
    session_id: str
    input: Mapping[str, Any]


class Discipline:
    """The counts of one run. `written` is the sum of the bytes its tools said in this turn, as the model reads them."""

    __slots__ = ("_counts", "_host", "_notes", "_steered", "written")

    def __init__(self, host: DisciplineHost) -> None:
        self._host = host
        self._counts: dict[str, int] = {}
        self._steered: set[str] = set()
        self._notes: list[str] = []
        self.written = 0

    # -- how often -------------------------------------------------------------------------------------------------

    async def admit(self, bound: Bound, args: Mapping[str, Any]) -> str | None:
        """Count a call that wants to run; returns why it may not, None when it may."""
        given = _of(self._host.behavior.tool_budgets, bound)
        if given is None:
            return None
        name, limit = bound.tool.spec.name, int(given["max"])
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if count <= limit:
            return None
        host = self._host
        hit = ToolBudgetHit(name, count, limit, host.turn_id, host.id, host.session_id, args)
        mode, message = await self._decide(given.get("on_exceed", given.get("onExceed", "steer")), hit)
        if mode == "block":
            self.release(bound)
            await self._tell(hit, mode)
            return message or USED_UP.format(tool=bound.name, max=limit)
        if name not in self._steered:
            self._steered.add(name)
            self._notes.append(message or COMMIT.format(tool=bound.name, count=count, max=limit))
            await self._tell(hit, mode)
        return None

    def release(self, bound: Bound) -> None:
        """Take back the count of a call that did not run after all."""
        name = bound.tool.spec.name
        if self._counts.get(name):
            self._counts[name] -= 1

    async def _decide(self, how: Any, hit: ToolBudgetHit) -> tuple[Mode, str]:
        if how in ("steer", "block"):
            return how, ""
        where = getattr(how, "__qualname__", repr(how))
        try:
            answer = how(hit)
            if inspect.isawaitable(answer):
                async with clock.deadline(self._host.hooks.deadline):
                    answer = await answer
            mode, message = answer["mode"], answer.get("message")
            if mode not in ("steer", "block"):
                raise ValueError(f"mode is {mode!r}")
        except Exception as error:
            # As at a gate: who cannot decide does not let through.
            log.warning("on_exceed %s of %s failed: %s: %s", where, hit.tool, type(error).__name__, error)
            return "block", f"on_exceed {where} failed ({type(error).__name__}: {error})"
        return mode, str(message or "")

    async def _tell(self, hit: ToolBudgetHit, mode: Mode) -> None:
        host = self._host
        await host.record([BudgetExceeded(what=f"tool:{hit.tool}", used=hit.count, limit=hit.max, mode=mode)])
        if host.hooks.wants("tool-budget:exceeded"):
            await host.hooks.fire(
                "tool-budget:exceeded", tool=hit.tool, count=hit.count, max=hit.max, turn_id=hit.turn_id, mode=mode
            )

    # -- how much --------------------------------------------------------------------------------------------------

    async def notices(self, turn: int) -> list[str]:
        """End a turn: returns what the model is to be told before the next one."""
        used, limit = self.written, self._host.behavior.tool_output_budget
        notes, self._notes, self.written = self._notes, [], 0
        if limit is not None and used > limit:
            host = self._host
            notes.append(SUMMARISE.format(used=used, limit=limit))
            await host.record([BudgetExceeded(what="output_bytes", used=used, limit=limit, mode="steer")])
            if host.hooks.wants("budget:exceeded"):
                await host.hooks.fire("budget:exceeded", turn=turn, bytes=used, budget=limit)
        return notes

    # -- twice -----------------------------------------------------------------------------------------------------

    def key(self, bound: Bound, args: Mapping[str, Any]) -> tuple[str, str] | None:
        """Return what makes this call equal to another; None when it is to run in any case.

        A conversation that is not kept (`Agent.once`) remembers no calls either.
        """
        hasher = _of(self._host.behavior.dedup_tools, bound)
        if hasher is None or self._host.ledger.store is None:
            return None
        try:
            value: Any = hasher(args)
        except Exception as error:
            where = getattr(hasher, "__qualname__", repr(hasher))
            log.warning("dedup_tools: %s of %s failed: %s: %s", where, bound.name, type(error).__name__, error)
            return None
        return (bound.tool.spec.name, value) if isinstance(value, str) and value else None

    def recall(self, key: tuple[str, str]) -> Content | None:
        """Return the result of an equal call of this session, None when there was none."""
        return self._results().get(key)

    def remember(self, key: tuple[str, str], content: Content) -> None:
        """Keep a result for equal calls, as it was before any hook changed it."""
        results = self._results()
        results[key] = content
        while len(results) > KEPT:
            del results[next(iter(results))]

    def _results(self) -> dict[tuple[str, str], Content]:
        return self._host.state.setdefault("dedup_tools", {})


def _of(table: Mapping[str, Any], bound: Bound) -> Any:
    found = table.get(bound.tool.spec.name)
    return table.get(bound.name) if found is None else found
