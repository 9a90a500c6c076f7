"""Hooks for everyday use, each a mapping for `Agent(hooks=…)`: logging, counts, spans, caching, rate limits.

    Agent(hooks=combine_hooks(redaction_hooks(config), caching_hooks(["web_fetch"]), logging_hooks()))

What a sink can do is no hook's work: usage, cost and tools are counted by `sinks.metrics.Metrics`. Here is what only
hooks see. One mapping may serve many agents and sessions of one event loop.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import msgspec

from windlass.agent.hooks import Handler, HookContext, Hooks
from windlass.agent.ledger import output_bytes
from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.core.text import truncate, visible

__all__ = [
    "CHANGING",
    "Ranked",
    "caching_hooks",
    "combine_hooks",
    "logging_hooks",
    "metrics_hooks",
    "rate_limit_hooks",
    "tracing_hooks",
]

log = logging.getLogger("windlass.agent")
#: Built-in tools after which what was read before may be another.
CHANGING = frozenset({"apply_patch", "edit", "file", "multi_edit", "notebook_edit", "shell", "write_file"})
#: Calls whose start is remembered; those of runs that broke off would stay for ever.
_REMEMBERED = 10_000


class Ranked:
    """A handler with the priority at which `combine_hooks` puts it: lower is asked first."""

    def __init__(self, handler: Handler, priority: int) -> None:
        self._handler, self.priority = handler, priority
        #: What an error of it is called by.
        self.__qualname__ = getattr(handler, "__qualname__", repr(handler))

    def __call__(self, ctx: HookContext) -> Any:
        return self._handler(ctx)


def combine_hooks(*given: Mapping[str, Handler | Sequence[Handler]]) -> dict[str, list[Handler]]:
    """Put several mappings of hooks together, by priority, and in the order given where that is the same.

    Raises UnknownNameError for a name that is no hook.
    """
    out: dict[str, list[Handler]] = {}
    for mapping in given:
        for name, handlers in mapping.items():
            Hooks.check(name)
            out.setdefault(name, []).extend([handlers] if callable(handlers) else handlers)
    for handlers in out.values():
        handlers.sort(key=_priority)
    return out


def _priority(handler: Handler) -> int:
    return handler.priority if isinstance(handler, Ranked) else 0


class _Starts:
    """When calls began, by run and call; the oldest give way."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], Any] = OrderedDict()

    def put(self, ctx: HookContext, key: str, value: Any) -> None:
        self._kept[ctx.scope.run_id, key] = value
        if len(self._kept) > _REMEMBERED:
            self._kept.popitem(last=False)

    def take(self, ctx: HookContext, key: str) -> Any:
        return self._kept.pop((ctx.scope.run_id, key), None)

    def take_all(self, ctx: HookContext) -> list[Any]:
        """Take what is left of a run, the last first."""
        return [self._kept.pop(key) for key in [key for key in reversed(self._kept) if key[0] == ctx.scope.run_id]]


# -- logging -----------------------------------------------------------------------------------------------------------


def logging_hooks(
    logger: logging.Logger | None = None,
    *,
    level: int = logging.INFO,
    content: bool = False,
    redact: Callable[[str], str] | None = None,
) -> Mapping[str, Handler]:
    """Make hooks that log runs, turns and tool calls, a line each, with `run_id` and `session_id` in `extra`.

    Names, sizes and times are logged; `content` adds arguments and answers, on one line and cut to 500 bytes, after
    `redact` (`Redactor().redact`). The default logger is `windlass.agent`.
    """
    to, begun = logger or log, _Starts()

    def say(ctx: HookContext, text: str, *args: Any, level: int = level) -> None:
        scope = ctx.scope
        to.log(level, text, *args, extra={"run_id": scope.run_id, "session_id": scope.session_id})

    def shown(value: Any) -> str:
        if not content:
            return ""
        text = value if isinstance(value, str) else repr(value)
        return " " + visible(truncate(redact(text) if redact else text, 500)).replace("\n", "\\n")

    def start(ctx: HookContext) -> None:
        say(ctx, "run started%s", shown(ctx.prompt))

    def before(ctx: HookContext) -> None:
        begun.put(ctx, ctx.call_id, clock.monotonic())
        say(ctx, "tool %s called%s", visible(ctx.name), shown(ctx.input))

    def after(ctx: HookContext) -> None:
        since = begun.take(ctx, ctx.call_id)
        took = "" if since is None else f" after {clock.monotonic() - since:.3f} s"
        say(ctx, "tool %s answered %d bytes%s%s", visible(ctx.name), ctx.output_bytes, took, shown(ctx.result))

    def failed(ctx: HookContext) -> None:
        kind = type(ctx.error).__name__
        say(ctx, "tool %s failed: %s%s", visible(ctx.name), kind, shown(str(ctx.error)), level=logging.WARNING)

    def turn(ctx: HookContext) -> None:
        say(ctx, "turn %s used %s in, %s out", ctx.turn, ctx.usage.input_tokens, ctx.usage.output_tokens)

    def end(ctx: HookContext) -> None:
        begun.take_all(ctx)
        say(ctx, "run ended: %s", ctx.status)

    made = {
        "session:start": start, "tool:before": before, "tool:after": after, "tool:error": failed, "turn:after": turn,
        "session:end": end,
    }  # fmt: skip
    return {name: Ranked(handler, 1000) for name, handler in made.items()}


