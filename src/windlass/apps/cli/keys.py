"""`windlass keys`: who may use the gateway, and how much of it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from windlass.accounts.book import GRACE, Accounts
from windlass.accounts.keys import KeyInfo, Limits
from windlass.accounts.place import accounts_url
from windlass.accounts.records import GROUPS, UsageRow
from windlass.apps.cli.common import OK, Parser, configure, plain, run_async, say
from windlass.core import clock, json
from windlass.core.config import Config
from windlass.core.errors import ConfigError
from windlass.core.text import strip_escapes
from windlass.core.usage import NANO, format_cost

__all__ = ["main", "parser"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_SECOND = 1_000_000_000


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    config = configure()
    return run_async(lambda: _main(options, config))


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(
        f"windlass {name}", "Make, list, revoke and rotate keys of the gateway; show what was used.", "VERB ..."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, prog=f"windlass {name}")

    def verb(name: str, text: str, arguments: str = "") -> Callable[..., argparse.Action]:
        made = verbs.add_parser(name, help=text, description=f"{name.title()}: {text}.", arguments=arguments)
        made.add_argument(
            "--store", type=plain, metavar="URL", help="sqlite:PATH or postgresql://... (default: the setting accounts)"
        )
        made.add_argument("--json", action="store_true", help="one JSON object a line")
        return made.add_argument

    add = verb("create", "a new key; its secret is shown once, on stdout", "NAME")
    add("name", metavar="NAME", help="what people call it")
    add("--tenant", type=plain, metavar="NAME", help="whom it belongs to")
    add("--role", choices=("client", "admin"), default="client", help="an admin may manage keys (default: client)")
    add(
        "--model",
        dest="models",
        action="append",
        default=[],
        metavar="PATTERN",
        help="may ask for models and routes of this name; * stands for anything (default: all)",
    )
    _limit_options(add)
    add("--expires", type=moment_to_come, metavar="WHEN", help="30d, 12h, 2027-01-31 (UTC)")
    add = verb("list", "every key, the oldest first")
    add("--tenant", type=plain, metavar="NAME", help="of this tenant only")
    verb("revoke", "it is refused from now on, everywhere within a second", "ID")(
        "id", metavar="ID", help="the key's id, or its name if no other has it"
    )
    add = verb("rotate", "a new secret for the same key, shown once, on stdout", "ID")
    add("id", metavar="ID", help="the key's id, or its name if no other has it")
    add(
        "--grace",
        type=duration,
        default=GRACE,
        metavar="TIME",
        help="how long the old secret is still taken: 0s, 2h, 7d (default: 24h)",
    )
    add = verb("tenant", "limits on what all keys of a tenant use together", "NAME")
    add("name", metavar="NAME", help="the tenant; the limits it had are replaced")
    _limit_options(add)
    add = verb("usage", "what was used, and what it cost")
    add("--by", choices=tuple(GROUPS), default="key", help="a line for each of these (default: key)")
    add("--since", type=moment_past, metavar="WHEN", help="7d (ago), 2027-01-31 (UTC)")
    add("--until", type=moment_past, metavar="WHEN", help="the same; not included")
    add("--tenant", type=plain, metavar="NAME", help="of this tenant only")
    add("--key", type=plain, metavar="ID", help="of this key only")
    return parser


def _limit_options(add: Callable[..., argparse.Action]) -> None:
    add("--rpm", type=int, metavar="N", help="requests per minute")
    add("--tpm", type=int, metavar="N", help="tokens per minute, input and output")
    add("--budget", type=money, metavar="DOLLARS", help="what may be spent in a period: 5.00")
    add("--token-budget", type=int, metavar="N", help="tokens that may be used in a period")
    add("--period", choices=("total", "day", "month"), default="total", help="of both budgets, in UTC (default: total)")


# -- what is written on the command line -------------------------------------------------------------------------------


def money(text: str) -> int:
    """Return dollars as nano-dollars, exactly."""
    try:
        nano = Decimal(text.removeprefix("$")) * NANO
        if nano.is_finite() and nano == nano.to_integral_value():
            return int(nano)
    except InvalidOperation:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no amount of dollars with up to nine decimals, such as 5.00")


def duration(text: str) -> float:
    """Return a time such as 90s, 30m, 12h, 7d or 2w in seconds."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 30m, 12h, 7d or 2w")
    return float(int(found[1]) * _UNITS[found[2]])


def moment_to_come(text: str) -> int:
    """Return the UTC nanoseconds of a date, or of a time from now."""
    return _moment(text, 1)


def moment_past(text: str) -> int:
    """Return the UTC nanoseconds of a date, or of a time ago."""
    return _moment(text, -1)


