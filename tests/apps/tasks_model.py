"""A model that is a program: it decides from what it was told and nothing else, over a wire or inside a process."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from tests.apps.helpers import calls, says
from windlass.core.messages import ToolCall, ToolResponse, response_text
from windlass.core.request import Request
from windlass.testing.faults import Received, Step
from windlass.testing.scripted import call

__all__ = ["TASK", "Brain", "Made", "Seen", "over_http", "within"]

#: What it says: text, or calls of tools with their arguments.
Answer: TypeAlias = "str | Sequence[tuple[str, dict[str, Any]]]"

TASK = "A test of this repository fails. Mend the fault and note it in the changelog."


class Made(Struct, frozen=True):
    """A call that was made, and what came of it."""

    name: str
    args: dict[str, Any]
    text: str


class Seen(Struct, frozen=True):
    """What the model has before it: the system text, what it was asked, what it did, and which tools it has."""

    system: list[str]
    asked: list[str]
    made: list[Made]
    tools: list[str]

    def of(self, name: str, path: str | None = None) -> list[Made]:
        """Return the calls of a tool, of one file where it is named."""
        return [one for one in self.made if one.name == name and path in (None, one.args.get("path"))]


class Brain(Struct):
    """Mends the repository of `tasks_repo`, reading before it writes and running its tests after each change.

    `probes` are commands that are tried first; `review` has a sub-agent look at the change.
    """

    probes: tuple[str, ...] = ()
    review: bool = False

    def answer(self, seen: Seen) -> Answer:
        """Return what to say or do next."""
        if seen.asked[-1].startswith("Review"):
            return self._reviewed(seen)
        if seen.asked[-1].startswith("What did you change"):
            changed = sorted({str(one.args["path"]) for one in seen.of("edit")})
            return f"You asked: {seen.asked[0]} I changed {' and '.join(changed)}."
        return self._mended(seen)

    def _mended(self, seen: Seen) -> Answer:
        if any(one.text.startswith("Blocked:") for one in seen.made):
            return "I may not do that here. I would let merge() join spans that touch."
        tried = [one.args["command"] for one in seen.of("shell")]
        if left := [each for each in self.probes if each not in tried]:
            return [("shell", {"command": left[0]})]
        if not (found := seen.of("grep")):
            return [("grep", {"pattern": r"def merge\b", "output_mode": "content"})]
        source = found[0].text.split(":", 1)[0]
        if not seen.of("read_file", source):
            return [("read_file", {"path": source}), ("read_file", {"path": "tests/test_spans.py"})]
        if next_step := self._next(seen, source):
            return next_step
        return self._noted(seen)

    def _next(self, seen: Seen, source: str) -> Answer | None:
        """Return the next edit or run of the tests; None once they pass (or once it is right, where none can run)."""
        edits = seen.of("edit", source)
        line = str(edits[-1].args["new_string"]) if edits else "        if out and start < out[-1][1]:"
        if "shell" not in seen.tools or any("has no shell" in one.text for one in seen.of("shell")):
            expected = seen.of("read_file", "tests/test_spans.py")[0].text
            if "merge([(1, 3), (3, 5)]), [(1, 5)]" not in expected:
                return f"I am lost: {expected}"
            return None if edits else _edit(source, line, line.replace("<", "<="))
        found = re.search(r"Run the tests with `([^`]+)`", "\n".join(seen.system))
        command = found[1] if found else "python3 -m unittest -q"
        runs = [index for index, one in enumerate(seen.made) if one.args.get("command") == command]
        changed = [index for index, one in enumerate(seen.made) if one.name == "edit"]
        if not runs or (changed and changed[-1] > runs[-1]):
            return [("shell", {"command": command})]
        report = seen.made[runs[-1]].text
        if report.rstrip().endswith("OK"):
            return None
        failed = re.findall(r"^FAIL: (\w+)", report, re.MULTILINE)
        if failed == ["test_touching"]:
            # Too much: now it joins across a gap, which only the tests tell.
            return _edit(source, line, line.replace("< out[-1][1]", "<= out[-1][1] + 1"))
        if failed == ["test_a_gap_stays"]:
            return _edit(source, line, line.replace(" + 1", ""))
        return f"I am lost: {report}"

    def _noted(self, seen: Seen) -> Answer:
        """Write the changelog as the repository's skill says, where there is one."""
        if "skills_use" in seen.tools and not seen.of("skills_use"):
            return [("skills_use", {"name": "changelog"})]
        if not seen.of("read_file", "CHANGELOG.md"):
            return [("read_file", {"path": "CHANGELOG.md"})]
        if not seen.of("edit", "CHANGELOG.md"):
            form = re.search(r"`(- [^`]*)WHAT\.`", "".join([one.text for one in seen.of("skills_use")]))
            row = f"{form[1] if form else '- Mended: '}spans that touch are joined."
            return _edit("CHANGELOG.md", "## Unreleased\n", f"## Unreleased\n\n{row}\n")
        if self.review and not seen.of("spawn"):
            return [("spawn", {"task": "Review spans/merging.py: do spans that touch become one?"})]
        said = seen.of("spawn")[0].text.rsplit("\n", 1)[-1] if self.review else ""
        return f"merge() joins spans that touch now. {said}".rstrip()

    def _reviewed(self, seen: Seen) -> Answer:
        if not seen.made:
            return [("read_file", {"path": "spans/merging.py"})]
        return "Reviewed: it is right." if "start <= out[-1][1]:" in seen.made[0].text else "Reviewed: it is wrong."


def _edit(path: str, old: str, new: str) -> Answer:
    return [("edit", {"path": path, "old_string": old, "new_string": new})]


# -- the two ways to ask it --------------------------------------------------------------------------------------------


def over_http(brain: Brain, received: Received) -> Step:
    """Answer a request of the chat dialect, for FaultServer."""
    body = json.loads(received.body)
    seen = Seen([], [], [], [each["function"]["name"] for each in body.get("tools", [])])
    wanted: dict[str, Any] = {}
    for one in body["messages"]:
        if one["role"] == "tool":
            function = wanted[one["tool_call_id"]]
            seen.made.append(Made(function["name"], json.loads(function["arguments"]), str(one["content"])))
        elif one["role"] == "assistant":
            wanted.update({each["id"]: each["function"] for each in one.get("tool_calls") or []})
        else:
            (seen.system if one["role"] == "system" else seen.asked).append(str(one["content"]))
    said = brain.answer(seen)
    return says(said) if isinstance(said, str) else calls(*said)


def within(brain: Brain, request: Request) -> str | list[ToolCall]:
    """Answer a request inside the process, for ScriptedProvider."""
    seen = Seen([request.system or ""], [], [], [spec.name for spec in request.tools])
    wanted: dict[str, ToolCall] = {}
    for message in request.messages:
        if message.role == "user":
            seen.asked.append(message.text)
        for part in message.parts:
            if isinstance(part, ToolCall):
                wanted[part.id] = part
            elif isinstance(part, ToolResponse):
                made = wanted[part.id]
                seen.made.append(Made(made.name, made.arguments or {}, response_text(part)))
    said = brain.answer(seen)
    return said if isinstance(said, str) else [call(name, **args) for name, args in said]
