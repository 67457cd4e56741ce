"""What the engine stores is what Feast's own engine stores, byte for byte, in SQLite and in Redis."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.feature_repo.online.conftest import RedisServer
from tests.feature_repo.online.online_cases import (
    CLOCK,
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
FEATURES = {
    "vector": "vector",
    "wide": "wide",
    "f": "float",
    "d": "double",
    "i": "int64",
    "b": "bool",
    "s": "string",
    "m": "moment",
    "n": "numbers",
    "w": "words",
}
SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, 3.4e38]


def everything(count: int = 60) -> dict[str, pa.Array]:
    """Return a column of each packed type: nulls, extremes, every vector length from 1 to 512 by steps."""
    draw = np.random.default_rng(4)
    lengths = np.linspace(1, 512, count).astype(int)
    vectors = [np.resize(np.array([*SPECIAL, *draw.normal(size=20)], np.float32), length) for length in lengths]
    return {
        "vector": pa.array([None if i % 9 == 0 else [] if i % 11 == 0 else v for i, v in enumerate(vectors)]),
        "wide": pa.array([v[:3].astype(np.float64) for v in vectors]),
        "f": pa.array([*SPECIAL, None, *draw.normal(size=count - 8)], pa.float32()),
        "d": pa.array([*SPECIAL, None, *draw.normal(size=count - 8)]),
        "i": pa.array([2**63 - 1, -(2**63), 0, -1, *range(count - 4)]),
        "b": pa.array([None, True, False] * (count // 3)),
        "s": pa.array([None, "", "żółć 🦊"] * (count // 3)),
        "m": pa.array([None, T0, T0 - timedelta(days=30_000, microseconds=1)] * (count // 3), CLOCK),
        "n": pa.array([[2**63 - 1, -(2**63)], None, [], *([row - 9] * row for row in range(count - 3))]),
        "w": pa.array([[""], None, [], *(["żółć 🦊", "x" * row] * (row % 5) for row in range(count - 3))]),
    }


def both(folder: Path, server: RedisServer | None, views: list[Any]) -> tuple[Any, Any, Any, Any]:
    """Load the views by Feast's engine and by ours, each into a store of its own; return stores and contents."""
    stores, found = [], []
    for number, engine in enumerate((STOCK, OURS)):
        online: dict[str, Any] = {"type": "sqlite"}
        if server is not None:
            online = {"type": "redis", "connection_string": f"{server.connection_string},db={number}"}
        store = store_of(folder / engine, online, engine, views)
        load(store)
        stores.append(store)
        found.append(redis_contents(server.client(number)) if server is not None else sqlite_contents(folder / engine))
    return stores[0], stores[1], found[0], found[1]


@pytest.fixture(params=["sqlite", "redis"])
def server(request: pytest.FixtureRequest) -> RedisServer | None:
    """Return a Redis server, or None for SQLite."""
    return request.getfixturevalue("redis_server") if request.param == "redis" else None


def packed_only(caplog: pytest.LogCaptureFixture) -> bool:
    return not any("Feast's own way" in record.message for record in caplog.records)


def test_all_types_and_several_views(
    tmp_path: Path, server: RedisServer | None, caplog: pytest.LogCaptureFixture
) -> None:
    columns = everything()
    count = len(columns["i"])
    ids = pa.array([2**63 - 1, -(2**63), 0, *range(7, 7 + count - 3)])
    times = [T0 + timedelta(seconds=row % 5, microseconds=row) for row in range(count)]
    path = written(tmp_path / "all.parquet", rows({"item_id": ids, **columns}, times))
    views = [view_of(path, FEATURES), view_of(path, {"vector": "vector"}, name="second", created=False)]
    stock, ours, wanted, found = both(tmp_path, server, views)
    assert packed_only(caplog)
    assert wanted and found == wanted
    references = [*(f"view:{name}" for name in FEATURES), "second:vector"]
    asked = [{"item_id": key} for key in [*ids.to_pylist(), 12345678]]
    answers = [
        store.get_online_features(references, asked, full_feature_names=True).to_dict() for store in (stock, ours)
    ]
    assert repr(answers[0]) == repr(answers[1])
    assert answers[1]["view__i"] == [*columns["i"].to_pylist(), None]


