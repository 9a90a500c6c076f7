"""Searches against a brute force in 64-bit floats: by vector, by words, by both, with conditions, cached or not."""

from __future__ import annotations

import math
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.core import clock
from windlass.core.errors import ConfigError, StoreError
from windlass.core.memory import Entry
from windlass.stores.vector_filter import OPERATORS, where_sql
from windlass.stores.vector_search import Matrix, as_row, as_rows
from windlass.stores.vectors import VectorStore

METRICS: dict[str, Callable[[Any, Any], Any]] = {
    "cosine": lambda rows, q: (rows @ q) / np.maximum(np.linalg.norm(rows, axis=1) * np.linalg.norm(q), 1e-300),
    "dot": lambda rows, q: rows @ q,
    "l2": lambda rows, q: -np.linalg.norm(rows - q, axis=1),
}


def as_f32(rows: Any) -> Any:
    return np.asarray(rows, np.float32).astype(np.float64)


def check(found: list[tuple[int, float]], all_scores: Any, limit: int, allowed: set[int]) -> None:
    """Compare with the brute force: the same scores, and each really that of its row; ties may stand in any order."""
    want = sorted([all_scores[n] for n in allowed], reverse=True)[:limit]
    assert [score for _, score in found] == pytest.approx(want, abs=1e-12, rel=1e-12)
    assert [all_scores[n] for n, _ in found] == pytest.approx(want, abs=1e-12, rel=1e-12)
    assert len({n for n, _ in found}) == len(found) and {n for n, _ in found} <= allowed


# ----------------------------------------------------------------------------------------------------- the matrix

#: Small whole numbers make many ties, the others near ties that 32-bit products cannot tell apart.
element = st.one_of(st.integers(-2, 2).map(float), st.floats(-1, 1, width=32), st.sampled_from([1e-7, 1.0000001, 1e4]))


@settings(max_examples=60)
@given(data=st.data(), metric=st.sampled_from(list(METRICS)), dimensions=st.integers(1, 40), limit=st.integers(1, 12))
def test_the_nearest_are_those_of_a_brute_force_in_long_floats(
    data: st.DataObject, metric: str, dimensions: int, limit: int
) -> None:
    vector = st.lists(element, min_size=dimensions, max_size=dimensions).filter(
        lambda v: math.hypot(*v) == 0 or math.hypot(*v) > 1e-12
    )
    rows = data.draw(st.lists(vector, min_size=1, max_size=40))
    query = data.draw(vector)
    matrix, rng = Matrix(dimensions), np.random.default_rng(len(rows))
    nos = np.arange(len(rows))
    # Come in pieces, some twice, some gone again.
    cut = int(rng.integers(0, len(rows) + 1))
    matrix.put(nos[:cut], as_rows([[9.0] * dimensions] * cut) if cut else as_rows([[1.0] * dimensions])[:0])
    matrix.put(nos, as_rows(rows))
    left = nos[rng.random(len(rows)) < 0.8]
    if len(left) < len(rows):
        matrix.keep(left)
    allowed = None if rng.random() < 0.5 else nos[rng.random(len(rows)) < rng.random()]
    found = matrix.nearest(as_row(query), limit, metric, allowed)  # pyright: ignore[reportArgumentType]
    expected = METRICS[metric](as_f32(rows), as_f32(query))
    wanted = left if allowed is None else left[np.isin(left, allowed)]
    check([(each.no, each.score) for each in found], expected, limit, set(wanted.tolist()))
    assert matrix.count == len(left)


def test_near_ties_that_short_floats_put_in_the_wrong_order_are_put_right() -> None:
    """Thousands of nearly equal vectors: a product of 32-bit floats alone gets the order wrong."""
    rng = np.random.default_rng(5)
    base = rng.standard_normal(384)
    rows = (base + 3e-6 * rng.standard_normal((4000, 384))).astype(np.float32)
    matrix = Matrix(384)
    matrix.put(np.arange(4000), rows)
    exact = METRICS["cosine"](as_f32(rows), as_f32(base))
    best = [int(n) for n in np.lexsort((np.arange(4000), -exact))[:10]]
    short = rows @ base.astype(np.float32)
    short /= np.linalg.norm(rows, axis=1) * np.float32(np.linalg.norm(base.astype(np.float32)))
    assert [each.no for each in matrix.nearest(as_row(list(base)), 10, "cosine")] == best
    assert [int(n) for n in np.argsort(-short, kind="stable")[:10]] != best


# ------------------------------------------------------------------------------------------------------ conditions

words = st.sampled_from(["", "a", "B", "é", "\ud800", "1", "\0"])
values = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0, -2.0]), words)
fields = st.sampled_from(["k", "the key", "ü.b", "x[0]"])
metadata = st.dictionaries(fields, st.one_of(values, st.lists(values, max_size=3)), max_size=3)
orderable = values.filter(lambda v: v is not None and not isinstance(v, bool))
operators = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne", "$contains"]), values),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(values, max_size=3)),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), orderable),
    st.tuples(st.just("$exists"), st.booleans()),
)
leaf = st.dictionaries(fields, st.one_of(values, st.lists(operators, min_size=1, max_size=2).map(dict)), max_size=2)
conditions = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=3)).map(
            lambda p: {p[0]: p[1]}
        ),
        inner.map(lambda each: {"$not": each}),
    ),
    max_leaves=4,
)


def kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return repr(value)
    return "number" if isinstance(value, (int, float)) else type(value).__name__


def same(a: Any, b: Any) -> bool:
    return kind(a) == kind(b) and a == b


def fulfils(known: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """The meaning of a condition, in Python."""
    return all(one(known, key, value) for key, value in where.items())


def one(known: Mapping[str, Any], key: str, value: Any) -> bool:
    if key == "$and":
        return all(fulfils(known, each) for each in value)
    if key == "$or":
        return any(fulfils(known, each) for each in value)
    if key == "$not":
        return not fulfils(known, value)
    tests = value if isinstance(value, dict) else {"$eq": value}
    have = known.get(key)
    meaning: dict[str, Callable[[Any], bool]] = {
        "$eq": lambda v: same(have, v),
        "$ne": lambda v: not same(have, v),
        "$in": lambda v: any(same(have, each) for each in v),
        "$nin": lambda v: not any(same(have, each) for each in v),
        "$gt": lambda v: kind(have) == kind(v) and have > v,
        "$gte": lambda v: kind(have) == kind(v) and have >= v,
        "$lt": lambda v: kind(have) == kind(v) and have < v,
        "$lte": lambda v: kind(have) == kind(v) and have <= v,
        "$exists": lambda v: (key in known) is v,
        "$contains": lambda v: isinstance(have, list) and any(same(each, v) for each in have),
    }
    assert set(meaning) == set(OPERATORS)
    return all(meaning[name](operand) for name, operand in tests.items())


small = st.integers(-64, 64).map(lambda n: n / 64)
entries = st.lists(
    st.tuples(st.lists(small, min_size=3, max_size=3), metadata, st.booleans()),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries, conditions, st.lists(small, min_size=3, max_size=3), st.integers(1, 5), st.booleans())
async def test_searches_with_conditions_find_what_a_brute_force_finds(
    spare: list[VectorStore],
    drawn: list[tuple[list[float], dict[str, Any], bool]],
    where: dict[str, Any],
    query: list[float],
    limit: int,
    cached: bool,
) -> None:
    store, tenant = spare[cached], clock.new_id()
    rows = [Entry(id=str(n), vector=v if has else None, metadata=m) for n, (v, m, has) in enumerate(drawn)]
    await store.upsert(rows, tenant=tenant)
    matching = {n for n, (_, m, _) in enumerate(drawn) if fulfils(m, where)}
    assert await store.count(where=where, tenant=tenant) == len(matching)
    assert {int(each.id) for each in await store.list(where=where, tenant=tenant)} == matching
    found = await store.search(query, where=where, limit=limit, tenant=tenant)
    exact = METRICS["cosine"](as_f32([v for v, _, _ in drawn]), as_f32(query))
    check([(int(hit.id), hit.score) for hit in found], exact, limit, {n for n in matching if drawn[n][2]})


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> list[VectorStore]:
    """Two stores on one file, of which the first keeps no vectors in memory."""
    path = tmp_path_factory.mktemp("spare") / "v.db"
    return [VectorStore(path, cache_bytes=size) for size in (0, 1 << 20)]


MALFORMED: list[Any] = [
    5, {"$nor": []}, {"k": {}}, {"k": {"$like": "x"}}, {"k": {"$in": "text"}}, {"k": {"$gt": True}},
    {"k": {"$gt": None}},
    {"k": {"$exists": 1}}, {"k": [1]}, {"k": object()}, {"k": math.nan}, {"k": 1 << 64}, {'"': 1}, {"\n": 1}, {1: 2},
    {"$and": []}, {"$or": {}}, {"$not": 1}, {"k": {"$in": list(range(501))}},
    {"$and": [{"k": {"$in": list(range(400))}}] * 10},
]  # fmt: skip


@pytest.mark.parametrize("where", MALFORMED, ids=[f"{n}-{str(w)[:20]}" for n, w in enumerate(MALFORMED)])
def test_malformed_conditions_are_refused_before_any_sql(where: Any) -> None:
    with pytest.raises(StoreError, match="condition on metadata"):
        where_sql(where)


def test_conditions_are_not_nested_without_end() -> None:
    where: dict[str, Any] = {"k": 1}
    for _ in range(8):
        where = {"$not": where}
    with pytest.raises(StoreError, match="nested"):
        where_sql(where)


# ----------------------------------------------------------------------------------------------------------- words


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=60), st.text(alphabet='"*()^:+-NEAROTD AND_\0', max_size=30)))
async def test_no_text_is_a_syntax_error(shared: VectorStore, text: str) -> None:
    for hit in await shared.search(text=text or " "):
        assert hit.words is not None and hit.words > 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    path = tmp_path_factory.mktemp("words") / "v.db"
    subprocess.run([sys.executable, "-c", MAKE, str(path)], check=True)
    return VectorStore(path)


