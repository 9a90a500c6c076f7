"""Look into a request's body without decoding all of it, and refuse what two parsers could read differently."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

from windlass.core.errors import RequestRefused
from windlass.core.json import dumps

__all__ = ["FORBIDDEN", "Fields", "asked_model", "asked_stream", "checked_model", "field_value", "peek", "rebuild"]

Fields = dict[str, Raw]
_fields = msgspec.json.Decoder(dict[str, Raw])
_decode = msgspec.json.Decoder().decode
#: Where a request goes, and with which credential, is never the client's to say (S31).
FORBIDDEN = frozenset(
    ("api_base", "base_url", "api_key", "api_version", "headers", "extra_headers", "default_headers", "proxy",
     "proxies", "organization", "aws_access_key_id", "aws_secret_access_key", "aws_session_token",
     "custom_llm_provider", "vertex_credentials", "azure_ad_token", "mock_response", "fallbacks", "ssl_verify")
)  # fmt: skip
#: Above this a body is looked at for floods of small things, which would cost more than their bytes.
_LARGE = 262_144
_MOST = {"messages": 20_000, "tools": 4_096, "input": 20_000, "contents": 20_000, "images": 10_000}
_MOST_FIELDS = 1000
_PIECE = 16_384
_DEEP = "Request body must be valid JSON, not nested this deep."
_KEY = re.compile(rb'"(?:[^"\\]|\\.)*"')
_MAX_WHOLE = (1 << 31) - 1
_WHOLE_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def _bad(text: str, reason: str = "invalid_json", param: str | None = None) -> RequestRefused:
    return RequestRefused(400, text, reason=reason, param=param)


def peek(body: bytes) -> Fields:
    """Return the top-level fields of a JSON object, each as its bytes.

    Raises RequestRefused 400 for what is not one object in UTF-8, a field given twice, fields that name an address or a
    credential, and numbers, arrays and objects past any use (S76, S77). What lies deeper goes on as it is.
    """
    if not body:
        raise _bad("The request has no body.", "missing_body")
    try:
        fields = _fields.decode(body)
        if not body.isascii():
            _check_utf8(body)  # the strings inside were not looked at
    except msgspec.ValidationError:
        raise _bad("Request body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _bad("Request body must be valid JSON.") from None
    except RecursionError:
        raise _bad(_DEEP) from None
    count = len(fields)
    if count > _MOST_FIELDS:
        raise _bad(f"The request has more than {_MOST_FIELDS} fields.", "invalid_request")
    size = sum(map(len, fields)) + sum([len(memoryview(raw)) for raw in fields.values()])
    # A compact body of this length has no room for a second field of a name; nor has one that is spaced as Python's
    # json does it, which has room in its spaces and is therefore compared.
    if len(body) != size + 4 * count + 1 and not (count and len(body) == size + 6 * count and _spaced(fields) == body):
        _refuse_second(fields, body)
    if not fields.keys().isdisjoint(FORBIDDEN):
        name = min(fields.keys() & FORBIDDEN)
        raise _bad(f"{name} may not be set by a request: addresses and keys are the gateway's own.", "forbidden_field",
                   name)  # fmt: skip
    _check_numbers(fields)
    if len(body) > _LARGE:
        _refuse_floods(fields, body)
    return fields


def _check_utf8(body: bytes) -> None:
    """Raise UnicodeDecodeError for what is not UTF-8; in pieces, which is four times faster than one large string."""
    at, size = 0, len(body)
    while at < size:
        end = at + _PIECE
        for _ in range(3):
            if end < size and body[end] & 0xC0 == 0x80:
                end -= 1
        body[at:end].decode()
        at = end


def _spaced(fields: Fields) -> bytes:
    parts: list[Any] = []
    for name, raw in fields.items():
        parts += (b', "', name.encode(), b'": ', raw)
    parts[0] = b'{"'
    return b"".join((*parts, b"}"))


def _check_numbers(fields: Fields) -> None:
    for name in _WHOLE_FIELDS:
        raw = fields.get(name)
        if raw is not None and len(memoryview(raw)) > 4:
            value: Any = field_value(fields, name)
            if not isinstance(value, (int, float)) or not 0 < value <= _MAX_WHOLE:
                raise _bad(f"{name} must be a whole number from 1 to {_MAX_WHOLE}.", f"invalid_{name}", name)
    raw = fields.get("n")
    if raw is not None and bytes(raw) not in (b"1", b"null"):
        value = field_value(fields, "n")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 128:
            raise _bad("n must be a whole number from 1 to 128.", "invalid_n", "n")


def field_value(fields: Fields, name: str) -> Any:
    """Return one field decoded; None when it is absent or null. Raises RequestRefused 400 for numbers out of range."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return _decode(raw)
    except (msgspec.DecodeError, RecursionError):
        raise _bad(f"{name} holds a number that is out of range.", f"invalid_{name}", name) from None


def asked_model(fields: Fields) -> str:
    """Return the model a request names. Raises RequestRefused 400."""
    return checked_model(field_value(fields, "model"))


def checked_model(model: Any) -> str:
    """Return what may be a model's name. Raises RequestRefused 400."""
    if not isinstance(model, str) or not model.strip() or len(model) > 512 or not model.isprintable():
        raise RequestRefused(400, "model must be the name of a model or a route.", reason="invalid_model",
                             param="model")  # fmt: skip
    return model


def asked_stream(fields: Fields, default: bool) -> bool:
    """Return whether a request asks for a stream. Raises RequestRefused 400."""
    stream = field_value(fields, "stream")
    if stream is None:
        return default
    if not isinstance(stream, bool):
        raise RequestRefused(400, "stream must be true or false.", reason="invalid_stream", param="stream")
    return stream


def rebuild(fields: Fields, changes: dict[str, bytes]) -> bytes:
    """Return a body with some fields replaced or added, every other one the bytes it was."""
    merged: dict[str, Any] = {**fields, **changes}
    return b"{" + b",".join([dumps(key) + b":" + bytes(raw) for key, raw in merged.items()]) + b"}"


def _refuse_second(fields: Fields, body: bytes) -> None:
    """Refuse a field that is given twice: the upstream might read the other one (S76)."""
    compact, at = _compact(body), 1
    seen: set[str] = set()
    while at < len(compact) - 1:
        key = _KEY.match(compact, at)
        assert key is not None
        name = str(_decode(key[0]))
        value, start = _compact(bytes(fields[name])), key.end() + 1
        at = start + len(value)
        # Of two fields of a name we have the last: where another value stands, it is not the only one.
        if name in seen or compact[start:at] != value or compact[at : at + 1] not in (b",", b"}"):
            raise _bad(f"{name[:64]!r} is given twice.", "duplicate_key")
        seen.add(name)
        at += 1


def _compact(data: bytes) -> bytes:
    try:
        return msgspec.json.format(data, indent=-1)
    except RecursionError:
        raise _bad(_DEEP) from None


_items = msgspec.json.Decoder(list[Raw])


def _refuse_floods(fields: Fields, body: bytes) -> None:
    for name, most in _MOST.items():
        raw = fields.get(name)
        if raw is None or bytes(memoryview(raw)[:1]) != b"[":
            continue
        if len(_items.decode(raw)) > most:
            raise _bad(f"{name} holds more than {most} entries.", f"invalid_{name}", name)
    if body.count(b'"image') > 10_000:
        raise _bad("The request holds more than 10000 images.", "invalid_messages", "messages")
