"""What the tests of routes share: scripted providers behind real names, and a server's answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from windlass.core import clock
from windlass.core.config import Config
from windlass.core.errors import OverloadedError, RateLimitError, WindlassError
from windlass.core.items import Finish, Item, NoticeItem, TextItem
from windlass.core.messages import user
from windlass.core.request import Budget, Request
from windlass.providers.attempts import Attempts
from windlass.providers.breaker import BreakerLimits
from windlass.providers.route import Route, Router
from windlass.providers.target import Target
from windlass.testing.clock import run_with_fake_clock
from windlass.testing.faults import FaultServer, Reply, Stream, sse
from windlass.testing.scripted import ScriptedProvider

T = TypeVar("T")
#: What each call comes to: an error, or None for an answer.
Outcome: TypeAlias = Callable[[Target], WindlassError | None]


def scripted(
    routes: Mapping[str, Any],
    *,
    any_path: bool = False,
    base: float = 0.5,
    **providers: Sequence[Any] | ScriptedProvider,
) -> Router:
    """Make a router whose providers play scripts (repeated for ever), by name."""
    config = Config(
        environ={}, providers={name: {"base_url": "http://127.0.0.1:9"} for name in providers}, routes=routes
    )
    for name, script in providers.items():
        made = script if isinstance(script, ScriptedProvider) else ScriptedProvider(script, name=name, repeat=True)
        config.provider(name, lambda made=made: made)
    return Router(config, any_path=any_path, base=base)


def served(
    routes: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]] | None = None, **at: FaultServer
) -> Config:
    """Make the settings of providers behind servers, each with the model `m`; `tables` adds to theirs."""
    made = {name: {"base_url": server.url, "model": "m"} for name, server in at.items()}
    for name, table in (tables or {}).items():
        made[name] = {**made.get(name, {}), **table}
    return Config(environ={}, providers=made, routes=routes)


def down(retry_after: float | None = None) -> OverloadedError:
    return OverloadedError("It is down.", status=503, retry_after=retry_after)


def limited(retry_after: float | None = None) -> RateLimitError:
    return RateLimitError("Slow down.", status=429, retry_after=retry_after)


def asking(text: str = "hi", **more: Any) -> Request:
    return Request(model="", messages=[user(text)], **more)


def budget(seconds: float | None = None, attempts: int = 10) -> Budget:
    return Budget(seconds, attempts)


def chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return json.dumps({"id": "r1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


def answer(*words: str) -> Stream:
    return Stream(sse(*[chunk(word) for word in words], chunk("", "stop"), "[DONE]"))


def failure(status: int, message: str = "no", **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "error", "code": None}}).encode()
    stated = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, body, {"content-type": "application/json", **stated})


def text_of(items: Sequence[Item]) -> str:
    return "".join([item.text for item in items if isinstance(item, TextItem)])


def notices_of(items: Sequence[Item]) -> list[NoticeItem]:
    return [item for item in items if isinstance(item, NoticeItem)]


async def ask(provider: Any, request: Request | None = None) -> tuple[list[Item], Finish]:
    """Read a whole answer and close the provider."""
    try:
        items = [item async for item in provider.stream(request or asking())]
    finally:
        await provider.close()
    finish = items[-1]
    assert isinstance(finish, Finish)
    return items, finish


def faked(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return run_with_fake_clock(main)


async def walk(attempts: Attempts, outcome: Outcome) -> list[tuple[str, float]]:
    """Ask until somebody answers or nobody is left; returns who was asked when."""
    asked: list[tuple[str, float]] = []
    while (target := await attempts.next()) is not None:
        asked.append((target.name, clock.monotonic()))
        error = outcome(target)
        if error is None:
            attempts.answered(0.1)
            break
        attempts.failed(error)
    attempts.close()
    return asked


def three(routes: Any = None, **more: Any) -> Route:
    listed = routes or ["a:x", "b:y", "c:z"]
    return scripted({"r": listed}, a=["hi"], b=["hi"], c=["hi"], **more).route("r")


def patient(route: Route) -> None:
    """Let no breaker open, to see what the rest does alone."""
    for target in route.targets:
        target.breaker.limits = BreakerLimits(failures=10**6, least=10**6)
