"""Amazon Bedrock: its address by region, requests signed with SigV4 or a bearer token, and what its models take.

Credentials are those of AWS's own tools: variables, a profile, SSO, a role, the machine's. botocore finds, renews and
signs with them (the extra `bedrock`); it is imported at the first signed request, beside the event loop.
"""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from windlass.core import clock
from windlass.core.errors import AuthError, BadRequestError, ConfigError, ProviderError, ProviderTimeoutError
from windlass.core.http import Streaming, StreamResponse, Timeouts, endpoint
from windlass.core.items import Finish, Item, ReasoningItem, ToolCallItem
from windlass.core.messages import Message, Metadata, Part, Reasoning, ToolCall
from windlass.core.models import Capabilities
from windlass.core.request import Request
from windlass.core.threads import run_in_thread
from windlass.providers.remote import RemoteProvider
from windlass.wire.base import Dialect, as_dict, as_list, as_str
from windlass.wire.bedrock_blocks import family, tool_name

__all__ = ["REGION", "AwsSigner", "BedrockProvider", "canonical_model"]

_T = TypeVar("_T")
#: Where nobody names a region.
REGION: Final = "us-east-1"
_REGION = re.compile(r"[a-z]{2,8}(?:-[a-z0-9]{1,12}){1,4}")
#: The region that one of Amazon's own addresses names.
_IN_HOST = re.compile(r"https://bedrock-runtime(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws|api\.aws)")
#: A model id, an inference profile's id, or an ARN of either.
_MODEL = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._:/-]{1,2048}")
#: Seconds that finding or renewing credentials may take, and between two tries to renew what is still good.
_WITHIN: Final = 30.0
_AGAIN: Final = 30.0
#: Variables of one set of keys belong together: a token of one with the key of another signs nothing.
_KEYS: Final = ("WINDLASS_BEDROCK_", "BEDROCK_", "AWS_")
_NO_KEYS: Final = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or AWS_BEARER_TOKEN_BEDROCK; "
    "AWS's shared files, SSO and roles are read too."
)


