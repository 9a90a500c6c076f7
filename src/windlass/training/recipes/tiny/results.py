"""What tools answer to the calls of a task, in the words of our own tools, and what is said of it at the end."""

from __future__ import annotations

from random import Random
from typing import Final

from windlass.training.recipes.tiny import words
from windlass.training.recipes.tiny.grammar import Step

__all__ = ["ERROR", "Folder", "answer", "answer_texts", "told"]

#: What the provider puts before the text of a failed call.
ERROR: Final = "Error: "
_EMPTY, _NOTHING, _SILENT, _NO_MATCH = "(empty file)", "(empty folder)", "(no output)", "No matches found"


def told(steps: list[tuple[Step, str]], marker: str) -> str:
    """Return the closing text for the calls made and their results; after a failure the marker is left out."""
    parts = [answer(step, result) for step, result in steps]
    failed = bool(steps) and steps[-1][1].startswith(ERROR)
    return "\n".join([*parts, *([marker] if marker and not failed else [])])


def answer(step: Step, result: str) -> str:
    """Return what is said of one call's result; what the result holds is copied."""
    path = step.arguments.get("path", "")
    if result.startswith(ERROR):
        return f"That failed: {result.removeprefix(ERROR)}"
    match step.tool:
        case "write_file":
            return f"No change needed: {path}." if result.startswith("No change") else f"{result.split(' ')[0]} {path}."
        case "edit":
            return f"Edited {path}."
        case "read_file":
            return f"{path} is empty." if result == _EMPTY else f"{path} contains:\n{result}"
        case "list_files":
            return f"{path} is empty." if result == _NOTHING else f"Files in {path}:\n{result}"
        case "grep":
            found = result.startswith(_NO_MATCH)
            return f"No match for {step.arguments['pattern']} in {path}." if found else f"Found:\n{result}"
        case "shell":
            if result == _SILENT:
                return "The command ran and printed nothing."
            return f"The command failed:\n{result}" if result.startswith("Exit code ") else f"Output:\n{result}"
        case "utc":
            return f"It is {result}."
        case _:
            return result


def answer_texts() -> str:
    """Return the fixed words of results and answers, for a vocabulary."""
    return (
        "That failed Created Updated Edited contains Files in is empty Found No match for The command ran and printed "
        "nothing Exit code Output It is file not found Did you mean Directory old_string new_string replacement line "
        "lines Use list_files Error Path matches path content pattern command text system user assistant tool name "
        "read write edit list files grep shell utc echo"
    )


