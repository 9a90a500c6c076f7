"""What the commands share: exit codes, errors for people, configuration, the session store."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn

from windlass.core import registry
from windlass.core.config import Config
from windlass.core.config_files import data_home, load_config, read_env_file
from windlass.core.errors import ConfigError, OutputError, PermissionRefused, ProviderError, WindlassError
from windlass.core.ports import Store
from windlass.core.text import strip_escapes

__all__ = ["ERROR", "INTERRUPTED", "LIMIT", "OK", "PROVIDER", "REFUSED", "USAGE", "Parser", "guarded", "open_store"]

OK, ERROR, USAGE, REFUSED, LIMIT, PROVIDER, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


class Parser(argparse.ArgumentParser):
    """argparse with our exit code for usage, and no guessing of shortened options."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"windlass {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Report a wrong use and exit with 2."""
        self.print_usage(sys.stderr)
        say(f"{self.prog}: {message}")
        raise SystemExit(USAGE)


def say(text: str) -> None:
    """Write a line for people to stderr; escapes in it are taken out."""
    sys.stderr.write(strip_escapes(text) + "\n")


def guarded(command: Callable[[str, list[str]], int], name: str, args: list[str]) -> int:
    """Run a command; errors become one line on stderr and an exit code."""
    try:
        return command(name, args)
    except WindlassError as error:
        say(f"windlass: {error}")
        return exit_code(error)
    except KeyboardInterrupt:
        say("windlass: interrupted.")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("WINDLASS_DEBUG"):
            raise
        if isinstance(error, BrokenPipeError):
            return _broken_pipe()
        say(f"windlass: internal error: {type(error).__name__}: {error}. WINDLASS_DEBUG=1 shows where.")
        return ERROR


def _broken_pipe() -> int:
    """The reader of our output went away (`| head`): no error of ours, and nothing more can be said there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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


def configure(flags: Mapping[str, Any] | None = None, env_file: str | None = None) -> Config:
    """Read the configuration, with an env file where the user names one; conflicts are told on stderr."""
    environ: dict[str, str] = dict(os.environ)
    if env_file is not None:
        named, refused = read_env_file(env_file)
        if refused:
            say(f"windlass: {env_file}: {', '.join(refused)} ignored: an env file may only set providers' variables.")
        environ.update(named)
    config = load_config(flags=flags, environ=environ)
    for notice in config.notices:
        say(f"windlass: {notice}")
    return config


def open_store(config: Config) -> Store:
    """Open the store of the user's sessions: the setting `store`, else a database in the data folder."""
    where = config.get("store")
    if where is None:
        home = data_home(config.environ)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        where = f"sqlite:{home / 'sessions.db'}"
    return registry.make("stores", where)


def run_async(make: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a coroutine on an event loop of its own, uvloop's where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(make())


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
    """Tell whether stderr takes colours: a terminal that is not dumb, and neither NO_COLOR nor the like is set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return bool(os.environ.get("CLICOLOR_FORCE")) and not os.environ.get("NO_COLOR")
    return sys.stderr.isatty() or bool(os.environ.get("CLICOLOR_FORCE"))
