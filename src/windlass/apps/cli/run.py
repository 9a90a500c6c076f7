"""`windlass run`: one prompt through the house."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from windlass.agent.agent import Agent, resolve_tools
from windlass.agent.plan import RunResult
from windlass.agent.policy import Policy
from windlass.agent.presets import coding
from windlass.agent.session import Session
from windlass.apps.assembly import Assembly, assemble
from windlass.apps.cli.approve import CarefulApprover, TerminalApprover, YesApprover
from windlass.apps.cli.common import INTERRUPTED, Parser, exit_code, known_session, open_store, run_async, say
from windlass.apps.cli.display import Display, print_json, print_result, result_code
from windlass.apps.cli.interrupts import Interrupts, interruptible
from windlass.apps.cli.options import behavior_of, configuration_of, images_of, prompt_of, run_parser
from windlass.apps.cli.policy import protected_in, yolo_allowed, yolo_record
from windlass.core import registry
from windlass.core.config import Config
from windlass.core.errors import AbortedError, ConfigError, SessionNotFound, WindlassError
from windlass.core.events import DURABLE
from windlass.core.messages import Blob
from windlass.core.ports import Sink, Store, Tool, Workspace
from windlass.local.embedded import embedded_model
from windlass.sinks.record import Recorder
from windlass.workspaces.process import become_subreaper

__all__ = ["Speaker", "find_session", "main", "make_speaker", "one_run", "parser"]

#: The embedded model is offered these, which it is measured to use; a shell never.
_DEMO_TOOLS = ("read_file", "write_file", "edit", "list_files", "grep")
_DEMO_NOTICE = (
    "The small built-in model answers. It is a demonstration: it knows a few file commands and no facts. Configure a "
    "real one: windlass run -m PROVIDER:MODEL, or see windlass models."
)


class Speaker(Struct, frozen=True):
    """Who answers: the agent, and what must be said of its model."""

    agent: Agent
    notice: str = ""
    parts: Assembly | None = None
    #: What bounds a run that asks nothing, where `--yolo` was given.
    yolo: str = ""


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    prompt = prompt_of(options, parser(name))
    config = configuration_of(options)
    images = images_of(options.image)
    return run_async(lambda: interruptible(lambda interrupts: _main(interrupts, options, config, prompt, images)))


def parser(name: str) -> Parser:
    """Build the parser."""
    return run_parser(name, "Run a prompt. Text piped in is added to it as context.")


async def _main(
    interrupts: Interrupts, options: argparse.Namespace, config: Config, prompt: str | None, images: list[Blob]
) -> int:
    become_subreaper()
    speaker = make_speaker(options, config)
    store = open_store(config)
    try:
        session = await find_session(speaker.agent, options, store)
        await record_yolo(session, speaker)
        return await one_run(interrupts, speaker, session, options, prompt, images)
    finally:
        await store.close()
        await speaker.agent.destroy()


def make_speaker(options: argparse.Namespace, config: Config) -> Speaker:
    """Make the agent that the options describe; what it may do without asking depends on `--yes`."""
    model = config.default_model
    demo = is_embedded(model, config)
    if demo:
        say(f"windlass: {_DEMO_NOTICE}")
    person = TerminalApprover.open()
    tools = _tools(config.get("tools"), demo, config)
    parts = assemble(
        config,
        folder=options.workspace or ".",
        shell=any("shell" in tool.spec.name for tool in tools),
        workspace=_virtual(options),
        mode=options.mode or ("sandboxed-auto" if options.yes and not demo else None),
        sandbox=options.sandbox,
        extras=not demo and not options.bare,
    )
    for notice in parts.notices:
        say(f"windlass: {notice}")
    yolo = _yolo(options, parts)
    approver: Any = person
    if demo:
        approver = CarefulApprover(person, lambda: agent.workspace, yes=options.yes)
    elif yolo:
        approver = YesApprover(person, lambda _: None)
    elif options.yes:
        approver = YesApprover(person, protected_in(options.workspace or "."))
    agent = Agent(
        model,
        config=config,
        system=options.system if options.system is not None else None if demo else coding["system"],
        tools=tools,
        workspace=parts.workspace,
        capabilities=parts.capabilities,
        policy=Policy("ask") if demo else parts.permissions,
        approver=approver,
        behavior={} if demo else coding["behavior"],
        **behavior_of(options, config),
    )
    return Speaker(agent, _DEMO_NOTICE if demo else "", parts, yolo)


def is_embedded(model: str, config: Config) -> bool:
    """Tell whether a model's name means the one that ships with Windlass."""
    name, _, model_id = config.alias(model).partition(":")
    if name != "local":
        return False
    if model_id in ("", "default"):
        return not config.provider_settings("local").model
    return model_id == embedded_model().profile.name


