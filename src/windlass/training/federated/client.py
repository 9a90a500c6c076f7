"""A node of federated training: fetch the global weights, train on what is here, send what became of them.

The data never leaves: a `Train` function gets weights and gives weights. See `trainers.from_trainer` for the trainer of
`windlass.training` as one.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from windlass.core import clock
from windlass.core.errors import BodyTooLarge, ConfigError, TransportError, TransportTimeout
from windlass.core.http import Client, Response, endpoint
from windlass.core.threads import run_in_thread
from windlass.training.federated.aggregate import check_vector
from windlass.training.federated.config import NODE_ID
from windlass.training.federated.errors import (
    ForgedMessage,
    InsufficientUpdates,
    MessageRefused,
    ReplayedMessage,
    RoundFull,
    StaleUpdate,
    StateError,
    UnknownNode,
    refusal,
)
from windlass.training.federated.messages import (
    OPERATOR,
    PREFIX,
    Enrol,
    Enrolled,
    Refused,
    SentUpdate,
    SentWeights,
    Status,
    Taken,
    decode,
    decode_vector,
    derive_key,
    encode_vector,
    mac_of_answer,
    new_nonce,
    sign,
    vector_limit,
)
from windlass.training.federated.state import write_file

__all__ = ["Global", "Node", "Operator", "Train", "Trained"]

T = TypeVar("T", bound=Struct)
log = logging.getLogger("windlass.federated")
#: Seconds before a failed request is sent again: the first wait, and the longest.
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0
#: Bytes of an answer without weights.
_ANSWER = 1 << 20


class Trained(NamedTuple):
    """What local training gives: all weights (model_size,), how many samples it read, numbers to show."""

    weights: NDArray[np.floating]
    sample_count: int = 1
    metrics: dict[str, float] = {}


#: Trains from the global weights (model_size,) float32 of a round, from 0; called in a thread.
Train: TypeAlias = Callable[[NDArray[np.float32], int], Trained]


class Global(NamedTuple):
    """The global weights (model_size,) of a round; `done` where no round follows."""

    round: int
    weights: NDArray[np.float32]
    done: bool


class _Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """What a node keeps: the nonce it enrols with, and once it has, its key and what it was told."""

    node: str
    nonce: str
    key: str = ""
    model_size: int = 0
    update: str = "weights"


class _Line:
    """Asks one coordinator, again and again where that can help, and believes only signed answers."""

    def __init__(self, url: str, name: str, deadline_seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError(f"{endpoint(url) or 'An empty text'} is no address of a coordinator.",
                              hint='Write "http://127.0.0.1:8090".')  # fmt: skip
        if deadline_seconds <= 0:
            raise ConfigError("deadline_seconds must be above 0.")
        self.base, self.path = url.rstrip("/"), parts.path.rstrip("/")
        self.name, self.deadline = name, deadline_seconds

    async def ask(
        self, http: Client, key: bytes, method: str, what: str, body: bytes = b"", most: int = _ANSWER
    ) -> bytes:
        """Return the body of a signed answer. Raises FederatedError, TransportTimeout once the deadline passed."""
        waited, last = 0, ""
        try:
            async with clock.deadline(self.deadline):
                while True:
                    try:
                        return await self._once(http, key, method, what, body, most)
                    except (TransportError, _Busy, ReplayedMessage) as error:
                        # A message that was signed before the coordinator started again counts as replayed.
                        if isinstance(error, BodyTooLarge):
                            raise
                        last = str(error)
                    # Between half and all of it, so that nodes that failed together do not come back together.
                    pause = min(_LONGEST_WAIT, _FIRST_WAIT * 2**waited) * (0.5 + clock.random() / 2)
                    log.info("%s %s in %.1f s again: %s", method, what, pause, last)
                    waited = min(waited + 1, 16)
                    await clock.sleep(pause)
        except TimeoutError:
            raise TransportTimeout(f"No good answer from {endpoint(self.base)} in {self.deadline:g} s: {last}",
                                   phase="total", endpoint=endpoint(self.base)) from None  # fmt: skip

    async def _once(self, http: Client, key: bytes, method: str, what: str, body: bytes, most: int) -> bytes:
        signed = sign(key, self.name, method, f"{PREFIX}/{what}", body)
        headers = {**signed, **({"content-type": "application/octet-stream"} if body else {})}
        answer = await http.request(
            method, f"{self.base}{PREFIX}/{what}", headers=headers, body=body, max_body_bytes=most
        )
        mac = mac_of_answer(key, signed["x-windlass-nonce"], answer.status, answer.body)
        genuine = hmac.compare_digest(str(answer.headers.get("x-windlass-mac")).encode(), mac.encode())
        if answer.status == 200 and genuine:
            return answer.body
        raise _error_of(answer, genuine)


class _Busy(Exception):
    """An answer that says nothing of our message: asking again may help."""


def _error_of(answer: Response, genuine: bool) -> Exception:
    if answer.status == 200:
        return ForgedMessage("The answer does not come from the coordinator that this node enrolled with.")
    try:
        said = msgspec.json.decode(answer.body, type=Refused)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Busy(f"HTTP status {answer.status}")
    error = refusal(said.code, said.message)
    if answer.status < 500 and (genuine or isinstance(error, (MessageRefused, UnknownNode))):
        return error
    # Before it knows us a coordinator can sign nothing; all it may say then is that it does not. A full disk passes.
    return _Busy(f"{said.message} (HTTP status {answer.status})")


class Node:
    """Takes part in federated training at the coordinator of `url` under `node_id`, with the enrolment `token`.

    `train` is called once a round, in a thread. With `folder` the node's key and its newest update are kept there
    (readable by its user alone), so that a node that was killed goes on: it is the same node, and what it had trained
    for the round is sent, not trained again. A request is tried again, with growing pauses, for `deadline_seconds`; a
    round may last `round_seconds`; the next one is asked for every `poll_seconds`.

    Raises ConfigError for a wrong address or name.
    """

    def __init__(
        self,
        url: str,
        node_id: str,
        token: str,
        train: Train,
        *,
        folder: Path | str | None = None,
        deadline_seconds: float = 120.0,
        round_seconds: float = 3600.0,
        poll_seconds: float = 0.5,
    ) -> None:
        if not NODE_ID.fullmatch(node_id):
            raise ConfigError(f"{node_id[:80]!r} is no name of a node.", hint="1 to 64 letters, digits, dots, -, _.")
        self.node_id, self._token, self._train = node_id, token, train
        self._line = _Line(url, node_id, deadline_seconds)
        self._round_seconds, self._poll = round_seconds, poll_seconds
        self._folder = Path(folder) if folder is not None else None
        self._identity = self._load()

    def _load(self) -> _Identity:
        fresh = _Identity(self.node_id, new_nonce())
        if self._folder is None:
            return fresh
        path = self._folder / "node.json"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            identity = msgspec.json.decode(path.read_bytes(), type=_Identity)
        except FileNotFoundError:
            # Before anything is sent: an enrolment whose answer was lost is then sent again, not made anew.
            write_file(path, msgspec.json.encode(fresh))
            return fresh
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError(f"{path} is not a node's identity: {error}.", hint="Choose another folder.") from error
        if identity.node != self.node_id:
            raise StateError(f"{path} is that of the node {identity.node!r}.", hint="Choose another folder.")
        return identity

    async def run(self, rounds: int = 0) -> int:
        """Take part until the coordinator is done, or in `rounds` rounds; returns how many updates were taken.

        Raises FederatedError for what the coordinator refuses, TransportTimeout when it cannot be reached in time or a
        round does not end, and whatever `train` raises.
        """
        taken = 0
        async with Client() as http:
            while True:
                current = await self.fetch(http)
                if current.done or (rounds and taken >= rounds):
                    return taken
                message = self._pending(current.round) or await self._make(current)
                if await self._deliver(http, message):
                    taken += 1
                if rounds and taken >= rounds:
                    return taken
                await self._next(http, current.round, message)

    async def fetch(self, http: Client) -> Global:
        """Return the global weights; enrols first where that is needed."""
        if not self._identity.key:
            await self.enrol(http)
        try:
            body = await self._get(http, "weights")
        except UnknownNode:
            # The coordinator began anew.
            await self.enrol(http)
            body = await self._get(http, "weights")
        size = self._identity.model_size
        head, weights = decode_vector(body, SentWeights, size)
        check_vector(weights, size, "The global model")
        return Global(head.round, weights, head.done)

    async def enrol(self, http: Client) -> None:
        """Get a key. Raises NodeExists where another node has this name."""
        nonce = self._identity.nonce
        body = msgspec.json.encode(Enrol(self.node_id, nonce))
        told = decode(await self._line.ask(http, derive_key(self._token, "enrol"), "POST", "enrol", body), Enrolled)
        key = derive_key(self._token, "node", self.node_id, nonce, told.nonce)
        self._identity = _Identity(self.node_id, nonce, key.hex(), told.model_size, told.update)
        if self._folder is not None:
            write_file(self._folder / "node.json", msgspec.json.encode(self._identity))

    @property
    def _key(self) -> bytes:
        return bytes.fromhex(self._identity.key)

    async def _get(self, http: Client, what: str) -> bytes:
        return await self._line.ask(
            http, self._key, "GET", what, most=vector_limit(self._identity.model_size) + _ANSWER
        )

    async def _make(self, current: Global) -> bytes:
        trained = Trained(*await run_in_thread(self._train, current.weights.copy(), current.round))
        weights, size = np.asarray(trained.weights), self._identity.model_size
        check_vector(weights, size, "What training gave")
        if self._identity.update == "delta":
            weights = weights - current.weights
        head = SentUpdate(current.round, current.round + 1, int(trained.sample_count), size, dict(trained.metrics))
        message = encode_vector(head, weights)
        if self._folder is not None:
            write_file(self._folder / "update.bin", message)
        return message

    def _pending(self, number: int) -> bytes | None:
        """Return the update that was made for this round before the node was started again."""
        if self._folder is None:
            return None
        try:
            message = (self._folder / "update.bin").read_bytes()
        except FileNotFoundError:
            return None
        head, _ = decode_vector(message, SentUpdate, self._identity.model_size)
        return message if head.round == number else None

    async def _deliver(self, http: Client, message: bytes) -> bool:
        try:
            body = await self._line.ask(http, self._key, "POST", "updates", message)
        except (StaleUpdate, RoundFull) as error:
            # The round ended without us, or with us and the answer was lost; either way the next one is what counts.
            log.info("%s: %s", self.node_id, error)
            return False
        decode(body, Taken)
        return True

    async def _next(self, http: Client, number: int, message: bytes) -> None:
        """Wait for the round after `number`; an update that grew stale meanwhile is sent again."""
        try:
            async with clock.deadline(self._round_seconds):
                while True:
                    status = decode(await self._get(http, "round"), Status)
                    if status.done or status.round != number:
                        return
                    if self.node_id not in status.waiting:
                        await self._deliver(http, message)
                    await clock.sleep(self._poll * (0.5 + clock.random() / 2))
        except TimeoutError:
            raise InsufficientUpdates(f"Round {number} did not end within {self._round_seconds:g} s.",
                                      hint="Are enough nodes running?") from None  # fmt: skip


class Operator:
    """Asks a coordinator as the one who holds its token. Raises as `Node` does."""

    def __init__(self, url: str, token: str, *, deadline_seconds: float = 10.0) -> None:
        self._line, self._key = _Line(url, OPERATOR, deadline_seconds), derive_key(token, "operator")

    async def status(self, http: Client) -> Status:
        """Return the round, the nodes, the counts and the newest metrics."""
        return decode(await self._line.ask(http, self._key, "GET", "status"), Status)

    async def aggregate(self, http: Client) -> Status:
        """End the round with the updates that are there."""
        return decode(await self._line.ask(http, self._key, "POST", "aggregate"), Status)
