"""`windlass tui`: the terminal, which lives in a package of its own."""

from windlass.apps.tui.main import main, parser

__all__ = ["main", "parser"]
