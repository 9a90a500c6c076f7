"""Long-term memory's words: what is kept of a text, what a search finds, and the port of what keeps and finds it.

A store of vectors (`windlass.stores.vectors`) and who uses it (`windlass.tools.memory`) meet here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from msgspec import Struct

__all__ = ["Entry", "Hit", "Vectors", "Where"]

#: A condition on metadata: `{"lang": "en", "year": {"$gte": 2020}, "$or": [...]}`. See `windlass.stores.vector_filter`.
Where: TypeAlias = Mapping[str, Any]


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A text that is kept: its id, its vector (None: found by words only) and what is known of it, as JSON data.

    `created` and `updated` are UTC nanoseconds; a store sets them.
    """

    id: str
    text: str = ""
    vector: Sequence[float] | None = None
    metadata: Mapping[str, Any] = {}
    created: int = 0
    updated: int = 0


class Hit(Struct, frozen=True, kw_only=True):
    """An entry that a search found, without its vector; the larger the `score`, the better.

    `similarity` is what the vectors gave and `words` what BM25 gave, None where that search did not find it. In a
    search by one of them that is the score; in one by both the score is their reciprocal rank fusion.
    """

    id: str
    text: str
    metadata: Mapping[str, Any]
    score: float
    similarity: float | None = None
    words: float | None = None
    created: int = 0
    updated: int = 0


@runtime_checkable
class Vectors(Protocol):
    """Keeps texts with vectors, by tenant and namespace; no tenant sees another's, nor its scores.

    What `upsert` is given is kept all or none, durably, before it returns; it replaces what had the same id. `model`
    names what made the vectors: those of two models are never mixed. `search` needs a vector, a text, or both; it
    returns at most `limit` hits, the best first. `delete` leaves nothing of an entry in the store's files. Everything
    raises StoreError kinds.
    """

    async def upsert(
        self, entries: Sequence[Entry], *, namespace: str = "", tenant: str = "", model: str = ""
    ) -> None: ...
    async def get(self, ids: Sequence[str], *, namespace: str = "", tenant: str = "") -> list[Entry]: ...
    async def delete(
        self, ids: Sequence[str] | None = None, *, where: Where | None = None, namespace: str = "", tenant: str = ""
    ) -> int: ...
    async def count(self, *, where: Where | None = None, namespace: str = "", tenant: str = "") -> int: ...
    async def search(
        self,
        vector: Sequence[float] | None = None,
        text: str = "",
        *,
        limit: int = 10,
        where: Where | None = None,
        namespace: str = "",
        tenant: str = "",
    ) -> list[Hit]: ...
    async def close(self) -> None: ...
