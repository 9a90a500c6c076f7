"""`windlass serve`: the gateway."""

from __future__ import annotations

import argparse
import gc
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec.structs import replace

from windlass.apps.cli.common import OK, Parser, configure, plain, run_async, say
from windlass.core import clock
from windlass.core.config import Config
from windlass.core.config_files import default_files
from windlass.core.errors import ConfigError
from windlass.core.threads import run_in_thread
from windlass.providers.route import Router
from windlass.server.gateway import Gateway
from windlass.server.log import logging_to
from windlass.server.protocol import Listener
from windlass.server.serve import listen, serve
from windlass.server.settings import ServerSettings, read_settings
from windlass.server.start import open_gateway
from windlass.testing.catalogue import FAULTS, parse_fault, serve_fault

__all__ = ["main", "parser"]

log = logging.getLogger("windlass.server")


def main(name: str, args: list[str]) -> int:
    """Run the command until it is told to stop."""
    options = parser(name).parse_args(args)
    if options.fault is not None:
        parse_fault(options.fault)
        return run_async(lambda: _serve_fault(options))
    return run_async(lambda: _serve(options))


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "Serve models over HTTP in every dialect that clients speak.")
    parser.add_argument("--host", type=plain, help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (8081); 0 chooses a free one")
    parser.add_argument("--config", metavar="FILE", type=plain, help="a config file in place of yours")
    parser.add_argument(
        "--reload-config",
        action="store_true",
        help="read the config file again when it changes; SIGHUP does so at once, with or without this",
    )
    parser.add_argument("--env-file", metavar="FILE", help="a file of NAME=value lines with providers' variables")
    parser.add_argument(
        "--fault",
        metavar="NAME",
        help=f"be a faulty upstream instead, for testing clients and gateways: {', '.join(sorted(FAULTS))}",
    )
    return parser


def _settings(config: Config, options: argparse.Namespace) -> ServerSettings:
    settings = read_settings(config.server, environ=config.environ)
    if options.host is not None:
        settings = replace(settings, host=options.host)
    if options.port is not None:
        settings = replace(settings, port=options.port)
    if not 0 <= settings.port < 65_536:
        raise ConfigError(f"There is no port {settings.port}.")
    return settings


async def _serve(options: argparse.Namespace) -> int:
    def read() -> Config:
        return configure(env_file=options.env_file, file=options.config)

    config = read()
    settings = _settings(config, options)
    log.setLevel(logging.DEBUG if settings.debug else logging.INFO)
    # What a model needs is told when it is loaded.
    logging.getLogger("windlass.local").setLevel(logging.INFO)
    async with AsyncExitStack() as stack:
        stack.enter_context(logging_to(settings.log))
        gateway = await open_gateway(config, settings, stack)
        await _tell_memory(gateway.router)
        sock = listen(settings.host, settings.port)
        port = sock.getsockname()[1]

        async def reload(_: Listener) -> None:
            await _reload(gateway, read(), options)

        files = [Path(options.config)] if options.config else [path for path, _ in default_files(config.environ)]
        await serve(
            gateway,
            sock,
            limits=settings.limits,
            drain_seconds=settings.drain_seconds,
            ready=lambda: _ready(f"windlass serves http://{settings.host}:{port}"),
            reload=reload,
            watch=_changes(files) if options.reload_config else None,
        )
    return OK


async def _tell_memory(router: Router) -> None:
    """Tell what the models of this machine will need, before anybody asks one."""
    for text, fits in await run_in_thread(router.local_plans):
        log.log(logging.INFO if fits else logging.WARNING, "%s", text)


def _ready(text: str) -> None:
    # What exists now lives as long as the server: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    # As a message like the others: then it comes behind what was said before.
    log.info("%s", text)


async def _reload(gateway: Gateway, config: Config, options: argparse.Namespace) -> None:
    """Take over a changed configuration; what is being answered keeps the old one, which is closed behind it."""
    settings = _settings(config, options)
    if (settings.host, settings.port) != (gateway.settings.host, gateway.settings.port):
        log.warning("host and port change only with a restart.")
        settings = replace(settings, host=gateway.settings.host, port=gateway.settings.port)
    router = Router(config)
    for problem in router.check():
        log.warning("%s", problem)
    await _tell_memory(router)
    before = gateway.replace(settings, config, router)
    log.info("the configuration was read again.")
    begun = list(gateway.running.values())
    while any(gateway.running.get(id(call)) is call for call in begun):
        await clock.sleep(0.1)
    await before.close()


def _changes(files: list[Path]) -> Callable[[], bool]:
    """Return a function that tells whether any of the files changed since it was last asked."""

    def marks() -> list[tuple[int, int] | None]:
        out: list[tuple[int, int] | None] = []
        for file in files:
            try:
                found = file.stat()
                out.append((found.st_mtime_ns, found.st_size))
            except OSError:
                out.append(None)
        return out

    seen = marks()

    def changed() -> bool:
        nonlocal seen
        before, seen = seen, marks()
        return before != seen

    return changed


async def _serve_fault(options: argparse.Namespace) -> int:
    port = 8081 if options.port is None else options.port
    await serve_fault(options.fault, options.host or "127.0.0.1", port, ready=lambda url: say(f"windlass serves {url}"))
    return OK
