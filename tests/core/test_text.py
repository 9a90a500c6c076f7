"""Cutting, stripping and showing text from outside."""

from __future__ import annotations

import re
import time
import unicodedata

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.text import HeadTail, strip_escapes, truncate, visible, whole_characters

MARKER = re.compile(rb"\n\[\.\.\. (\d+) bytes cut \.\.\.\]\n")


# --- truncate


def test_truncate_keeps_what_fits() -> None:
    assert truncate(b"abc", 3) == b"abc"
    assert truncate("äöü", 6) == "äöü"
    assert truncate(b"abc" * 1000, 0) == b"abc" * 1000


def test_truncate_shows_a_quarter_of_the_start_and_the_end() -> None:
    cut = truncate(b"a" * 500 + b"z" * 500, 226)
    assert cut == b"a" * 50 + b"\n[... 800 bytes cut ...]\n" + b"z" * 150
    assert len(cut) == 225  # room is kept for the four digits of the total


def test_truncate_below_the_size_of_a_marker_leaves_the_end() -> None:
    assert truncate("x" * 100 + "ende", 4) == "ende"
    assert truncate("x" * 100 + "né", 2) == "é"
    assert truncate("x" * 100 + "né", 1) == ""


@given(st.text(), st.integers(0, 400), st.integers(1, 50))
def test_truncate_splits_no_character_and_keeps_its_word(text: str, limit: int, times: int) -> None:
    raw = (text * times).encode()
    cut = truncate(raw, limit)
    cut.decode()
    assert cut == raw if not limit or len(raw) <= limit else len(cut) <= limit
    if cut != raw and (marker := MARKER.search(cut)) and limit > 60:
        assert raw.startswith(cut[: marker.start()])
        assert raw.endswith(cut[marker.end() :])
        assert int(marker[1]) == len(raw) - (len(cut) - len(marker[0]))
        # At most 3 bytes of a split character and the digits that were set aside are lost on each side.
        assert len(cut) >= limit - 10
    assert truncate(raw.decode(), limit) == cut.decode()


@given(st.binary(max_size=3000), st.lists(st.integers(0, 700), max_size=12), st.integers(0, 300))
def test_head_tail_is_truncate_for_every_split(data: bytes, cuts: list[int], limit: int) -> None:
    window = HeadTail(limit)
    at = 0
    for size in cuts:
        window.feed(data[at : at + size])
        at += size
    window.feed(data[at:])
    assert window.total == len(data)
    assert window.result() == truncate(data, limit)


def test_head_tail_refuses_a_negative_limit() -> None:
    with pytest.raises(ValueError, match="-1"):
        HeadTail(-1)


@given(st.text(min_size=1), st.integers(0, 10))
def test_whole_characters(text: str, back: int) -> None:
    raw = text.encode()
    part = whole_characters(raw[: len(raw) - back] if back else raw)
    assert raw.startswith(part)
    assert part.decode() == text[: len(part.decode())]
    assert back or part == raw


# --- strip_escapes

#: name -> what the attack sends, what may be left of it
S91 = {
    "clear": ("a\x1b[2J\x1b[Hb", "ab"),
    "clipboard": ("a\x1b]52;c;ZXZpbA==\x07b", "ab"),
    "clipboard, ST": ("a\x1b]52;c;ZXZpbA==\x1b\\b", "ab"),
    "link": ("\x1b]8;;http://evil/\x1b\\docs\x1b]8;;\x1b\\", "docs"),
    "title": ("a\x1b]0;pwned\x07b", "ab"),
    "title, 8-bit": ("a\x9d0;pwned\x9cb", "ab"),
    "DCS": ("a\x1bP+q544e\x1b\\b", "ab"),
    "APC": ("a\x1b_Gf=100;AAAA\x1b\\b", "ab"),
    "PM, SOS": ("a\x1b^x\x1b\\\x1bXy\x1b\\b", "ab"),
    "CSI, 8-bit": ("a\x9b31mred\x9b0mb", "aredb"),
    "reset": ("a\x1bcb", "ab"),
    "charset": ("a\x1b(0b", "ab"),
    "carriage return": ("rm -rf /\recho hi  ", "rm -rf /\necho hi  "),
    "CRLF": ("a\r\nb", "a\nb"),
    "backspaces": ("evil\x08\x08\x08\x08good", "evilgood"),
    "overstrike": ("N\x08NA\x08AME _\x08f_\x08o", "NAME fo"),
    "paste end": ("a\x1b[201~rm -rf /\n", "arm -rf /\n"),
    "bell and nul": ("a\x07\x00\x7fb", "ab"),
    "scroll region": ("\x1b[5;10ra", "a"),
    "alternate screen": ("\x1b[?1049ha", "a"),
    "answer back": ("a\x05\x1b[6n\x1b[cb", "ab"),
    "colours": ("\x1b[1;31mred\x1b[0m", "red"),
    "never ends": ("a\x1b]0;the rest stays readable\nb", "a0;the rest stays readable\nb"),
    "cut off by another": ("a\x1b]0;x\x1b[31mb", "ab"),
    "lone escape": ("a\x1b", "a"),
    "form feed": ("a\x0cb\x85c", "a\nb\nc"),
    "tab": ("a\tb\n", "a\tb\n"),
}


