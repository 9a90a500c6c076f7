"""How the terminal looks: dark, light, or without any colour."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from windlass.core.errors import UnknownNameError

__all__ = ["THEMES", "Theme", "choose_theme"]


class Theme(Struct, frozen=True):
    """Styles by role. `styles` are rich's words, `live` prompt_toolkit's, `code` a theme of rich's for code.

    Only the terminal's own sixteen colours are used, so that its palette decides how they look.
    """

    name: str
    styles: Mapping[str, str]
    live: Mapping[str, str]
    code: str = ""

    def style(self, role: str) -> str:
        """Return rich's style of a role; an unknown one is plain."""
        return self.styles.get(role, "")


_LIVE = {"dim": "ansibrightblack", "mode": "bold", "error": "ansired", "question": "bold", "chosen": "reverse"}
_DARK = {
    "dim": "dim",
    "user": "bold cyan",
    "heading": "bold",
    "strong": "bold",
    "em": "italic",
    "strike": "strike",
    "code": "cyan",
    "link": "underline",
    "quote": "italic dim",
    "tool": "bold",
    "ok": "green",
    "error": "red",
    "warning": "yellow",
    "added": "green",
    "removed": "red",
    "added_word": "reverse green",
    "removed_word": "reverse red",
    "hunk": "cyan",
    "question": "bold yellow",
}
THEMES: dict[str, Theme] = {
    "dark": Theme("dark", _DARK, _LIVE, "ansi_dark"),
    "light": Theme(
        "light",
        {
            **_DARK,
            "user": "bold blue",
            "code": "blue",
            "warning": "magenta",
            "hunk": "blue",
            "question": "bold magenta",
        },
        _LIVE,
        "ansi_light",
    ),
    "mono": Theme("mono", {}, {"mode": "", "chosen": "reverse"}),
}


def choose_theme(wanted: str | None, environ: Mapping[str, str]) -> Theme:
    """Return the theme to use: mono where NO_COLOR or a dumb terminal asks for it, the wanted one, else a guess.

    The guess is light where COLORFGBG names a light background, else dark. Raises UnknownNameError.
    """
    if wanted and wanted not in THEMES:
        raise UnknownNameError("theme", wanted, THEMES)
    if environ.get("NO_COLOR") or environ.get("TERM", "dumb") == "dumb":
        return THEMES["mono"]
    if wanted:
        return THEMES[wanted]
    background = environ.get("COLORFGBG", "").rpartition(";")[2]
    return THEMES["light" if background in ("7", "15") else "dark"]
