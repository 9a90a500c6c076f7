"""Completion of the input line: `/command`, `@file`, and what a command takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from windlass.apps.tui.files import FileIndex, matching

__all__ = ["InputCompleter"]

_MENTION = re.compile(r'(?:^|(?<=[\s(]))@("?)([^\s"@]*)$')
_COMMAND = re.compile(r"^/([a-z-]*)$")
_ARGUMENT = re.compile(r"^/([a-z-]+)\s+(\S*)$")


class InputCompleter(Completer):
    """Completes what stands before the cursor. `arguments` gives the words that a command takes."""

    def __init__(
        self, files: FileIndex, commands: Mapping[str, str], arguments: Callable[[str], Sequence[str]]
    ) -> None:
        self._files, self._commands, self._arguments = files, commands, arguments

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield what fits, best first."""
        del complete_event
        before = document.text_before_cursor
        if (found := _COMMAND.match(before)) is not None:
            for name, text in self._commands.items():
                if name.startswith(found[1]):
                    yield Completion(f"/{name}", -len(before), display_meta=text)
        elif (found := _ARGUMENT.match(before)) is not None and found[1] in self._commands:
            for word in self._arguments(found[1]):
                if word.startswith(found[2]):
                    yield Completion(word, -len(found[2]))
        elif (found := _MENTION.search(before)) is not None:
            for path in matching(self._files.files(), found[2]):
                written = f'@"{path}"' if " " in path else f"@{path}"
                yield Completion(written, -len(found[0]), display=path)
