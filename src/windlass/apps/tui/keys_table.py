"""The keys, for people: docs/terminal.md and /help show this table."""

from __future__ import annotations

__all__ = ["KEYS"]

#: For people: key, what it does.
KEYS: tuple[tuple[str, str], ...] = (
    ("Enter", "sends; while an answer runs it is queued and sent after it"),
    ("Alt-Enter, Ctrl-J, \\ Enter", "a new line"),
    ("Esc", "while an answer runs: type and Enter tells it something; Esc again stops it"),
    ("Ctrl-C", "stops the answer; again leaves with 130; clears the input where nothing runs"),
    ("Ctrl-D", "leaves, where the input is empty"),
    ("Shift-Tab", "the next permission mode"),
    ("Tab", "completes /commands and @files"),
    ("Up, Down", "earlier inputs"),
    ("Ctrl-R", "searches earlier inputs"),
    ("Ctrl-O", "shows the last tool call whole"),
    ("Ctrl-G, Ctrl-X Ctrl-E", "edits the input in $VISUAL or $EDITOR"),
    ("Ctrl-L", "draws the live lines again"),
    ("Ctrl-Z", "suspends; fg comes back"),
)
