"""A tool as an agent offers it: under its name on the wire, with its schema compiled once."""

from __future__ import annotations

import msgspec

from windlass.core.ports import Tool
from windlass.core.schema import Validator, compile_schema

__all__ = ["Bound"]


class Bound:
    """A tool, its name on the wire and its compiled schema. Raises ConfigError for a broken schema."""

    __slots__ = ("name", "spec", "tool", "validator")

    def __init__(self, tool: Tool, name: str | None = None) -> None:
        self.tool = tool
        self.name = name or tool.spec.name
        self.spec = tool.spec if self.name == tool.spec.name else msgspec.structs.replace(tool.spec, name=self.name)
        #: A tool may bring its own, which knows other names of its arguments.
        own: Validator | None = getattr(tool, "validator", None)
        self.validator = own or compile_schema(tool.spec.input_schema)
