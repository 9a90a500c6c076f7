"""Call the person back: a bell, or a desktop notice where the terminal knows one."""

from __future__ import annotations

from collections.abc import Mapping

from windlass.apps.tui.paint import one_line

__all__ = ["notice"]

_KINDS = ("auto", "off", "bell", "osc9", "osc777")


def notice(what: str, environ: Mapping[str, str], *, kind: str = "auto", terminal: bool = True) -> str:
    r"""Return the bytes that call the person, '' where nothing may be sent (no terminal, or off).

    `auto` picks OSC 9 (iTerm2, WezTerm, Ghostty, Windows Terminal), OSC 777 (VTE, foot, rxvt) or the bell by what the
    terminal says of itself; inside tmux and screen it is the bell, which they pass on. `WINDLASS_NOTIFY` names another.
    """
    kind = environ.get("WINDLASS_NOTIFY", kind)
    if kind not in _KINDS:
        kind = "auto"
    if not terminal or kind == "off" or environ.get("TERM", "dumb") in ("dumb", "linux"):
        return ""
    if kind == "auto":
        kind = _known(environ)
    text = one_line(what).replace(";", ",")[:120]
    if kind == "osc9":
        return f"\x1b]9;windlass: {text}\x1b\\"
    if kind == "osc777":
        return f"\x1b]777;notify;windlass;{text}\x1b\\"
    return "\a"


def _known(environ: Mapping[str, str]) -> str:
    if environ.get("TMUX") or environ.get("STY"):
        return "bell"
    if environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm", "ghostty") or environ.get("WT_SESSION"):
        return "osc9"
    if environ.get("VTE_VERSION") or environ.get("TERM", "").startswith(("foot", "rxvt")):
        return "osc777"
    return "bell"
