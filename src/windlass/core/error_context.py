"""Failures in one line: the error context of reference E, with its four factories."""

from __future__ import annotations

from typing import Final

from windlass.core.errors import (
    ConfigError,
    ModelNotFoundError,
    ProviderConnectionError,
    ProviderError,
    ProviderTimeoutError,
)

__all__ = ["ErrorContext"]

#: What the reference calls our errors; all others are told by their own name.
_NAMES: Final[dict[type[BaseException], str]] = {
    ProviderTimeoutError: "Timeout",
    ProviderConnectionError: "ConnectionRefused",
    ModelNotFoundError: "ModelNotFound",
}


class ErrorContext:
    """Describe a failure in one line, with every known field (the error context of reference E).

    >>> print(ErrorContext.api_error("RateLimited", "openai", "/v1/chat", 429, "gpt-4"))
    AgentError: RateLimited during API request [backend=openai] [model=gpt-4] [endpoint=/v1/chat] [http_status=429]
    """

    def __init__(
        self,
        error: BaseException | str,
        operation: str,
        *,
        backend: str | None = None,
        model: str | None = None,
        endpoint: str | None = None,
        http_status: int | None = None,
        attempt: int | None = None,
        max_attempts: int | None = None,
        message: str | None = None,
    ) -> None:
        self.error = error if isinstance(error, str) else _NAMES.get(type(error), type(error).__name__)
        self.operation = operation
        self.backend, self.model, self.endpoint, self.http_status = backend, model, endpoint, http_status
        self.attempt, self.max_attempts, self.message = attempt, max_attempts, message

    @classmethod
    def api_error(
        cls,
        error: BaseException | str,
        backend: str,
        endpoint: str,
        status: int | None = None,
        model: str | None = None,
    ) -> ErrorContext:
        """Describe a failed API request."""
        return cls(error, "API request", backend=backend, endpoint=endpoint, http_status=status, model=model)

    @classmethod
    def config_error(cls, error: BaseException | str, message: str) -> ErrorContext:
        """Describe a bad configuration."""
        return cls(error, "configuration", message=message)

    @classmethod
    def generation_error(
        cls, error: BaseException | str, backend: str, model: str, message: str | None = None
    ) -> ErrorContext:
        """Describe a failed generation."""
        return cls(error, "generation", backend=backend, model=model, message=message)

    @classmethod
    def retry_error(
        cls, error: BaseException | str, backend: str, attempt: int, max_attempts: int, message: str | None = None
    ) -> ErrorContext:
        """Describe a failed attempt of several."""
        return cls(error, "retry", backend=backend, attempt=attempt, max_attempts=max_attempts, message=message)

    @classmethod
    def from_error(cls, error: BaseException) -> ErrorContext:
        """Describe any error, with the fields it carries."""
        if isinstance(error, ProviderError):
            return cls(
                error,
                "API request",
                backend=error.provider,
                model=error.model,
                endpoint=error.endpoint,
                http_status=error.status,
                attempt=error.attempt,
                max_attempts=error.max_attempts,
                message=str(error),
            )
        operation = "configuration" if isinstance(error, ConfigError) else "run"
        return cls(error, operation, message=str(error))

    def format(self) -> str:
        """Return `AgentError: X during OPERATION`, every known field in brackets, and the message."""
        out = f"AgentError: {self.error} during {self.operation}"
        for key in ("backend", "model", "endpoint", "http_status"):
            value = getattr(self, key)
            if value is not None:
                out += f" [{key}={value}]"
        if self.attempt is not None:
            out += (
                f" [attempt={self.attempt}" + (f"/{self.max_attempts}" if self.max_attempts is not None else "") + "]"
            )
        return out + (f" - {self.message}" if self.message else "")

    __str__ = format
