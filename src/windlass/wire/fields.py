"""Reading the fields of a client's JSON body: each function refuses with a BadRequestError that names its field."""

from __future__ import annotations

from typing import Any

from windlass.core.errors import BadRequestError
from windlass.core.json import JsonError, loads
from windlass.wire.base import bad_field

__all__ = ["MOST_TOKENS", "flag", "load_fields", "number", "object_of", "text", "whole"]

#: No vendor takes more; a larger number would overflow somewhere behind us.
MOST_TOKENS = (1 << 31) - 1


def load_fields(body: bytes) -> dict[str, Any]:
    """Return the body's fields; those that are null count as left out."""
    try:
        data: Any = loads(body)
    except JsonError as error:
        raise BadRequestError(f"The request body is {error}.", status=400, provider_code="invalid_json") from None
    if not isinstance(data, dict):
        raise BadRequestError("The request body must be a JSON object.", status=400, provider_code="invalid_json")
    return {str(key): value for key, value in data.items() if value is not None}


def text(fields: dict[str, Any], name: str, *, required: bool = False) -> str:
    """Return a string, "" where there is none; a required one must be there and not be empty."""
    value = fields.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str):
        raise bad_field(name, "must be a string")
    if required and not value:
        raise bad_field(name, "must not be empty")
    return value


def flag(fields: dict[str, Any], name: str) -> bool | None:
    """Return true, false, or None where it is left out."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_field(name, "must be true or false")
    return value


def object_of(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object, {} where there is none."""
    value = fields.get(name, {})
    if not isinstance(value, dict):
        raise bad_field(name, "must be an object")
    return value  # pyright: ignore[reportUnknownVariableType]


def whole(fields: dict[str, Any], name: str, low: int, high: int) -> int | None:
    """Return a whole number from `low` to `high` (2.0 is one), None where it is left out."""
    value = fields.get(name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or value != value // 1
        or not low <= value <= high
    ):
        raise bad_field(name, f"must be a whole number from {low} to {high}")
    return int(value)


def number(fields: dict[str, Any], name: str, low: float, high: float) -> float | None:
    """Return a number from `low` to `high`, None where it is left out."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise bad_field(name, f"must be a number from {low:g} to {high:g}")
    return value
