"""What the terminal is given: the agent, its configuration, and what people must be told of them."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from windlass.agent.agent import Agent

__all__ = ["Built"]


class Built(Struct, frozen=True):
    """An agent as the terminal drives it; `loaded` names the instruction files that were read, with their origin."""

    agent: Agent
    config: Any = None
    notice: str = ""
    loaded: tuple[str, ...] = ()
    folder: str = ""
