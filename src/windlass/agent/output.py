"""Structured output: an answer that fits a JSON Schema or a Python type, or a typed error."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from windlass.core import json, registry
from windlass.core.errors import OutputError
from windlass.core.request import ToolSpec
from windlass.core.schema import compile_schema

__all__ = ["FINAL_TOOL", "OutputSpec"]

#: The tool whose call is the answer, where the provider has no structured output of its own.
FINAL_TOOL = "final_answer"


class OutputSpec:
    """What the answer must be: `want` is a JSON Schema, or a type that `schema_of` understands."""

    __slots__ = ("_left", "_type", "_wrapped", "native", "schema", "validator")

    def __init__(self, want: Any, mode: Literal["auto", "native", "tool"], provider_native: bool, retries: int) -> None:
        self._left = retries
        self._type: Any = None if isinstance(want, dict) else want
        # By name: reading schemas off Python types costs as much to import as the loop, and few agents ask for it.
        described = want if isinstance(want, dict) else registry.load("windlass.core.signature:schema_of")(want)
        schema = {key: value for key, value in described.items() if key != "$schema"}
        # Vendors take objects only, as a tool's arguments and as a response format; other types ride in `value`.
        self._wrapped = schema.get("type") != "object" and "$ref" not in schema and "properties" not in schema
        if self._wrapped:
            defs = schema.pop("$defs", None)
            schema = {
                "type": "object",
                "properties": {"value": schema},
                "required": ["value"],
                "additionalProperties": False,
                **({"$defs": defs} if defs else {}),
            }
        self.schema = schema
        self.validator = compile_schema(schema)
        self.native = mode == "native" or (mode == "auto" and provider_native)

    @property
    def tool(self) -> ToolSpec:
        """The tool that carries the answer where it is not native."""
        return ToolSpec(FINAL_TOOL, "Give the final answer of the task. Call it once, when you are done.", self.schema)

    def check(self, value: Any) -> tuple[Any, str | None]:
        """Return (answer, None) or (None, what is wrong) for decoded JSON."""
        if not isinstance(value, dict):
            return None, f"expected a JSON object, got {type(value).__name__}"
        checked = self.validator.check(value)
        if checked.error is not None:
            return None, checked.error
        result: Any = checked.args["value"] if self._wrapped else checked.args
        if self._type is None:
            return result, None
        try:
            if hasattr(self._type, "model_validate"):
                return self._type.model_validate(result), None
            return msgspec.convert(result, self._type, strict=False), None
        except (ValueError, TypeError) as error:
            return None, str(error)

    def check_text(self, text: str) -> tuple[Any, str | None]:
        """Return (answer, None) or (None, what is wrong) for an answer as text; a fence around the JSON is allowed."""
        body = text.strip()
        if body.startswith("```"):
            body = body.split("\n", 1)[-1].rsplit("```", 1)[0]
        start, end = body.find("{"), body.rfind("}")
        if start < 0 or end < start:
            return None, "the answer holds no JSON object"
        try:
            return self.check(json.loads(body[start : end + 1]))
        except json.JsonError as error:
            return None, str(error)

    def wrong(self, problem: str, text: str) -> str:
        """Count a wrong answer; returns what the model is told. Raises OutputError when it has had its chances."""
        if self._left <= 0:
            raise OutputError(f"The answer never fitted its schema: {problem}.", text=text)
        self._left -= 1
        if self.native:
            return f"Your answer does not fit the required JSON Schema: {problem}. Answer with the JSON object only."
        return f"Give your answer by calling the tool {FINAL_TOOL}, with arguments that fit its schema ({problem})."
