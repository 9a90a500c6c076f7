"""The matrix as data: which client meets which vendor, and what both can carry; the table of `docs/matrix.md`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Feature = Literal["tools", "parallel", "images", "reasoning"]

#: What is said, asked and counted in every cell.
TEXT = 'Grüße, 世界: 1 + 1 = 2 🙂\n\n"quoted" \\ and </end>.'
THOUGHT = "One and one, that is two; ein Gedanke."
LOOK = "I look."
WEATHER = {"Paris": "18 C and rain", "Rome": "24 C and sun"}
AFTER = "Paris has 18 C, Rome 24 C."
SEEN = "One red pixel."
#: Tokens: read (some of them from a cache), written (some of them thought).
INPUT, CACHED, OUTPUT, THOUGHT_TOKENS = 1234, 200, 56, 17
WAIT = 7
SLOW = "Slow down, please: 60 requests a minute."
WRONG = "top_p: 3 is not between 0 and 1."
#: One red pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100"
    "c9fe92ef0000000049454e44ae426082"
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
          "additionalProperties": False}  # fmt: skip
TOOL = "get_weather"
ABOUT = "Tell the weather of a city."


@dataclass(frozen=True)
class Egress:
    """A column: a vendor's dialect, the version of its API, what it can carry, and whether it reports cached tokens."""

    name: str
    api: str
    has: frozenset[Feature]
    caches: bool = True
    counts_thoughts: bool = True
    errors: bool = True

    @property
    def calls(self) -> list[str]:
        """The cities that its model asks for."""
        return list(WEATHER) if "parallel" in self.has else list(WEATHER)[:1]


@dataclass(frozen=True)
class Client:
    """A row: an official client, the endpoint it speaks to, and what it can carry."""

    name: str
    endpoint: str
    has: frozenset[Feature]
    caches: bool = True
    counts_thoughts: bool = True


ALL: frozenset[Feature] = frozenset(("tools", "parallel", "images", "reasoning"))
NONE: frozenset[Feature] = frozenset()

EGRESS = {
    row.name: row
    for row in (
        Egress("openai-chat", "`/v1/chat/completions`", ALL),
        Egress("openai-responses", "`/v1/responses`", ALL),
        Egress("anthropic", "`/v1/messages`", ALL, counts_thoughts=False),
        Egress("ollama", "`/api/chat`", ALL, caches=False, counts_thoughts=False),
        Egress("gemini", "`:generateContent`", ALL),
        Egress("bedrock", "Converse", ALL, counts_thoughts=False),
        Egress("huggingface", "TGI 3 `/v1/chat/completions`", frozenset(("tools", "images")), caches=False,
               counts_thoughts=False),
        Egress("local", "the built-in model", NONE, caches=False, counts_thoughts=False, errors=False),
    )
}  # fmt: skip
CLIENTS = {
    row.name: row
    for row in (
        Client("openai chat", "`/v1/chat/completions`", ALL),
        Client("openai responses", "`/v1/responses`", ALL),
        Client("openai completions", "`/v1/completions`", NONE),
        Client("anthropic messages", "`/v1/messages`", ALL, counts_thoughts=False),
        Client("ollama chat", "`/api/chat`", ALL, caches=False, counts_thoughts=False),
        Client("ollama generate", "`/api/generate`", frozenset(("images", "reasoning")), caches=False,
               counts_thoughts=False),
        Client("boto3 converse", "`/model/…/converse`", ALL, counts_thoughts=False),
        Client("openai-agents chat", "`/v1/chat/completions`", ALL),
        Client("openai-agents responses", "`/v1/responses`", ALL),
    )
}  # fmt: skip
_SIGNS: tuple[tuple[Feature, str], ...] = (("tools", "T"), ("parallel", "P"), ("images", "I"), ("reasoning", "R"))


def both(client: str, egress: str, feature: Feature) -> bool:
    """Tell whether both sides of a cell can carry something."""
    return feature in CLIENTS[client].has and feature in EGRESS[egress].has


def cells(feature: Feature | None = None, *, present: bool = True) -> list[tuple[str, str]]:
    """Return the cells (client, egress), all of them or those where a feature is present, or absent."""
    every = [(client, egress) for client in CLIENTS for egress in EGRESS]
    return every if feature is None else [cell for cell in every if both(*cell, feature) is present]


def table() -> str:
    """Return the matrix as a Markdown table."""
    lines = [
        "| client | asks | " + " | ".join(EGRESS) + " |",
        "|---|---|" + "---|" * len(EGRESS),
    ]
    for client in CLIENTS.values():
        signs = [" ".join(["A", *[s for name, s in _SIGNS if both(client.name, other, name)]]) for other in EGRESS]
        lines.append(f"| {client.name} | {client.endpoint} | " + " | ".join(signs) + " |")
    return "\n".join(lines)
