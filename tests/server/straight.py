"""The same requests on the straight way and on the ordinary one, over a warm connection: what differs between them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from tests.server.conftest import InProcess, StartGateway
from tests.server.edge import PATIENCE, Answer, Wire, request, until, wire
from windlass.accounts.limits import Reservation
from windlass.accounts.records import RequestRecord
from windlass.core._http_connection import Host
from windlass.core.http import Client
from windlass.providers.retry import RetryAllowance
from windlass.server.express import Express
from windlass.testing.faults import FaultServer, Received, Reply, Step, Stream

JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}
PATHS = {"chat": "/v1/chat/completions", "anthropic": "/v1/messages"}
#: What two answers to the same request may differ in.
_OWN = ("date", "x-request-id", "server-timing")
_TIMES = ("id", "time", "duration_us", "first_token_us", "upstream_us")

# --------------------------------------------------------------------------------------------------- what vendors say

USAGE = {"prompt_tokens": 70, "completion_tokens": 20, "total_tokens": 90,
         "prompt_tokens_details": {"cached_tokens": 8}}  # fmt: skip
HEAD: dict[str, Any] = {"id": "c-1", "object": "chat.completion.chunk", "created": 5, "model": "m-1"}


def compact(value: Any) -> bytes:
    """Return JSON as vendors write it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def chunk(delta: dict[str, Any] | None, reason: str | None = None, *, index: int = 0, **more: Any) -> bytes:
    """Return one event of a chat stream; without a delta it has no choices."""
    choices = [] if delta is None else [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]
    return b"data: " + compact({**HEAD, "choices": choices, **more}) + b"\n\n"


DONE = b"data: [DONE]\n\n"
CHAT = [
    chunk({"role": "assistant", "content": ""}), chunk({"content": "Hé"}), chunk({"content": "llo \"you\""}),
    chunk({}, "stop"), chunk(None, usage=USAGE), DONE,
]  # fmt: skip


def event(name: str, **fields: Any) -> bytes:
    """Return one event of an Anthropic stream."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), compact({"type": name, **fields}))


_MESSAGE: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x"}
ANTHROPIC = [
    event("message_start", message={**_MESSAGE, "content": [], "stop_reason": None,
                                    "usage": {"input_tokens": 70, "output_tokens": 1}}),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("ping"),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hé"}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": 'llo "you"'}),
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 20}),
    event("message_stop"),
]  # fmt: skip
BIG = chunk({"content": "x" * 60_000})
FRAMES = {"chat": CHAT, "anthropic": ANTHROPIC}
#: Where the events with content begin and end.
CONTENT = {"chat": (1, 3), "anthropic": (3, 5)}


def chat_body(**more: Any) -> bytes:
    """Return a whole chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hé"}, "finish_reason": "stop"}
    return compact({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE, **more})


def anthropic_body(**more: Any) -> bytes:
    """Return a whole Anthropic answer."""
    told = {"content": [{"type": "text", "text": "Hé"}], "stop_reason": "end_turn", "stop_sequence": None,
            "usage": {"input_tokens": 70, "output_tokens": 20}}  # fmt: skip
    return compact({**_MESSAGE, **told, **more})


BODIES: dict[str, Callable[..., bytes]] = {"chat": chat_body, "anthropic": anthropic_body}


def good(dialect: str, stream: bool) -> Step:
    """Return the answer that is asked for."""
    return Stream(FRAMES[dialect], headers=SSE) if stream else Reply(200, BODIES[dialect](), JSON)


# ------------------------------------------------------------------------------------------------------- both the ways


class Case(Struct, frozen=True):
    """One request: how it is asked, and what the vendor does at each try (the last step for all further ones)."""

    dialect: str
    stream: bool
    steps: Sequence[Step]
    ask: dict[str, Any] = {}
    headers: dict[str, str] = {}

    def body(self, model: str) -> bytes:
        """Return what the client sends."""
        asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": self.stream}
        return compact({**asked, **({"max_tokens": 9} if self.dialect == "anthropic" else {}), **self.ask})


