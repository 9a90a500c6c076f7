"""`windlass sessions`: what was kept."""

from __future__ import annotations

import argparse
import sqlite3
import sys
from contextlib import aclosing
from pathlib import Path

from windlass.agent.agent import Agent
from windlass.agent.conversation import Conversation
from windlass.agent.ledger import Ledger
from windlass.agent.session import Session
from windlass.apps.cli.common import OK, Parser, configure, known_session, open_store, plain, read_text, run_async, say
from windlass.core import clock, json, registry
from windlass.core.config import Config
from windlass.core.errors import ConfigError, SessionError, SessionNotFound, StoreError
from windlass.core.messages import Reasoning, Text, ToolCall, ToolResponse, response_text
from windlass.core.ports import Store
from windlass.core.text import strip_escapes

__all__ = ["main", "parser"]

_FORMATS = ("jsonl", "a-json")
_FORMAT_HELP = "jsonl: every row; a-json: roles and texts, the router server's own session files"
_FILES = "windlass.server.session_files"


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    if options.verb == "salvage":
        return _salvage(options.file, options.into)
    config = configure()
    return run_async(lambda: _main(options, config))


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "List, show, fork, export, import and delete kept conversations.", "VERB ...")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"windlass {name}")
    listing = verbs.add_parser("list", help="newest first", description="List sessions, newest first.")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (default: 50)")
    for verb, text in (("show", "the conversation"), ("export", "every row as JSONL"), ("delete", "remove for good")):
        each = verbs.add_parser(verb, help=text, description=f"{verb.title()} a session: {text}.", arguments="ID")
        each.add_argument("id", metavar="ID", help="the session, as windlass sessions list shows it")
        if verb == "export":
            each.add_argument("--format", choices=_FORMATS, default="jsonl", help=_FORMAT_HELP)
            each.add_argument("--into", metavar="DIR", help="with a-json: write the router's file into this folder")
            each.add_argument("--tenant", metavar="NAME", type=plain, help="a tenant of the gateway")
    text = "sessions from files that export wrote"
    imports = verbs.add_parser("import", help=text, description=f"Import {text}.", arguments="FILE ...")
    imports.add_argument("files", metavar="FILE", nargs="+", help="the files; the sessions must not be there yet")
    imports.add_argument("--format", choices=_FORMATS, default="a-json", help=_FORMAT_HELP)
    imports.add_argument("--as", dest="new_id", type=plain, metavar="ID", help="with jsonl: the new session's id")
    text = "a new session that shares the rows so far"
    fork = verbs.add_parser("fork", help=text, description=f"Fork a session: {text}.", arguments="ID")
    fork.add_argument("id", metavar="ID", help="the session to start from")
    fork.add_argument("--turn", type=int, metavar="N", help="share up to and with this answer (1 is the first)")
    fork.add_argument("--as", dest="new_id", type=plain, metavar="ID", help="the new session's id")
    text = "every readable row of a damaged database, in a new file"
    rescue = verbs.add_parser("salvage", help=text, description=f"Salvage {text}.", arguments="FILE INTO")
    rescue.add_argument("file", metavar="FILE", help="the damaged database; it is not changed")
    rescue.add_argument("into", metavar="INTO", help="the new database; it must not exist")
    return parser


def _salvage(file: str, into: str) -> int:
    try:
        report = registry.load("windlass.stores.salvage:salvage")(file, into)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"Cannot write {into}: {error}.") from error
    gaps = sum([row.end - row.start for row in report.lost])
    say(f"Saved {report.rows} rows of {report.sessions} sessions into {into}; {file} is unchanged.")
    if report.damaged or report.lost:
        say(f"{report.damaged} damaged pages or records, {gaps} rows lost. What a session's end lost leaves no trace.")
    return OK


async def _main(options: argparse.Namespace, config: Config) -> int:
    store = open_store(config)
    try:
        if options.verb == "list":
            return await _list(store, options)
        if options.verb == "import":
            return await _import(store, options)
        if options.verb == "export" and (options.format == "a-json" or options.tenant):
            return await _export(store, options)
        await known_session(store, options.id)
        if options.verb == "show":
            return await _show(store, options.id)
        if options.verb == "export":
            export = registry.load("windlass.stores.jsonl:export_jsonl")
            async for line in export(store, options.id):
                sys.stdout.buffer.write(line if line.endswith(b"\n") else line + b"\n")
            sys.stdout.buffer.flush()
        elif options.verb == "delete":
            await store.delete(options.id)
            say(f"Deleted {options.id}.")
        else:
            await _fork(store, options, config)
        return OK
    finally:
        await store.close()


