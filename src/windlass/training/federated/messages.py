"""The messages between nodes and a coordinator: their bodies, their authentication, what is refused.

A request carries `x-windlass-node`, `-nonce` (32 hex digits), `-time` (Unix nanoseconds) and `-mac`: HMAC-SHA256
(RFC 2104) over method, target, node, nonce, time and the body's SHA-256. An answer carries a code over its status, the
request's nonce and its body. So a message cannot be forged, changed, sent on to another place or to another node, or
taken for the answer to another request; a nonce is taken once, and only within `WINDOW` seconds of its time.

Keys never travel: node and coordinator derive the node's key (HKDF, RFC 5869) from the enrolment token and a nonce
of each side. Who knows the token and saw the enrolment can derive it as well: the token is a secret, and content is
authenticated but not hidden. Over a network that others can read, put TLS in front.

A body with weights is a magic, the length of a JSON header (u32, little-endian), that header, and the weights as
little-endian float32 to the end; everything else is JSON.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import struct
from collections.abc import Mapping
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from windlass.core import clock
from windlass.training.federated.config import NODE_ID
from windlass.training.federated.errors import (
    ForgedMessage,
    MalformedMessage,
    OversizedMessage,
    ReplayedMessage,
    UnknownNode,
)

__all__ = [
    "OPERATOR",
    "PREFIX",
    "Enrol",
    "Enrolled",
    "Guard",
    "Ids",
    "Refused",
    "SentUpdate",
    "SentWeights",
    "Status",
    "Taken",
    "decode",
    "decode_vector",
    "derive_key",
    "encode_vector",
    "mac_of_answer",
    "new_nonce",
    "read_ids",
    "sign",
    "vector_limit",
]

T = TypeVar("T", bound=Struct)
PREFIX = "/federated/v1"
#: The name under which whoever holds the token asks for the status and ends rounds; no node can have it.
OPERATOR = "@operator"
#: Seconds by which the time of a message may differ from ours.
WINDOW = 120.0
#: Nonces of one key that are remembered at once.
_NONCES = 4096
MIN_TOKEN = 16
MAX_JSON, _MAX_HEADER = 65_536, 65_536
_MAGIC = b"WFL1"
_NONCE = re.compile(r"[0-9a-f]{32}")
_MAC = re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"[0-9]{1,19}")


class Enrol(Struct, frozen=True, forbid_unknown_fields=True):
    """A node's wish to take part; `nonce` is what it adds to its key."""

    node: str
    nonce: str


class Enrolled(Struct, frozen=True, forbid_unknown_fields=True):
    """The answer: what the coordinator adds to the key, and what the node needs to know."""

    nonce: str
    model_size: int
    update: str


class SentUpdate(Struct, frozen=True, forbid_unknown_fields=True):
    """The header of an update. `model_size` is the number of weights behind it."""

    round: int
    step: int
    sample_count: int
    model_size: int
    metrics: dict[str, float] = {}


class SentWeights(Struct, frozen=True, forbid_unknown_fields=True):
    """The header of the global weights; `done` says that no more rounds follow."""

    round: int
    model_size: int
    done: bool


class Taken(Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to an update; `again` where it had come before."""

    round: int
    updates: int
    again: bool = False


class Status(Struct, frozen=True, forbid_unknown_fields=True):
    """Where a coordinator stands. `waiting` are the nodes whose updates are here; `counts` of what happened so far."""

    round: int
    done: bool
    model_size: int
    strategy: str
    nodes: list[str] = []
    waiting: list[str] = []
    counts: dict[str, int] = {}
    history: list[dict[str, float]] = []


class Refused(Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to what was refused: the error's code and its text."""

    code: str
    message: str


def decode(data: bytes, kind: type[T]) -> T:
    """Read a JSON message of a kind. Raises MalformedMessage, OversizedMessage past 64 KiB."""
    if len(data) > MAX_JSON:
        raise OversizedMessage(f"A message of {len(data)} bytes; {kind.__name__} has at most {MAX_JSON}.")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"The message is no {kind.__name__}: {error}.") from None


def vector_limit(model_size: int) -> int:
    """Return how many bytes a message with `model_size` weights can have at most."""
    return 8 + _MAX_HEADER + 4 * model_size


def encode_vector(header: SentUpdate | SentWeights, weights: NDArray[np.floating]) -> bytes:
    """Return a message with weights."""
    text = msgspec.json.encode(header)
    return b"".join((_MAGIC, struct.pack("<I", len(text)), text, np.ascontiguousarray(weights, "<f4").tobytes()))


