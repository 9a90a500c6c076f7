"""Texts out of files that people have: JSONL, CSV, plain text, folders of these. One text at a time, bad ones named.

A line of JSONL, or a row of CSV under a line of titles, is one of

- `text`: all of it is learned,
- `prompt` and `completion`, or `input` and `output`, with `instruction` before the input where there is one: only the
  second part is learned,
- `messages`, each with `role` and `content` (JSONL only): what the assistant says is learned, the rest is read. A
  message's `weight` 0 leaves it out of the loss.

A text file is one text. Text is never read as a model's control tokens; only the marks between turns are.
"""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct

from windlass.core import json
from windlass.core.errors import ConfigError
from windlass.training.files import DataError, InvalidFormat, PayloadTooLarge

__all__ = ["Bad", "ChatFormat", "Document", "Piece", "Skipped", "documents", "text_files"]

#: What to do with a line or file that cannot be used: stop there, or leave it out and say so at the end.
Bad = Literal["refuse", "skip"]
#: Bytes of one line of JSONL or CSV.
MAX_LINE: Final = 16 << 20
_BLOCK: Final = 1 << 20
_PLAIN: Final = (".txt", ".text", ".md")
_SUFFIXES: Final = (".jsonl", ".ndjson", ".csv", *_PLAIN)
_PAIRS: Final = (("prompt", "completion"), ("input", "output"), ("instruction", "output"))


class ChatFormat(Struct, frozen=True):
    """What stands around a turn of a conversation; `{role}` is replaced. The default is ChatML.

    The marks are read as control tokens where the tokenizer has them. A model learns the assistant's words and what
    ends its turn.
    """

    before: str = "<|im_start|>{role}\n"
    after: str = "<|im_end|>\n"


class Piece(NamedTuple):
    """A part of a text: whether it counts in the loss, and whether control tokens may be read out of it."""

    text: str
    learned: bool = True
    special: bool = False


class Document(NamedTuple):
    """One text: its pieces, made as they are asked for, and where it stands (file, or file:line)."""

    pieces: Iterator[Piece]
    where: str


class Skipped:
    """Texts that were left out: how many, and the first reasons."""

    def __init__(self) -> None:
        self.count, self.reasons = 0, list[str]()

    def add(self, reason: str) -> None:
        """Note one."""
        self.count += 1
        if len(self.reasons) < 20:
            self.reasons.append(reason)


def text_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that hold texts at `path`: itself, or all in a folder, sorted by name.

    Hidden ones, links and other kinds of files in a folder are passed over. Raises DataError when there are none.
    """
    where = Path(path)
    if not where.is_dir():
        if where.suffix.lower() not in _SUFFIXES:
            raise ConfigError(
                f"{where}: its ending tells no kind of data.",
                hint=f"Known: .bin, .wdbx, {', '.join(_SUFFIXES)}, and folders of texts.",
            )
        return [where]
    found: list[Path] = []
    for folder, below, names in os.walk(where, followlinks=False):
        below[:] = sorted([name for name in below if not name.startswith(".")])
        files = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
        found += [file for file in files if file.suffix.lower() in _SUFFIXES and not file.is_symlink()]
    if not found:
        raise DataError(f"The folder {where} has no texts.", path=where, hint=f"Looked for {', '.join(_SUFFIXES)}.")
    return found


def documents(files: list[Path], *, bad: Bad, chat: ChatFormat, skipped: Skipped) -> Iterator[Document]:
    """Yield the texts of files, in order. What cannot be used is raised, or with `bad` "skip" noted in `skipped`.

    Raises InvalidFormat that names file and line (bad UTF-8, bad JSON, fields that are not there), PayloadTooLarge for
    a line over 16 MiB, DataError for a file that cannot be read.
    """
    if bad not in ("refuse", "skip"):
        raise ConfigError(f"bad is {bad!r}; it is refuse or skip.")
    for file in files:
        suffix = file.suffix.lower()
        each: Iterator[Document | DataError]
        if suffix in _PLAIN:
            each = _plain(file)
        else:
            each = _csv(file, chat) if suffix == ".csv" else _jsonl(file, chat)
        for found in each:
            if isinstance(found, Document):
                yield found
            elif bad == "refuse":
                raise found
            else:
                skipped.add(str(found))


def _open(file: Path) -> Iterator[bytes]:
    """Yield a file's bytes in blocks."""
    try:
        if not file.is_file():
            raise DataError(f"{file} is not a regular file, or not there.", path=file)
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                yield block
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.", path=file) from error


def _plain(file: Path) -> Iterator[Document | DataError]:
    """Yield a text file, whose UTF-8 is looked through before any of it is used."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    at, empty = 0, True
    try:
        for block in _open(file):
            kept = len(decoder.getstate()[0])
            at, start = at + len(block), at - kept
            try:
                empty = not decoder.decode(block) and empty
            except UnicodeDecodeError as error:
                yield InvalidFormat(f"{file}: byte {start + error.start} is not UTF-8.", path=file)
                return
        if decoder.getstate()[0]:
            yield InvalidFormat(f"{file}: it ends within a UTF-8 character.", path=file)
            return
    except DataError as error:
        yield error
        return
    if not empty:
        yield Document(_blocks(file), str(file))


def _blocks(file: Path) -> Iterator[Piece]:
    """Yield a text in pieces of about 1 MiB, cut behind a line or a word."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held = ""
    for block in _open(file):
        held += decoder.decode(block)
        cut = max(held.rfind("\n") + 1, held.rfind(" ") if "\n" not in held else 0)
        if cut > 0:
            yield Piece(held[:cut])
            held = held[cut:]
        elif len(held) > 4 * _BLOCK:
            yield Piece(held)
            held = ""
    held += decoder.decode(b"", final=True)
    if held:
        yield Piece(held)


