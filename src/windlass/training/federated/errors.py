"""What a coordinator refuses, each with the HTTP status that it travels as.

FederatedError
    InvalidUpdate           wrong length, not finite, not a count: nothing of it was kept
    InsufficientUpdates     none, or fewer than the strategy or `min_updates` need
    RoundFull               `max_updates` are here already
    UnknownNode             the node is not registered
    StaleUpdate             made from weights that are no longer the newest
    DuplicateUpdate         the node has an update in this round; `same` when it is that very one
    NodeExists              another node enrolled under this name
    StateError              the kept state cannot be read or written
    MessageRefused          bytes that are not what they claim to be
        MalformedMessage    truncated, or it does not follow the schema
        OversizedMessage    longer than anything of its kind can be
        ForgedMessage       its code does not fit
        ReplayedMessage     seen before, or signed too long ago
"""

from __future__ import annotations

from typing import ClassVar

from windlass.core.errors import WindlassError

__all__ = [
    "DuplicateUpdate",
    "FederatedError",
    "ForgedMessage",
    "InsufficientUpdates",
    "InvalidUpdate",
    "MalformedMessage",
    "MessageRefused",
    "NodeExists",
    "OversizedMessage",
    "ReplayedMessage",
    "RoundFull",
    "StaleUpdate",
    "StateError",
    "UnknownNode",
    "refusal",
]


class FederatedError(WindlassError):
    """Report what a coordinator or a node could not do; `status` is the HTTP status it travels as."""

    code = "federated"
    status: ClassVar[int] = 400


class InvalidUpdate(FederatedError):
    """Report an update that cannot be aggregated: wrong length, a NaN or infinity, a count below 1."""

    code = "invalid_update"


class InsufficientUpdates(FederatedError):
    """Report a round without enough fresh updates; they stay, and more may come."""

    code = "insufficient_updates"
    status = 409


class RoundFull(FederatedError):
    """Report a round that holds `max_updates` already."""

    code = "round_full"
    status = 409


class UnknownNode(FederatedError):
    """Report a node that is not registered here."""

    code = "unknown_node"
    status = 401


class StaleUpdate(FederatedError):
    """Report an update that was made from older weights than the newest."""

    code = "stale_update"
    status = 409


class DuplicateUpdate(FederatedError):
    """Report a node's second update in one round; `same` tells that it is the one already here, sent again."""

    code = "duplicate_update"
    status = 409

    def __init__(self, message: str, *, same: bool = False, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.same = same


class NodeExists(FederatedError):
    """Report an enrolment under a name that another holds."""

    code = "node_exists"
    status = 409


class StateError(FederatedError):
    """Report state that cannot be written, or that is not what was written."""

    code = "federated_state"
    status = 500


class MessageRefused(FederatedError):
    """Report a message that is not what it claims to be; nothing of it was acted on."""

    code = "message_refused"


class MalformedMessage(MessageRefused):
    """Report a message that is truncated or does not follow its schema."""

    code = "malformed_message"


class OversizedMessage(MessageRefused):
    """Report a message that is longer than any of its kind can be."""

    code = "oversized_message"
    status = 413


class ForgedMessage(MessageRefused):
    """Report a message whose authentication code does not fit its content and its sender."""

    code = "forged_message"
    status = 401


class ReplayedMessage(MessageRefused):
    """Report a message that was seen before, or whose time is outside the window."""

    code = "replayed_message"
    status = 401


_BY_CODE: dict[str, type[FederatedError]] = {
    kind.code: kind
    for kind in (
        InvalidUpdate, InsufficientUpdates, RoundFull, UnknownNode, StaleUpdate, DuplicateUpdate, NodeExists,
        StateError, MessageRefused, MalformedMessage, OversizedMessage, ForgedMessage, ReplayedMessage,
    )
}  # fmt: skip


def refusal(code: str, message: str) -> FederatedError:
    """Return the error that a coordinator's answer stands for; an unknown code gives FederatedError."""
    return _BY_CODE.get(code, FederatedError)(message)
