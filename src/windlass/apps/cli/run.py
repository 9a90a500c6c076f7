"""`windlass run`: one prompt through the house."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from windlass.agent.agent import Agent
from windlass.agent.policy import Policy
from windlass.agent.presets import coding
from windlass.agent.run import Run, RunResult
from windlass.agent.session import Session
from windlass.apps.cli.approve import TerminalApprover, guard_existing
from windlass.apps.cli.common import (
    ERROR,
    INTERRUPTED,
    LIMIT,
    OK,
    REFUSED,
    colored,
    configure,
    exit_code,
    open_store,
    run_async,
    say,
)
from windlass.apps.cli.options import behavior_of, images_of, prompt_of, run_parser
from windlass.core import json, registry
from windlass.core.config import Config
from windlass.core.errors import AbortedError, ConfigError, SessionNotFound, WindlassError
from windlass.core.messages import Blob
from windlass.core.ports import Sink, Store, Workspace
from windlass.core.usage import format_cost
from windlass.sinks.console import Console, Ndjson
from windlass.sinks.record import Recorder
from windlass.workspaces.process import become_subreaper

__all__ = ["find_session", "main", "make_agent", "watched"]

#: The embedded model is offered these, which it is measured to use; a shell never.
_DEMO_TOOLS = ("read_file", "write_file", "edit", "list_files", "grep")
_WITH_SHELL = ("shell", "basic", "coding")


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    parser = run_parser(name)
    options = parser.parse_args(args)
    prompt = prompt_of(options, parser)
    env_file = options.env_file or (".env" if options.use_env else None)
    flags = {"model": options.model, "provider": options.provider, "tools": options.tools}
    if options.provider and not options.model:
        flags["model"] = options.provider
    config = configure(flags, env_file)
    images = images_of(options.image)
    return run_async(lambda: _main(options, config, prompt, images))


async def _main(options: argparse.Namespace, config: Config, prompt: str | None, images: list[Blob]) -> int:
    become_subreaper()
    agent = make_agent(options, config)
    store = open_store(config)
    try:
        session = await find_session(agent, options, store)
        sinks: list[Sink] = [_display(options, agent)]
        recorder = Recorder(options.record) if options.record else None
        if recorder is not None:
            sinks.append(recorder)
        run = session.run(prompt, images=images, sinks=sinks)
        code = await watched(run, session, options)
        if recorder is not None:
            recorder.close()
        return code
    finally:
        await store.close()
        await agent.destroy()


def make_agent(options: argparse.Namespace, config: Config) -> Agent:
    """Make the agent that the options describe; what it may do without asking depends on `--yes`."""
    model = options.model or config.default_model
    demo = is_embedded(model, config)
    notice_demo(demo)
    tools: Any = _tools(config.get("tools"), demo)
    approver = TerminalApprover.open()
    agent = Agent(
        model,
        config=config,
        system=options.system if options.system is not None else None if demo else coding["system"],
        tools=tools,
        workspace=_workspace(options),
        policy=Policy("allow" if options.yes else "ask"),
        approver=approver,
        **behavior_of(options, config),
    )
    if demo:
        # The demonstration model calls the wrong tool now and then: a file that is there is replaced only if a person
        # says so, whatever --yes allows.
        agent.hook("tool:gate")(guard_existing(agent, approver))
    return agent


def is_embedded(model: str, config: Config) -> bool:
    """Tell whether a model's name means the one that ships with Windlass."""
    return config.alias(model) in ("local", "local:", "local:tiny-0", "local:default")


def notice_demo(demo: bool) -> None:
    """Say who is speaking where it is the demonstration model."""
    if demo:
        say(
            "windlass: the small built-in model answers. It is a demonstration: it knows a few file commands and no "
            "facts. Configure a real one: windlass run -m PROVIDER:MODEL, or see windlass models."
        )


def _tools(stated: str | None, demo: bool) -> list[str]:
    names = [part.strip() for part in stated.split(",") if part.strip()] if stated is not None else []
    if stated is None:
        names = list(_DEMO_TOOLS) if demo else ["coding"]
    if demo and any(name in _WITH_SHELL for name in names):
        say("windlass: the built-in model gets no shell.")
        names = [*_DEMO_TOOLS]
    return names


