"""Write a run's events to a file as NDJSON, one line per event, and read them back byte for byte."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from windlass.core import json
from windlass.core.errors import ConfigError, SessionVersionError
from windlass.core.events import EVENT_SCHEMA, Event, decode_event, encode_event

__all__ = ["Recorder", "read_events", "read_lines"]

log = logging.getLogger("windlass.record")


class Recorder:
    """A sink that appends every event to a file, which only its owner can read.

    A line is written whole and flushed, so that a reader, or a crash, never sees half of one; a full disk stops the
    recording, is reported once and counted in `lost`, and never stops the run. Raises ConfigError when the file cannot
    be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lines = 0
        self.lost = 0
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise ConfigError(f"Cannot record to {path}: {error.strerror}.", hint="Choose another file.") from error
        self._file: BinaryIO = os.fdopen(handle, "wb", buffering=0)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if self.lost:
            self.lost += 1
            return
        try:
            self._file.write(encode_line(event))
            self.lines += 1
        except OSError as error:
            self.lost += 1
            log.warning("Recording to %s stopped: %s.", self.path, error.strerror)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode_line(event: Event) -> bytes:
    """Return an event as a line of NDJSON; what JSON cannot carry is escaped reversibly."""
    try:
        return encode_event(event) + b"\n"
    except (UnicodeEncodeError, OverflowError):
        return b'{"v":%d,' % EVENT_SCHEMA + json.dumps_stored(event)[1:] + b"\n"


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line without its newline) of a recording. Raises ConfigError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"Cannot read the recording {path}: {error.strerror}.") from error


def read_events(path: str | Path) -> Iterator[Event]:
    """Yield the events of a recording.

    Raises ConfigError naming the line that is no event, and SessionVersionError for a newer schema.
    """
    for number, line in read_lines(path):
        try:
            yield decode_event(line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}, line {number}: not an event: {error}.") from None
        except ValueError as error:
            raise SessionVersionError(f"{path}, line {number}: {error}.") from None
