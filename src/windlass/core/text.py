"""Text from outside, made fit for a model, a log and a screen: cut to size, without terminal commands, nothing hidden.

All functions are pure and take time linear in their input, also for hostile input.
"""

from __future__ import annotations

import re
import unicodedata
from typing import overload

__all__ = ["HeadTail", "strip_escapes", "truncate", "visible", "whole_characters"]


@overload
def truncate(data: str, limit: int) -> str: ...
@overload
def truncate(data: bytes, limit: int) -> bytes: ...
def truncate(data: str | bytes, limit: int) -> str | bytes:
    """Return `data` in at most `limit` bytes: its start, a line `[... N bytes cut ...]`, its end.

    The one rule for long output: a quarter of the room shows how it began, the rest how it ended. `limit` counts the
    bytes of UTF-8, the marker's too; 0 is no limit. No character is split. A limit too small for a marker leaves the
    end alone. Data within the limit comes back unchanged.
    """
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if not limit or len(raw) <= limit:
        return data
    window = HeadTail(limit)
    window.feed(raw)
    cut = window.result()
    return cut.decode("utf-8", "surrogatepass") if isinstance(data, str) else cut


class HeadTail:
    """Take a stream of any length and keep what `truncate` would show of the whole; memory stays under 3 * `limit`.

    How the stream was cut into pieces makes no difference. `total` counts all bytes. A limit of 0 keeps everything.
    """

    __slots__ = ("_head", "_limit", "_tail", "total")

    def __init__(self, limit: int) -> None:
        if limit < 0:
            raise ValueError(f"limit is {limit}, it counts bytes from 0 (no limit)")
        self._limit = limit
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def feed(self, data: bytes) -> None:
        """Add the next piece."""
        self.total += len(data)
        limit, tail = self._limit, self._tail
        if not limit:
            tail += data
            return
        if missing := limit // 4 - len(self._head):
            self._head += data[:missing]
            data = data[missing:]
        if len(data) >= limit:
            tail[:] = data[-limit:]
            return
        tail += data
        # Trimmed at twice the size, so that many small pieces cost one move per `limit` bytes.
        if len(tail) > 2 * limit:
            del tail[:-limit]

    def result(self) -> bytes:
        """Return what is kept, at most `limit` bytes."""
        limit, head, tail = self._limit, bytes(self._head), bytes(self._tail)
        if not limit or self.total <= limit:
            return head + tail
        # The count has at most the digits of the total: room for those is set aside before it is known.
        room = limit - len(_marker(self.total))
        if room < limit // 2:
            return _whole_start((head + tail)[-limit:])
        head = whole_characters(head[: room // 4])
        tail = _whole_start(tail[-(room - room // 4) :])
        return head + _marker(self.total - len(head) - len(tail)) + tail


def _marker(count: int) -> bytes:
    return b"\n[... %d bytes cut ...]\n" % count


def _whole_start(data: bytes) -> bytes:
    """Drop the rest of a character that began before `data`: at most three continuation bytes."""
    at = 0
    while at < 3 and at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return data[at:]


def whole_characters(data: bytes) -> bytes:
    """Return `data` without the start of a UTF-8 character that goes on after it: at most three bytes less."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return data[:-back] if needed > back else data
    return data


# ECMA-48 and xterm's ctlseqs. The classes of one alternative exclude each other and what may start another one, and
# the repeats are possessive, so every character is looked at a bounded number of times.
_STRING_END = r"(?:\x07|\x1b\\|\x9c|\x18|\x1a|(?=[\x1b\x80-\x9f]))"
_SEQUENCE = re.compile(
    # OSC, DCS, SOS, PM, APC with their payload, when it ends; the mere introducer when it never does: a terminal
    # would wait for ever, and dropping all that follows would hide it.
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])(?:[^\x07\x18\x1a\x1b\x80-\x9f]*+" + _STRING_END + r")?+"
    # CSI: parameters, intermediates, final
    r"|(?:\x1b\[|\x9b)(?P<csi>[\x30-\x3f]*+[\x20-\x2f]*+[\x40-\x7e]?+)"
    # any other escape: ESC c, ESC 7, ESC ( B
    r"|\x1b[\x20-\x2f]*+[\x30-\x7e]?+"
)
_OVERSTRIKE = re.compile(r"_\x08(?=[^\n\x08])|([^\n\x08])\x08(?=\1)")
_NEWLINE = re.compile(r"\r\n|[\r\x0b\x0c\x85]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_CONTROL_BUT_ESC = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
_SGR = re.compile(r"[0-9;:]{0,64}m")


def strip_escapes(text: str, *, keep_sgr: bool = False) -> str:
    r"""Return `text` without anything a terminal would obey: only its characters, newlines and tabs are left.

    Gone are CSI, OSC (titles, links, clipboard), DCS, APC and the like, 7-bit and 8-bit, and single controls. Nothing
    readable is lost: a link keeps its text, what a carriage return or backspaces would have painted over stays (a lone
    carriage return, form feed or vertical tab becomes a newline; the overstrikes of man pages become plain letters).
    `keep_sgr` leaves colours and weights (`ESC [ ... m`), and resets them at the end.
    """
    if keep_sgr:
        text = _SEQUENCE.sub(_sgr_only, text)
        # Nothing but our own SGR may hold an ESC: what is left of them was put there by _sgr_only.
        control = _CONTROL_BUT_ESC
    else:
        text = _SEQUENCE.sub("", text)
        control = _CONTROL
    text = _NEWLINE.sub("\n", text)
    if "\x08" in text:
        text = _OVERSTRIKE.sub("", text)
    text = control.sub("", text)
    return text + "\x1b[0m" if keep_sgr and "\x1b[" in text and not text.endswith("\x1b[0m") else text


def _sgr_only(match: re.Match[str]) -> str:
    csi = match["csi"]
    return f"\x1b[{csi}" if csi is not None and _SGR.fullmatch(csi) else ""


#: Characters that print as nothing or as a plain space although Unicode counts them as letters or symbols.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {
    chr(code)
    for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
    for code in range(first, last + 1)
}
_HIDDEN_KINDS = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"})
_UNUSUAL = re.compile(r"[^\n\t\x20-\x7e]")
_WORD = re.compile(r"[^\W\d_]+")
_HAS_LATIN = re.compile(r"[A-Za-z]")
#: Alphabets with letters that look like Latin ones, by the start of their characters' Unicode names.
_LOOKALIKES = ("ARMENIAN ", "CHEROKEE ", "COPTIC ", "CYRILLIC ", "GEORGIAN ", "GREEK ", "LISU ")
_PADDING = re.compile(r"[ \t\n]{41,}|\n{11,}")


def visible(text: str) -> str:
    r"""Return `text` as a person must see it before approving it: what would hide, reorder or look like another.

    Controls (but newline and tab), bidirectional and zero-width characters, unusual spaces, fullwidth and other
    compatibility forms of ASCII become `\x1b`, `\u202e`, `\U000e0041`; so do letters of lookalike alphabets inside a
    word with Latin ones (Cyrillic `а` in `pаypal`), while words in one alphabet stay as they are. More than 40 blanks
    or 10 newlines in a row become `[120 blanks]`. For display only: what runs is the text itself.
    """
    if not text.isascii():
        text = _WORD.sub(_unmix, text)
    text = _UNUSUAL.sub(lambda match: _shown(match[0]), text)
    return _PADDING.sub(lambda match: f"[{len(match[0])} blanks]", text)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _shown(char: str) -> str:
    if char in _BLANK or unicodedata.category(char) in _HIDDEN_KINDS:
        return _escape(char)
    plain = unicodedata.normalize("NFKC", char)
    return _escape(char) if len(plain) == 1 and plain.isascii() else char


def _unmix(match: re.Match[str]) -> str:
    word = match[0]
    if word.isascii() or not _HAS_LATIN.search(word):
        return word
    return "".join([_escape(char) if unicodedata.name(char, "").startswith(_LOOKALIKES) else char for char in word])
