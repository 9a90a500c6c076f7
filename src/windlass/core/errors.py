"""Errors everybody raises and catches.

The whole tree (an indented class is a kind of the one above it)::

    WindlassError
        ConfigError                 a setting is missing, unknown or malformed
            MissingKeyError         a credential is missing; names the variable and the argument
            UnknownNameError        a name resolves to nothing; suggests the nearest
        TransportError              core/http could not finish an exchange
            ConnectError            no connection (refused, DNS, TLS)
            TransportTimeout        a deadline passed; .phase says which
            ProtocolError           the peer broke HTTP or cut a body short
            BodyTooLarge            a cap on decoded bytes was reached
        ProviderError               a model provider failed; carries provider, model, endpoint, status, attempt
            ContextExceededError    the prompt does not fit the model
            AuthError               401, 403
            RateLimitError          429; .retry_after in seconds
            OverloadedError         503, 529, or an overloaded event inside a stream
            ModelNotFoundError      the provider does not know the model
            BadRequestError         the provider refused the request (other 4xx)
                UnsupportedInputError   the model cannot take this part, tool or setting
            ProviderTimeoutError    a deadline passed while asking
            ProviderConnectionError no connection to the provider
            WireError               bytes that do not follow the dialect
                StreamInterrupted   a stream ended without its terminal event
        RequestRefused              a client's request that the server does not serve; carries the HTTP status
        AbortedError                the run was aborted on request
        HookError                   a hook failed where the run cannot go on without it
        OutputError                 the structured answer never matched its schema
        PermissionRefused           a policy or a person said no and the run cannot go on
        ToolError                   a tool failed; the model reads the message
            ToolTimeout             a tool passed its deadline
        WorkspaceError              a file operation failed
            PathEscape              a path leaves the workspace
        SessionError                a kept conversation cannot be used
            SessionBusy             a run is already active on this session
            SessionNotFound         no such session
            SessionVersionError     written by a newer version
            StoreError              a store could not keep or read rows
                StoreConflict       another writer was first
        LocalModelError             a model file cannot be loaded or run
        ReplayMismatch              a replayed run asked something else than the recording
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

__all__ = [
    "AbortedError",
    "AgentAbortedError",
    "AgentContextExceededError",
    "AgentProviderError",
    "AuthError",
    "BadRequestError",
    "BodyTooLarge",
    "ConfigError",
    "ConnectError",
    "ContextExceededError",
    "HookError",
    "LocalModelError",
    "MissingKeyError",
    "ModelNotFoundError",
    "OutputError",
    "OverloadedError",
    "PathEscape",
    "PermissionRefused",
    "ProtocolError",
    "ProviderConnectionError",
    "ProviderError",
    "ProviderTimeoutError",
    "RateLimitError",
    "ReplayMismatch",
    "RequestRefused",
    "SessionBusy",
    "SessionError",
    "SessionNotFound",
    "SessionVersionError",
    "StoreConflict",
    "StoreError",
    "StreamInterrupted",
    "ToolError",
    "ToolTimeout",
    "TransportError",
    "TransportTimeout",
    "UnknownNameError",
    "UnsupportedInputError",
    "WindlassError",
    "WireError",
    "WorkspaceError",
]

Recovery = Literal["retry_once", "retry_with_backoff", "failover", "none"]


class WindlassError(Exception):
    """Say what happened, where, and what to do next.

    `message` is one sentence; `hint`, when given, is the next step and is appended to the text.
    """

    code: ClassVar[str] = "error"
    recovery: ClassVar[Recovery] = "none"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()

    def context(self) -> dict[str, Any]:
        """Return the known context fields, without those that are unknown."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return the error as data: code, message, context, recovery_strategy, cause, timestamp (Unix seconds)."""
        return {
            "code": self.code,
            "message": str(self),
            "context": self.context(),
            "recovery_strategy": self.recovery,
            "cause": repr(self.__cause__) if self.__cause__ is not None else None,
            "timestamp": int(time.time()),
        }


