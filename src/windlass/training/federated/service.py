"""A coordinator as a service: what it answers to which message. It opens no port; whoever listens brings requests here.

POST /federated/v1/enrol      a node takes part; signed with the enrolment token
GET  /federated/v1/weights    the global weights
GET  /federated/v1/round      which round it is, and whether it is the last
POST /federated/v1/updates    an update of this round; sent again, it counts once
GET  /federated/v1/status     nodes, counts, metrics; signed with the token
POST /federated/v1/aggregate  end the round now; signed with the token
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec

from windlass.core import clock
from windlass.core.errors import ConfigError
from windlass.core.threads import run_in_thread
from windlass.training.federated.coordinator import Coordinator, Update
from windlass.training.federated.errors import (
    DuplicateUpdate,
    FederatedError,
    InsufficientUpdates,
    MalformedMessage,
    MessageRefused,
    OversizedMessage,
    StaleUpdate,
    UnknownNode,
)
from windlass.training.federated.messages import (
    MAX_JSON,
    MIN_TOKEN,
    OPERATOR,
    PREFIX,
    WINDOW,
    Enrol,
    Enrolled,
    Guard,
    Ids,
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
    read_ids,
    vector_limit,
)
from windlass.training.federated.state import KeptNode

__all__ = ["Answer", "Service"]

T = TypeVar("T")
log = logging.getLogger("windlass.federated")


class Answer(NamedTuple):
    """What is sent back; the body is JSON or, after `GET weights`, a message with weights."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class _Route(NamedTuple):
    handle: Callable[[Service, Ids, bytes], Awaitable[bytes]]
    #: Whose key signs it: the enrolment's, a node's, the operator's.
    by: str
    weights: bool = False


