"""`windlass models`: the providers, and what one of them offers."""

from __future__ import annotations

import inspect
import sys

from windlass.apps.cli.common import OK, Parser, configure, run_async
from windlass.core import json, registry
from windlass.core.config import Config
from windlass.core.models import facts_of
from windlass.core.text import strip_escapes
from windlass.providers.oauth import has_login
from windlass.providers.vendors import VENDORS, vendor_of

__all__ = ["main", "parser"]

#: The models of a provider in this process, which nobody needs to be asked for.
_OWN = {"echo": "echo"}


def main(name: str, args: list[str]) -> int:
    """Run the command."""
    options = parser(name).parse_args(args)
    config = configure()
    if options.provider is not None:
        return run_async(lambda: _offered(options.provider, config, options.json))
    for row in _providers(config):
        if options.json:
            sys.stdout.write(json.dumps(row).decode() + "\n")
        else:
            state = "ready" if row["ready"] else f"needs {row['key']}"
            sys.stdout.write(f"{row['provider']:<12} {state:<28} {row['default_model']}\n")
    return OK


def parser(name: str) -> Parser:
    """Build the parser."""
    parser = Parser(f"windlass {name}", "List providers; with a PROVIDER, ask it for its models.", "[PROVIDER]")
    parser.add_argument("provider", nargs="?", metavar="PROVIDER", help="ask this provider")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _providers(config: Config) -> list[dict[str, object]]:
    own = config.provider_settings("local").model or "tiny-0 (built in, a demonstration)"
    rows: list[dict[str, object]] = [
        *([] if "llm" in config.off else [{"provider": "local", "ready": True, "key": "", "default_model": own}]),
        {"provider": "echo", "ready": True, "key": "", "default_model": "echo (repeats the input)"},
    ]
    for name in [*VENDORS, *[name for name in config.user_providers if name not in (*VENDORS, "local")]]:
        settings = config.provider_settings(name)
        vendor = vendor_of(settings)
        key = next((n for n in settings.key_names if not n.startswith("WINDLASS_")), settings.key_names[0])
        ready = bool(settings.api_key) or vendor.key == "optional" or has_login(settings, config)
        rows.append({"provider": name, "ready": ready, "key": key, "default_model": vendor.default_model})
    return rows


async def _offered(name: str, config: Config, as_json: bool) -> int:
    provider, _, _ = registry.model(name, config)
    listed = getattr(provider, "models", None)
    try:
        models: list[str] = await listed() if listed is not None else [_OWN.get(name, "")]
        for model in filter(None, models):
            facts, able = facts_of(name, model), getattr(provider, "capabilities", None)
            context = facts.context or (able(model).context if able is not None else None)
            row = {"model": model, "context": context, "input_price": facts.prices.input}
            sys.stdout.write((json.dumps(row).decode() if as_json else strip_escapes(model)) + "\n")
    finally:
        closing = provider.close() if hasattr(provider, "close") else None
        if inspect.isawaitable(closing):
            await closing
    return OK
