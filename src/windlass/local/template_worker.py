"""The child process that renders chat templates, `python -m windlass.local.template_worker`; `templates` starts it.

A template comes out of a model file, so that it is a stranger's program. It gets data, a sandbox without attributes of
Python's objects, no other file, a cap on memory, on time and on what it writes. One JSON object per line: in come
`TemplateLimits` first, then requests; out goes an empty answer first, then `{"text"}` or `{"error"}` for each.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from windlass.local.templates import Answer, Render, TemplateLimits

__all__ = ["main"]

#: Templates that are kept compiled.
_KEPT: Final = 32
_FOREIGN: Final = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class _Refused(Exception):
    """Say why a template is not rendered."""


class _Generation(Extension):
    """Let `{% generation %}...{% endgeneration %}`, which marks the model's own words, stand for what is in it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> str:
    raise _Refused(f"it says: {message}")


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes <, > and & for HTML; models were trained on plain JSON.
    kept: dict[str, Any] = {key: options[key] for key in ("separators", "sort_keys") if key in options}
    return json.dumps(value, ensure_ascii=options.get("ensure_ascii") is True, indent=indent, **kept)


def _environment() -> ImmutableSandboxedEnvironment:
    # As transformers does (utils/chat_template_utils.py). Prompts are text for a model, not HTML.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=[_Generation, loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    return environment


def _renderer(limits: TemplateLimits) -> Callable[[Render], str]:
    """Return a function that renders a request; it raises `_Refused`, jinja2's TemplateError and what Python raises."""
    environment = _environment()

    @functools.lru_cache(_KEPT)
    def compiled(source: str) -> Any:
        tree = environment.parse(source)
        found = next(iter(tree.find_all(_FOREIGN)), None)
        if found is not None:
            raise _Refused(f"line {found.lineno} takes in another file, and there is none")
        return environment.from_string(tree)

    def render(request: Render) -> str:
        if len(request.template) > limits.source:
            raise _Refused(f"it has {len(request.template)} characters, more than {limits.source}")
        moment = datetime.fromtimestamp(request.now, UTC)

        def strftime_now(form: str) -> str:
            return moment.strftime(form)

        variables = {"strftime_now": strftime_now, "raise_exception": _raise, **request.variables}
        pieces: list[str] = []
        length = 0
        for piece in compiled(request.template).generate(variables):
            length += len(piece)
            if length > limits.output:
                raise _Refused(f"it writes more than {limits.output} characters")
            pieces.append(piece)
        return "".join(pieces)

    return render


if sys.platform == "win32":

    def _confine(limits: TemplateLimits) -> None:
        del limits  # Windows has no such limits; the time is watched by the parent
else:
    import resource

    def _confine(limits: TemplateLimits) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, limits.memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main() -> int:
    """Answer requests until stdin ends. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines, out = sys.stdin.buffer, sys.stdout.buffer
    limits = msgspec.json.decode(lines.readline(), type=TemplateLimits)
    render = _renderer(limits)
    decoder = msgspec.json.Decoder(Render)
    _confine(limits)
    out.write(msgspec.json.encode(Answer()) + b"\n")
    out.flush()
    for line in lines:
        try:
            answer = Answer(render(decoder.decode(line)))
        except MemoryError:
            answer = Answer(error=f"it needs more than {limits.memory >> 20} MiB")
        except RecursionError:
            answer = Answer(error="it is nested too deeply")
        except _Refused as refused:
            answer = Answer(error=str(refused))
        except TemplateError as error:
            line_number = getattr(error, "lineno", None)
            answer = Answer(error=f"{error.message}" + (f" (line {line_number})" if line_number else ""))
        except Exception as error:  # whatever an expression of the template can raise
            answer = Answer(error=f"{type(error).__name__}: {error}"[:500])
        try:
            encoded = msgspec.json.encode(answer)
        except UnicodeEncodeError:
            encoded = msgspec.json.encode(Answer(error="it writes what is not Unicode text"))
        out.write(encoded + b"\n")
        out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
