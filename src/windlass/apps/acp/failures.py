"""Errors as JSON-RPC has them: a code, and words for the person who reads them in an editor."""

from __future__ import annotations

from acp import RequestError

from windlass.core.errors import ConfigError, SessionNotFound, WindlassError

__all__ = ["bad", "busy", "failure", "unknown"]


def bad(text: str) -> RequestError:
    """Return the error of parameters that do not fit (-32602)."""
    return RequestError(-32602, text, {"details": text})


def busy(text: str) -> RequestError:
    """Return the error of a request that cannot be taken now (-32600)."""
    return RequestError(-32600, text, {"details": text})


def unknown(what: str) -> RequestError:
    """Return the error of something that is not there (-32002)."""
    return RequestError(-32002, what, {"details": what})


def failure(error: WindlassError) -> RequestError:
    """Return what to answer where a request fails with one of our errors."""
    if isinstance(error, SessionNotFound):
        return unknown(str(error))
    code = -32602 if isinstance(error, ConfigError) else -32603
    return RequestError(code, str(error), {"details": str(error), **error.to_dict()})
