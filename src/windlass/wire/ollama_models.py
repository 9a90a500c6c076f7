"""The lists of models that clients ask for: Ollama's (tags, show, ps, version), OpenAI's and Anthropic's.

Source: docs.ollama.com/api/tags, /api-reference/show-model-details and /api/ps; docs.claude.com/en/api/models-list;
platform.openai.com/docs/api-reference/models. What is not known of a model is left out or is 0, never made up; the
digest is one of its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from windlass.core.clock import rfc3339
from windlass.core.errors import ModelNotFoundError
from windlass.core.json import dumps
from windlass.core.models import Capabilities
from windlass.wire.base import bad_field

__all__ = [
    "ModelRow",
    "anthropic_model",
    "anthropic_models",
    "find",
    "ollama_ps",
    "ollama_show",
    "ollama_tags",
    "ollama_version",
    "openai_model",
    "openai_models",
]

_PAGE: Final = 20
_MAX_PAGE: Final = 1000


class ModelRow(Struct, frozen=True):
    """One model: `created` in Unix seconds, `context` in tokens (None: not known), `caps` what it can take."""

    id: str
    owner: str = ""
    created: int = 0
    context: int | None = None
    caps: Capabilities | None = None
    embeds: bool = False


def find(rows: Sequence[ModelRow], name: str) -> ModelRow:
    """Return the row of a model; for Ollama's clients `name` and `name:latest` are one. Raises ModelNotFoundError."""
    names = (name, name.removesuffix(":latest"), f"{name}:latest")
    for wanted in names:
        for row in rows:
            if row.id == wanted:
                return row
    raise ModelNotFoundError(f"There is no model {name!r}.", model=name, status=404, hint="Ask for the list of models.")


# ------------------------------------------------------------------------------------------------------------ Ollama


def _time(row: ModelRow) -> str:
    return rfc3339(row.created * 1_000_000_000)


def _family(row: ModelRow) -> str:
    return row.owner or "unknown"


def _details(row: ModelRow) -> dict[str, Any]:
    family = _family(row)
    return {
        "parent_model": "",
        "format": "",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": "",
    }


def _listed(row: ModelRow) -> dict[str, Any]:
    digest = hashlib.sha256(row.id.encode("utf-8", "surrogatepass")).hexdigest()
    return {"name": row.id, "model": row.id, "size": 0, "digest": digest, "details": _details(row)}


def ollama_tags(rows: Sequence[ModelRow]) -> bytes:
    """Return the body of `GET /api/tags`: the installed models."""
    return dumps({"models": [{**_listed(row), "modified_at": _time(row)} for row in rows]})


def ollama_ps(rows: Sequence[ModelRow], *, expires: int) -> bytes:
    """Return the body of `GET /api/ps`: the loaded models; `expires` is in Unix seconds."""
    until = rfc3339(expires * 1_000_000_000)
    shown = [{**_listed(row), "expires_at": until, "size_vram": 0, **_context(row)} for row in rows]
    return dumps({"models": shown})


def _context(row: ModelRow) -> dict[str, int]:
    return {} if row.context is None else {"context_length": row.context}


def ollama_show(row: ModelRow) -> bytes:
    """Return the body of `POST /api/show`: what clients read to learn of tools, vision, thinking and the context."""
    family = _family(row)
    info: dict[str, Any] = {"general.architecture": family, "general.basename": row.id}
    if row.context is not None:
        info[f"{family}.context_length"] = row.context
    return dumps({
        "license": "",
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(row),
        "model_info": info,
        "capabilities": _abilities(row),
        "modified_at": _time(row),
    })  # fmt: skip


def _abilities(row: ModelRow) -> list[str]:
    if row.embeds:
        return ["embedding"]
    caps = row.caps
    out = ["completion"]
    if caps is not None:
        known = (("tools", caps.tools), ("vision", caps.vision), ("thinking", caps.reasoning != "none"))
        out += [name for name, able in known if able]
    return out


def ollama_version(version: str) -> bytes:
    """Return the body of `GET /api/version`."""
    return dumps({"version": version})


# ------------------------------------------------------------------------------------------------------------ OpenAI


def _openai(row: ModelRow) -> dict[str, Any]:
    owner = row.owner or "unknown"
    return {"id": row.id, "object": "model", "created": row.created, "owned_by": owner, **_context(row)}


def openai_models(rows: Sequence[ModelRow]) -> bytes:
    """Return the body of OpenAI's `GET /v1/models`; `context_length` is OpenRouter's."""
    return dumps({"object": "list", "data": [_openai(row) for row in rows]})


def openai_model(row: ModelRow) -> bytes:
    """Return the body of OpenAI's `GET /v1/models/{model}`."""
    return dumps(_openai(row))


# --------------------------------------------------------------------------------------------------------- Anthropic


def _anthropic(row: ModelRow) -> dict[str, Any]:
    out: dict[str, Any] = {"type": "model", "id": row.id, "display_name": row.id, "created_at": _time(row)}
    out["lifecycle"] = "active"
    if row.context is not None:
        out["max_input_tokens"] = row.context
    if row.caps is not None and row.caps.max_output is not None:
        out["max_tokens"] = row.caps.max_output
    return out


def anthropic_models(
    rows: Sequence[ModelRow], *, limit: int = _PAGE, after_id: str | None = None, before_id: str | None = None
) -> bytes:
    """Return a page of Anthropic's `GET /v1/models`: `limit` rows (1 to 1000) after one id, or right before another.

    Raises BadRequestError for a limit out of range or an id that is not in the list.
    """
    if not 1 <= limit <= _MAX_PAGE:
        raise bad_field("limit", f"must be a whole number from 1 to {_MAX_PAGE}")
    ids = [row.id for row in rows]
    for name, value in (("after_id", after_id), ("before_id", before_id)):
        if value is not None and value not in ids:
            raise bad_field(name, "is not the id of a model")
    start = 0 if after_id is None else ids.index(after_id) + 1
    end = len(rows) if before_id is None else ids.index(before_id)
    # Going back, a page ends at its mark; there is more where rows are left at its far side.
    back = before_id is not None and after_id is None
    page = rows[max(start, end - limit) : end] if back else rows[start : min(end, start + limit)]
    more = end - start > limit
    names = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
    return dumps({"data": [_anthropic(row) for row in page], "has_more": more, **names})


def anthropic_model(row: ModelRow) -> bytes:
    """Return the body of Anthropic's `GET /v1/models/{model}`."""
    return dumps(_anthropic(row))
