"""JSON at the edges: bounded when it comes from outside, reversible when it is stored.

msgspec refuses what real tool output can hold: lone surrogates, integers past 64 bits. Storage must not lose them, so
`dumps_stored` escapes exactly those values, and `loads_stored` brings them back. NUL is escaped too: PostgreSQL's text
types cannot hold it. The escape mark is the private-use character U+E0F5, doubled where a text already holds it.
"""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

__all__ = ["JsonError", "dumps", "dumps_stored", "loads", "loads_stored"]

MARK = "\ue0f5"
_BAD = re.compile(f"[\ud800-\udfff\x00{MARK}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONE = re.compile(
    rb"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\)(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_ESCAPED = re.compile(f"{MARK}(?:{MARK}|x([0-9a-f]{{4}}))")
_BIG = re.compile(f"{MARK}i(-?[0-9]+)")
_MARK_BYTES = MARK.encode()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
#: Nesting that we accept from outside; deeper input is an attack or a bug (msgspec gives up near 1000).
MAX_DEPTH = 128


class JsonError(ValueError):
    """Report bytes that are not acceptable JSON; the text says where and why."""


def loads(data: bytes | str, *, max_depth: int = MAX_DEPTH) -> Any:
    """Decode JSON from outside.

    A byte order mark is skipped. Raises JsonError for malformed JSON, bad UTF-8, NaN and infinities, and nesting past
    `max_depth`. Duplicate keys: the last wins (a gateway that must refuse them checks itself).
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    try:
        value = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        value = _with_lone_surrogates(data)
        if value is None:
            raise JsonError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise JsonError(f"nested deeper than {max_depth} levels") from None
    # A document with few brackets cannot be deep: the walk is for suspects only.
    if data.count(b"[") + data.count(b"{") > max_depth and _depth_exceeds(value, max_depth):
        raise JsonError(f"nested deeper than {max_depth} levels")
    return value


def _with_lone_surrogates(data: bytes) -> Any:
    """Decode what msgspec refuses for half a surrogate pair alone (a stream may cut one in two); None otherwise."""
    marked, found = _LONE.subn(lambda match: b"\\ue0f5x" + match[0][2:].lower(), data)
    if not found:
        return None
    try:
        return _walk(_decode(marked), _unescape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _depth_exceeds(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    depth = 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
            elif isinstance(item, list):
                below.extend(item)  # pyright: ignore[reportUnknownArgumentType]
        level = [item for item in below if isinstance(item, (dict, list))]
        depth += 1
        if depth > limit:
            return True
    return False


def dumps(value: Any) -> bytes:
    """Encode for a peer: compact; lone surrogates become U+FFFD, numbers JSON cannot carry become strings."""
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError, msgspec.ValidationError):
        return _encode(_for_peer(msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value))


def _for_peer(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {_for_peer(key): _for_peer(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [_for_peer(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return msgspec.to_builtins(value)


def dumps_stored(value: Any) -> bytes:
    """Encode for storage, reversibly: what JSON cannot carry is escaped."""
    try:
        out = _encode(value)
    except (UnicodeEncodeError, OverflowError):
        return _encode(_walk(value, _escape))
    if b"\\u0000" in out or _MARK_BYTES in out:
        return _encode(_walk(value, _escape))
    return out


def loads_stored(data: bytes) -> Any:
    """Decode what `dumps_stored` wrote. Raises JsonError when the bytes are not JSON."""
    try:
        value = _decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise JsonError(f"not valid JSON: {error}") from None
    return _walk(value, _unescape) if _MARK_BYTES in data else value


def _walk(value: Any, text: Any) -> Any:
    if isinstance(value, (str, int)):
        return text(value)
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.asdict(value)
        config = value.__struct_config__
        out: dict[str, Any] = {}
        if config.tag_field is not None:
            out[config.tag_field] = config.tag
        for info in msgspec.structs.fields(value):
            item = fields[info.name]
            if not (config.omit_defaults and item == info.default):
                out[info.encode_name] = _walk(item, text)
        return out
    if isinstance(value, dict):
        return {text(key): _walk(item, text) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [_walk(item, text) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def _escape(value: Any) -> Any:
    if isinstance(value, str):
        if not _BAD.search(value):
            return value
        return _BAD.sub(lambda m: MARK + (MARK if m[0] == MARK else f"x{ord(m[0]):04x}"), value)
    if not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 64:
        return f"{MARK}i{value}"
    return value


def _unescape(value: Any) -> Any:
    if not isinstance(value, str) or MARK not in value:
        return value
    if big := _BIG.fullmatch(value):
        return int(big[1])
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)) if m[1] else MARK, value)