def _lines(file: Path) -> Iterator[tuple[int, bytes | DataError]]:
    """Yield the numbers and lines of a file; one that is too long comes as an error, and reading goes on behind it."""
    number, held, dropping = 1, bytearray(), False
    for block in _open(file):
        held += block
        lines = held.split(b"\n")
        held = lines.pop()
        for line in lines:
            if dropping or len(line) > MAX_LINE:
                yield number, _too_long(file, number)
            else:
                yield number, bytes(line)
            number, dropping = number + 1, False
        if len(held) > MAX_LINE:
            held, dropping = bytearray(), True
    if held or dropping:
        yield number, _too_long(file, number) if dropping else bytes(held)


def _too_long(file: Path, number: int) -> DataError:
    return PayloadTooLarge(f"{file}:{number}: the line is longer than {MAX_LINE} bytes.", path=file)


def _jsonl(file: Path, chat: ChatFormat) -> Iterator[Document | DataError]:
    for number, line in _lines(file):
        if isinstance(line, DataError):
            yield line
        elif line.strip():
            yield _checked(file, number, chat, lambda line=line: json.loads(line))


def _csv(file: Path, chat: ChatFormat) -> Iterator[Document | DataError]:
    """Yield the rows of a CSV file, which may hold line ends in quotes; an error in the quotes ends the file."""
    at = 0

    def text() -> Iterator[str]:
        nonlocal at
        for number, line in _lines(file):
            if isinstance(line, DataError):
                raise line
            at = number
            # What is no UTF-8 is found again in its row.
            yield line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape") + "\n"

    reader = csv.reader(text(), strict=True)
    titles: list[str] | None = None
    while True:
        start = at + 1
        try:
            cells = next(reader, None)
        except DataError as error:
            yield error
            return
        except csv.Error as error:
            # Where the next row begins is not known any more.
            yield InvalidFormat(
                f"{file}:{start}: {error}; the rows behind it are not read.",
                path=file,
                hint="JSONL has no such bounds and quotes.",
            )
            return
        if cells is None:
            return
        if titles is None:
            titles = cells
        elif cells and len(cells) != len(titles):
            yield InvalidFormat(f"{file}:{start}: {len(cells)} cells under {len(titles)} titles.", path=file)
        elif any("\udc80" <= char <= "\udcff" for char in "".join(cells)):
            yield InvalidFormat(f"{file}:{start}: the row is not UTF-8.", path=file)
        elif cells:
            row = dict(zip(titles, cells, strict=True))
            row.pop("messages", None)
            yield _checked(file, start, chat, lambda row=row: row)


def _checked(file: Path, number: int, chat: ChatFormat, read: Callable[[], Any]) -> Document | InvalidFormat:
    """Return the text of a line, or the error that names it."""
    where = f"{file}:{number}"
    try:
        pieces = _pieces(read(), chat)
        for piece in pieces:
            piece.text.encode()
    except UnicodeEncodeError:
        return InvalidFormat(f"{where}: it holds half a character (a lone surrogate).", path=file)
    except ValueError as error:
        return InvalidFormat(f"{where}: {error}.", path=file)
    return Document(iter(pieces), where)


def _pieces(value: Any, chat: ChatFormat) -> list[Piece]:
    """Return the pieces of a line's object. Raises ValueError that says what is missing."""
    if not isinstance(value, dict):
        raise ValueError('it is no object; {"text": "..."} is the simplest')
    if "messages" in value:
        return _conversation(value["messages"], chat)
    if "text" in value:
        return [Piece(_string(value, "text"))]
    for asked, told in _PAIRS:
        if asked in value and told in value:
            prompt = _string(value, asked)
            if asked == "input" and value.get("instruction"):
                prompt = _string(value, "instruction") + ("\n" + prompt if prompt else "")
            return [Piece(prompt, learned=False), Piece(_string(value, told))]
    names = ", ".join([str(name)[:40] for name in list(value)[:8]])
    raise ValueError(
        f"it has no text, messages, prompt and completion, or input and output (but: {names or 'nothing'})"
    )


def _string(value: Mapping[str, Any], name: str) -> str:
    found = value[name]
    if not isinstance(found, str):
        raise ValueError(f"{name} is no text")
    return found


def _conversation(messages: Any, chat: ChatFormat) -> list[Piece]:
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages is no list of messages")
    pieces: list[Piece] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"message {number} has no role")
        if message.get("tool_calls"):
            raise ValueError(f"message {number} has tool calls: write them into content as the model is to say them")
        role, weight = message["role"], message.get("weight", 1)
        if not role.isascii() or not role.replace("_", "").isalnum() or weight not in (0, 1):
            raise ValueError(f"message {number} has the role {role[:40]!r} and the weight {weight!r}")
        learned = role == "assistant" and bool(weight)
        pieces.append(Piece(chat.before.replace("{role}", role), learned=False, special=True))
        pieces.append(Piece(_content(message.get("content"), number), learned=learned))
        pieces.append(Piece(chat.after.replace("{role}", role), learned=learned, special=True))
    return pieces


def _content(content: Any, number: int) -> str:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    found = [text for text in texts if isinstance(text, str)]
    if len(found) != len(texts):
        raise ValueError(f"message {number} holds what is no text")
    return "".join(found)
