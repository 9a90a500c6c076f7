"""Send the sixteen faults of the catalogue through a gateway on this machine, and tell what becomes of each.

Everything runs in this process on free ports of 127.0.0.1: the faulty models, a gateway whose routes go from each of
them to one that answers, and a client. Nothing leaves the machine; what the gateway keeps is in a folder that is gone
afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec import Struct

from windlass.accounts.records import RequestRecord
from windlass.core import clock
from windlass.core.config import Config
from windlass.core.errors import ProviderError, WindlassError
from windlass.core.http import Client, Timeouts
from windlass.core.items import Finish, TextItem
from windlass.core.json import dumps
from windlass.core.routes import RouteSettings, RouteTarget
from windlass.server.job import Job
from windlass.server.protocol import Listener
from windlass.server.serve import listen
from windlass.server.settings import ServerSettings
from windlass.server.start import open_gateway
from windlass.testing.answers import TOKENS
from windlass.testing.catalogue import FAULTS, OK, Fault
from windlass.wire.openai_chat import DIALECT

__all__ = ["Case", "run_campaign"]

WHOLE = "".join(TOKENS)
#: Seconds: a model that says nothing for so long is left, and no case may take longer than the last.
_PATIENCE, _MOST = 0.5, 15.0
#: What makes a fault show in its own way in a short time: tokens that come one by one, waits beyond our patience.
_PARAMETERS = {
    "429-retry-after": "seconds=60&id={mode}",
    "500-once": "id={mode}",
    "flapping": "id={mode}",
    "slow-first-token": "seconds=30",
    **dict.fromkeys(("cut", "stalled", "malformed", "no-done", "error-event"), "tokens=5&delay=0.02"),
}
_PASSED = "whole, or why it is not"


class Case(Struct, frozen=True):
    """One fault, asked for as a stream or not: what was expected, what happened, and whether that is right.

    `targets` are those that gave a part of the answer, `attempts` how many calls were made, `seconds` how long it took.
    """

    fault: str
    mode: str
    expected: str
    happened: str
    ok: bool
    targets: list[str]
    attempts: int
    seconds: float


class _Answer(Struct):
    """What the client was given."""

    text: str = ""
    reason: str | None = None
    error: str = ""


async def run_campaign() -> AsyncGenerator[Case]:
    """Yield a case for each fault, streaming and not. Raises WindlassError where the gateway cannot be started."""
    with tempfile.TemporaryDirectory(prefix="windlass-doctor-") as home:
        async with _gateway(home) as (url, records), Client(env={}) as client:
            for fault in FAULTS.values():
                for mode in ("stream", "whole"):
                    since = clock.monotonic()
                    answer = await _ask(client, url, fault.name, mode)
                    yield _judged(fault, mode, answer, records.pop(), clock.monotonic() - since)


@asynccontextmanager
async def _gateway(home: str) -> AsyncGenerator[tuple[str, list[RequestRecord]]]:
    """Run a gateway; gives its address, and the list to which it adds what it writes down of each request."""
    routes = {
        f"{name}-{mode}": RouteSettings(
            (RouteTarget(_model(name, mode)), RouteTarget(f"fault:{OK.name}")),
            first_token_timeout=_PATIENCE,
            idle_timeout=_PATIENCE,
        )
        for name in FAULTS
        for mode in ("stream", "whole")
    }
    config = Config(environ={"WINDLASS_HOME": home, "HOME": home}, routes=routes)
    records: list[RequestRecord] = []

    def watch(record: RequestRecord, _: Job) -> None:
        records.append(record)

    async with AsyncExitStack() as stack:
        gateway = await open_gateway(config, ServerSettings(request_timeout=_MOST), stack)
        gateway.watchers.append(watch)
        listener = Listener(gateway)
        sock = listen("127.0.0.1", 0)
        server = await listener.loop.create_server(listener, sock=sock)
        stack.push_async_callback(listener.drain, 0.0)
        stack.callback(server.close)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}", records


def _model(name: str, mode: str) -> str:
    parameters = _PARAMETERS.get(name, "").format(mode=mode)
    return f"fault:{name}?{parameters}" if parameters else f"fault:{name}"


async def _ask(client: Client, url: str, name: str, mode: str) -> _Answer:
    """Ask as a client of OpenAI's dialect does."""
    asked = {"model": f"{name}-{mode}", "messages": [{"role": "user", "content": "Count."}], "stream": mode == "stream"}
    headers = {"content-type": "application/json"}
    limits = Timeouts(5.0, _MOST, _MOST, _MOST)
    answer = _Answer()
    try:
        async with client.stream(
            "POST", f"{url}/v1/chat/completions", headers=headers, body=dumps(asked), timeouts=limits
        ) as response:
            if response.status != 200:
                body = await response.read()
                raise DIALECT.decode_error(response.status, {}, body, provider=None, model=None, endpoint=None)
            if mode == "whole":
                _take(answer, DIALECT.decode_response(await response.read()))
                return answer
            decoder = DIALECT.stream_decoder()
            async for piece in response.chunks():
                for item in decoder.feed(piece):
                    if isinstance(item, TextItem):
                        answer.text += item.text
                    elif isinstance(item, Finish):
                        _take(answer, item)
            decoder.close()
    except ProviderError as error:
        answer.text = answer.text or error.partial
        answer.error = error.code
    except WindlassError as error:
        answer.error = error.code
    return answer


def _take(answer: _Answer, finish: Finish) -> None:
    answer.text, answer.reason = finish.message.text, finish.raw


def _judged(fault: Fault, mode: str, answer: _Answer, record: RequestRecord, seconds: float) -> Case:
    outcome = fault.outcome if mode == "stream" else fault.whole_outcome
    targets = [target.partition("?")[0] for target in record.target.split(", ")]
    whole = answer.text == WHOLE and answer.reason == "stop" and not answer.error
    filtered = answer.reason == "content_filter" and WHOLE.startswith(answer.text) and not answer.error
    if whole:
        first, *others = targets
        how = f"begun by {first}, ended by {' and '.join(others)}" if others else f"from {first}"
        happened = f"whole, {how}"
    elif answer.error:
        happened = f"the error {answer.error}"
    elif filtered:
        happened = "a part, and that a filter cut it"
    else:
        happened = f"{answer.text!r} as if it were whole"
    # Who asks what no model may answer is told so; everything else has an answer, since the second model has one.
    right = whole or (outcome == "pass" and bool(filtered or answer.error))
    expected = _PASSED if outcome == "pass" else "whole"
    return Case(fault.name, mode, expected, happened, right, targets, record.attempts, round(seconds, 3))