def decode_vector(data: bytes, kind: type[T], model_size: int) -> tuple[T, NDArray[np.float32]]:
    """Read a message with weights: its header, and the weights, not yet checked to be finite.

    Raises OversizedMessage, and MalformedMessage for what is truncated, follows no schema, or whose header says
    another length than its weights have. A model of another size than ours is told by the header.
    """
    if len(data) > vector_limit(model_size):
        raise OversizedMessage(f"A message of {len(data)} bytes, and at most {vector_limit(model_size)} are taken.")
    if len(data) < 8 or data[:4] != _MAGIC:
        raise MalformedMessage("The message does not begin as one with weights does.")
    (length,) = struct.unpack_from("<I", data, 4)
    if length > _MAX_HEADER or 8 + length > len(data):
        raise MalformedMessage(f"The message's header has {length} bytes, and {len(data) - 8} follow.")
    header = decode(data[8 : 8 + length], kind)
    said: int = header.model_size  # pyright: ignore[reportAttributeAccessIssue] - both kinds have it
    rest = memoryview(data)[8 + length :]
    if len(rest) != 4 * said:
        raise MalformedMessage(f"The message says {said} weights, and {len(rest)} bytes follow.")
    return header, np.frombuffer(rest, "<f4").astype(np.float32)


# -- keys and codes --------------------------------------------------------------------------------------------------


def new_nonce() -> str:
    """Return 128 bits of the system's randomness, in hex."""
    return secrets.token_hex(16)


def derive_key(token: str, purpose: str, *nonces: str) -> bytes:
    """Return the 32 bytes that a token gives for a purpose: HKDF-SHA256 (RFC 5869), one block of output."""
    pseudorandom = hmac.digest(b"windlass federated 1", token.encode(), "sha256")
    info = "\n".join([purpose, *nonces]).encode()
    return hmac.digest(pseudorandom, info + b"\x01", "sha256")


class Ids(Struct, frozen=True):
    """Who says to have sent a message, and when; true only once its code was checked."""

    node: str
    nonce: str
    time_ns: int
    mac: str


def read_ids(headers: Mapping[str, str]) -> Ids:
    """Read the four headers; names are lower case. Raises MalformedMessage."""
    node, nonce = headers.get("x-windlass-node", ""), headers.get("x-windlass-nonce", "")
    time, mac = headers.get("x-windlass-time", ""), headers.get("x-windlass-mac", "")
    well = NODE_ID.fullmatch(node) or node == OPERATOR
    if not (well and _NONCE.fullmatch(nonce) and _TIME.fullmatch(time) and _MAC.fullmatch(mac)):
        raise MalformedMessage("The message does not say who sent it, or how.", hint="Ask with `windlass federate`.")
    return Ids(node, nonce, int(time), mac)


def _mac(key: bytes, *parts: str, body: bytes) -> str:
    # None of the parts can hold a line end, so no two messages give the same text.
    text = "\n".join(["windlass-federated-1", *parts, hashlib.sha256(body).hexdigest()])
    return hmac.digest(key, text.encode(), "sha256").hex()


def sign(key: bytes, node: str, method: str, target: str, body: bytes) -> dict[str, str]:
    """Return the headers of a new message: a nonce, the time now, and the code over all of it."""
    nonce, time = new_nonce(), str(clock.now_ns())
    mac = _mac(key, method, target, node, nonce, time, body=body)
    return {"x-windlass-node": node, "x-windlass-nonce": nonce, "x-windlass-time": time, "x-windlass-mac": mac}


def mac_of_answer(key: bytes, nonce: str, status: int, body: bytes) -> str:
    """Return the code of the answer to the request with this nonce."""
    return _mac(key, "answer", nonce, str(status), body=body)


class Guard:
    """Tells messages that were sent by who they say, once and just now, from all others.

    `since` is a Unix time in nanoseconds: nothing signed before it is taken, because a coordinator that was started
    again does not know what its forerunner had taken.
    """

    def __init__(self, *, window: float = WINDOW, since: int = 0) -> None:
        self.window, self.since = window, since
        self._seen: dict[bytes, dict[str, int]] = {}

    def check(self, ids: Ids, key: bytes | None, method: str, target: str, body: bytes) -> None:
        """Return once for each good message. Raises UnknownNode, ForgedMessage, ReplayedMessage."""
        # An unknown sender takes as long as a known one.
        mac = _mac(key or bytes(32), method, target, ids.node, ids.nonce, str(ids.time_ns), body=body)
        fits = hmac.compare_digest(mac, ids.mac)
        if key is None:
            raise UnknownNode(f"The node {ids.node!r} is not enrolled here.", hint="Enrol it with the token.")
        if not fits:
            raise ForgedMessage(f"The code of the message from {ids.node!r} does not fit it.")
        now, span = clock.now_ns(), round(self.window * 1e9)
        # It never goes back, so that a clock that does brings no forgotten nonce back.
        self.since = max(self.since, now - span)
        if not self.since <= ids.time_ns <= now + span:
            raise ReplayedMessage(
                f"The message of {ids.node!r} was signed {(now - ids.time_ns) / 1e9:.1f} s ago by its clock.",
                hint="Sign it anew; if that does not help, set the clocks.",
            )
        seen = self._seen.setdefault(key, {})
        while seen and seen[oldest := next(iter(seen))] < self.since:
            del seen[oldest]
        if ids.nonce in seen:
            raise ReplayedMessage(f"The message of {ids.node!r} came before.")
        if len(seen) >= _NONCES:
            raise ReplayedMessage(f"{ids.node!r} sends more than {_NONCES} messages in {self.window:g} s.",
                                  hint="Ask more slowly.")  # fmt: skip
        seen[ids.nonce] = ids.time_ns
