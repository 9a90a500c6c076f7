"""What every dialect offers, and the small pure functions they share: errors, waits, ids, JSON from outside."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from msgspec import Struct, field

from windlass.core.errors import (
    AuthError,
    BadRequestError,
    ContextExceededError,
    ModelNotFoundError,
    OverloadedError,
    ProviderError,
    ProviderTimeoutError,
    RateLimitError,
    WindlassError,
    WireError,
)
from windlass.core.items import Finish, Item
from windlass.core.json import JsonError, loads
from windlass.core.models import Capabilities
from windlass.core.request import Request

__all__ = [
    "ANTHROPIC_IDS",
    "MISTRAL_IDS",
    "OPENAI_IDS",
    "DecodedRequest",
    "Dialect",
    "IdRule",
    "StreamDecoder",
    "StreamEncoder",
    "as_dict",
    "as_int",
    "as_list",
    "as_str",
    "bad_field",
    "classify",
    "excerpt",
    "field_of",
    "load_json",
    "load_object",
    "pick_code",
    "provider_error",
    "retry_after_seconds",
    "wire_id",
]


class DecodedRequest(Struct, frozen=True):
    """A client's request in our words.

    `extra` holds the top-level fields that have no word of ours, as they came. `request.settings.extra` is left
    empty: whoever forwards to the same dialect copies `extra` into it, because another dialect would refuse them.
    """

    request: Request
    stream: bool = False
    extra: dict[str, Any] = field(default_factory=dict[str, Any])


class StreamDecoder(Protocol):
    """Turn the bytes of one streamed answer into items; one object per stream."""

    def feed(self, data: bytes) -> list[Item]:
        """Take bytes, split anywhere, and return what they complete.

        Raises the classified ProviderError on an error event and WireError on bytes that do not follow the dialect;
        `.partial` holds the text so far, that of the same call included.
        """
        ...

    def close(self) -> list[Item]:
        """End the body and return what is left. Raises StreamInterrupted when the terminal event never came."""
        ...


class StreamEncoder(Protocol):
    """Turn items into the bytes of one streamed answer; one object per stream."""

    def encode(self, item: Item) -> bytes:
        """Return the frames of one item, b"" for what the dialect cannot carry.

        What belongs at the start comes with the first item; `Finish` gives the terminal frames.
        """
        ...

    def error(self, exc: WindlassError) -> bytes:
        """Return the frames that tell the client of a failure after the headers were sent."""
        ...


class Dialect(Protocol):
    """Translate between our words and one vendor's bytes, both ways: we are client and server. Pure."""

    #: The dialect's name, for messages.
    name: ClassVar[str]

    def dropped_settings(self, request: Request, caps: Capabilities) -> list[str]:
        """Return the names of the settings that are given and that this vendor or model cannot be told."""
        ...

    def encode_request(self, request: Request, caps: Capabilities, *, stream: bool) -> bytes:
        """Return the body to send; `request.settings.extra` is merged last.

        Raises UnsupportedInputError for a part or tool the model cannot take.
        """
        ...

    def decode_request(self, body: bytes) -> DecodedRequest:
        """Read a client's body. Raises BadRequestError that names the field."""
        ...

    def decode_response(self, body: bytes) -> Finish:
        """Read a whole answer. Raises WireError, or the classified ProviderError when it holds an error."""
        ...

    def encode_response(self, finish: Finish, *, model: str, response_id: str, created: int) -> bytes:
        """Return a whole answer; `created` is in Unix seconds."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Make a decoder for one stream."""
        ...

    def stream_encoder(self, *, model: str, response_id: str, created: int) -> StreamEncoder:
        """Make an encoder for one stream; `created` is in Unix seconds."""
        ...

    def decode_error(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        provider: str | None,
        model: str | None,
        endpoint: str | None,
    ) -> ProviderError:
        """Return the typed error of an answer that is not 2xx; header names are lower case. Never raises."""
        ...

    def encode_error(self, error: WindlassError) -> tuple[int, bytes]:
        """Return the HTTP status and body that tell a client of this error."""
        ...


# ---------------------------------------------------------------------------------------------- reading outside data


def excerpt(data: bytes | str, limit: int = 200) -> str:
    """Return the start of foreign data as one printable line of at most `limit` characters, for messages."""
    text = data[: limit * 4].decode("utf-8", "replace") if isinstance(data, bytes) else data[: limit * 4]
    line = " ".join("".join([char if char.isprintable() else " " for char in text]).split())
    return line if len(line) <= limit and len(data) <= limit * 4 else line[: limit - 1] + "…"


