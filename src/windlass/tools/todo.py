"""The model's list of what it has to do, for itself and for people who watch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import replace

from windlass.core.ports import ToolContext
from windlass.tools.access import Refusal
from windlass.tools.builtin import builtin
from windlass.tools.cutting import listed

__all__ = ["Todo", "todo_write", "todos"]

_SHOWN = 8192
_MARKS = {"pending": "[ ]", "in_progress": "[>]", "completed": "[x]"}


class Todo(Struct, frozen=True):
    """One thing to do."""

    content: Annotated[str, Meta(min_length=1)]
    status: Literal["pending", "in_progress", "completed"] = "pending"
    id: str = ""


def todos(state: dict[str, Any]) -> list[dict[str, str]]:
    """Return the list of a session, from its state: dicts of `id`, `content` and `status`, in order."""
    return list(state.get("todo", ()))


@builtin(read_only=True, idempotent=True)
async def todo_write(ctx: ToolContext, todos: Annotated[list[Todo], Meta(max_length=100)]) -> Any:
    """Replace your list of things to do. Use it for work of several steps; keep one in_progress."""
    items = [each if each.id else replace(each, id=str(number)) for number, each in enumerate(todos, 1)]
    names = [each.id for each in items]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Refusal(f"Two things to do have the id {twice!r}. Nothing was changed.")
    plan = [{"id": each.id, "content": each.content, "status": each.status} for each in items]
    ctx.state["todo"] = plan
    ctx.progress(data={"plan": [dict(each) for each in plan]})
    if not items:
        return "The list is empty."
    done = sum(each.status == "completed" for each in items)
    lines = [f"{_MARKS[each.status]} {each.content}" for each in items]
    return f"{done} of {len(items)} done.\n{listed(lines, _SHOWN, 'things', 'Keep them short.')}"