class Seen(Struct):
    """What one request came to, for everybody who can see it."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    record: dict[str, Any]
    breaker: tuple[Any, ...]
    asked: list[tuple[str, Mapping[str, str], bytes]]
    allowance: float


def differences(one: Struct, two: Struct) -> dict[str, tuple[Any, Any]]:
    """Return what two of them do not have in common."""
    found: dict[str, tuple[Any, Any]] = {}
    for name, mine in msgspec.structs.asdict(one).items():
        other = getattr(two, name)
        if isinstance(mine, dict):
            given: dict[str, Any] = mine
            pairs = {key: (given.get(key), other.get(key)) for key in {*given, *other}}
            found |= {f"{name}.{key}": pair for key, pair in pairs.items() if pair[0] != pair[1]}
        elif mine != other:
            found[name] = (mine, other)
    return found


class Counted:
    """Counts the requests that took the straight way."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        begin = Express.begin

        def counting(work: Express, limits: Any) -> None:
            self.begun += 1
            begin(work, limits)

        patch.setattr(Express, "begin", counting)


class Way:
    """A gateway over one vendor that speaks both dialects, on which the straight way is open or closed."""

    def __init__(self, up: InProcess, vendor: FaultServer, script: Script, *, straight: bool) -> None:
        self.up, self.vendor, self.script = up, vendor, script
        #: How clients show who they are.
        self.auth: dict[str, str] = {}
        self.records: list[RequestRecord] = []
        up.gateway.watchers.append(lambda record, _: self.records.append(record))
        up.gateway.router.base = 0.001
        self._open: Any = up.gateway.express if straight else _closed
        up.gateway.express = self._open

    def client(self, dialect: str) -> Client:
        """Return what keeps the connections to the vendor."""
        return self.up.gateway.router.provider(dialect).client

    def hosts(self) -> list[Host]:
        """Return what is known of these connections."""
        return [host for name in PATHS for host in hosts(self.client(name))]

    def idle(self, dialect: str) -> int:
        """Return how many of them wait for a request."""
        return sum([len(host.idle) for host in hosts(self.client(dialect))])

    async def warm(self, dialect: str, count: int = 1) -> None:
        """Have idle connections to the vendor."""
        if self.idle(dialect) < count:
            self.up.gateway.express = _closed
            go = asyncio.Event()
            step = Stream([go, BODIES[dialect]()], headers=JSON)
            case, seen = Case(dialect, False, [step], headers=self.auth), len(self.vendor.requests)
            asking = asyncio.gather(*[self.send(case, "warm") for _ in range(count)])
            await self.vendor.wait(requests=seen + count)
            go.set()
            answers = await asking
            self.up.gateway.express = self._open
            assert {answer.status for answer in answers} == {200}, answers
        await until(lambda: self.idle(dialect) >= count)

    async def send(self, case: Case, name: str) -> Answer:
        """Send one request on a connection of its own."""
        self.script.steps[name] = list(case.steps)
        async with wire(self.up.port) as client:
            path, body = PATHS[case.dialect], case.body(f"{case.dialect}:{name}")
            await client.send(request("POST", path, case.headers, body))
            answer = await client.answer()
            await until(lambda: not self.up.gateway.running)
            return answer

    async def see(self, case: Case, name: str) -> Seen:
        """Send one request over a warm connection; returns all that came of it."""
        await self.warm(case.dialect)
        gateway = self.up.gateway
        allowance = gateway.router.allowance = RetryAllowance()
        before, asked = len(self.records), len(self.vendor.requests)
        answer = await self.send(case, name)
        (record,) = self.records[before:]
        target = gateway.router.route(f"{case.dialect}:{name}").targets[0]
        return Seen(
            answer.status,
            {key: value for key, value in answer.headers.items() if key not in (*_OWN, "content-length")},
            told(answer.body),
            answer.whole,
            {key: value for key, value in msgspec.structs.asdict(record).items() if key not in _TIMES},
            health(target.breaker),
            [
                (one.target, {key: value for key, value in one.headers.items() if key != "host"}, one.body)
                for one in self.vendor.requests[asked:]
            ],
            allowance._tokens,  # pyright: ignore[reportPrivateUsage]
        )

    async def quiet(self) -> None:
        """Check that nothing is held for any request."""
        up = self.up
        await until(lambda: not (up.gateway.running or up.listener.tasks or any(host.active for host in self.hosts())))
        assert up.gateway.stats.active == 0


