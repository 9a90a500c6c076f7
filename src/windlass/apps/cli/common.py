"""What the commands share: exit codes, errors for people, configuration, the session store."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import difflib
import io
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn

from windlass.apps.cli.watchdog import watched
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.config_files import data_home, foreign_addresses, load_config, read_env_file
from windlass.core.errors import (
    ConfigError,
    OutputError,
    PermissionRefused,
    ProviderError,
    SessionNotFound,
    StoreError,
    WindlassError,
)
from windlass.core.ports import Store
from windlass.core.text import strip_escapes

__all__ = [
    "ERROR",
    "INTERRUPTED",
    "LIMIT",
    "OK",
    "PROVIDER",
    "REFUSED",
    "USAGE",
    "Parser",
    "colored",
    "configure",
    "exit_code",
    "guarded",
    "known_session",
    "open_store",
    "plain",
    "quiet",
    "read_text",
    "run_async",
    "say",
]

OK, ERROR, USAGE, REFUSED, LIMIT, PROVIDER, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

IN_MEMORY = "WINDLASS_STORE=memory goes on without keeping the conversation."


class _Formatter(argparse.HelpFormatter):
    """The same text from every version of Python."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        if not names or action.nargs == 0:
            return names or super()._format_action_invocation(action)
        return f"{names} {self._format_args(action, action.dest.upper())}"


class Parser(argparse.ArgumentParser):
    """argparse with our exit code for usage, a short usage line, and no guessing of shortened options."""

    def __init__(self, prog: str, description: str = "", arguments: str = "", *, color: bool = False) -> None:
        usage = f"{prog} [options]{f' {arguments}' if arguments else ''}"
        super().__init__(prog, usage, description, formatter_class=_Formatter, allow_abbrev=False)
        self.color = color  # Python 3.14 would colour the help

    def error(self, message: str) -> NoReturn:
        """Report a wrong use and exit with 2."""
        say(f"{self.prog}: {message}. See {self.prog} --help.")
        raise SystemExit(USAGE)


def plain(text: str) -> str:
    """Take the name of a model or a session from the command line: a line end in it would forge a header or a row."""
    if not text or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise argparse.ArgumentTypeError(f"{text!r} is empty or holds control characters")
    return text


def say(text: str) -> None:
    """Write a line for people to stderr; escapes in it are taken out."""
    with contextlib.suppress(OSError):  # nobody is left to be told: the terminal was closed
        sys.stderr.write(strip_escapes(text) + "\n")
        sys.stderr.flush()


class _Logged(logging.Handler):
    """Show what the library warns of as the command line's own words."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "windlass.watchdog" and not os.environ.get("WINDLASS_DEBUG"):
            return  # a stack helps who looks for the cause; others have only waited
        say(f"windlass: {record.getMessage()}")


def guarded(command: Callable[[str, list[str]], int], name: str, args: list[str]) -> int:
    """Run a command; errors become one line on stderr and an exit code."""
    _prepare_streams()
    logger = logging.getLogger("windlass")
    if not logger.handlers:
        logger.addHandler(_Logged(logging.WARNING))
        logger.propagate = False
    try:
        try:
            code = command(name, args)
        except SystemExit as leaving:  # argparse: help was asked for, or the use was wrong
            code = leaving.code if isinstance(leaving.code, int) else OK
        sys.stdout.flush()
    except BrokenPipeError:
        return quiet()
    except WindlassError as error:
        say(f"windlass: {error}")
        return exit_code(error)
    except KeyboardInterrupt:
        say("windlass: interrupted.")
        return INTERRUPTED
    except OSError as error:
        if error.filename is None and error.errno is not None and _cannot_write():
            say(f"windlass: cannot write the output: {error.strerror}.")
            quiet()
            return ERROR
        return _internal(error)
    except Exception as error:
        return _internal(error)
    return code


def _prepare_streams() -> None:
    for number in range(3):
        # Where one of these is closed (`>&-`) the next file or socket would take its place.
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when we were started
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - it lives as long as the program
        elif isinstance(stream, io.TextIOWrapper):
            # A model may write what the terminal's encoding does not have, or half of a surrogate pair.
            stream.reconfigure(errors="backslashreplace")


def _cannot_write() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _internal(error: Exception) -> int:
    if os.environ.get("WINDLASS_DEBUG"):
        raise error
    say(f"windlass: internal error: {type(error).__name__}: {error}. WINDLASS_DEBUG=1 shows where.")
    return ERROR


def quiet() -> int:
    """The reader of our output went away (`| head`): no error of ours, and nothing more can be said there."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return OK


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error."""
    if isinstance(error, PermissionRefused):
        return REFUSED
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, ProviderError):
        return PROVIDER
    return LIMIT if isinstance(error, OutputError) else ERROR


def configure(flags: Mapping[str, Any] | None = None, env_file: str | None = None, file: str | None = None) -> Config:
    """Read the configuration, with an env file where the user names one; conflicts are told on stderr.

    `file` is a config file that the user names in place of the usual two. Raises ConfigError when there is none.
    """
    environ: dict[str, str] = dict(os.environ)
    if env_file is not None:
        named, refused = read_env_file(env_file)
        if foreign := foreign_addresses(named, load_config(environ=environ)):
            say(f"windlass: {env_file}: {', '.join(foreign)} ignored: your own key would be sent there.")
            named = {name: value for name, value in named.items() if name not in foreign}
        if refused:
            say(
                f"windlass: {env_file}: {', '.join(refused)} ignored: an env file sets providers' variables, not where "
                "programs, folders, proxies and certificates are found."
            )
        environ.update(named)
    if file is not None and not Path(file).is_file():
        raise ConfigError(f"There is no config file {file}.")
    config = load_config(flags=flags, environ=environ, files=None if file is None else ((Path(file), True),))
    for notice in config.notices:
        say(f"windlass: {notice}")
    return config


def open_store(config: Config) -> Store:
    """Open the store of the user's sessions: the setting `store`, else a database in the data folder.

    Raises StoreError, which says how to go on without one, when the folder cannot be made.
    """
    where = config.get("store")
    if where is None:
        home = data_home(config.environ)
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"Cannot make the folder {home}: {error.strerror}.", hint=IN_MEMORY) from error
        where = f"sqlite:{home / 'sessions.db'}"
    return registry.make("stores", where)


async def known_session(store: Store, wanted: str) -> str:
    """Return the id of a kept session. Raises SessionNotFound that suggests the nearest."""
    if await store.read(wanted, 0, 1):
        return wanted
    near = difflib.get_close_matches(wanted, [info.id for info in await store.list()], n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "See windlass sessions list."
    raise SessionNotFound(f"There is no session {wanted!r}.", hint=hint)


def run_async(make: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a coroutine on an event loop of its own, uvloop's where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner, watched(runner.get_loop()):
        return runner.run(_explained(make()))


async def _explained(work: Coroutine[Any, Any, int]) -> int:
    try:
        return await work
    except StoreError as error:
        if "permissions" not in error.hint:
            raise
        raise StoreError(error.message, hint=f"Check the folder's permissions. {IN_MEMORY}") from error


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def read_text(path: str, what: str) -> str:
    """Read a text file that the user named. Raises ConfigError naming it."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not UTF-8 text (byte {error.start}).") from None


def colored() -> bool:
    """Tell whether stderr takes colours.

    NO_COLOR forbids them, then CLICOLOR_FORCE asks for them, else it is a terminal that is not dumb. See
    https://no-color.org and https://bixense.com/clicolors.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and os.environ.get("CLICOLOR") != "0"