# -- counts ------------------------------------------------------------------------------------------------------------


def metrics_hooks(counts: Counter[str]) -> Mapping[str, Handler]:
    """Make hooks that count into `counts` what no event tells: `Metrics`, a sink, counts all the rest.

    `tool_rejected:NAME` (arguments that did not fit), `tool_coerced:NAME` (mended ones), `tool_unknown`,
    `cache_bust:REASON`, `context_compacted:STRATEGY`, `mcp_failed:NAME`.
    """

    def failed(ctx: HookContext) -> None:
        if not ctx.ok:
            counts[f"mcp_failed:{ctx.name}"] += 1

    def unknown(_: HookContext) -> None:
        # One name for all: a model may make up any number of them.
        counts["tool_unknown"] += 1

    def counting(prefix: str, field: str) -> Handler:
        def count(ctx: HookContext) -> None:
            counts[f"{prefix}:{getattr(ctx, field)}"] += 1

        return count

    return {
        "validation:reject": counting("tool_rejected", "name"),
        "validation:coerce": counting("tool_coerced", "name"),
        "tool:unknown": unknown,
        "cache:bust": counting("cache_bust", "reason"),
        "context:compact": counting("context_compacted", "strategy"),
        "mcp:bootstrap:end": failed,
    }


# -- spans -------------------------------------------------------------------------------------------------------------