@pytest.mark.parametrize("name", S91)
def test_s91_stripped(name: str) -> None:
    attack, left = S91[name]
    assert strip_escapes(attack) == left


@pytest.mark.parametrize("name", S91)
def test_s91_leaves_a_terminal_as_plain_text_does(name: str) -> None:
    attack, left = S91[name]
    assert _terminal(strip_escapes(attack)) == _terminal(left)


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("\x1b\x9b\x9d\x90\x07\x9c\x08\r\n\t\x7f[]()0123;:?m;JHhP\\_^X \x18ab_é\x85")))
def test_s91_nothing_is_left_to_obey(text: str) -> None:
    stripped = strip_escapes(text)
    assert not any(unicodedata.category(char) == "Cc" and char not in "\n\t" for char in stripped)
    assert strip_escapes(stripped) == stripped
    screen = _terminal("start\n" + stripped)
    assert screen["title"] == ""
    assert screen["modes"] == _terminal("")["modes"]
    assert screen["first"] == "start"

    coloured = strip_escapes(text, keep_sgr=True)
    rest = re.sub(r"\x1b\[[0-9;:]*m", "", coloured)
    assert not any(unicodedata.category(char) == "Cc" and char not in "\n\t" for char in rest)
    assert "\x1b" not in coloured or coloured.endswith("\x1b[0m")
    assert rest == stripped


@given(st.text())
def test_s91_plain_text_stays(text: str) -> None:
    plain = "".join([char for char in text if unicodedata.category(char) != "Cc"])
    assert strip_escapes(plain) == plain


def test_keep_sgr_keeps_colours_only_and_resets_them() -> None:
    assert strip_escapes("\x1b[31mred\x1b[2J", keep_sgr=True) == "\x1b[31mred\x1b[0m"
    assert strip_escapes("\x9b1;38;5;200mx\x1b[0m", keep_sgr=True) == "\x1b[1;38;5;200mx\x1b[0m"
    assert strip_escapes("\x1b[>4;2mx\x1b[?25l", keep_sgr=True) == "x"
    assert strip_escapes("plain", keep_sgr=True) == "plain"


HOSTILE = [
    "\x1b]",
    "\x9d",
    "\x1b[",
    "\x1b[1;",
    "\x1b ",
    "\x1bP\x90",
    "a\x08",
    "_\x08",
    "\r",
    " ",
    "\n",
    "ж",
    "aж",
    "\u202e",
]


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_megabyte_is_linear(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.thread_time()
    strip_escapes(text)
    truncate(text, 8192)
    visible(text[:200_000])
    # A quadratic step would take minutes.
    assert time.thread_time() - start < 5.0


@pytest.mark.parametrize("text", ["\x1b]0;" + "a" * 1_000_000, "\x1b]0;aaaa" * 120_000, "\x1b[" + "1;" * 500_000])
def test_unterminated_megabyte_is_linear(text: str) -> None:
    start = time.thread_time()
    strip_escapes(text, keep_sgr=True)
    assert time.thread_time() - start < 5.0


def _terminal(text: str) -> dict[str, object]:
    screen = pyte.HistoryScreen(60, 12)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return {
        "title": screen.title,
        "modes": set(screen.mode),
        "cursor": (screen.cursor.x, screen.cursor.y),
        "scrolled": len(screen.history.top),
        "first": screen.display[0].rstrip(),
        "display": list(screen.display),
        "margins": screen.margins,
    }


# --- visible

S20 = {
    "ls\x1b[2J": r"ls\x1b[2J",
    "rm \u202eexe.txt": r"rm \u202eexe.txt",
    "ev\u200bil": r"ev\u200bil",
    "a\u00a0b": r"a\xa0b",
    "a\u3164b": r"a\u3164b",
    "a\u2800b": r"a\u2800b",
    "\U000e0041": r"\U000e0041",
    "ｒｍ": r"\uff52\uff4d",
    "p\u0430ypal": r"p\u0430ypal",
    "dr\u03bfp": r"dr\u03bfp",
    "привет мир": "привет мир",
    "naïve Ünïcode 编程 python编程": "naïve Ünïcode 编程 python编程",
    "a\tb\nc": "a\tb\nc",
    "true" + " " * 200 + "; rm -rf /": "true[200 blanks]; rm -rf /",
    "true" + "\n" * 30 + "rm -rf /": "true[30 blanks]rm -rf /",
    "true" + " \t\n" * 30 + "rm": "true[90 blanks]rm",
    "    indented\n\n\ncode": "    indented\n\n\ncode",
    "\r\x08\x7f\x9b": r"\x0d\x08\x7f\x9b",
    "\ud800": r"\ud800",
}


@pytest.mark.parametrize("text", S20)
def test_s20_visible(text: str) -> None:
    assert visible(text) == S20[text]


@given(st.text(), st.text(alphabet=st.characters(categories=("Cc", "Cf", "Zl", "Zp", "Cs", "Co"))))
def test_s20_nothing_hides(text: str, hidden: str) -> None:
    shown = visible(text + hidden + text)
    bad = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    assert not any(unicodedata.category(char) in bad and char not in "\n\t" for char in shown)
