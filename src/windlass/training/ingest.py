"""From a file or a folder to rows for training: `open_source`. Texts become tokens once, in memory or in a cache.

The cache is a folder: `tokens.bin` (a TokenBin of all texts), `ends.bin` (u64, little-endian: where each text ends),
`marks.bin` (a byte a token: 1 counts in the loss; left out when all do), and `texts.json`, which says what it was made
from. It is made under another name and renamed when it is whole. It is used again as long as the files (name, size,
time of change), the tokenizer and the format of conversations are the same; `seq_len` and the packing may change.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.training.documents import Bad, ChatFormat, Skipped, documents, text_files
from windlass.training.files import DataError, DataFile, replacing
from windlass.training.packed import PackedSource, Packing, Texts, TokenStream, highest
from windlass.training.tokenbin import TokenBin, token_bytes
from windlass.training.wdbx_write import token_blocks

__all__ = ["TextTokenizer", "open_source"]

_log = logging.getLogger(__name__)
_VERSION: Final = 1
#: Bytes of source files that are kept in memory as tokens; more goes to a cache.
IN_MEMORY: Final = 64 << 20
_ENDS: Final = np.dtype("<u8")


class TextTokenizer(Protocol):
    """What turns text into tokens; `windlass.training.tokenizer.Tokenizer` is one. `eos_id` ends a text."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int | None: ...
    def encode(self, text: str, *, special: bool = True) -> list[int]: ...


class _Told(Struct, frozen=True):
    """What `texts.json` says."""

    kind: str
    version: int
    made_from: str
    texts: int
    tokens: int
    marked: bool
    skipped: int = 0


def open_source(
    path: str | os.PathLike[str],
    tokenizer: TextTokenizer | None = None,
    seq_len: int = 512,
    *,
    vocab_size: int = 0,
    packing: Packing = "best-fit",
    separate: bool = True,
    bad: Bad = "refuse",
    chat: ChatFormat | None = None,
    cache: str | os.PathLike[str] | None = None,
    in_memory: int = IN_MEMORY,
    mapped: bool = False,
    verify: bool = True,
) -> PackedSource | TokenStream:
    """Open training data; the name's ending says what it is.

    `.bin` (TokenBin) and `.wdbx` (a dataset) hold tokens: rows are windows of them, in which, with `separate`, texts
    that the tokenizer's `eos_id` ends do not see each other. Their vocabulary is `vocab_size`, or the tokenizer's, or
    what is found by reading all. `verify` checks the sums of a WDBX file.

    `.jsonl`, `.csv`, `.txt`, `.md` and folders of these hold texts (`windlass.training.documents` says which fields)
    and need a tokenizer. Each text ends with its `eos_id`; `packing` puts several in a row. A line that cannot be used
    is refused with its number, or with `bad` "skip" left out, counted and logged.

    Texts and datasets of more than `in_memory` bytes, and any if `cache` is given, are kept as tokens in the folder
    `cache`, else in `PATH.tokens` beside the data. Files are read row by row; with `mapped` they are mapped into memory
    (for files that nobody cuts meanwhile).

    Raises DataError and its kinds for what is wrong in the data, ConfigError for options and a missing tokenizer.
    """
    where = Path(path)
    suffix = "" if where.is_dir() else where.suffix.lower()
    vocabulary = vocab_size or (tokenizer.vocab_size if tokenizer is not None else 0)
    chat = ChatFormat() if chat is None else chat
    if suffix == ".bin":
        file = TokenBin(where, mapped=mapped)
        texts = Texts(str(where), vocabulary, np.array([len(file)], np.int64), file.window)
    else:
        files = [where] if suffix == ".wdbx" else text_files(where)
        if tokenizer is None and suffix != ".wdbx":
            raise ConfigError(
                f"{where} holds text, which needs a tokenizer.", hint="Give one, or a .bin or .wdbx file."
            )
        job = _Job(where, files, tokenizer, vocabulary, bad, chat, verify)
        size = sum([_facts(file)[1] for file in files])
        if cache is not None or size > in_memory:
            folder = Path(cache) if cache is not None else where.with_name(where.name + ".tokens")
            texts = _from_cache(job, folder, mapped)
        else:
            texts = _from_memory(job)
    if texts.skipped:
        _log.warning("%s: %d texts were left out.", where, texts.skipped)
    if suffix not in (".bin", ".wdbx"):
        return PackedSource(texts, seq_len, packing=packing)
    if not vocabulary:
        texts = msgspec.structs.replace(texts, vocab_size=highest(texts) + 1)
    return TokenStream(texts, seq_len, end=tokenizer.eos_id if separate and tokenizer is not None else None)


class _Job(Struct, frozen=True):
    """What is to be turned into tokens, and how."""

    path: Path
    files: list[Path]
    tokenizer: Any
    vocab_size: int
    bad: Bad
    chat: ChatFormat
    verify: bool

    def texts(self, skipped: Skipped) -> Iterator[Iterator[tuple[list[int] | NDArray[np.uint32], bool]]]:
        """Yield each text as parts: tokens, and whether they count in the loss."""
        if self.path.suffix.lower() == ".wdbx" and not self.path.is_dir():
            yield ((block.tokens, True) for block in token_blocks(self.path, verify=self.verify))
            return
        tokenizer: TextTokenizer = self.tokenizer
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        for document in documents(self.files, bad=self.bad, chat=self.chat, skipped=skipped):

            def parts(pieces: Iterator[Any] = document.pieces) -> Iterator[tuple[list[int], bool]]:
                learned = True
                for piece in pieces:
                    learned = piece.learned
                    yield tokenizer.encode(piece.text, special=piece.special), learned
                yield end, learned

            yield parts()

    def made_from(self) -> str:
        """Return a digest of everything that the tokens depend on."""
        tokenizer = self.tokenizer
        files = getattr(tokenizer, "files", None)
        if callable(files):
            kind: Any = sorted([(name, hashlib.sha256(data).hexdigest()) for name, data in files().items()])  # pyright: ignore
        elif tokenizer is not None:
            probe = "".join([chr(code) for code in range(32, 1024)]) + " the quick brown fox, 12345;\n" * 3
            kind = [tokenizer.vocab_size, tokenizer.eos_id, tokenizer.encode(probe, special=True)]
        else:
            kind = None
        facts = [_facts(file) for file in self.files]
        told = msgspec.json.encode([_VERSION, facts, kind, self.bad, self.chat, self.verify])
        return hashlib.sha256(told).hexdigest()