async def _export(store: Store, options: argparse.Namespace) -> int:
    """Write a session as reference A's JSON, or any tenant's as JSONL."""
    tenant = options.tenant or ""
    if not tenant:
        await known_session(store, options.id)
    elif not await store.read(options.id, 0, 1, tenant=tenant):
        raise SessionNotFound(f"Tenant {tenant!r} has no session {options.id!r}.")
    if options.format == "jsonl":
        lines = registry.load("windlass.stores.jsonl:export_jsonl")(store, options.id, tenant)
        async with aclosing(lines):
            async for line in lines:
                sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        return OK
    events = await Ledger(store, options.id, tenant=tenant).read()
    if options.into is None:
        data: bytes = registry.load(f"{_FILES}:session_json")(tenant, options.id, events)
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()
    else:
        path = registry.load(f"{_FILES}:write_session")(Path(options.into), tenant, options.id, events)
        sys.stdout.write(f"{path}\n")
    return OK


async def _import(store: Store, options: argparse.Namespace) -> int:
    """Make sessions of files. Raises StoreError for one that cannot be read, SessionError where a session is there."""
    if options.format == "jsonl":
        if options.new_id is None or len(options.files) > 1:
            raise ConfigError("Lines of JSON name no session.", hint="Import one file at a time, with --as ID.")
        await _must_be_new(store, options.new_id)
        lines = read_text(options.files[0], "the session").encode().splitlines()
        await registry.load("windlass.stores.jsonl:import_jsonl")(store, lines, options.new_id)
        sys.stdout.write(f"{options.new_id}\n")
        return OK
    for file in options.files:
        tenant, session, events = registry.load(f"{_FILES}:read_file")(Path(file))
        await _must_be_new(store, session, tenant)
        await Ledger(store, session, tenant=tenant).commit(events)
        sys.stdout.write(f"{strip_escapes(session)}\n")
    return OK


async def _must_be_new(store: Store, session: str, tenant: str = "") -> None:
    if await store.read(session, 0, 1, tenant=tenant):
        whose = f" of tenant {tenant!r}" if tenant else ""
        raise SessionError(f"There is a session {session!r}{whose} already.", hint="Delete it first.")


async def _fork(store: Store, options: argparse.Namespace, config: Config) -> None:
    if options.new_id and await store.read(options.new_id, 0, 1):
        raise SessionError(f"There is a session {options.new_id!r} already.", hint="Choose another id.")
    session = Session(Agent("echo", config=config), options.id, store)
    at = None if options.turn is None else await session.turn_position(options.turn)
    sys.stdout.write((await session.fork(at, id=options.new_id)).id + "\n")


async def _list(store: Store, options: argparse.Namespace) -> int:
    for info in await store.list(limit=options.limit):
        if options.json:
            sys.stdout.write(json.dumps(info).decode() + "\n")
        else:
            when = clock.rfc3339(info.updated)[:16].replace("T", " ")
            parent = f" (fork of {info.parent})" if info.parent else ""
            sys.stdout.write(f"{info.id}  {when}  {info.rows:>5} rows  {strip_escapes(info.title)}{parent}\n")
    return OK


async def _show(store: Store, session_id: str) -> int:
    events = await Ledger(store, session_id).read()
    conversation = Conversation.fold(events)
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, Text):
                text = part.content
            elif isinstance(part, Reasoning):
                text = f"(thinking) {part.content}"
            elif isinstance(part, ToolCall):
                text = f"→ {part.name}({part.arguments_text or json.dumps(part.arguments).decode()})"
            elif isinstance(part, ToolResponse):
                text = f"← {response_text(part)}"
            else:
                text = f"[{type(part).__name__.lower()}]"
            sys.stdout.write(f"{message.role}: {strip_escapes(text)}\n")
    return OK