def _closed(call: Any, ended: Any) -> None:
    """Stand for a gateway without a straight way."""


def hosts(client: Client) -> list[Host]:
    """Return what a client knows of the servers it is connected to."""
    return list(client._hosts.values())  # pyright: ignore[reportPrivateUsage]


def told(body: bytes) -> bytes:
    """Return a body without what changes from one time to another: our own ids, and measured seconds."""
    body = re.sub(rb"within [0-9.e-]+ s", b"within S s", body)
    return re.sub(rb"(chatcmpl-|msg_)[0-9A-Za-z-]{20,}|127\.0\.0\.1:\d+|\"created\":\d{6,}", b"ID", body)


def health(breaker: Any) -> tuple[Any, ...]:
    """Return what a breaker knows, without times."""
    counts = [sum(bucket[at] for bucket in breaker._counts) for at in (1, 2)]
    return (breaker.state, breaker.consecutive, breaker.last_error, breaker.healthy, breaker.resting > 0, *counts,
            breaker.latency is None, bool(breaker._misfit_until))  # fmt: skip


class Script:
    """What a vendor answers: to each model that is named its own steps, the last again and again."""

    def __init__(self) -> None:
        self.steps: dict[str, list[Step]] = {}

    def __call__(self, got: Received) -> Step:
        steps = self.steps[json.loads(got.body)["model"]]
        return steps.pop(0) if len(steps) > 1 else steps[0]


@asynccontextmanager
async def way(
    gateway: StartGateway, *, straight: bool = True, routes: dict[str, Any] | None = None, **server: Any
) -> AsyncGenerator[Way]:
    """Start a gateway and its vendor."""
    script = Script()
    async with FaultServer(script) as vendor:
        up = await gateway(
            providers={
                "chat": {"base_url": f"{vendor.url}/v1", "api_key": "k"},
                "anthropic": {"base_url": vendor.url, "api_key": "k", "dialect": "anthropic"},
            },
            routes=routes,
            server={"attempts": 2, **server},
        )
        yield Way(up, vendor, script, straight=straight)


class Held:
    """What was reserved of limits, and whether it was settled or given back."""

    def __init__(self, up: InProcess, patch: pytest.MonkeyPatch) -> None:
        self.all: list[Reservation] = []
        accounts = up.gateway.accounts
        reserve, areserve = accounts.reserve, accounts.areserve

        def now(*asked: Any) -> Reservation | None:
            if made := reserve(*asked):
                self.all.append(made)
            return made

        async def later(*asked: Any) -> Reservation:
            self.all.append(await areserve(*asked))
            return self.all[-1]

        patch.setattr(accounts, "reserve", now)
        patch.setattr(accounts, "areserve", later)

    @property
    def open(self) -> int:
        """How many are still held."""
        return sum([bool(made.parts) and not made.done for made in self.all])


def works(patch: pytest.MonkeyPatch) -> list[Express]:
    """Return a list in which every request on the straight way will be."""
    made: list[Express] = []
    begin = Express.begin

    def keeping(work: Express, limits: Any) -> None:
        made.append(work)
        begin(work, limits)

    patch.setattr(Express, "begin", keeping)
    return made


def posted(case: Case, model: str, **headers: str) -> bytes:
    return request("POST", PATHS[case.dialect], headers, case.body(f"{case.dialect}:{model}"))


@asynccontextmanager
async def asking(
    up: Way, step: Step, *, stream: bool = True, small: bool = False, pause: bool = False
) -> AsyncGenerator[Wire]:
    """Ask over a warm connection; a client may `pause` at first, and its system take but a `small` part before."""
    case = Case("chat", stream, [step])
    up.script.steps["m"] = [step]
    await up.warm("chat")
    seen = len(up.vendor.requests)
    async with wire(up.up.port) as client:
        if small or pause:
            client.pause(small=small)
        await client.send(posted(case, "m", **up.auth))
        async with asyncio.timeout(PATIENCE):
            await up.vendor.wait(requests=seen + 1)
        yield client


def held_back(*first: bytes) -> tuple[asyncio.Event, Stream]:
    """A stream whose rest comes once the event is set."""
    go = asyncio.Event()
    rest = CHAT[len(first) or 2 :]
    return go, Stream([*(first or CHAT[:2]), go, *rest], headers=SSE)
