"""Names for the tools of MCP servers: `mcp_{server}_{tool}`, at most 64 of [a-zA-Z0-9_-], and never two for one.

A plain name is used where it can only mean one tool. Where it could not (`a` + `b_c` and `a_b` + `c`), and for names
that are too long or hold anything else, ten characters of a SHA-256 of the pair end the name. What a name means does
not depend on the order in which servers answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from windlass.core.errors import ConfigError

__all__ = ["MAX_NAME", "Names"]

MAX_NAME = 64
_DIGITS = 10
_SLUG = 24
_PLAIN = re.compile(r"[a-zA-Z0-9_-]+")
_OTHER = re.compile(r"[^a-zA-Z0-9_-]+")
_MARKED = re.compile(r"_[0-9a-f]{10}")


def _digest(*parts: str) -> str:
    raw = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(b"%d " % len(parts[0]) + raw).hexdigest()[:_DIGITS]


def _slug(server: str) -> str:
    plain = _OTHER.sub("_", server)
    if plain == server and 0 < len(plain) <= _SLUG and not _MARKED.search(plain):
        return plain
    return f"{plain[: _SLUG - _DIGITS - 1]}_{_digest(server)}"


class Names:
    """The names of the tools of some servers, and the way back.

    `wire(server, tool)` gives the name, always the same for the same set of servers; `origin(name)` gives the pair
    that was asked for before. Raises ConfigError for two servers of one name.
    """

    __slots__ = ("_origins", "_slugs")

    def __init__(self, servers: Iterable[str]) -> None:
        self._slugs: dict[str, str] = {}
        self._origins: dict[str, tuple[str, str]] = {}
        for server in servers:
            if server in self._slugs:
                raise ConfigError(f"Two MCP servers are called {server!r:.80}.", hint="Rename one.")
            self._slugs[server] = _slug(server)

    def prefix(self, server: str) -> str:
        """Return what the names of a server's tools begin with."""
        return f"mcp_{self._slugs[server]}_"

    def wire(self, server: str, tool: str) -> str:
        """Return the name of a tool. Raises ConfigError when two tools have the same digest, KeyError for no server."""
        name = f"mcp_{self._slugs[server]}_{tool}"
        if not self._is_plain(server, tool, name):
            rest = _OTHER.sub("_", tool)
            name = f"{f'mcp_{self._slugs[server]}_{rest}'[: MAX_NAME - _DIGITS - 1]}_{_digest(server, tool)}"
        if self._origins.setdefault(name, (server, tool)) != (server, tool):
            raise ConfigError(f"Two MCP tools would be called {name}.", hint="Deny one of them, or give it an alias.")
        return name

    def origin(self, name: str) -> tuple[str, str] | None:
        """Return (server, tool) of a name that was given out, else None."""
        return self._origins.get(name)

    def _is_plain(self, server: str, tool: str, name: str) -> bool:
        if len(name) > MAX_NAME or not _PLAIN.fullmatch(tool) or _MARKED.fullmatch(name[-_DIGITS - 1 :]):
            return False
        slug = self._slugs[server]
        # Another server's name that goes on where ours ends would read the tool's first words as its own.
        return not any(
            other != slug and other.startswith(f"{slug}_") and name.startswith(f"mcp_{other}_")
            for other in self._slugs.values()
        )
