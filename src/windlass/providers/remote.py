"""A model behind an HTTP address: a dialect spoken over `core/http`."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar
from urllib.parse import quote

from msgspec.structs import replace

from windlass.core import clock, json
from windlass.core.errors import (
    BodyTooLarge,
    ConnectError,
    ProtocolError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
    StreamInterrupted,
    TransportError,
    TransportTimeout,
    WireError,
)
from windlass.core.estimate import estimate_tokens
from windlass.core.http import Client, Exchange, Streaming, StreamResponse, Timeouts, endpoint
from windlass.core.items import Finish, Item, NoticeItem, ReasoningItem, TextItem, ToolCallItem
from windlass.core.messages import Reasoning, Text
from windlass.core.models import Capabilities, facts_of
from windlass.core.ports import Embeddings
from windlass.core.request import Budget, Request
from windlass.core.usage import Usage
from windlass.providers.counting import COUNTERS
from windlass.providers.embeddings import batches, embedding_dialect, embedding_request, joined
from windlass.wire.base import Dialect, excerpt

__all__ = ["RemoteProvider", "Signer", "join_url"]

#: How much of an error's body is read.
_ERROR_BYTES = 1 << 20
#: How long the end of a body may take once the answer is complete; then its connection is not kept.
_DRAIN = 0.5
#: Connections to one address at once, and how many are kept: a gateway has many streams open.
_CONNECTIONS, _IDLE = 1024, 256
#: The largest whole answer: 2048 vectors of 4096 numbers in JSON.
_WHOLE_BYTES = 256 << 20
_T = TypeVar("_T")
#: Sign a request: (method, url, headers, body) -> the headers to send.
Signer: TypeAlias = Callable[[str, str, Mapping[str, str], bytes], Mapping[str, str]]


def join_url(base: str, path: str) -> str:
    """Join a base URL with or without its version, or already whole, and a dialect's path.

    >>> join_url("http://h/v1/", "/v1/chat/completions"), join_url("http://h", "/v1/chat/completions")
    ('http://h/v1/chat/completions', 'http://h/v1/chat/completions')
    """
    base = base.rstrip("/")
    if base.endswith(path):
        return base
    tail = base.rsplit("/", 1)[-1]
    if path.startswith("/v1/") and (base.endswith(path[3:]) or (tail[:1] == "v" and tail[1:2].isdigit())):
        return base if base.endswith(path[3:]) else base + path[3:]
    return base + path


class RemoteProvider:
    """Ask a vendor over HTTP.

    `path` is the endpoint of streams and `whole_path`, where it differs, that of answers that come whole; `{model}` in
    them stands for the model's id. `sign` makes the headers of a request whose credential covers its body.
    `structured_output` tells the loop whether the vendor takes a JSON Schema. Connections belong to the event loop
    that uses them. Raises ProviderError kinds only.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        base_url: str,
        path: str,
        *,
        whole_path: str = "",
        sign: Signer | None = None,
        headers: Mapping[str, str] | None = None,
        default_model: str = "",
        capabilities: Capabilities | None = None,
        reasoning: Literal["none", "effort", "budget", "switch", "adaptive"] = "none",
        extra_body: Mapping[str, Any] | None = None,
        own_settings: Mapping[str, str] | None = None,
        request_timeout: float = 600.0,
        idle_timeout: float = 120.0,
        connect_timeout: float = 10.0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.dialect, self.default_model = name, dialect, default_model
        self.base_url, self.url = base_url.rstrip("/"), join_url(base_url, path)
        self._path, self._whole_url = path, join_url(base_url, whole_path) if whole_path else self.url
        self._sign = sign
        self.headers = {"content-type": "application/json", **(headers or {})}
        self.own_settings = dict(own_settings or {})
        self._capabilities = capabilities or Capabilities()
        self._reasoning, self.extra_body = reasoning, dict(extra_body or {})
        self._timeouts = Timeouts(connect_timeout, idle_timeout, idle_timeout, request_timeout, 60.0)
        self._environ = environ
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = weakref.WeakKeyDictionary()
        self._latest: tuple[weakref.ref[asyncio.AbstractEventLoop], Client] | None = None
        self._facts: dict[str, Capabilities] = {}

    @property
    def structured_output(self) -> bool:
        """Whether a JSON Schema for the answer can be sent."""
        return self._capabilities.structured_output

    def capabilities(self, model: str) -> Capabilities:
        """Return what a model behind this address can take: the vendor's row, narrowed by the table of models."""
        known = self._facts.get(model)
        if known is None:
            facts, row = facts_of(self.name, model), self._capabilities
            reasons = self._reasoning == "switch" or facts.reasoning
            known = self._facts[model] = replace(
                row,
                vision=row.vision and facts.vision is not False,
                documents=row.documents and facts.documents is not False,
                tools=row.tools and facts.tools is not False,
                reasoning=self._reasoning if reasons else row.reasoning,
                max_output=facts.max_output or row.max_output,
                context=facts.context or row.context,
            )
        return known

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Send the request and yield its items; leaving early closes the connection at once."""
        request = self._prepared(request)
        capabilities = self.capabilities(request.model)
        if names := self.dialect.dropped_settings(request, capabilities):
            yield NoticeItem("warning", f"{self.name} cannot take {', '.join(names)}; not sent.", self.name)
        body = self.dialect.encode_request(request, capabilities, stream=True)
        decoder = self.dialect.stream_decoder()
        finish: Finish | None = None
        text: list[str] = []
        try:
            url = self.address(request.model)
            exchange = self.client.stream(
                "POST",
                url,
                headers=self._signed(url, self._headers(request), body),
                body=body,
                timeouts=self._limits(request),
                idle_on="progress",
            )
            async with exchange as response:
                whole = await self._head(response, request)
                if whole is not None:
                    finish = self.dialect.decode_response(whole)
                    for item in _as_items(finish):
                        yield item
                else:
                    async for chunk in response.chunks():
                        for item in decoder.feed(chunk):
                            if isinstance(item, TextItem):
                                text.append(item.text)
                            elif isinstance(item, Finish):
                                finish = item
                                break
                            response.mark_progress()
                            yield item
                        if finish is not None:
                            await _drain(response)
                            break
            if finish is None:
                for item in decoder.close():
                    if isinstance(item, Finish):
                        finish = item
                    else:
                        yield item
        except TransportError as error:
            raise self._transport_error(error, request, "".join(text)) from error
        except ProviderError as error:
            raise self._located(error, request, "".join(text)) from error.__cause__
        if finish is None:
            raise StreamInterrupted(
                f"{self.name} ended its answer without a terminal event.", provider=self.name, model=request.model,
                endpoint=endpoint(self.url), partial="".join(text),
            )  # fmt: skip
        yield finish

    def address(self, model: str, *, stream: bool = True) -> str:
        """Return the URL that a request for this model goes to."""
        url = self.url if stream else self._whole_url
        return url.replace("{model}", quote(model, safe="")) if "{" in url else url

    def dropped(self, request: Request) -> list[str]:
        """Return the names of the settings that this model cannot be told; nothing is sent."""
        return self.dialect.dropped_settings(request, self.capabilities(request.model))

    def forward(self, body: bytes, model: str, *, stream: bool, timeouts: Timeouts | None = None) -> Streaming:
        """Send a body that is already in this vendor's dialect, and give its answer as it comes.

        For a gateway: nothing is encoded, decoded, checked or asked again. Only `mark_progress` resets the idle clock.
        Raises TransportError kinds.
        """
        url = self.address(model, stream=stream)
        headers = self._signed(url, self.headers, body)
        limits = timeouts or self._timeouts
        return self.client.stream("POST", url, headers=headers, body=body, timeouts=limits, idle_on="progress")

    def forward_now(
        self,
        body: bytes,
        model: str,
        *,
        stream: bool,
        timeouts: Timeouts,
        listener: Callable[[Exchange], Callable[[], None]],
    ) -> Exchange | None:
        """Send as `forward` does, over a connection that is idle now; None where none is. See `Client.send_now`.

        None also for a kind of provider whose `forward` does more than to send, as to have a token first.
        """
        if type(self).forward is not RemoteProvider.forward:
            return None
        url = self.address(model, stream=stream)
        headers = self._signed(url, self.headers, body)
        return self.client.send_now(url, headers=headers, body=body, timeouts=timeouts, listener=listener)

    def _signed(self, url: str, headers: Mapping[str, str], body: bytes, method: str = "POST") -> Mapping[str, str]:
        return headers if self._sign is None else self._sign(method, url, headers, body)

    def _prepared(self, request: Request) -> Request:
        settings = request.settings
        limit = self.capabilities(request.model).max_output
        if limit is not None and settings.max_tokens is not None and settings.max_tokens > limit:
            settings = replace(settings, max_tokens=limit)
        if self.extra_body:
            settings = replace(settings, extra={**self.extra_body, **settings.extra})
        return request if settings is request.settings else replace(request, settings=settings)

    def _headers(self, request: Request) -> dict[str, str]:
        fields: dict[str, str] = getattr(self.dialect, "header_fields", {})
        asked: dict[str, list[str]] = {}
        for field, header in fields.items():
            # A request adds to what the provider always asks for; each name once.
            for source in (self.extra_body, request.settings.extra):
                if given := source.get(field):
                    names = asked.setdefault(header, [self.headers[header]] if header in self.headers else [])
                    names.extend([given] if isinstance(given, str) else given)
        if not asked:
            return self.headers
        whole = {header: ",".join(names).split(",") for header, names in asked.items()}
        return {**self.headers, **{h: ",".join(dict.fromkeys(map(str.strip, names))) for h, names in whole.items()}}

    def _limits(self, request: Request) -> Timeouts:
        budget = request.budget
        left = budget.remaining() if isinstance(budget, Budget) else None
        total = self._timeouts.total
        if left is None or (total is not None and total <= left):
            return self._timeouts
        return replace(self._timeouts, total=max(left, 0.001))

    async def _head(self, response: StreamResponse, request: Request) -> bytes | None:
        """Check status and type; returns the whole body of an answer that is not a stream."""
        if response.status >= 400:
            raise self.dialect.decode_error(
                response.status, _lower(response), await _some(response), provider=self.name, model=request.model,
                endpoint=endpoint(self.url),
            )  # fmt: skip
        kind = (response.headers.get("content-type") or "").partition(";")[0].strip().lower()
        if response.status >= 300 or kind in ("text/html", "application/xhtml+xml"):
            body = await _some(response)
            raise WireError(
                f"{self.name} answered {response.status} with {kind or 'no content type'} instead of a model's answer: "
                f"{excerpt(body)}",
                hint="Check the base URL; a proxy or a login page may stand in between.",
            )
        return await response.read() if kind == "application/json" else None

    def _transport_error(self, error: TransportError, request: Request, partial: str) -> ProviderError:
        kind: type[ProviderError] = ProviderConnectionError
        if isinstance(error, TransportTimeout):
            kind = ProviderTimeoutError
        elif isinstance(error, (ProtocolError, BodyTooLarge)) and (partial or error.sent):
            kind = StreamInterrupted if partial else ProviderConnectionError
        hint = ""
        if isinstance(error, ConnectError):
            hint = f"Is the server at {self.base_url} running?" if _is_local(self.base_url) else "Check the network."
        return kind(
            f"{self.name}: {error.message}", provider=self.name, model=request.model, endpoint=endpoint(self.url),
            partial=partial, hint=error.hint or hint,
        )  # fmt: skip

    def _located(self, error: ProviderError, request: Request, partial: str) -> ProviderError:
        error.provider = error.provider or self.name
        error.model = error.model or request.model
        error.endpoint = error.endpoint or endpoint(self.url)
        error.partial = error.partial or partial
        return error

    async def embed(self, texts: Sequence[str], model: str, *, dimensions: int | None = None) -> Embeddings:
        """Return the vectors of texts, in their order; more than the vendor takes at once are sent in batches.

        Raises ProviderError kinds: UnsupportedInputError where the vendor has no embeddings.
        """
        dialect = embedding_dialect(self.dialect.name, self.name)
        where = Request(model=model, messages=())
        made: list[Embeddings] = []
        for batch in batches(texts, self.name):
            asked = embedding_request(batch, model, dimensions, self.name)
            read = partial(dialect.decode_response, request=asked)
            made.append(await self.post(dialect.path, dialect.encode_request(asked), where, read))
        return joined(made, model)

    async def count(self, request: Request) -> Usage:
        """Return the input tokens of a request as the vendor counts them; estimated where it has no way to ask.

        Raises ProviderError kinds.
        """
        counter = COUNTERS.get(self.dialect.name)
        if counter is None:
            return Usage(estimate_tokens(request), estimated=True)
        request = self._prepared(request)
        body = counter.encode(request, self.capabilities(request.model))
        return Usage(await self.post(counter.path, body, request, counter.decode))

    async def post(self, path: str, body: bytes, request: Request, read: Callable[[bytes], _T]) -> _T:
        """Send a body to beside the model's endpoint and return what `read` makes of the answer.

        `request` gives the model, the headers and the time left. Raises ProviderError kinds, also those of `read`.
        """
        url = self._beside(path)
        headers = self._signed(url, self._headers(request), body)
        try:
            answer = await self.client.request(
                "POST", url, headers=headers, body=body, timeouts=self._limits(request), max_body_bytes=_WHOLE_BYTES
            )
            if answer.status >= 400:
                known = {name.lower(): value for name, value in answer.headers.items()}
                raise self.dialect.decode_error(
                    answer.status, known, answer.body, provider=self.name, model=request.model, endpoint=endpoint(url)
                )
            if answer.status >= 300:
                raise WireError(f"{self.name} answered {answer.status} at {endpoint(url)}.", hint="Check the base URL.")
            return read(answer.body)
        except TransportError as error:
            failed = self._transport_error(error, request, "")
            failed.endpoint = endpoint(url)
            raise failed from error
        except ProviderError as error:
            error.endpoint = error.endpoint or endpoint(url)
            raise self._located(error, request, "") from error.__cause__

    def _beside(self, path: str) -> str:
        if "://" in path:
            return path
        base = self.base_url
        if base == self.url:
            # The user gave the endpoint's whole address.
            base = base.removesuffix(self._path).removesuffix(self._path.removeprefix("/v1"))
        return join_url(base, path)

    async def get_json(self, path: str) -> Any:
        """Get a JSON document from beside the model's endpoint, or from a whole URL. Raises ProviderError kinds."""
        url = self._beside(path)
        request = Request(model=self.default_model, messages=())
        try:
            headers = self._signed(url, self.headers, b"", "GET")
            answer = await self.client.request("GET", url, headers=headers, timeouts=Timeouts(5.0, 15.0, 15.0, 30.0))
        except TransportError as error:
            raise self._transport_error(error, request, "") from error
        if answer.status >= 400:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            raise self.dialect.decode_error(
                answer.status, headers, answer.body, provider=self.name, model=None, endpoint=endpoint(url)
            )
        try:
            return json.loads(answer.body)
        except json.JsonError as error:
            raise WireError(f"{self.name}: {url} is {error}.", provider=self.name, endpoint=endpoint(url)) from None

    async def models(self) -> list[str]:
        """Return the ids of the models the vendor offers, sorted. Raises ProviderError kinds."""
        listed = await self.get_json("/v1/models")
        rows = listed.get("data", []) if isinstance(listed, dict) else listed
        return sorted([str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row])

    @property
    def client(self) -> Client:
        """The connections of the running event loop."""
        loop = asyncio.get_running_loop()
        known = self._latest
        if known is not None and known[0]() is loop:
            return known[1]
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = Client(env=self._environ, max_per_host=_CONNECTIONS, max_idle_per_host=_IDLE)
        # A server asks for it with every request: one comparison instead of a weak dictionary.
        self._latest = (weakref.ref(loop), client)
        return client

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        self._latest = None
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


