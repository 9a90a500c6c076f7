"""Write a run's events to a file as NDJSON, one line per event, and read them back byte for byte."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from windlass.core import json
from windlass.core.errors import ConfigError, SessionVersionError
from windlass.core.events import EVENT_SCHEMA, Event, decode_event, encode_event

__all__ = ["Recorder", "event_of_line", "read_events", "read_lines"]

log = logging.getLogger("windlass.record")


class Recorder:
    """A sink that writes every event to a file, which is emptied first and which only its owner can read.

    A line is written whole, so that a reader, or a crash, never sees half of one; a full disk stops the recording at
    the last whole line, is reported once and counted in `lost`, and never stops the run. Raises ConfigError when the
    file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.lines = 0
        self.lost = 0
        self._size = 0
        try:
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise ConfigError(f"Cannot record to {path}: {error.strerror}.", hint="Choose another file.") from error
        found = os.fstat(self._handle)
        if stat.S_ISREG(found.st_mode) and hasattr(os, "geteuid") and found.st_uid == os.geteuid():
            # The mode above counts for new files only.
            os.fchmod(self._handle, 0o600)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if self.lost or self._handle < 0:
            self.lost += 1
            return
        line = encode_line(event)
        done = 0
        try:
            # A disk that is nearly full takes a part, and refuses the next write.
            while done < len(line):
                done += os.write(self._handle, line[done:])
        except OSError as error:
            self.lost += 1
            with contextlib.suppress(OSError):  # a pipe cannot take back what it was given
                os.ftruncate(self._handle, self._size)
            log.warning("Recording to %s stopped: %s.", self.path, error.strerror)
        else:
            self.lines += 1
            self._size += done

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

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
    """Yield (line number, line as it is) of a recording, without blank ones. Raises ConfigError: it cannot be read."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ConfigError(f"Cannot read the recording {path}: {error.strerror}.") from error


def read_events(path: str | Path) -> Iterator[Event]:
    """Yield the events of a recording.

    Raises ConfigError naming the line that is no event, and SessionVersionError for a newer schema.
    """
    for number, line in read_lines(path):
        yield event_of_line(line, f"{path}, line {number}")


def event_of_line(line: bytes, where: str) -> Event:
    """Return the event of one line; `where` is how errors call it. Raises as `read_events`."""
    try:
        return decode_event(line.strip())
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, UnicodeError, RecursionError) as error:
        what = f"{type(error).__name__} {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{where}: not an event: {what}.", hint="The recording is damaged, or is none.") from None
    except ValueError as error:
        raise SessionVersionError(f"{where}: {error}.") from None