def _facts(file: Path) -> tuple[str, int, int]:
    try:
        facts = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.", path=file) from error
    return os.fspath(file.resolve()), facts.st_size, facts.st_mtime_ns


def _from_memory(job: _Job) -> Texts:
    tokens, marks, ends, skipped = bytearray(), bytearray(), list[int](), Skipped()
    _write(job, skipped, tokens.extend, marks.extend, ends.append)
    kept = np.frombuffer(tokens, np.dtype("<u4")).astype(np.uint32)
    counted = np.frombuffer(marks, np.uint8)
    return Texts(
        str(job.path),
        job.vocab_size,
        np.array(ends, np.int64),
        lambda start, count: kept[start : start + count],
        None if counted.all() else lambda start, count: counted[start : start + count],
        skipped.count,
    )


def _write(
    job: _Job,
    skipped: Skipped,
    tokens: Callable[[bytes], object],
    marks: Callable[[bytes], object],
    ends: Callable[[int], object],
) -> tuple[int, bool]:
    """Give tokens, marks and ends of all texts to the functions; returns how many tokens, and whether all count."""
    total, all_count = 0, True
    for parts in job.texts(skipped):
        before = total
        for part, learned in parts:
            if len(part):
                tokens(token_bytes(part))
                marks((b"\1" if learned else b"\0") * len(part))
                total, all_count = total + len(part), all_count and learned
        if total > before:
            ends(total)
    return total, all_count


def _from_cache(job: _Job, folder: Path, mapped: bool) -> Texts:
    made_from = job.made_from()
    told = _told(folder)
    if told is None or told.made_from != made_from:
        told = _make_cache(job, folder, made_from)
    tokens = TokenBin(folder / "tokens.bin", mapped=mapped)
    marks = DataFile(folder / "marks.bin") if told.marked else None
    with DataFile(folder / "ends.bin") as file:
        ends = np.frombuffer(file.read(0, file.size // 8 * 8, "where its texts end"), _ENDS).astype(np.int64)
    whole = len(ends) == told.texts and len(tokens) == told.tokens == (int(ends[-1]) if len(ends) else 0)
    if not whole or (marks is not None and marks.size != told.tokens) or (np.diff(ends) <= 0).any():
        raise DataError(f"The cache {folder} is damaged.", path=folder, hint="Delete the folder; it is made again.")
    return Texts(
        str(job.path),
        job.vocab_size,
        ends,
        tokens.window,
        None if marks is None else _marks(marks),
        told.skipped,
    )


def _marks(file: DataFile) -> Callable[[int, int], NDArray[np.uint8]]:
    return lambda start, count: np.frombuffer(file.read(start, count, "its marks"), np.uint8)


def _told(folder: Path) -> _Told | None:
    """Return what the cache says of itself; None: there is none. Raises ConfigError for another kind of folder."""
    if not folder.exists():
        return None
    try:
        told = msgspec.json.decode((folder / "texts.json").read_bytes(), type=_Told)
    except (OSError, ValueError):
        told = None
    if told is None or told.kind != "windlass-tokens":
        raise ConfigError(f"{folder} is no cache of tokens; it is left alone.", hint="Give another folder as cache.")
    return told if told.version == _VERSION else None


def _make_cache(job: _Job, folder: Path, made_from: str) -> _Told:
    """Make the cache and put it in its place, whole."""
    making = folder.with_name(f".{folder.name[:80]}.{clock.new_id()}.part")
    try:
        making.mkdir(parents=True)
        skipped, texts = Skipped(), 0
        with (
            replacing(making / "tokens.bin") as tokens,
            replacing(making / "marks.bin") as marks,
            replacing(making / "ends.bin") as ends,
        ):

            def ended(at: int) -> None:
                nonlocal texts
                texts += 1
                ends.write(at.to_bytes(8, "little"))

            total, all_count = _write(job, skipped, tokens.write, marks.write, ended)
        if all_count:
            (making / "marks.bin").unlink()
        told = _Told("windlass-tokens", _VERSION, made_from, texts, total, not all_count, skipped.count)
        with replacing(making / "texts.json") as file:
            file.write(msgspec.json.encode(told))
        return _placed(making, folder, told)
    except OSError as error:
        raise DataError(f"The cache {folder} cannot be made: {error.strerror}.", path=folder) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _placed(making: Path, folder: Path, told: _Told) -> _Told:
    """Give a new cache its name. Another process may have made the same one meanwhile: then that one is used."""
    for _ in range(3):
        there = _told(folder)
        if there is not None and there.made_from == told.made_from:
            return there
        if folder.exists():
            old = folder.with_name(f".{folder.name[:80]}.{clock.new_id()}.old")
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        try:
            making.rename(folder)
            return told
        except OSError:
            if not folder.exists():
                raise
    raise DataError(f"Others keep writing the cache {folder}.", path=folder, hint="Give each run a cache of its own.")