class AwsSigner:
    """Sign requests to Bedrock with AWS Signature Version 4 by botocore.

    `await ready()` before `sign`: it finds credentials or renews temporary ones, in a thread and for all who wait at
    once. Keys in `environ` come first, then botocore's chain, with `profile` where one is named.
    """

    def __init__(self, region: str, environ: Mapping[str, str], profile: str = "") -> None:
        self.region, self._environ, self._profile = region, environ, profile
        self._source: Any = None
        self._frozen: Any = None
        self._tools: tuple[Any, Any] | None = None
        self._again = 0.0
        self._finding: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = (
            weakref.WeakKeyDictionary()
        )

    async def ready(self) -> None:
        """Have credentials that are good for now.

        Raises AuthError where there are none, ProviderTimeoutError where finding them takes too long, ConfigError
        where botocore is missing or a profile is unknown.
        """
        if self._good():
            return
        loop = asyncio.get_running_loop()
        task = self._finding.get(loop)
        if task is None or task.done():
            task = self._finding[loop] = loop.create_task(run_in_thread(self._find))
            task.add_done_callback(self._found)
        try:
            async with clock.deadline(_WITHIN):
                await asyncio.shield(task)
        except TimeoutError:
            raise ProviderTimeoutError(
                f"AWS credentials could not be had within {_WITHIN:g} seconds.", hint=_NO_KEYS
            ) from None

    async def refresh(self) -> bool:
        """Look for credentials again, as after a refusal; returns whether others were found."""
        before, self._source = self._frozen, None
        try:
            await self.ready()
        except ProviderError:
            return False
        return self._frozen != before

    def sign(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> dict[str, str]:
        """Return the headers with date, session token and signature; needs `ready()` before."""
        if self._tools is None or self._frozen is None:
            raise AuthError("There are no AWS credentials to sign with yet.", hint=_NO_KEYS)
        sigv4, request_type = self._tools
        request = request_type(method=method, url=url, headers=dict(headers), data=body)
        sigv4(self._frozen, "bedrock", self.region).add_auth(request)
        return {str(name).lower(): str(value) for name, value in request.headers.items()}

    def _found(self, task: asyncio.Task[None]) -> None:
        self._finding.pop(task.get_loop(), None)
        if not task.cancelled():
            # Retrieved also when everybody who waited was cancelled.
            task.exception()

    def _good(self) -> bool:
        if self._frozen is None or self._source is None:
            return False
        needed = getattr(self._source, "refresh_needed", None)
        if needed is None or not needed():
            return True
        # botocore renews well before the end: what it could not renew yet must not slow every request until then.
        return not needed(60) and clock.monotonic() < self._again

    def _find(self) -> None:
        """Find or renew credentials; blocks on files, processes and the network."""
        try:
            import botocore.auth
            import botocore.awsrequest
            import botocore.credentials
            import botocore.exceptions
            import botocore.session
        except ImportError as error:
            raise ConfigError(
                "Signing requests to Bedrock needs botocore, which is not installed.",
                hint="pip install 'windlass[bedrock]', or use a bearer token (AWS_BEARER_TOKEN_BEDROCK).",
            ) from error
        self._tools = (botocore.auth.SigV4Auth, botocore.awsrequest.AWSRequest)
        try:
            if self._source is None:
                if keys := self._given():
                    self._source = botocore.credentials.Credentials(*keys)
                else:
                    self._source = botocore.session.Session(profile=self._profile or None).get_credentials()
            self._frozen = self._source.get_frozen_credentials() if self._source is not None else None
        except botocore.exceptions.ProfileNotFound as error:
            raise ConfigError(f"AWS knows no such profile: {error}.", hint="Check AWS_PROFILE.") from error
        except (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            raise AuthError(f"AWS credentials could not be had: {error}.", hint=_NO_KEYS) from error
        if self._frozen is None:
            raise AuthError("There are no AWS credentials.", hint=_NO_KEYS)
        needed = getattr(self._source, "refresh_needed", None)
        self._again = clock.monotonic() + _AGAIN if needed is not None and needed() else 0.0

    def _given(self) -> tuple[str, str, str | None] | None:
        for prefix in _KEYS:
            key, secret, token = [
                self._environ.get(prefix + name) for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
            ]
            if key and secret:
                return key, secret, token or None
        return None


class _Later(Streaming):
    """A stream whose request is made only when it is entered, because its signature has to be waited for."""

    __slots__ = ("_begin", "_stream")

    def __init__(self, begin: Callable[[], Awaitable[Streaming]]) -> None:
        self._begin = begin
        self._stream: Streaming | None = None

    async def __aenter__(self) -> StreamResponse:
        self._stream = await self._begin()
        return await self._stream.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            await self._stream.__aexit__(kind, error, trace)


class BedrockProvider(RemoteProvider):
    """Ask Bedrock's Converse.

    `own_settings` knows `region` and `profile`; `{region}` in the address stands for the region. With an
    `authorization` header (a bearer token) nothing is signed. Raises ConfigError for a region that is none.
    """

    def __init__(self, name: str, dialect: Dialect, base_url: str, path: str, **options: Any) -> None:
        own: Mapping[str, str] = options.get("own_settings") or {}
        environ: Mapping[str, str] = options.get("environ") or {}
        # What one of Amazon's own addresses names is what has to be signed.
        region = _region_in(base_url) or own.get("region") or environ.get("AWS_REGION") or REGION
        if not _REGION.fullmatch(region):
            raise ConfigError(f"{region!r} is no AWS region.", hint="Check BEDROCK_REGION, AWS_REGION: us-east-1, …")
        if region.startswith("cn-"):
            base_url = base_url.replace("{region}.amazonaws.com", "{region}.amazonaws.com.cn")
        self.signer: AwsSigner | None = None
        if "authorization" not in {header.lower() for header in options.get("headers") or {}}:
            self.signer = AwsSigner(region, environ, own.get("profile", ""))
            options["sign"] = self.signer.sign
        super().__init__(name, dialect, base_url.replace("{region}", region), path, **options)

    async def stream(self, request: Request) -> AsyncIterator[Item]:
        """Yield the items of the answer; tools have their own names in them, and Claude's signatures their key."""
        await self._ready(request.model)
        renamed = {tool_name(tool.name): tool.name for tool in request.tools if tool_name(tool.name) != tool.name}
        claude = family(request.model) == "anthropic"
        async with aclosing(super().stream(request)) as items:  # pyright: ignore[reportArgumentType]
            async for item in items:
                yield _own_names(item, renamed, claude)

    def forward(self, body: bytes, model: str, *, stream: bool, timeouts: Timeouts | None = None) -> Streaming:
        """Send a body as it is, signed when the stream is entered; see RemoteProvider.

        Raises ProviderError kinds as well where there are no credentials.
        """
        if self.signer is None:
            return super().forward(body, model, stream=stream, timeouts=timeouts)
        send = super().forward

        async def begin() -> Streaming:
            await self._ready(model)
            return send(body, model, stream=stream, timeouts=timeouts)

        return _Later(begin)

    async def post(self, path: str, body: bytes, request: Request, read: Callable[[bytes], _T]) -> _T:
        """Send a body to beside the model's endpoint; see RemoteProvider."""
        await self._ready(request.model)
        return await super().post(path, body, request, read)

    async def models(self) -> list[str]:
        """Return the ids of the foundation models of the region, sorted. Raises ProviderError kinds.

        They are listed by Bedrock's other address (docs.aws.amazon.com/bedrock, API_ListFoundationModels).
        """
        await self._ready(self.default_model)
        base = self.base_url.replace("://bedrock-runtime", "://bedrock", 1)
        listed = await self.get_json(f"{base}/foundation-models")
        rows = [as_dict(row) for row in as_list(as_dict(listed).get("modelSummaries"))]
        return sorted([as_str(row.get("modelId")) for row in rows if row.get("modelId")])

    def address(self, model: str, *, stream: bool = True) -> str:
        """Return the URL for this model. Raises BadRequestError for an id that would name another path."""
        if not _MODEL.fullmatch(model):
            raise BadRequestError(
                f"{model[:80]!r} is no model id of Bedrock.",
                provider=self.name,
                model=model[:80],
                hint="Use a model id, or the id or ARN of an inference profile.",
            )
        return super().address(model, stream=stream)

    def capabilities(self, model: str) -> Capabilities:
        """Return what a model takes: Anthropic's own facts for Claude, AWS's for Nova, the vendor's row for others."""
        known = self._facts.get(model)
        if known is None:
            known = super().capabilities(canonical_model(model))
            self._facts[model] = known = _narrowed(model, known)
        return known

    async def refresh(self) -> bool:
        """Look for credentials again after a refusal; returns whether others were found."""
        return self.signer is not None and await self.signer.refresh()

    async def _ready(self, model: str) -> None:
        if self.signer is None:
            return
        try:
            await self.signer.ready()
        except ProviderError as error:
            error.provider, error.model = self.name, model
            error.endpoint = endpoint(self.base_url)
            raise


def _region_in(base_url: str) -> str:
    found = _IN_HOST.match(base_url)
    return found[1] if found else ""


# ----------------------------------------------------------------------------------------------------------- models

_VERSION = re.compile(r"(?:-v\d+)?(?::\d+)?(?::\w+)?$")
#: Claude before these takes no cache points on Bedrock (docs.aws.amazon.com/bedrock, prompt-caching).
_NO_CACHE = re.compile(r"claude-(?:v|instant|3-(?:haiku|sonnet|opus)|3-5-sonnet)")
#: Model -> the most tokens it writes (docs.aws.amazon.com/nova); Micro reads text only.
_NOVA: Final = {"nova-2": 65_535, "nova-": 10_000}


def canonical_model(model: str) -> str:
    """Return a model's name without its region, maker and version, as the table of models has it.

    >>> canonical_model("us.anthropic.claude-sonnet-4-5-20250929-v1:0"), canonical_model("amazon.nova-micro-v1:0")
    ('claude-sonnet-4-5-20250929', 'nova-micro')
    """
    maker = family(model)
    name = model.rpartition(f"{maker}.")[2] if maker else model.rpartition("/")[2]
    return _VERSION.sub("", name, count=1)


def _narrowed(model: str, known: Capabilities) -> Capabilities:
    name, maker = canonical_model(model), family(model)
    if maker == "anthropic":
        return replace(known, image_in_tool_result=True, cache_breakpoints=not _NO_CACHE.match(name))
    if maker == "amazon" and (limit := next((most for start, most in _NOVA.items() if name.startswith(start)), None)):
        micro = name == "nova-micro"
        return replace(
            known,
            vision=known.vision and not micro,
            documents=known.documents and not micro,
            image_in_tool_result=not micro,
            max_output=known.max_output or limit,
        )
    return known


# ------------------------------------------------------------------------------------------------------------ items


def _own_names(item: Item, renamed: Mapping[str, str], claude: bool) -> Item:
    """Return an item with the tools' own names, and with Claude's signatures under the key of their maker.

    They are "compatible across platforms" (docs.anthropic.com, extended thinking): the conversation may go on anywhere
    that Claude is.
    """
    if isinstance(item, ToolCallItem) and (name := renamed.get(item.name or "")) is not None:
        return replace(item, name=name)
    if isinstance(item, ReasoningItem) and claude:
        return replace(item, provider_metadata=_signed(item.provider_metadata))
    if isinstance(item, Finish) and (renamed or claude):
        parts = _own_parts(item.message.parts, renamed, claude)
        message: Message = replace(item.message, parts=parts)
        return replace(item, message=message)
    return item


def _own_parts(parts: Sequence[Part], renamed: Mapping[str, str], claude: bool) -> tuple[Part, ...]:
    out: list[Part] = []
    for part in parts:
        if isinstance(part, ToolCall) and part.name in renamed:
            part = replace(part, name=renamed[part.name])
        elif isinstance(part, Reasoning) and claude:
            part = replace(part, provider_metadata=_signed(part.provider_metadata))
        out.append(part)
    return tuple(out)


def _signed(metadata: Metadata | None) -> Metadata | None:
    own = dict(as_dict((metadata or {}).get("bedrock")))
    signature = own.pop("signature", None)
    if signature is None:
        return metadata
    rest = {key: value for key, value in (metadata or {}).items() if key != "bedrock"}
    return {**rest, **({"bedrock": own} if own else {}), "anthropic": {"signature": signature}}