def test_string_ids_composite_keys_and_renamed_columns(
    tmp_path: Path, server: RedisServer | None, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["", "a", "ä", "日本", "a" * 300, "\x00", "7", "x y", "🦊"]
    table = rows({"name": pa.array(names), "vec": pa.array([[float(i)] * 4 for i in range(9)], pa.list_(pa.float32()))})
    path = written(tmp_path / "strings.parquet", table)
    pairs = rows({"name": pa.array(names), "shop": pa.array(range(9)), "d": pa.array([0.5] * 9)})
    pair_path = written(tmp_path / "pairs.parquet", pairs)
    views = [
        view_of(path, {"vector": "vector"}, keys={"who": "string"}, field_mapping={"name": "who", "vec": "vector"}),
        view_of(pair_path, {"d": "double"}, name="pairs", keys={"shop": "int64", "name": "string"}),
    ]
    _, ours, wanted, found = both(tmp_path, server, views)
    assert packed_only(caplog)
    assert wanted and found == wanted
    answer = ours.get_online_features(["view:vector"], [{"who": name} for name in names]).to_dict()
    assert answer["vector"] == [[float(i)] * 4 for i in range(9)]


def test_of_many_snapshots_the_latest_row_is_stored(tmp_path: Path, server: RedisServer | None) -> None:
    folder = tmp_path / "snapshots"
    for day in range(5):
        ids = pa.array(range(day, 200 + day))
        times = [T0 + timedelta(hours=day if key % 3 else 4 - day) for key in range(len(ids))]
        values = pa.array([[day + key / 1000] for key in range(len(ids))], pa.list_(pa.float32()))
        table = rows({"item_id": ids, "vector": values}, times)
        # Some event times are equal: then the row that was written last counts.
        created = pa.array([T0 + timedelta(days=day)] * len(ids), CLOCK)
        written(folder / f"{day}.parquet", table.set_column(3, "created", created))
    _, ours, wanted, found = both(tmp_path, server, [view_of(folder, {"vector": "vector"})])
    assert len(ours.get_online_features(["view:vector"], [{"item_id": 100}]).to_dict()["vector"][0]) == 1
    assert wanted and found == wanted


def test_older_rows_are_treated_as_feast_treats_them(tmp_path: Path, server: RedisServer | None) -> None:
    found = []
    for number, engine in enumerate((STOCK, OURS)):
        online: dict[str, Any] = {"type": "sqlite"}
        if server is not None:
            online = {"type": "redis", "connection_string": f"{server.connection_string},db={number}"}
        path = tmp_path / f"{engine}.parquet"
        store = store_of(tmp_path / engine, online, engine, [view_of(path, {"vector": "vector"})])
        for shift, value in ((0, 1.0), (-1, 2.0), (0, 3.0), (1, 4.0)):
            vectors = pa.array([[value], [value]], pa.list_(pa.float32()))
            table = rows({"item_id": pa.array([1, 2]), "vector": vectors}, [T0, T0 + timedelta(hours=shift)])
            written(path, table)
            load(store)
        read = store.get_online_features(["view:vector"], [{"item_id": 1}, {"item_id": 2}]).to_dict()["vector"]
        found.append((read, redis_contents(server.client(number)) if server else sqlite_contents(tmp_path / engine)))
    assert found[0] == found[1]


def test_what_cannot_be_packed_goes_the_way_of_feast(
    tmp_path: Path, server: RedisServer | None, caplog: pytest.LogCaptureFixture
) -> None:
    table = rows({"item_id": pa.array([1, 2]), "small": pa.array([[1, 2], [3]], pa.list_(pa.int32()))})
    path = written(tmp_path / "small.parquet", table)
    with caplog.at_level(logging.WARNING):
        _, ours, wanted, found = both(tmp_path, server, [view_of(path, {"small": "small"})])
    assert not packed_only(caplog)
    assert wanted and found == wanted
    assert ours.get_online_features(["view:small"], [{"item_id": 1}]).to_dict()["small"] == [[1, 2]]


def test_only_the_time_range_is_stored_and_batches_are_small(tmp_path: Path) -> None:
    times = [T0 + timedelta(days=day) for day in range(10)]
    table = rows({"item_id": pa.array(range(10)), "d": pa.array(np.arange(10.0))}, times)
    path = written(tmp_path / "days.parquet", table)
    engine = {"type": OURS, "chunk_mb": 0.0001}
    store = store_of(tmp_path / "store", {"type": "sqlite"}, engine, [view_of(path, {"d": "double"})])
    store.materialize(times[2], times[6])
    answer = store.get_online_features(["view:d"], [{"item_id": key} for key in range(10)]).to_dict()["d"]
    assert answer == [None, None, 2.0, 3.0, 4.0, 5.0, 6.0, None, None, None]
    store.materialize_incremental(times[9])
    answer = store.get_online_features(["view:d"], [{"item_id": key} for key in range(10)]).to_dict()["d"]
    assert answer == [None, None, *np.arange(2.0, 10.0)]


def test_lists_are_stored_in_many_chunks_and_out_of_key_order(tmp_path: Path, server: RedisServer | None) -> None:
    ids = np.random.default_rng(3).permutation(3000) - 1500
    columns = {
        "n": pa.array([None if key % 11 == 0 else [key, -key] * (key % 5) for key in ids.tolist()]),
        "w": pa.array([None if key % 13 == 0 else [f"ż{key}", ""] * (key % 4) for key in ids.tolist()]),
    }
    path = written(tmp_path / "lists.parquet", rows({"item_id": pa.array(ids), **columns}))
    found = []
    for number, engine in enumerate((STOCK, {"type": OURS, "chunk_mb": 0.01})):
        online: dict[str, Any] = {"type": "sqlite"}
        if server is not None:
            online = {"type": "redis", "connection_string": f"{server.connection_string},db={number}"}
        load(store_of(tmp_path / str(number), online, engine, [view_of(path, {"n": "numbers", "w": "words"})]))
        found.append(redis_contents(server.client(number)) if server else sqlite_contents(tmp_path / str(number)))
    assert found[0] and found[0] == found[1]


def test_keys_of_redis_expire_as_configured(tmp_path: Path, redis_server: RedisServer) -> None:
    path = written(tmp_path / "one.parquet", rows({"item_id": pa.array([1, 2]), "d": pa.array([0.5, 1.5])}))
    online = {"type": "redis", "connection_string": redis_server.connection_string, "key_ttl_seconds": 1000}
    load(store_of(tmp_path / "store", online, OURS, [view_of(path, {"d": "double"})]))
    client = redis_server.client()
    assert [900 < client.ttl(key) <= 1000 for key in client.keys("*")] == [True, True]


@pytest.mark.parametrize(("before", "journal", "after"), [(1, "delete", 16_384), (9, "delete", 4096), (1, "wal", 4096)])
def test_small_databases_get_larger_pages(tmp_path: Path, before: int, journal: str, after: int) -> None:
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array(range(50)), "i": pa.array(range(50))}))
    store = store_of(tmp_path / "s", {"type": "sqlite"}, OURS, [view_of(path, {"i": "int64"})])
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / "online.db", isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute("CREATE TABLE others (value BLOB)")
        connection.execute("INSERT INTO others VALUES (zeroblob(?))", (before * 150_000,))
    load(store)
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / "online.db")) as connection:
        assert connection.execute("PRAGMA page_size").fetchone() == (after,)
        assert connection.execute("SELECT length(value) FROM others").fetchone() == (before * 150_000,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    answer = store.get_online_features(["view:i"], [{"item_id": 7}, {"item_id": 49}]).to_dict()
    assert answer["i"] == [7, 49]