def _lower(response: StreamResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


async def _some(response: StreamResponse) -> bytes:
    """Read the beginning of an error's body; one that breaks off is still an error's body."""
    data = bytearray()
    try:
        async for chunk in response.chunks():
            data += chunk
            if len(data) > _ERROR_BYTES:
                break
    except TransportError:
        pass
    return bytes(data[:_ERROR_BYTES])


async def _drain(response: StreamResponse) -> None:
    """Read the end of a body whose answer is complete, so that its connection can be used again."""
    if response.complete:
        return
    try:
        async with clock.deadline(_DRAIN):
            await response.read()
    except (TimeoutError, TransportError):
        pass


def _is_local(url: str) -> bool:
    return "://127." in url or "://localhost" in url or "://[::1]" in url


def _as_items(finish: Finish) -> list[Item]:
    """Return the items of an answer that came whole."""
    items: list[Item] = []
    for part in finish.message.parts:
        if isinstance(part, Text):
            items.append(TextItem(part.content))
        elif isinstance(part, Reasoning):
            items.append(ReasoningItem(part.content))
    for index, call in enumerate(finish.message.tool_calls):
        text = call.arguments_text or json.dumps(call.arguments).decode()
        items.append(ToolCallItem(index, call.id, call.name, text))
    return items
