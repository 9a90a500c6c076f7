"""`windlass sessions`: what was kept."""

from __future__ import annotations

import argparse
import sqlite3
import sys

from windlass.agent.agent import Agent
from windlass.agent.conversation import Conversation
from windlass.agent.ledger import Ledger
from windlass.agent.session import Session
from windlass.apps.cli.common import OK, Parser, configure, known_session, open_store, plain, run_async, say
from windlass.core import clock, json, registry
from windlass.core.config import Config
from windlass.core.errors import SessionError, StoreError
from windlass.core.messages import Reasoning, Text, ToolCall, ToolResponse, response_text
from windlass.core.ports import Store
from windlass.core.text import strip_escapes

__all__ = ["main", "parser"]


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    if options.verb == "salvage":
        return _salvage(options.file, options.into)
    config = configure()
    return run_async(lambda: _main(options, config))


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "List, show, fork, export and delete kept conversations.", "VERB ...")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"windlass {name}")
    listing = verbs.add_parser("list", help="newest first", description="List sessions, newest first.")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (default: 50)")
    for verb, text in (("show", "the conversation"), ("export", "every row as JSONL"), ("delete", "remove for good")):
        each = verbs.add_parser(verb, help=text, description=f"{verb.title()} a session: {text}.", arguments="ID")
        each.add_argument("id", metavar="ID", help="the session, as windlass sessions list shows it")
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
