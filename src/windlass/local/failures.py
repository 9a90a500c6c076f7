"""The kinds of LocalModelError: reference E's names as classes."""

from __future__ import annotations

from windlass.core.errors import LocalModelError

__all__ = ["InvalidModelFormat", "OutOfMemory", "UnsupportedQuantization"]


class InvalidModelFormat(LocalModelError):
    """Report a file that is not a model, or one whose header contradicts itself."""

    code = "invalid_model_format"


class UnsupportedQuantization(LocalModelError):
    """Report tensors of a type that the reader or the backend does not know."""

    code = "unsupported_quantization"


class OutOfMemory(LocalModelError):
    """Refuse to load what would need more memory than is free; `needed` and `free` are in bytes."""

    code = "out_of_memory"

    def __init__(self, message: str, *, needed: int, free: int, path: str = "", hint: str = "") -> None:
        super().__init__(message, path=path, hint=hint)
        self.needed, self.free = needed, free