class Service:
    """Answers the messages of nodes for one coordinator.

    `token` (16 characters or more) enrols nodes and is the operator's. A round ends as soon as `quorum` fresh updates
    are here (default: the coordinator's `min_updates`; 0: only when the operator says so). After `rounds` rounds it is
    done (0: never). `window` is how far, in seconds, clocks may differ.

    Raises ConfigError for a short token and for numbers that cannot be.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        token: str,
        *,
        rounds: int = 0,
        quorum: int | None = None,
        window: float = WINDOW,
    ) -> None:
        config = coordinator.config
        quorum = config.min_updates if quorum is None else quorum
        if len(token) < MIN_TOKEN:
            raise ConfigError(f"The enrolment token has {len(token)} characters, and needs {MIN_TOKEN}.",
                              hint="`windlass federate token` makes one.")  # fmt: skip
        if quorum and not config.min_updates <= quorum <= config.max_updates:
            raise ConfigError(f"quorum is {quorum}; it must be from min_updates to max_updates, or 0.")
        if rounds < 0 or window <= 0:
            raise ConfigError("rounds must be at least 0, and window above 0.")
        self.coordinator, self.rounds, self.quorum = coordinator, rounds, quorum
        self._token = token
        self._keys = {"enrol": derive_key(token, "enrol"), "operator": derive_key(token, "operator")}
        self._guard = Guard(window=window, since=clock.now_ns() if coordinator.resumed else 0)
        # Aggregating and writing take their time, in a thread; what changes the coordinator waits in line.
        self._turn = asyncio.Lock()
        self._working: set[asyncio.Task[Any]] = set()
        #: Set once the last round is over.
        self.finished = asyncio.Event()
        self._look()

    @property
    def done(self) -> bool:
        """Whether the last round is over."""
        return bool(self.rounds) and self.coordinator.round >= self.rounds

    def _look(self) -> None:
        if self.done:
            self.finished.set()

    def limit(self, method: str, path: str) -> int | None:
        """Return how many bytes of body a request may have; None where there is nothing at this place."""
        route = _ROUTES.get((method, path))
        if route is None:
            return None
        return vector_limit(self.coordinator.model_size) if route.weights else MAX_JSON if method == "POST" else 0

    async def handle(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request; header names are lower case. Never raises for what a message holds: refusals are answers.

        Refusals are counted in the coordinator's `counts`, by their code.
        """
        key, ids = None, None
        try:
            limit = self.limit(method, target)
            if limit is None:
                raise MalformedMessage(f"There is nothing at {method[:16]} {target[:100]}.")
            if len(body) > limit:
                raise OversizedMessage(f"A body of {len(body)} bytes, and at most {limit} are taken.")
            route = _ROUTES[method, target]
            ids = read_ids(headers)
            key = self._key(route.by, ids.node)
            try:
                self._guard.check(ids, key, method, target, body)
            except (MessageRefused, UnknownNode):
                key = None  # who cannot sign gets nothing signed
                raise
            answer = await route.handle(self, ids, body)
        except FederatedError as error:
            if isinstance(error, (MessageRefused, UnknownNode)):
                self.coordinator.count(error.code)
                log.warning("refused: %s", error)
            status, answer = error.status, msgspec.json.encode(Refused(error.code, str(error)))
        else:
            status = 200
        signed = [("x-windlass-mac", mac_of_answer(key, ids.nonce, status, answer))] if key and ids else []
        return Answer(status, signed, answer)

    def refuse(self, error: FederatedError) -> Answer:
        """Count and answer a request that was refused before its body was read."""
        self.coordinator.count(error.code)
        return Answer(error.status, [], msgspec.json.encode(Refused(error.code, str(error))))

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do to its end what changes the coordinator, also when the client leaves and its request is cancelled."""
        task = asyncio.create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for what was begun."""
        while self._working:
            await asyncio.wait(self._working)

    def _key(self, by: str, node: str) -> bytes | None:
        if by == "node":
            known = self.coordinator.node(node)
            return bytes.fromhex(known.key) if known is not None and known.key else None
        return self._keys[by] if (node == OPERATOR) == (by == "operator") else None

    # -- routes ----------------------------------------------------------------------------------------------------

    async def enrol(self, ids: Ids, body: bytes) -> bytes:
        """Derive a node's key with it; sent again with the same nonce it gives the same key."""
        asked = decode(body, Enrol)
        if asked.node != ids.node:
            raise MalformedMessage("The enrolment names another node than the one that sent it.")
        if len(asked.nonce) != 32:
            raise MalformedMessage("The nonce of an enrolment has 32 hex digits.")
        ours = new_nonce()
        key = derive_key(self._token, "node", asked.node, asked.nonce, ours)
        made = KeptNode(key=key.hex(), node_nonce=asked.nonce, our_nonce=ours)
        node = await self._whole(self._register(asked.node, made))
        return msgspec.json.encode(
            Enrolled(node.our_nonce, self.coordinator.model_size, self.coordinator.config.update)
        )

    async def _register(self, name: str, made: KeptNode) -> KeptNode:
        async with self._turn:
            return await run_in_thread(self.coordinator.register_node, name, made)

    async def weights(self, ids: Ids, body: bytes) -> bytes:  # noqa: ARG002
        """Send the global weights with their round."""
        number, vector = self.coordinator.current()
        done = bool(self.rounds) and number >= self.rounds
        return encode_vector(SentWeights(number, len(vector), done), vector)

    async def round(self, ids: Ids, body: bytes) -> bytes:  # noqa: ARG002
        """Tell the round, for who waits for the next one, and whether the node's update still counts."""
        waiting = [ids.node] if ids.node in self.coordinator.waiting() else []
        return msgspec.json.encode(msgspec.structs.replace(self._status(), waiting=waiting))

    async def updates(self, ids: Ids, body: bytes) -> bytes:
        """Take an update, and end the round when enough are here."""
        sent, vector = decode_vector(body, SentUpdate, self.coordinator.model_size)
        update = Update(node_id=ids.node, step=sent.step, weights=vector, sample_count=sent.sample_count,
                        round=sent.round, metrics=sent.metrics)  # fmt: skip
        return msgspec.json.encode(await self._whole(self._submit(update)))

    async def _submit(self, update: Update) -> Taken:
        coordinator = self.coordinator
        async with self._turn:
            if self.done:
                raise StaleUpdate(f"All {self.rounds} rounds are over.", hint="Fetch the weights.")
            number, again = coordinator.round, False
            try:
                await run_in_thread(coordinator.submit_update, update)
            except DuplicateUpdate as error:
                if not error.same:
                    raise
                again = True
            taken = Taken(number, len(coordinator.waiting()), again)
            await self._end_round(at=self.quorum)
        return taken

    async def _end_round(self, *, at: int) -> None:
        if not at or len(self.coordinator.waiting()) < at or self.done:
            return
        try:
            await run_in_thread(self.coordinator.aggregate)
        except FederatedError as error:
            # The update is kept and was answered; the round goes on until more are here, or the operator looks.
            self.coordinator.count(error.code)
            log.warning("round %d was not aggregated: %s", self.coordinator.round, error)
            return
        log.info("round %d is over", self.coordinator.round - 1)
        self._look()

    async def resume(self) -> None:
        """End a round that had enough updates when an earlier coordinator was killed. Call it before listening."""
        async with self._turn:
            await self._end_round(at=self.quorum)

    def _status(self) -> Status:
        coordinator = self.coordinator
        return Status(coordinator.round, self.done, coordinator.model_size, coordinator.config.strategy)

    async def status(self, ids: Ids, body: bytes) -> bytes:  # noqa: ARG002
        """Tell the operator everything but weights; of long lists the end."""
        coordinator = self.coordinator
        full = msgspec.structs.replace(
            self._status(), nodes=list(coordinator.nodes[:200]), waiting=list(coordinator.waiting()[:200]),
            counts=dict(coordinator.counts), history=coordinator.history[-20:],
        )  # fmt: skip
        return msgspec.json.encode(full)

    async def aggregate(self, ids: Ids, body: bytes) -> bytes:  # noqa: ARG002
        """End the round with what is here."""
        await self._whole(self._aggregate())
        return msgspec.json.encode(self._status())

    async def _aggregate(self) -> None:
        async with self._turn:
            if self.done:
                raise InsufficientUpdates(f"All {self.rounds} rounds are over.")
            await run_in_thread(self.coordinator.aggregate)
            self._look()


_ROUTES: dict[tuple[str, str], _Route] = {
    ("POST", f"{PREFIX}/enrol"): _Route(Service.enrol, "enrol"),
    ("GET", f"{PREFIX}/weights"): _Route(Service.weights, "node"),
    ("GET", f"{PREFIX}/round"): _Route(Service.round, "node"),
    ("POST", f"{PREFIX}/updates"): _Route(Service.updates, "node", weights=True),
    ("GET", f"{PREFIX}/status"): _Route(Service.status, "operator"),
    ("POST", f"{PREFIX}/aggregate"): _Route(Service.aggregate, "operator"),
}