def _moment(text: str, sign: int) -> int:
    if _DURATION.fullmatch(text):
        found = clock.now_ns() + sign * round(duration(text)) * _SECOND
    else:
        try:
            date = datetime.fromisoformat(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no time such as 30d and no date such as 2027-01-31"
            ) from None
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        found = round((date - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * _SECOND
    if not 0 <= found < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is before 1970 or after 2262")
    return found


# -- the verbs ---------------------------------------------------------------------------------------------------------


async def _main(options: argparse.Namespace, config: Config) -> int:
    accounts = await Accounts.open(accounts_url(config, options.store))
    try:
        await _VERBS[options.verb](accounts, options)
    finally:
        await accounts.close()
    return OK


async def _create(accounts: Accounts, options: argparse.Namespace) -> None:
    first = not accounts.required
    key, secret = await accounts.create(
        options.name,
        tenant=options.tenant or "",
        role=options.role,
        models=options.models,
        rpm=options.rpm,
        tpm=options.tpm,
        budget=options.budget,
        token_budget=options.token_budget,
        period=options.period,
        expires=options.expires,
    )
    _hand_over(key, secret, options, f"Made key {key.key_id} ({key.name}). Its secret is shown this once.")
    if first:
        say("This is the first key: from now on the gateway answers nobody without one.")


async def _rotate(accounts: Accounts, options: argparse.Namespace) -> None:
    key, secret = await accounts.rotate(await _id_of(accounts, options.id), grace=options.grace)
    until = "now" if options.grace == 0 else _when(key.grace_until)
    _hand_over(
        key,
        secret,
        options,
        f"New secret for key {key.key_id} ({key.name}), shown this once. The old one ends: {until}.",
    )


def _hand_over(key: KeyInfo, secret: str, options: argparse.Namespace, text: str) -> None:
    if options.json:
        _print_json({**_as_dict(key), "secret": secret})
    else:
        sys.stdout.write(f"{secret}\n")
    say(text)


async def _list(accounts: Accounts, options: argparse.Namespace) -> None:
    for key in await accounts.list(tenant=options.tenant):
        if options.json:
            _print_json({**_as_dict(key), "state": _state(key)})
        else:
            tenant = f" tenant {key.tenant}" if key.tenant else ""
            about = [*_limits_of(key), *(f"model {text}" for text in key.models)]
            shown = "; ".join([f"{key.name}{tenant}", *([key.role] if key.role != "client" else []), *about])
            sys.stdout.write(
                strip_escapes(f"{key.key_id}  {key.prefix}…  {_when(key.created)}  {_state(key):<8}  {shown}") + "\n"
            )


async def _revoke(accounts: Accounts, options: argparse.Namespace) -> None:
    key_id = await _id_of(accounts, options.id)
    done = await accounts.revoke(key_id)
    if options.json:
        _print_json({"id": key_id, "revoked": done})
    say(f"Revoked {key_id}." if done else f"{key_id} was revoked before.")


async def _id_of(accounts: Accounts, wanted: str) -> str:
    """Return the id that is meant: an id, else a name. Raises ConfigError for a name that several keys in use have."""
    keys = await accounts.list()
    named = [key.key_id for key in keys if key.name == wanted and key.revoked is None]
    if not named or any(key.key_id == wanted for key in keys):
        return wanted
    if len(named) > 1:
        raise ConfigError(f"{len(named)} keys are named {wanted!r}.", hint="Give the id: windlass keys list shows it.")
    return named[0]


async def _tenant(accounts: Accounts, options: argparse.Namespace) -> None:
    limits = Limits(options.rpm, options.tpm, options.budget, options.token_budget, options.period)
    await accounts.set_tenant_limits(options.name, limits)
    if options.json:
        _print_json({"tenant": options.name, "limits": limits})
    say(f"Tenant {options.name}: {'; '.join(_limits_of(limits)) or 'no limits'}.")


async def _usage(accounts: Accounts, options: argparse.Namespace) -> None:
    rows = await accounts.usage(options.by, options.since, options.until, tenant=options.tenant, key=options.key)
    names = {key.key_id: key.name for key in await accounts.list()} if options.by == "key" else {}
    for row in rows:
        if options.json:
            _print_json(row)
        else:
            name = f"{row.name}  {names[row.name]}" if row.name in names else row.name or "(none)"
            sys.stdout.write(strip_escapes(f"{name}  {_amounts(row)}") + "\n")


_VERBS = {"create": _create, "list": _list, "revoke": _revoke, "rotate": _rotate, "tenant": _tenant, "usage": _usage}


# -- what is shown -----------------------------------------------------------------------------------------------------


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value).decode() + "\n")


def _as_dict(key: KeyInfo) -> dict[str, object]:
    return {("id" if name == "key_id" else name): getattr(key, name) for name in key.__struct_fields__}


def _when(ns: int | None) -> str:
    return "" if ns is None else clock.rfc3339(ns)[:16].replace("T", " ")


def _state(key: KeyInfo) -> str:
    if key.revoked is not None:
        return "revoked"
    return "expired" if key.expires is not None and key.expires <= clock.now_ns() else "active"


def _limits_of(limits: KeyInfo | Limits) -> list[str]:
    per = "" if limits.period == "total" else f" per {limits.period}"
    found = [
        (limits.rpm, f"{limits.rpm} requests/min"),
        (limits.tpm, f"{limits.tpm} tokens/min"),
        (limits.budget, f"{format_cost(limits.budget)}{per}"),
        (limits.token_budget, f"{limits.token_budget} tokens{per}"),
    ]
    until = [f"until {_when(limits.expires)}"] if isinstance(limits, KeyInfo) and limits.expires is not None else []
    return [text for value, text in found if value is not None] + until


def _amounts(row: UsageRow) -> str:
    unknown = f" (and {row.unknown_cost} of unknown price)" if row.unknown_cost else ""
    return (
        f"{row.requests} requests, {row.input_tokens} in ({row.cache_read_tokens} cached), {row.output_tokens} out, "
        f"{format_cost(row.cost)}{unknown}"
    )
