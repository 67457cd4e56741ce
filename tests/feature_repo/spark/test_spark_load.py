"""What Spark's workers load into Redis is what one process loads, byte for byte, and their errors are sentences."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import ConfigError, OnlineStoreError
from tests.feature_repo.online.conftest import RedisServer
from tests.feature_repo.online.online_cases import (
    OURS,
    STOCK,
    T0,
    load,
    redis_contents,
    rows,
    store_of,
    view_of,
    written,
)

pytest.importorskip("pyspark", reason="needs the extra `spark`: pip install -e '.[spark]', and Java 17")
pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore")]

WORKERS = {"type": OURS, "spark_from_rows": 0}
SPARK = {"type": "feature_repo.stores.spark_pit.SparkPitOfflineStore"}
FEATURES = {"vector": "vector", "s": "string", "i": "int64", "n": "numbers", "w": "words"}
COUNT = 900


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """Return a Redis server of the test's own, started without a password."""
    found = RedisServer(tmp_path)
    try:
        found.start()
    except FileNotFoundError:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    yield found
    found.kill()


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let several tasks share the rows of a test."""
    monkeypatch.setattr("feature_repo.stores.spark_load._ROWS_PER_TASK", 128)


def spark_source(**settings: Any) -> Any:
    """Return Parquet that Spark reads, or a query where one is given."""
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    if "query" in settings:
        del settings["path"]
        return SparkSource(**settings)
    return SparkSource(file_format="parquet", **settings)


def history(folder: Path, key: pa.Array) -> Path:
    """Write a folder of three files: each key in one to three of them, at other times, values of every kind."""
    draw = np.random.default_rng(2)
    for day in range(3):
        chosen = pa.array(np.sort(draw.permutation(COUNT)[: COUNT - 200 * day]))
        vectors = draw.normal(size=(len(chosen), 5)).astype(np.float32)
        vectors[::7, 2] = np.nan
        table = rows(
            {
                "key": key.take(chosen),
                "vector": pa.array([None if i % 13 == 0 else v for i, v in enumerate(vectors)], pa.list_(pa.float32())),
                "s": pa.array([None if i % 5 == 0 else f"ż{i}" for i in range(len(chosen))]),
                "i": pa.array(draw.integers(-(2**63), 2**63 - 1, len(chosen))),
                "n": pa.array([None if i % 7 == 0 else [-i, i] * (i % 4) for i in range(len(chosen))]),
                "w": pa.array([None if i % 8 == 0 else [f"ż{i}", ""] * (i % 3) for i in range(len(chosen))]),
            },
            [T0 - timedelta(days=day, seconds=int(i)) for i in draw.integers(0, 5000, len(chosen))],
        )
        written(folder / f"{day}.parquet", table)
    return folder


def redis_of(server: RedisServer, db: int, extra: str = "") -> dict[str, Any]:
    return {"type": "redis", "connection_string": f"{server.connection_string},db={db}{extra}"}


@pytest.mark.parametrize("kind", ["int64", "string"])
@pytest.mark.parametrize("source", ["files", "query"])
def test_workers_store_the_bytes_of_one_process(
    tmp_path: Path, session: Any, server: RedisServer, kind: str, source: str
) -> None:
    ids = pa.array(np.arange(COUNT) - 450)
    path = history(tmp_path / "rows", ids if kind == "int64" else pa.array([f"n{i}" for i in range(COUNT)]))
    session.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    more: dict[str, Any] = {"field_mapping": {"key": "item_id"}}
    if source == "query":
        more["query"] = f"SELECT * FROM parquet.`{path}`"
    for db, engine in enumerate([WORKERS, {"type": OURS}]):
        view = view_of(path, FEATURES, keys={"item_id": kind}, source_of=spark_source, **more)
        store = store_of(tmp_path / str(db), redis_of(server, db), engine, [view], SPARK)
        load(store)
        assert store.get_feature_view("view").most_recent_end_time is not None
    by_workers, by_one = (redis_contents(server.client(db)) for db in range(2))
    assert len(by_one) == COUNT and by_workers == by_one


def test_newer_rows_stay_and_a_second_load_changes_nothing(tmp_path: Path, session: Any, server: RedisServer) -> None:
    old, new = (
        rows({"item_id": pa.array(range(count)), "i": pa.array([value] * count)}, [T0 + timedelta(hours=value)] * count)
        for count, value in ((COUNT, 1), (100, 2))
    )
    views = [
        view_of(written(tmp_path / f"{name}.parquet", table), {"i": "int64"}, source_of=spark_source)
        for name, table in (("new", new), ("old", old))
    ]
    for number, view in enumerate(views):
        load(store_of(tmp_path / str(number), redis_of(server, 0), WORKERS, [view], SPARK))
    client = server.client()
    once = redis_contents(client)
    assert len(once) == COUNT and len({frozenset(fields.values()) for fields in once.values()}) == 2
    client.config_resetstat()
    load(store_of(tmp_path / "again", redis_of(server, 0), WORKERS, [views[1]], SPARK))
    assert "cmdstat_hset" not in client.info("commandstats") and redis_contents(client) == once


def test_what_goes_wrong_on_a_worker_is_a_sentence(tmp_path: Path, session: Any, server: RedisServer) -> None:
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array(range(COUNT)), "i": pa.array(range(COUNT))}))
    view = view_of(path, {"i": "int64"}, source_of=spark_source)
    wrong = store_of(tmp_path / "wrong", redis_of(server, 0, ",password=wrong"), WORKERS, [view], SPARK)
    server.client().config_set("requirepass", "right")
    with pytest.raises(OnlineStoreError, match="Correct username and password"):
        load(wrong)
    assert wrong.get_feature_view("view").most_recent_end_time is None
    right = store_of(tmp_path / "right", redis_of(server, 0, ",password=right"), WORKERS, [view], SPARK)
    load(right)
    assert right.get_feature_view("view").most_recent_end_time is not None


def test_rows_that_are_missing_at_the_end_are_noticed(tmp_path: Path, session: Any, server: RedisServer) -> None:
    from feature_repo.stores import latest, spark_load
    from feature_repo.stores.batches import ViewColumns

    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array(range(COUNT)), "i": pa.array(range(COUNT))}))
    view = view_of(path, {"i": "int64"}, source_of=spark_source)
    store = store_of(tmp_path / "s", redis_of(server, 0), WORKERS, [view], SPARK)
    columns = ViewColumns.of(store.get_feature_view("view"))
    chosen = latest.of_files(path, columns, {}, T0 - timedelta(days=1), T0)
    assert chosen is not None
    online = type(store._get_provider().online_store)
    target = spark_load.Target(store.config, online, store.get_feature_view("view"), columns)
    told: list[int] = []
    spark_load.of_files(session, chosen, 100, target, told.append)
    assert sum(told) == COUNT
    claimed: Any = SimpleNamespace(numbers=chosen.numbers, stored=chosen.stored, rows=COUNT + 1)
    with pytest.raises(OnlineStoreError, match="900 of 901 rows"):
        spark_load.of_files(session, claimed, 100, target, told.append)


def test_types_that_are_not_packed_go_feasts_own_way(
    tmp_path: Path, session: Any, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    small = pa.array([[1], [2, 3], None, [], [5]], pa.list_(pa.int32()))
    table = rows({"item_id": pa.array(range(5)), "small": small})
    path = written(tmp_path / "a.parquet", table)
    for db, engine in enumerate([WORKERS, STOCK]):
        view = view_of(path, {"small": "small"}, source_of=spark_source)
        with caplog.at_level(logging.WARNING):
            load(store_of(tmp_path / str(db), redis_of(server, db), engine, [view], SPARK))
    assert "view goes Feast's own way" in caplog.text
    by_workers, by_feast = (redis_contents(server.client(db)) for db in range(2))
    assert len(by_feast) == 5 and by_workers == by_feast


@pytest.mark.parametrize("lacks", ["redis", "spark"])
def test_without_redis_or_spark_the_setting_is_refused(tmp_path: Path, server: RedisServer, lacks: str) -> None:
    path = written(tmp_path / "a.parquet", rows({"item_id": pa.array([1]), "i": pa.array([1])}))
    online = {"type": "sqlite"} if lacks == "redis" else redis_of(server, 0)
    view = view_of(path, {"i": "int64"}, **({"source_of": spark_source} if lacks == "redis" else {}))
    store = store_of(tmp_path / "s", online, WORKERS, [view], SPARK if lacks == "redis" else None)
    path.unlink()  # before anything is read
    with pytest.raises(ConfigError, match="spark_from_rows"):
        load(store)