def _tools(stated: str | None, demo: bool, config: Config) -> list[Tool]:
    if stated is None:
        tools = resolve_tools(_DEMO_TOOLS if demo else "coding")
        if config.get("searxng") and not demo:
            tools.append(registry.load("windlass.tools.websearch:web_search")(config))
        return tools
    tools = resolve_tools([part.strip() for part in stated.split(",") if part.strip()])
    if demo and any(tool.spec.name == "shell" for tool in tools):
        say("windlass: the built-in model gets no shell.")
        tools = [tool for tool in tools if tool.spec.name != "shell"]
    return tools


def _yolo(options: argparse.Namespace, parts: Assembly) -> str:
    """Return what bounds a run with `--yolo`. Raises PermissionRefused where nothing does (S120)."""
    if not options.yolo:
        return ""
    bound = yolo_allowed(os.environ, parts.permissions.confined)
    parts.permissions.yolo = True
    parts.permissions.mode = "yolo"
    say(f"windlass: --yolo: nothing is asked; what bounds it is {bound}.")
    return bound


def _virtual(options: argparse.Namespace) -> Workspace | None:
    if options.memory_files is None:
        return None
    if options.workspace:
        raise ConfigError("--workspace and --memory-files exclude each other.", hint="Leave one of them out.")
    files: dict[str, bytes] = {}
    for name in options.memory_files:
        top = Path(name)
        found = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        if not top.exists():
            raise ConfigError(f"--memory-files: there is nothing at {name}.")
        for path in found:
            inside = path.name if path == top else path.relative_to(top).as_posix()
            if inside in files:
                raise ConfigError(f"--memory-files: {inside} is there twice, the second time in {name}.")
            try:
                files[inside] = path.read_bytes()
            except OSError as error:
                raise ConfigError(f"--memory-files: cannot read {path}: {error.strerror}.") from error
    return registry.resolve("workspaces", "memory")(files)


async def record_yolo(session: Session, speaker: Speaker) -> None:
    """Put on record that nothing is asked in this session, and what bounds it."""
    if speaker.yolo:
        await session.create()
        await session.ledger.commit([event for event in yolo_record(speaker.yolo) if type(event) in DURABLE])


async def find_session(agent: Agent, options: argparse.Namespace, store: Store) -> Session:
    """Return the session to continue, or a new one."""
    here = str(Path(options.workspace or ".").resolve())
    wanted: str | None = options.session
    if options.resume:
        wanted = await known_session(store, options.resume)
    elif options.continue_ or options.resume is not None:
        wanted = await _last_session(store, here)
        if wanted is None:
            raise SessionNotFound("There is no session to continue in this folder.", hint="See windlass sessions list.")
    session = Session(agent, wanted, store, metadata={"folder": here})
    return await session.load()


async def _last_session(store: Store, folder: str) -> str | None:
    """Return the id of the session of this folder that was used last."""
    for info in await store.list(limit=200):
        first = await store.read(info.id, 0, 1)
        if first and msgspec.json.decode(first[0].data).get("metadata", {}).get("folder") == folder:
            return info.id
    return None


async def one_run(
    interrupts: Interrupts,
    speaker: Speaker,
    session: Session,
    options: argparse.Namespace,
    prompt: str | None,
    images: list[Blob],
) -> int:
    """Run a prompt, show it, record it if asked; returns the exit code. The first interrupt stops it."""
    agent = speaker.agent
    display = Display(options, structured="output" in agent.options, verbatim=bool(speaker.notice))
    sinks: list[Sink] = [display]
    with ExitStack() as stack:
        if options.record:
            sinks.append(stack.enter_context(Recorder(options.record)))
        run = interrupts.run = display.run = session.run(prompt, images=images, sinks=sinks)
        try:
            result: RunResult = await run
        except AbortedError as error:
            if display.failed is not None:
                return display.give_up()
            say(f"windlass: interrupted. Continue with: windlass run -r {session.id}")
            return _failed(error, session, options, INTERRUPTED)
        except WindlassError as error:
            say(f"windlass: {error}")
            return _failed(error, session, options, exit_code(error))
        finally:
            interrupts.settled()
    if display.failed is not None:
        return display.give_up()
    print_result(result, options, agent.model_name, speaker.notice)
    return result_code(result)


def _failed(error: WindlassError, session: Session, options: argparse.Namespace, code: int) -> int:
    if options.output == "json":
        print_json({"session_id": session.id, "error": error.to_dict()})
    return code