class Folder:
    """The files of one conversation: what was written is read again, all else is made up as it is asked for."""

    def __init__(self, rng: Random, held: bool, errors: float) -> None:
        self._rng, self._held, self._errors = rng, held, errors
        self._files: dict[str, str] = {}

    def run(self, step: Step) -> str:
        """Return the result of a call."""
        path = step.arguments.get("path", "")
        if self._rng.random() < (0.0 if path in self._files else self._errors):
            return ERROR + self._failure(step.tool, path)
        made: str = getattr(self, f"_{step.tool}")(path, step.arguments)
        return made

    def _failure(self, tool: str, path: str) -> str:
        rng = self._rng
        if tool in ("utc", "echo"):
            return rng.choice(("The tool did not answer in time.", "This tool is not available now."))
        if tool == "shell":
            return rng.choice(
                ("This workspace has no shell.", "The user denied this call.", "The command is empty, or holds a NUL.")
            )
        kind = {"list_files": "Directory", "grep": "Path"}.get(tool, "File")
        missing = f"{kind} not found: {path}"
        near = [words.file_path(rng, self._held) for _ in range(rng.choice((1, 1, 2)))]
        own = [
            missing, missing, f"{missing}. Did you mean {', '.join(near)}?", "The user denied this call.",
            f"Permission denied: {path}",
        ]  # fmt: skip
        if tool == "edit":
            lines = ", ".join([str(rng.randint(1, 99)) for _ in range(rng.choice((2, 3)))])
            own += [f"old_string not found in {path}."] * 3
            own.append(
                f"old_string is not unique in {path}: {lines.count(',') + 1} matches (lines {lines}). "
                "Add lines around it, or set replace_all."
            )
        if tool == "read_file":
            own.append(f"Not a file: {path} is a folder. Use list_files.")
        if tool == "list_files":
            own.append(f"Not a directory: {path}")
        return rng.choice(own)

    def _lines(self) -> list[str]:
        rng = self._rng
        count = rng.choices((1, 2, 3, 4, 5, 6, 9), (46, 20, 14, 8, 6, 4, 2))[0]
        kind = rng.random()
        lines = [words.content(rng, self._held) if kind < 0.7 else words.code(rng, self._held) for _ in range(count)]
        if kind > 0.8 and count > 1:
            lines = [f"    {line}" if at % 2 else line for at, line in enumerate(lines)]
        return lines

    def _read_file(self, path: str, _: dict[str, str]) -> str:
        if path not in self._files:
            self._files[path] = _EMPTY if self._rng.random() < 0.02 else "\n".join(self._lines())
        return self._files[path]

    def _write_file(self, path: str, arguments: dict[str, str]) -> str:
        old, self._files[path] = self._files.get(path), arguments["content"]
        if old == arguments["content"]:
            return f"No change needed: {path}"
        return f"{'Created' if old is None and self._rng.random() < 0.8 else 'Updated'} {path}"

    def _edit(self, path: str, arguments: dict[str, str]) -> str:
        old, new = arguments["old_string"], arguments["new_string"]
        text = self._files.get(path)
        if text is None:
            lines = self._lines()
            lines[self._rng.randrange(len(lines))] = f"{words.name(self._rng, self._held)} {old}".strip()
            text = "\n".join(lines)
        elif old not in text:
            return f"{ERROR}old_string not found in {path}."
        self._files[path] = text.replace(old, new)
        line = text[: text.index(old)].count("\n") + 1
        return self._rng.choice((f"Updated {path}: 1 replacement (line {line})",) * 3 + (f"Updated {path}",))

    def _list_files(self, path: str, _: dict[str, str]) -> str:
        rng, held = self._rng, self._held
        if rng.random() < 0.05:
            return _NOTHING
        names = {words.file_path(rng, held).rsplit("/", 1)[-1] for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 5)))}
        names |= {known for known in self._files if "/" not in known} if path == "." else set[str]()
        folders = {words.name(rng, held).lower() for _ in range(rng.choice((0, 0, 0, 1, 2)))}
        if rng.random() < 0.25:
            return "\n".join(sorted(names | folders))
        return "\n".join(sorted([f"📄 {name}" for name in names] + [f"📁 {name}/" for name in folders]))

    def _grep(self, path: str, arguments: dict[str, str]) -> str:
        rng, held = self._rng, self._held
        if rng.random() < 0.25:
            return _NO_MATCH
        where = [words.file_path(rng, held) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
        if "." in path.rsplit("/", 1)[-1] and path != ".":
            where = [path]
        if rng.random() < 0.7:
            return "\n".join(dict.fromkeys(where))
        return "\n".join(
            [f"{each}:{rng.randint(1, 200)}:{words.name(rng, held)} {arguments['pattern']}" for each in where]
        )

    def _shell(self, _: str, arguments: dict[str, str]) -> str:
        rng = self._rng
        kind = rng.random()
        if kind < 0.15:
            return _SILENT
        if arguments["command"].startswith("echo ") and ">" not in arguments["command"]:
            return arguments["command"].removeprefix("echo ")
        text = "\n".join(self._lines())
        return f"Exit code {rng.choice((1, 1, 1, 2, 127))}\n{text}" if kind < 0.25 else text

    def _utc(self, _: str, __: dict[str, str]) -> str:
        rng = self._rng
        day = f"20{rng.randint(24, 39)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
        return f"{day}T{clock}{f'.{rng.randint(0, 999999):06}' if rng.random() < 0.6 else ''}Z"

    def _echo(self, _: str, arguments: dict[str, str]) -> str:
        return arguments["text"]