def _workspace(options: argparse.Namespace) -> Workspace:
    if options.memory_files is None:
        return registry.make("workspaces", f"local:{options.workspace or '.'}")
    files: dict[str, bytes] = {}
    for name in options.memory_files:
        top = Path(name)
        found = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        if not found:
            raise ConfigError(f"--memory-files: there are no files at {name}.")
        for path in found:
            files[str(path.relative_to(top) if path != top else path.name)] = path.read_bytes()
    return registry.resolve("workspaces", "memory")(files)


async def find_session(agent: Agent, options: argparse.Namespace, store: Store) -> Session:
    """Return the session to continue, or a new one."""
    here = str(Path(options.workspace or ".").resolve())
    wanted = options.session or options.resume or None
    if wanted is None and (options.continue_ or options.resume is not None):
        wanted = await last_session(store, here)
        if wanted is None:
            raise SessionNotFound("There is no session to continue in this folder.", hint="Leave out -c.")
    elif options.resume:
        known = [info.id for info in await store.list()]
        if wanted not in known:
            raise SessionNotFound(f"There is no session {wanted!r}.", hint="See windlass sessions list.")
    session = Session(agent, wanted, store, metadata={"folder": here})
    return await session.load()


async def last_session(store: Store, folder: str) -> str | None:
    """Return the id of the session of this folder that was used last."""
    for info in await store.list(limit=200):
        first = await store.read(info.id, 0, 1)
        if first and msgspec.json.decode(first[0].data).get("metadata", {}).get("folder") == folder:
            return info.id
    return None


def _display(options: argparse.Namespace, agent: Agent) -> Sink:
    if options.output == "stream-json":
        return Ndjson()
    structured = "output" in agent.options
    demo = agent.model_name.startswith("local")
    return Console(
        color=colored(),
        verbose=options.verbose,
        verbatim=demo,
        show_text=options.output == "text" and not structured,
    )


async def watched(run: Run, session: Session, options: argparse.Namespace) -> int:
    """Await the run; the first interrupt stops it, the second leaves at once."""
    undo = on_signals(run)
    try:
        result: RunResult | None = await run
    except AbortedError:
        say(f"windlass: interrupted. Continue with: windlass run -r {session.id}")
        return INTERRUPTED
    except WindlassError as error:
        say(f"windlass: {error}")
        if options.output == "json":
            _print({"session_id": session.id, "error": error.to_dict()})
        return exit_code(error)
    finally:
        undo()
    assert result is not None
    _print_result(result, options)
    return _code(result)


def on_signals(run: Run) -> Callable[[], None]:
    """Stop the run at SIGINT, SIGTERM and SIGHUP; a second one ends the program with 130."""
    loop = asyncio.get_running_loop()
    names = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    hits = 0

    def hit() -> None:
        nonlocal hits
        hits += 1
        run.abort("interrupted")
        if hits > 1:
            for number in names:
                signal.signal(number, signal.SIG_DFL)
            sys.stdout.flush()
            # What was acknowledged is on disk; nothing more is waited for.
            os._exit(INTERRUPTED)

    try:
        for number in names:
            loop.add_signal_handler(number, hit)
    except (NotImplementedError, RuntimeError, ValueError):
        return lambda: None

    def undo() -> None:
        for number in names:
            loop.remove_signal_handler(number)

    return undo


def _print_result(result: RunResult, options: argparse.Namespace) -> None:
    if options.output == "json":
        _print(
            {
                "session_id": result.session_id,
                "run_id": result.run_id,
                "text": result.text,
                "output": result.output,
                "stop_reason": result.stop_reason,
                "detail": result.detail,
                "usage": result.usage,
                "cost": None if result.stats.cost is None else format_cost(result.stats.cost)[1:],
                "turns": result.stats.turns,
                "refused": result.refused,
                "files": _changed(result),
            }
        )
    elif options.output == "text":
        if result.output is not None:
            _print(result.output)
        if changed := _changed(result):
            say(f"changed in memory: {', '.join(sorted(changed))}")
        if result.detail:
            say(f"windlass: {result.detail}")
        if result.refused:
            say(f"windlass: refused: {', '.join(result.refused)}. Allow with --yes.")


def _changed(result: RunResult) -> dict[str, Any]:
    return dict(getattr(result.workspace, "changed", {}))


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value).decode() + "\n")
    sys.stdout.flush()


def _code(result: RunResult) -> int:
    if result.refused:
        return REFUSED
    if result.stop_reason in ("max_turns", "max_tokens", "budget", "loop"):
        return LIMIT
    return ERROR if result.stop_reason in ("error", "refusal") else OK