def tracing_hooks(tracer: Any) -> Mapping[str, Handler]:
    """Make hooks that give an OpenTelemetry tracer a span for each run, turn and tool call, within each other.

    `tracer` is what `opentelemetry.trace.get_tracer(...)` returns (extra `otel`). Names and attributes are those of the
    GenAI semantic conventions; contents are left out. Model calls of the gateway are `sinks.otel.OtelSink`'s. Raises
    ConfigError where OpenTelemetry is not installed.
    """
    try:
        from opentelemetry import trace
    except ImportError as error:
        raise ConfigError("OpenTelemetry is not installed.", hint='pip install "windlass[otel]"') from error
    spans: dict[tuple[str, str], Any] = {}

    def begin(ctx: HookContext, key: str, name: str, within: str, **attributes: Any) -> None:
        parent = spans.get((ctx.scope.run_id, within))
        context = trace.set_span_in_context(parent) if parent is not None else None
        given = {f"gen_ai.{field}": value for field, value in attributes.items() if value}
        spans[ctx.scope.run_id, key] = tracer.start_span(name, context=context, attributes=given)

    def end(ctx: HookContext, key: str) -> Any:
        span = spans.pop((ctx.scope.run_id, key), None)
        if span is not None:
            span.end()
        return span

    def run_starts(ctx: HookContext) -> None:
        about = {"operation.name": "invoke_agent", "conversation.id": ctx.session_id, "agent.name": ctx.scope.agent}
        begin(ctx, "run", f"invoke_agent {ctx.scope.agent or ''}".strip(), "", **about)

    def turn_starts(ctx: HookContext) -> None:
        begin(ctx, ctx.turn_id, "chat", "run", **{"operation.name": "chat"})

    def turn_ends(ctx: HookContext) -> None:
        span = spans.get((ctx.scope.run_id, ctx.turn_id))
        if span is not None:
            span.set_attribute("gen_ai.usage.input_tokens", ctx.usage.input_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", ctx.usage.output_tokens)
        end(ctx, ctx.turn_id)

    def tool_starts(ctx: HookContext) -> None:
        about = {"operation.name": "execute_tool", "tool.name": ctx.name, "tool.call.id": ctx.call_id}
        begin(ctx, ctx.call_id, f"execute_tool {ctx.name}", "run", **about)

    def tool_fails(ctx: HookContext) -> None:
        span = spans.get((ctx.scope.run_id, ctx.call_id))
        if span is not None:
            span.set_attribute("error.type", type(ctx.error).__name__)

    def tool_ends(ctx: HookContext) -> None:
        end(ctx, ctx.call_id)

    def run_ends(ctx: HookContext) -> None:
        # A run that broke off leaves turns and calls without their end.
        for key in [key for run, key in reversed(spans) if run == ctx.scope.run_id]:
            end(ctx, key)

    return {
        "session:start": run_starts, "turn:before": turn_starts, "turn:after": turn_ends, "tool:before": tool_starts,
        "tool:error": tool_fails, "tool:after": tool_ends, "session:end": run_ends,
    }  # fmt: skip


# -- caching -----------------------------------------------------------------------------------------------------------


def caching_hooks(
    tools: Iterable[str],
    *,
    ttl: float = 300.0,
    size: int = 1000,
    max_bytes: int = 16 << 20,
    forget_after: Iterable[str] = CHANGING,
    counts: Counter[str] | None = None,
) -> Mapping[str, Handler]:
    """Make hooks that answer an equal call of the named tools from memory, within one session.

    Name only tools that read, by the names the model sees. Good answers are kept for `ttl` seconds; the least recently
    used give way to `size` and `max_bytes`. A call of a tool in `forget_after` empties what the session has. An answer
    from memory goes through the same transforms as a fresh one; `counts` gets `hits` and `misses`. Raises ConfigError.
    """
    if ttl <= 0 or size < 1 or max_bytes < 0:
        raise ConfigError(f"caching_hooks: ttl={ttl:g}, size={size}, max_bytes={max_bytes}.", hint="Use positive ones.")
    named, changing = frozenset(tools), frozenset(forget_after)
    kept: OrderedDict[tuple[str, str, bytes], tuple[float, int, Any]] = OrderedDict()
    given: set[tuple[str, str]] = set()
    held = 0

    def key_of(ctx: HookContext) -> tuple[str, str, bytes]:
        return ctx.scope.session_id, ctx.name, msgspec.json.encode(ctx.input, order="deterministic")

    def drop(key: tuple[str, str, bytes]) -> None:
        nonlocal held
        held -= kept.pop(key)[1]

    def gate(ctx: HookContext) -> None:
        if ctx.name not in named or ctx.block or ctx.result is not None:
            return
        key = key_of(ctx)
        found = kept.get(key)
        if found is not None and clock.monotonic() - found[0] >= ttl:
            drop(key)
            found = None
        if counts is not None:
            counts["misses" if found is None else "hits"] += 1
        if found is not None:
            kept.move_to_end(key)
            if len(given) >= _REMEMBERED:
                given.clear()
            given.add((ctx.scope.run_id, ctx.call_id))
            ctx.result = found[2]

    def keep(ctx: HookContext) -> None:
        nonlocal held
        if ctx.name not in named or ctx.is_error or (ctx.scope.run_id, ctx.call_id) in given:
            return
        key, bytes_ = key_of(ctx), output_bytes(ctx.result)
        if bytes_ > max_bytes:
            return
        if key in kept:
            drop(key)
        kept[key] = (clock.monotonic(), bytes_, ctx.result)
        held += bytes_
        while len(kept) > size or held > max_bytes:
            drop(next(iter(kept)))

    def after(ctx: HookContext) -> None:
        given.discard((ctx.scope.run_id, ctx.call_id))
        if ctx.name in changing:
            for key in [key for key in kept if key[0] == ctx.scope.session_id]:
                drop(key)

    return {"tool:gate": Ranked(gate, -50), "tool:transform": Ranked(keep, -1000), "tool:after": Ranked(after, 0)}


# -- rate limits -------------------------------------------------------------------------------------------------------


def rate_limit_hooks(
    limits: Mapping[str, int] | int,
    *,
    period: float = 60.0,
    over: Literal["block", "wait"] = "block",
    max_wait: float = 20.0,
) -> Mapping[str, Handler]:
    """Make a hook that lets a tool run so many times in any `period` seconds, counted over all who share the hook.

    `limits` maps a tool's name to its number, `*` to that of each other tool; a number alone is for each tool. A call
    too many is blocked with the seconds after which to try again, or waits for its turn (`over="wait"`), at most
    `max_wait` seconds, which must be less than a hook's own deadline. Answers from a cache do not count. Raises
    ConfigError.
    """
    table = {"*": limits} if isinstance(limits, int) else dict(limits)
    if period <= 0 or over not in ("block", "wait") or any(number < 1 for number in table.values()):
        raise ConfigError(f"rate_limit_hooks: {table}, period={period:g}, over={over!r}.", hint="At least 1 a period.")
    calls: dict[str, deque[float]] = {}

    async def limit(ctx: HookContext) -> None:
        most = table.get(ctx.name, table.get("*"))
        if most is None or ctx.block or ctx.result is not None:
            return
        now = clock.monotonic()
        times = calls.setdefault(ctx.name, deque())
        while times and times[0] <= now - period:
            times.popleft()
        at = max(now, times[-most] + period) if len(times) >= most else now
        if at > now and (over == "block" or at - now > max_wait):
            ctx.block = True
            ctx.reason = f"rate limit: {most} calls of {ctx.name} in {period:g} s; try again in {at - now:.0f} s"
            return
        times.append(at)
        if at > now:
            try:
                await clock.sleep(at - now)
            except BaseException:
                with suppress(ValueError):
                    times.remove(at)
                raise

    return {"tool:gate": Ranked(limit, 50)}