MAKE = """
import asyncio, sys
from windlass.core.memory import Entry
from windlass.stores.vectors import VectorStore
async def main():
    store = VectorStore(sys.argv[1])
    texts = ["NEAR and OR not", "a b c d e", "AND", "naïve café", "日本語のテキスト", "under_score", "don't stop"]
    await store.upsert([Entry(id=text, text=text) for text in texts])
    await store.close()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("near", "NEAR and OR not"),
        ("CAFE", "naïve café"),
        ("日本", "日本語のテキスト"),
        ("テキスト分析", "日本語のテキスト"),
        ("score", "under_score"),
        ("DON'T", "don't stop"),
        ("(b", "a b c d e"),
        ("ｃａｆｅ\u0301", "naïve café"),
    ],
)
async def test_words_are_found_in_any_case_and_script(shared: VectorStore, query: str, first: str) -> None:
    assert next(hit.id for hit in await shared.search(text=query)) == first


async def test_rarer_and_more_words_count_more(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "v.db")
    texts = ["common word", "common thing", "common rare", "common rare special", "nothing at all"]
    await store.upsert([Entry(id=text, text=text) for text in texts])
    hits = await store.search(text="common rare special")
    assert [hit.id for hit in hits][:2] == ["common rare special", "common rare"] and len(hits) == 4
    assert [hit.score for hit in hits] == sorted([hit.score for hit in hits], reverse=True)
    await store.close()


async def test_hybrid_joins_both_by_reciprocal_rank(tmp_path: Path) -> None:
    store = VectorStore(tmp_path / "v.db")
    await store.upsert(
        [
            Entry(id="both", text="alpha beta", vector=[0.9, 0.1]),
            Entry(id="near", text="gamma", vector=[1, 0]),
            Entry(id="words", text="alpha", vector=[0, 1]),
            Entry(id="words only", text="alpha alpha"),
            Entry(id="far", text="delta", vector=[-1, 0]),
        ]
    )
    hits = {hit.id: hit for hit in await store.search([1, 0], "alpha beta")}
    assert next(iter(hits)) == "both"
    assert hits["both"].score == pytest.approx(1 / 61 + 1 / 62)
    assert hits["near"].words is None and hits["near"].similarity == pytest.approx(1)
    assert hits["words only"].similarity is None and hits["words only"].words is not None
    assert hits["words"].similarity == pytest.approx(0)
    # What only the words found still tells how near it is.
    [first] = await store.search([1, 0], "delta", limit=1, where={"k": None})
    assert first.similarity is not None
    assert [hit.id for hit in await store.search([1, 0], "!?", limit=2)] == ["near", "both"]
    await store.close()


# ------------------------------------------------------------------------------------------------------ sqlite-vec

LOADS = hasattr(sqlite3.Connection, "enable_load_extension")
#: Another Python of the same version whose sqlite3 takes extensions, for where this one's does not.
OTHER = f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"
IN_FILE = """
import asyncio, sys
import numpy as np
from windlass.core.memory import Entry
from windlass.stores.vectors import VectorStore

async def main(path):
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((500, 24))
    rows[7] = 0
    for metric in ("cosine", "l2"):
        plain = VectorStore(f"{path}-{metric}", metric=metric)
        await plain.upsert([
            Entry(id=str(n), vector=row.tolist(), text=f"word{n % 5}", metadata={"n": n}) for n, row in enumerate(rows)
        ])
        inside = VectorStore(f"{path}-{metric}", metric=metric, backend="sqlite-vec")
        for query in rng.standard_normal((10, 24)).tolist():
            for options in ({}, {"where": {"n": {"$lt": 50}}}, {"text": "word3"}, {"limit": 1000}):
                one, two = await plain.search(query, **options), await inside.search(query, **options)
                assert [hit.id for hit in one] == [hit.id for hit in two] and one == two, (metric, options)
        await inside.delete(["3"])
        assert len(await inside.search(query, limit=1000)) == 499
        await plain.close()
        await inside.close()
    print("same")

asyncio.run(main(sys.argv[1]))
"""


def test_sqlite_vec_finds_the_same_in_the_same_file_where_it_can_be_loaded(tmp_path: Path) -> None:
    python = sys.executable if LOADS else OTHER
    path = os.pathsep.join(sys.path)
    probe = "import sqlite3, sqlite_vec, numpy; sqlite3.Connection.enable_load_extension"
    able = Path(python).exists() and not subprocess.run(
        [python, "-c", probe], env={"PYTHONPATH": path}, capture_output=True, check=False
    ).returncode  # fmt: skip
    if not able:
        with pytest.raises(ConfigError, match="sqlite-vec"):
            VectorStore(tmp_path / "v.db", backend="sqlite-vec")
        return
    ran = subprocess.run(
        [python, "-c", IN_FILE, str(tmp_path / "v.db")],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("same\n", "")


@pytest.mark.skipif(LOADS, reason="this Python's sqlite3 takes extensions")
def test_a_python_without_extensions_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="built without extensions"):
        VectorStore(tmp_path / "v.db", backend="sqlite-vec")


def test_sqlite_vec_has_no_inner_product(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no metric 'dot'"):
        VectorStore(tmp_path / "v.db", backend="sqlite-vec", metric="dot")