def load_json(body: bytes, what: str = "The answer") -> Any:
    """Decode a provider's JSON. Raises WireError with an excerpt, and says so when a web page came instead."""
    try:
        return loads(body)
    except JsonError as error:
        start = body[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
        if not start:
            raise WireError(f"{what} is empty where JSON was expected.") from None
        if start[:1] == b"<":
            raise WireError(
                f"{what} is a web page, not JSON: {excerpt(body)!r}.",
                hint="A captive portal or proxy answered, or the base URL is wrong.",
            ) from None
        raise WireError(f"{what} is {error}: {excerpt(body)!r}.") from None


def load_object(body: bytes, what: str = "The answer") -> dict[str, Any]:
    """Decode a provider's JSON object. Raises WireError as `load_json`, and for JSON that is not an object."""
    value = load_json(body, what)
    if not isinstance(value, dict):
        raise WireError(f"{what} is JSON but not an object: {excerpt(body)!r}.")
    return value  # pyright: ignore[reportUnknownVariableType]


def as_dict(value: Any) -> dict[str, Any]:
    """Return the value when it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return the value when it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def as_str(value: Any) -> str:
    """Return the value when it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def as_int(value: Any) -> int:
    """Return a count: whole, not negative, below 2^63; 0 for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0
    return int(value) if 0 <= value < 1 << 63 else 0


def bad_field(path: str, problem: str) -> BadRequestError:
    """Return the error for a client's bad field: `messages[0].role: must be a string`; `field_of` reads the path."""
    return BadRequestError(f"{path}: {problem}", status=400)


_PATH = re.compile(r"([a-z_]\w{0,63}(?:\[\d{1,9}\]|\.\w{1,64}){0,32}): ", re.IGNORECASE)


def field_of(error: WindlassError) -> str | None:
    """Return the path that `bad_field` wrote into an error, None for any other."""
    found = _PATH.match(error.message) if isinstance(error, BadRequestError) else None
    return found[1] if found else None


# ---------------------------------------------------------------------------------------------------------- waiting

_NUMBER = re.compile(r"[+-]?\d{1,400}(?:\.\d{0,400})?(?:[eE][+-]?\d{1,4})?")
# RFC 9110 5.6.7: IMF-fixdate and RFC 850, then asctime.
_DATE = re.compile(r"[A-Za-z]{3,9}, (\d{1,2})[ -]([A-Za-z]{3})[ -](\d{2,4}) (\d\d):(\d\d):(\d\d)(?: GMT| UTC)?")
_ASCTIME = re.compile(r"[A-Za-z]{3} ([A-Za-z]{3}) +(\d{1,2}) (\d\d):(\d\d):(\d\d) (\d{4})")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def retry_after_seconds(headers: Mapping[str, str], *, now_ns: int) -> float | None:
    """Return the wait a provider asks for in seconds: `retry-after-ms`, else `Retry-After` (RFC 9110 10.2.3).

    A wait in the past is 0; an absurd one is returned as it is, for the caller to cap; garbage is None.
    """
    millis = _number(headers.get("retry-after-ms", ""))
    if millis is not None:
        return max(0.0, millis / 1000)
    text = headers.get("retry-after", "").strip()
    seconds = _number(text)
    if seconds is None:
        when = _http_date(text)
        seconds = None if when is None else when - now_ns / 1e9
    return None if seconds is None else max(0.0, seconds)


def _number(text: str) -> float | None:
    text = text.strip()
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def _http_date(text: str) -> float | None:
    if found := _DATE.fullmatch(text):
        day, month, year, *rest = found.groups()
    elif found := _ASCTIME.fullmatch(text):
        month, day, *rest, year = found.groups()
    else:
        return None
    full = int(year) + (0 if len(year) > 2 else 1900 if int(year) >= 70 else 2000)
    hour, minute, second = (int(part) for part in rest)
    try:
        number = _MONTHS.index(month.lower()) + 1
        return datetime(full, number, int(day), hour, minute, min(second, 59), tzinfo=UTC).timestamp()
    except ValueError:
        return None


# --------------------------------------------------------------------------------------------------------- ids


class IdRule(Struct, frozen=True):
    """What a vendor takes as a tool-call id: the characters, at most (or, with `exact`, just) `length` of them."""

    length: int
    exact: bool = False
    characters: str = "A-Za-z0-9_-"


#: `^[a-zA-Z0-9_-]+$` (docs.anthropic.com, messages API); no length is stated.
ANTHROPIC_IDS = IdRule(64)
#: At most 40 characters (the error text of `messages[].tool_calls[].id`).
OPENAI_IDS = IdRule(40)
#: `a-z, A-Z, 0-9, with a length of 9` (Mistral's error text).
MISTRAL_IDS = IdRule(9, exact=True, characters="A-Za-z0-9")

_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def wire_id(our_id: str, rule: IdRule) -> str:
    """Map our id to the vendor's pattern: unchanged where it fits, else cleaned and ended by a hash of the whole.

    A pure function, so that a call and its response agree in whatever request they appear.
    """
    length = len(our_id)
    if (length == rule.length if rule.exact else 0 < length <= rule.length) and not re.search(
        f"[^{rule.characters}]", our_id
    ):
        return our_id
    number = int.from_bytes(hashlib.blake2b(our_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
    digest = ""
    for _ in range(9):
        number, digit = divmod(number, 62)
        digest += _BASE62[digit]
    if rule.exact:
        return digest[: rule.length]
    clean = re.sub(f"[^{rule.characters}]", "_", our_id[: rule.length - 10])
    return f"{clean}_{digest}"


# ------------------------------------------------------------------------------------------------------- errors

_AUTH = (
    "invalid_api_key authentication_error permission_error permission_denied invalid_authentication unauthenticated "
    "api_key_invalid"  # Google, with 400
)
_RATE = "rate_limit_exceeded rate_limit_error rate_limited insufficient_quota too_many_requests resource_exhausted"
_BROKEN = (
    "overloaded_error overloaded engine_overloaded_error server_overloaded server_error api_error internal_error "
    "internal_server_error internalservererror service_unavailable service_unavailable_error unavailable "
    "unavailable_error internal bad_gateway provider_unavailable "
    "generation incomplete_generation incomplete_generation_stream"  # TGI, with 424 and 500
)
_CONTEXT = "context_length_exceeded exceed_context_size_error model_context_window_exceeded context_window_exceeded"
_MISSING = (
    "model_not_found not_found_error notfounderror not_found deploymentnotfound model_not_available model_not_supported"
)
_TIMEOUT = "timeout timeout_error request_timeout deadline_exceeded gateway_timeout"
#: Vendors' own words (`error.code`, else `error.type`), lower case.
_CODES: dict[str, type[ProviderError]] = {
    word: kind
    for words, kind in (
        (_CONTEXT, ContextExceededError),
        (_AUTH, AuthError),
        (_RATE, RateLimitError),
        (_BROKEN, OverloadedError),
        (_MISSING, ModelNotFoundError),
        (_TIMEOUT, ProviderTimeoutError),
        ("unknown_url", BadRequestError),
        # Reference A, and our own gateway on chat completions.
        ("provider_auth_failed", AuthError),
        ("provider_rate_limited", RateLimitError),
        ("provider_upstream_error", OverloadedError),
        ("provider_not_found", ModelNotFoundError),
        ("provider_timeout", ProviderTimeoutError),
        ("provider_rejected_request", BadRequestError),
        # AWS: the names of Bedrock's exceptions.
        ("accessdeniedexception unrecognizedclientexception expiredtokenexception", AuthError),
        ("throttlingexception servicequotaexceededexception", RateLimitError),
        ("serviceunavailableexception internalserverexception modelnotreadyexception", OverloadedError),
        ("modelstreamerrorexception modelerrorexception", OverloadedError),
        ("resourcenotfoundexception", ModelNotFoundError),
        ("modeltimeoutexception", ProviderTimeoutError),
    )
    for word in words.split()
}
#: Words that say no more than "bad request": the text may still tell of a full context.
_VAGUE_WORDS = (
    "invalid_request_error invalid_request badrequesterror bad_request bad_request_error invalid_argument "
    "validation_error invalid_value server_error api_error internal_error internal_server_error validationexception "
    "validation template_error tool_error missing_template_variable"  # TGI
)
_VAGUE = frozenset(_VAGUE_WORDS.split())
#: How vendors tell of a full context where no code does (server or vendor in brackets). Each is linear in the text.
_FULL = re.compile(
    r"maximum context length"  # OpenAI, DeepSeek, vLLM, OpenRouter, Mistral, Ollama
    r"|exceeds? the context window"  # OpenAI Responses
    r"|prompt is too long"  # Anthropic
    r"|exceeds? (?:the )?context limit"  # Anthropic: input length and `max_tokens` exceed context limit
    r"|(?:exceeds?|larger than|greater than|longer than) the (?:available |model's |maximum )?"
    r"(?:context (?:size|length|window)|model length)"  # llama.cpp, Ollama, LM Studio, SGLang, vLLM
    r"|exceed(?:ed|s)? (?:max |maximum )?context (?:length|window)"  # Ollama
    r"|input token count[^.]{0,60} exceeds the maximum"  # Google
    r"|maximum prompt length is \d"  # xAI
    r"|reduce the length of (?:the|your) (?:messages|prompt|input)"  # Groq, Cerebras
    r"|input is too long for requested model|number of input tokens exceeds maximum"  # Bedrock
    r"|context window exceeds limit"  # MiniMax
    r"|exceeded model token limit"  # Moonshot
    r"|prompt (?:token count[^.]{0,40} )?exceeds (?:the limit of|max length)"  # Copilot, Z.ai
    r"|model's context length is only"  # vLLM
    r"|context[_ ]length[_ ]exceeded"
    r"|tokens \+ `?max_new_tokens`? must be <=|`inputs` must have less than \d"  # TGI, Together
    r"|prompt tokens? exceeds?|too many tokens: total",  # Cohere
    re.IGNORECASE,
)


def classify(status: int | None, code: str | None, message: str) -> type[ProviderError]:
    """Return the kind of error for an HTTP status, the vendor's code (else type) and its text.

    `status` is None (or 2xx) for an error inside a stream. Status and code decide; the text is read only where they
    say no more than that the request was bad. A 401 is an AuthError whatever it says.
    """
    word = (code or "").lower()
    inside = status is None or status < 400
    if status == 401 or (status == 403 and _CODES.get(word) is not ModelNotFoundError):
        return AuthError
    known = _CODES.get(word)
    if known is not None and word not in _VAGUE:
        return known
    if (inside or status in (400, 413, 422, 500)) and _FULL.search(message[:4000]):
        return ContextExceededError
    if status == 413 and (not message.strip() or word == "request_too_large"):
        return ContextExceededError  # Cerebras and Mistral send no body; Anthropic means the conversation's bytes
    if status is None or status < 400:
        return known or (BadRequestError if word in _VAGUE else ProviderError)
    if status == 404:
        return ModelNotFoundError
    if status == 408:
        return ProviderTimeoutError
    if status == 429:
        return RateLimitError
    # 498 is Groq's "flex tier capacity exceeded".
    return OverloadedError if status >= 500 or status == 498 else BadRequestError


def pick_code(*words: Any) -> str | None:
    """Return the vendor word that `classify` knows, else the first that is text; None when there is none."""
    said = [word for word in words if isinstance(word, str) and word]
    return next((word for word in said if word.lower() in _CODES), said[0] if said else None)


_HINTS: dict[type[ProviderError], str] = {
    AuthError: "Check the API key and what it may use.",
    ContextExceededError: "Shorten or compact the conversation, or use a model with a larger context.",
    ModelNotFoundError: "Check the model id and the base URL.",
    RateLimitError: "Wait, or use another provider.",
}


def provider_error(
    status: int | None,
    code: str | None,
    message: str,
    *,
    provider: str | None = None,
    model: str | None = None,
    endpoint: str | None = None,
    retry_after: float | None = None,
    partial: str = "",
) -> ProviderError:
    """Build the classified error with one text for all dialects: who answered what, and the next step."""
    kind = classify(status, code, message)
    who = provider or "The provider"
    how = f"answered {status}" if status is not None and status >= 400 else "reported an error"
    if kind is OverloadedError and (status is None or status < 400):
        status = 529
    text = excerpt(message, 600) or code or "no details were given"
    return kind(
        f"{who} {how}{f' for model {model}' if model else ''}: {text.rstrip('.')}.",
        provider=provider,
        model=model,
        endpoint=endpoint,
        status=status,
        provider_code=code,
        retry_after=retry_after,
        partial=partial,
        hint=_HINTS.get(kind, ""),
    )