class ConfigError(WindlassError):
    """Report a setting that is missing, unknown or malformed."""

    code = "config"


class MissingKeyError(ConfigError):
    """Report a missing credential; the text names the environment variable and the argument that would supply it."""

    code = "missing_key"


class UnknownNameError(ConfigError):
    """Report a name that resolves to nothing, with the nearest known one."""

    code = "unknown_name"

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        listed = ", ".join(self.known[:12]) + (", …" if len(self.known) > 12 else "")
        hint = f"Did you mean {near[0]!r}?" if near else (f"Known: {listed}." if listed else "")
        super().__init__(f"Unknown {kind} {name!r}.", hint=hint)


class TransportError(WindlassError):
    """Report an HTTP exchange that could not be finished; `endpoint` is the URL without its query."""

    code = "transport"
    recovery = "retry_with_backoff"

    def __init__(self, message: str, *, endpoint: str = "", hint: str = "", sent: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.endpoint = endpoint
        #: False when no byte of the request can have been acted on, so that a retry is safe for any method.
        self.sent = sent

    def context(self) -> dict[str, Any]:
        return {"endpoint": self.endpoint} if self.endpoint else {}


class ConnectError(TransportError):
    """Report that no connection came about: refused, unreachable, DNS or TLS."""

    code = "connect"


class TransportTimeout(TransportError):
    """Report a passed deadline; `phase` is connect, send, first_byte, idle, total or pool."""

    code = "timeout"

    def __init__(self, message: str, *, phase: str, endpoint: str = "", sent: bool = True) -> None:
        super().__init__(message, endpoint=endpoint, sent=sent)
        self.phase = phase


class ProtocolError(TransportError):
    """Report a peer that broke HTTP, or a header or URL of ours that would break it."""

    code = "protocol"


class BodyTooLarge(TransportError):
    """Report a body that passed its cap on decoded bytes."""

    code = "body_too_large"
    recovery = "none"


class ProviderError(WindlassError):
    """Report a failed model request.

    `provider`, `model`, `endpoint`, `status` (HTTP) and `attempt` say where; `provider_code` is the vendor's own
    code; `retry_after` is in seconds; `partial` holds the text received before the failure.
    """

    code = "provider_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        provider: str | None = None,
        model: str | None = None,
        endpoint: str | None = None,
        status: int | None = None,
        attempt: int | None = None,
        max_attempts: int | None = None,
        provider_code: str | None = None,
        retry_after: float | None = None,
        partial: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.provider, self.model, self.endpoint, self.status = provider, model, endpoint, status
        self.attempt, self.max_attempts = attempt, max_attempts
        self.provider_code, self.retry_after, self.partial = provider_code, retry_after, partial

    def context(self) -> dict[str, Any]:
        fields = ("provider", "model", "endpoint", "status", "attempt", "max_attempts", "provider_code", "retry_after")
        return {name: value for name in fields if (value := getattr(self, name)) is not None}


class ContextExceededError(ProviderError):
    """Report a prompt that does not fit the model's context window."""

    code = "context_length_exceeded"


class AuthError(ProviderError):
    """Report a refused or missing credential (401, 403)."""

    code = "auth"


class RateLimitError(ProviderError):
    """Report 429; `retry_after` holds the wait that the provider asked for, in seconds."""

    code = "rate_limited"
    recovery = "retry_with_backoff"
    retryable = True


class OverloadedError(ProviderError):
    """Report a provider that is out of capacity or broken for now (5xx, 529, `overloaded_error` in a stream)."""

    code = "overloaded"
    recovery = "failover"
    retryable = True


class ModelNotFoundError(ProviderError):
    """Report a model that the provider does not know."""

    code = "model_not_found"


class BadRequestError(ProviderError):
    """Report a request the provider refuses; asking again would not help."""

    code = "bad_request"


class UnsupportedInputError(BadRequestError):
    """Report a part, tool or setting that this model cannot take, before anything was sent."""

    code = "unsupported_input"


class ProviderTimeoutError(ProviderError):
    """Report a deadline that passed while asking the provider."""

    code = "provider_timeout"
    recovery = "retry_with_backoff"
    retryable = True


class ProviderConnectionError(ProviderError):
    """Report that the provider could not be reached."""

    code = "provider_connection"
    recovery = "retry_with_backoff"
    retryable = True


class WireError(ProviderError):
    """Report bytes that do not follow the dialect; the text holds an excerpt."""

    code = "wire"


class StreamInterrupted(WireError):
    """Report a stream that ended without its terminal event; `partial` holds the text received."""

    code = "interrupted"
    recovery = "retry_once"


class RequestRefused(WindlassError):
    """Report a client's request that our server does not serve.

    `status` is the HTTP status; `kind`, `reason` and `param` are `error.type`, `.code` and `.param` of OpenAI's error
    shape; `retry_after` is in seconds. `retry` False tells the client that asking again is no use.
    """

    code = "request_refused"

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        reason: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        retry: bool = False,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.status, self.kind, self.reason, self.param = status, kind, reason, param
        self.retry_after, self.retry = retry_after, retry


class AbortedError(WindlassError):
    """Report a run that was aborted by `abort()` or by its signal."""

    code = "aborted"


class HookError(WindlassError):
    """Report a hook that raised or hung where the run cannot go on; the text names the function."""

    code = "hook"


class OutputError(WindlassError):
    """Report a structured answer that never matched its schema; `text` is the last answer."""

    code = "output"

    def __init__(self, message: str, *, text: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.text = text


class PermissionRefused(WindlassError):
    """Report an action that policy or a person refused."""

    code = "refused"


class ToolError(WindlassError):
    """Report a failed tool; raise it inside a tool to tell the model what went wrong."""

    code = "tool"


class ToolTimeout(ToolError):
    """Report a tool that passed its deadline; its outcome may be unknown."""

    code = "tool_timeout"


class WorkspaceError(WindlassError):
    """Report a failed file operation; `path` is as the caller gave it."""

    code = "workspace"

    def __init__(self, message: str, *, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path

    def context(self) -> dict[str, Any]:
        return {"path": self.path} if self.path else {}


class PathEscape(WorkspaceError):
    """Report a path that leaves its workspace; nothing was opened."""

    code = "path_escape"


class SessionError(WindlassError):
    """Report a kept conversation that cannot be used as asked."""

    code = "session"


class SessionBusy(SessionError):
    """Report a second run on a session that already runs one."""

    code = "session_busy"


class SessionNotFound(SessionError):
    """Report a session id that the store does not hold."""

    code = "session_not_found"


class SessionVersionError(SessionError):
    """Refuse data written by a newer version; nothing was changed."""

    code = "session_version"


class UndoError(SessionError):
    """Report files that were not restored; `paths` names them, `restored` those that were before it failed."""

    code = "undo"

    def __init__(
        self, message: str, *, paths: Iterable[str] = (), restored: Iterable[str] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.paths, self.restored = tuple(paths), tuple(restored)

    def context(self) -> dict[str, Any]:
        return {"paths": list(self.paths), "restored": list(self.restored)}


class MailboxFull(SessionError):
    """Report a session that has as many messages waiting as it may; nothing was queued."""

    code = "mailbox_full"


class StoreError(SessionError):
    """Report a store that could not keep or read rows; what was acknowledged before stays."""

    code = "store"


class StoreConflict(StoreError):
    """Report that another writer appended first: nothing of this batch was kept."""

    code = "store_conflict"


class LocalModelError(WindlassError):
    """Report a model file that cannot be loaded or run; `path` names it."""

    code = "local_model"

    def __init__(self, message: str, *, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class ReplayMismatch(WindlassError):
    """Report a replayed run whose request differs from the recorded one."""

    code = "replay_mismatch"


# The names under which reference C's users know three of these.
AgentContextExceededError = ContextExceededError
AgentProviderError = ProviderError
AgentAbortedError = AbortedError
