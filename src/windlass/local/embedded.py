"""The model that ships with Windlass, and the cards that model files may carry beside them."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from windlass.core.errors import LocalModelError

__all__ = ["EmbeddedModel", "ModelProfile", "embedded_model", "load_profile"]

_DATA: Final = Path(__file__).with_name("data")
_VERSION: Final = 1
_MAX_CARD: Final = 256 << 10


class ModelProfile(Struct, frozen=True):
    """What a card says of a model: data, never code.

    `tools` maps the tools the model knows to their required string parameters, in order; None: it takes any tool.
    `family` names the prompt format, `context` and `max_output` are in tokens, `temperature` is what it is used at when
    the caller states none. `error_prefix` is put before the text of a failed tool call where it is missing. `notice`
    is one sentence for the user. `copy_arguments`: the arguments of its calls, and what `answer_forms` leave open with
    `{}`, are held to spans of the conversation (see `windlass.local.copying`). `descriptions`: whether it is shown what
    a tool says of itself.
    """

    name: str
    purpose: str = ""
    license: str = ""
    sha256: str = ""
    family: str = ""
    context: int | None = None
    max_output: int | None = None
    temperature: float | None = None
    error_prefix: str = ""
    copy_arguments: bool = False
    answer_forms: tuple[str, ...] = ()
    descriptions: bool = True
    notice: str = ""
    tools: dict[str, tuple[str, ...]] | None = None
    measured: dict[str, Any] = field(default_factory=dict[str, Any])


class EmbeddedModel(Struct, frozen=True):
    """The shipped model: where its file is, its SHA-256 in hex, and its profile."""

    path: Path
    sha256: str
    profile: ModelProfile

    def verify(self) -> None:
        """Compare the file with its digest. Raises LocalModelError when it is missing or is not the shipped one."""
        try:
            with self.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _broken(self.path, f"cannot be read: {error.strerror or error}") from error
        if found != self.sha256:
            raise _broken(self.path, f"has the SHA-256 {found}, not {self.sha256}")


def _broken(path: Path, problem: str) -> LocalModelError:
    return LocalModelError(f"The built-in model {path} {problem}.", path=str(path), hint="Install windlass again.")


@functools.cache
def embedded_model() -> EmbeddedModel:
    """Return the shipped model. Raises LocalModelError when its card is missing; the file itself is not read."""
    path = _DATA / "tiny-0.gguf"
    profile = load_profile(path)
    if profile is None:
        raise _broken(path, "has no card beside it")
    return EmbeddedModel(path, profile.sha256, profile)


def load_profile(path: str | os.PathLike[str]) -> ModelProfile | None:
    """Read the card beside a model file: `model.json` for `model.gguf`, a JSON object with `windlass_card`.

    Returns None when there is none or the JSON there is something else. Raises LocalModelError for a card that is
    malformed or written for a newer version.
    """
    card = Path(path).with_suffix(".json")
    try:
        with card.open("rb") as file:
            data = file.read(_MAX_CARD + 1)
    except OSError:
        return None  # no card, or not one for us to read: the model is used without
    if len(data) > _MAX_CARD:
        return None
    try:
        loaded: Any = msgspec.json.decode(data)
        version: Any = loaded.get("windlass_card") if isinstance(loaded, dict) else None
        if version is None:
            return None
        if version != _VERSION:
            raise LocalModelError(
                f"The model card {card} has version {version!r}; this Windlass reads {_VERSION}.",
                path=str(card),
                hint="Upgrade windlass or remove the card.",
            )
        return msgspec.convert(loaded, ModelProfile)
    except (msgspec.DecodeError, RecursionError) as error:
        raise LocalModelError(
            f"The model card {card} is malformed: {error}.", path=str(card), hint="Correct it or remove it."
        ) from None
