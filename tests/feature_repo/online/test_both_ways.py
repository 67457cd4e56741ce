"""Whatever a row holds: what our engine writes stock Feast reads, and our reader what either wrote, bit for bit."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.stores.packed import EmbeddingReader
from tests.feature_repo.online.conftest import RedisServer
from tests.feature_repo.online.online_cases import (
    OURS,
    STOCK,
    T0,
    load,
    redis_contents,
    rows,
    sqlite_contents,
    store_of,
    view_of,
    written,
)

pytestmark = pytest.mark.filterwarnings("ignore")
INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([2**63 - 1, -(2**63), 0, -1])
# Arrow text is UTF-8, which has no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
FLOATS = st.floats(width=32) | st.sampled_from([-0.0, float("inf"), float("-inf"), float("nan"), -float("nan"), 1e-45])
SCALARS = {"d": (st.floats(), pa.float64()), "i": (INT64, pa.int64()), "s": (TEXT, pa.string())}


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.parametrize("key", ["int64", "string"])
def test_both_ways(tmp_path: Path, kind: str, key: str, request: pytest.FixtureRequest) -> None:
    server: RedisServer | None = request.getfixturevalue("redis_server") if kind == "redis" else None
    paths = [tmp_path / "first.parquet", tmp_path / "second.parquet"]
    views = [
        view_of(paths[0], {"vector": "vector", "d": "double", "i": "int64", "s": "string"}, keys={"item_id": key}),
        view_of(paths[1], {"vector": "vector"}, name="second", keys={"item_id": key}),
    ]
    stores: dict[str, Any] = {}
    for number, engine in enumerate((STOCK, OURS)):
        online: dict[str, Any] = {"type": "sqlite"}
        if server is not None:
            online = {"type": "redis", "connection_string": f"{server.connection_string},db={number}"}
        stores[engine] = store_of(tmp_path / engine, online, engine, views)
    count = iter(range(10_000))

    @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data(), width=st.integers(1, 512) | st.sampled_from([1, 512]))
    def one(data: st.DataObject, width: int) -> None:
        ids = data.draw(st.lists(INT64 if key == "int64" else TEXT, min_size=1, max_size=8, unique=True))
        moment = T0 + timedelta(seconds=next(count))
        pool = np.array(data.draw(st.lists(FLOATS, min_size=1, max_size=12)), np.float32)
        there = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        vectors = [np.resize(np.roll(pool, i), width) if found else None for i, found in enumerate(there)]
        column = pa.array(vectors, pa.list_(pa.float32()))
        # Integers without gaps: Feast sends those with gaps through float64.
        scalars = {
            name: pa.array(
                data.draw(
                    st.lists(values if name == "i" else st.none() | values, min_size=len(ids), max_size=len(ids))
                ),
                arrow,
            )
            for name, (values, arrow) in SCALARS.items()
        }
        own = pa.array(ids, pa.int64() if key == "int64" else pa.string())
        written(paths[0], rows({"item_id": own, "vector": column, **scalars}, [moment] * len(ids)))
        written(paths[1], rows({"item_id": own, "vector": column}, [moment] * len(ids)))
        answers, read = [], []
        for store in stores.values():
            load(store, end=moment)
            names = ["view:vector", "view:d", "view:i", "view:s", "second:vector"]
            asked = [{"item_id": name} for name in ids]
            answers.append(repr(store.get_online_features(names, asked, full_feature_names=True).to_dict()))
            for view in ("view", "second"):
                read.append(EmbeddingReader(store, view, "vector").read(ids, moment + timedelta(seconds=1)))
        assert answers[0] == answers[1]
        wanted = np.zeros((len(ids), width if any(there) else 0), np.float32)
        for position, vector in enumerate(vectors):
            if vector is not None:
                wanted[position] = vector
        for answer in read:
            assert answer.found.tolist() == there
            assert np.array_equal(answer.vectors, wanted, equal_nan=True)
            assert np.array_equal(np.signbit(answer.vectors), np.signbit(wanted)) or np.isnan(wanted).any()

    one()
    if server is not None:
        assert redis_contents(server.client(0)) == redis_contents(server.client(1))
    else:
        assert sqlite_contents(tmp_path / STOCK) == sqlite_contents(tmp_path / OURS)


def test_a_batch_whose_texts_are_all_empty(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    own, texts = pa.array([1, 2, 3]), pa.array(["", None, ""], pa.string())
    written(path, rows({"item_id": own, "s": texts}, [T0] * 3))
    for engine in (STOCK, OURS):
        view = view_of(path, {"s": "string"}, keys={"item_id": "int64"})
        load(store_of(tmp_path / engine, {"type": "sqlite"}, engine, [view]), end=T0)
    assert sqlite_contents(tmp_path / STOCK) == sqlite_contents(tmp_path / OURS)
