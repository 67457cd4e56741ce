"""Servers that die, files that are locked, wrong passwords: a clear error, nothing wrong served, and on it goes."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import BusyError, NotReadyError, OnlineStoreError
from feature_repo.stores.online_redis import RedisWriter
from feature_repo.stores.online_sqlite import SqliteWriter
from feature_repo.stores.packed import EmbeddingReader
from feature_repo.stores.places import SqlitePlace, place_of
from tests.feature_repo.online.conftest import RedisServer
from tests.feature_repo.online.online_cases import (
    OURS,
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
NOW = T0 + timedelta(hours=1)
COUNT = 500
# Small batches, so that there is something between the first and the last one.
ENGINE = {"type": OURS, "chunk_mb": 0.002, "wait_seconds": 0.2}


def shop(folder: Path, online: dict[str, Any], engine: dict[str, Any] = ENGINE) -> tuple[Any, np.ndarray]:
    """Return a store with one view that is not loaded yet, and its vectors."""
    numbers = np.random.default_rng(1).normal(size=(COUNT, 8)).astype(np.float32)
    table = rows({"item_id": pa.array(range(COUNT)), "vector": pa.array(list(numbers), pa.list_(pa.float32()))})
    path = written(folder / "a.parquet", table)
    return store_of(folder / "s", online, engine, [view_of(path, {"vector": "vector"})]), numbers


def redis_online(server: RedisServer, extra: str = "") -> dict[str, Any]:
    return {"type": "redis", "connection_string": server.connection_string + extra}


def watermark(store: Any) -> Any:
    return store.get_feature_view("view").most_recent_end_time


def break_after(monkeypatch: pytest.MonkeyPatch, writer: type, batches: int, fault: Any) -> None:
    """Let a fault happen before the batch of that number is written."""
    write, count = writer.write, iter(range(10_000))

    def faulty(self: Any, batch: Any) -> None:
        if next(count) == batches:
            fault()
        write(self, batch)

    monkeypatch.setattr(writer, "write", faulty)


def test_redis_killed_during_materialization(
    tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_redis.start()
    store, numbers = shop(tmp_path, redis_online(own_redis))
    with monkeypatch.context() as patch:
        break_after(patch, RedisWriter, 3, own_redis.kill)
        with pytest.raises(OnlineStoreError, match=r"127\.0\.0\.1:\d+.*run the command again"):
            load(store)
    assert watermark(store) is None
    own_redis.start()  # it kept nothing
    load(store)
    assert watermark(store) is not None
    answer = EmbeddingReader(store, "view", "vector").read(range(COUNT), NOW)
    assert answer.found.all() and np.array_equal(answer.vectors, numbers)


def test_a_run_that_broke_off_goes_on(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, numbers = shop(tmp_path, redis_online(redis_server))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        break_after(patch, RedisWriter, 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(store)
    client = redis_server.client()
    there = len(redis_contents(client))
    assert 0 < there < COUNT and watermark(store) is None
    half = EmbeddingReader(store, "view", "vector").read(range(COUNT), NOW)
    assert half.found.sum() == there and np.array_equal(half.vectors[half.found], numbers[half.found])
    client.config_resetstat()
    load(store)
    assert client.info("commandstats")["cmdstat_hset"]["calls"] == COUNT - there
    assert EmbeddingReader(store, "view", "vector").read(range(COUNT), NOW).found.all()


def test_redis_killed_and_restarted_during_reads(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    store, numbers = shop(tmp_path, redis_online(own_redis))
    load(store)
    reader = EmbeddingReader(store, "view", "vector")
    seen, errors, stop = [0], [], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answer = reader.read(range(COUNT), NOW)
            except OnlineStoreError as error:
                errors.append(str(error))
                continue
            assert answer.found.all() and np.array_equal(answer.vectors, numbers)
            seen[0] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.1)
    own_redis.kill()
    time.sleep(0.1)
    own_redis.start("--appendonly", "yes", "--appendfsync", "always")
    before, deadline = seen[0], time.monotonic() + 20
    while seen[0] < before + 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    stop.set()
    thread.join()
    assert seen[0] >= before + 5
    assert all("Redis at 127.0.0.1" in error for error in errors)


def test_a_slow_redis(tmp_path: Path, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    own_redis.start()
    store, numbers = shop(tmp_path, redis_online(own_redis, ",socket_timeout=0.5"))
    load(store)
    reader = EmbeddingReader(store, "view", "vector")
    reader.read([3], NOW)
    with own_redis.asleep():
        for _ in range(2):
            with pytest.raises(OnlineStoreError, match=r"Redis at 127\.0\.0\.1:\d+.*longer than socket_timeout"):
                reader.read([1], NOW)
    # The answers to what was given up are no answers to this.
    assert np.array_equal(reader.read(range(COUNT), NOW).vectors, numbers)
    fresh, _ = shop(tmp_path / "again", redis_online(own_redis, ",db=1,socket_timeout=0.5"))
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        break_after(patch, RedisWriter, 3, lambda: stack.enter_context(own_redis.asleep()))
        with pytest.raises(OnlineStoreError, match=r"longer than socket_timeout.*run the command again"):
            load(fresh)
    assert watermark(fresh) is None
    load(fresh)
    answer = EmbeddingReader(fresh, "view", "vector").read(range(COUNT), NOW)
    assert answer.found.all() and np.array_equal(answer.vectors, numbers)


def test_a_slow_sqlite_is_waited_for(tmp_path: Path) -> None:
    store, numbers = shop(tmp_path, {"type": "sqlite"}, {**ENGINE, "wait_seconds": 30.0})
    other = sqlite3.connect(tmp_path / "s" / "online.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.0, lambda: other.execute("ROLLBACK"))
    timer.start()
    load(store)
    timer.join()
    other.close()
    assert np.array_equal(EmbeddingReader(store, "view", "vector").read(range(COUNT), NOW).vectors, numbers)


def test_wrong_credentials(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start("--requirepass", "right")
    for extra in ("", ",password=wrong"):
        folder = tmp_path / (extra or "none")
        store, _ = shop(folder, redis_online(own_redis, extra))
        with pytest.raises(OnlineStoreError, match="Correct username and password"):
            load(store)
        with pytest.raises(OnlineStoreError, match="Correct username and password"):
            EmbeddingReader(store, "view", "vector").read([1], NOW)
        assert watermark(store) is None
    store, _ = shop(tmp_path / "right", redis_online(own_redis, ",password=right"))
    load(store)
    assert EmbeddingReader(store, "view", "vector").read([1], NOW).found.all()


def test_a_redis_that_is_full(tmp_path: Path, own_redis: RedisServer) -> None:
    own_redis.start()
    store, _ = shop(tmp_path, redis_online(own_redis))
    own_redis.client().config_set("maxmemory", 1)
    with pytest.raises(OnlineStoreError, match="more memory"):
        load(store)
    assert watermark(store) is None
    own_redis.client().config_set("maxmemory", 0)
    load(store)
    assert EmbeddingReader(store, "view", "vector").read(range(COUNT), NOW).found.all()


def test_keys_of_somebody_else(tmp_path: Path, redis_server: RedisServer) -> None:
    store, _ = shop(tmp_path, redis_online(redis_server))
    load(store)
    client = redis_server.client()
    for key in client.keys("*"):
        client.hset(key, "_ts:view", b"\xff\xff")
    with pytest.raises(OnlineStoreError, match="protobuf Timestamp"):
        load(store)
    with pytest.raises(OnlineStoreError, match="protobuf Timestamp"):
        EmbeddingReader(store, "view", "vector").read([1], NOW)


def test_sqlite_locked_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, numbers = shop(tmp_path, {"type": "sqlite"})
    other = sqlite3.connect(tmp_path / "s" / "online.db", isolation_level=None, check_same_thread=False)
    with monkeypatch.context() as patch:
        break_after(patch, SqliteWriter, 3, lambda: other.execute("BEGIN EXCLUSIVE"))
        with pytest.raises(BusyError, match=r"online\.db.*run the command again"):
            load(store)
    with pytest.raises(BusyError, match="Another process"):
        EmbeddingReader(store, "view", "vector", wait_seconds=0.05).read([1], NOW)
    other.execute("ROLLBACK")
    other.close()
    assert watermark(store) is None
    there = len(sqlite_contents(tmp_path / "s")["shop_view"])
    reader = EmbeddingReader(store, "view", "vector")
    half = reader.read(range(COUNT), NOW)
    assert 0 < there < COUNT and half.found.sum() == there
    assert np.array_equal(half.vectors[half.found], numbers[half.found])
    load(store)
    assert watermark(store) is not None
    assert np.array_equal(reader.read(range(COUNT), NOW).vectors, numbers)


def load_refused_at(row: int, store: Any, folder: Path) -> int:
    """Load while the database refuses one row, return how many rows are there then, and load without."""
    with contextlib.closing(sqlite3.connect(folder / "s" / "online.db", isolation_level=None)) as connection:
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON shop_view WHEN (SELECT count(*) FROM shop_view) = {row} "
            "BEGIN SELECT RAISE(ABORT, 'disk trouble'); END"
        )
        with pytest.raises(OnlineStoreError, match="disk trouble"):
            load(store)
        (stored,) = connection.execute("SELECT count(*) FROM shop_view").fetchone()
        connection.execute("DROP TRIGGER refuse")
        load(store)
        assert connection.execute("SELECT count(*) FROM shop_view").fetchone() == (COUNT,)
    return int(stored)


def test_a_batch_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    store, _ = shop(tmp_path, {"type": "sqlite"})
    assert 0 < load_refused_at(120, store, tmp_path) < 120


def test_a_chunk_in_pieces_is_stored_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = shop(tmp_path, {"type": "sqlite"}, {**ENGINE, "chunk_mb": 0.01})
    monkeypatch.setattr("feature_repo.stores.engine._PIECE_BYTES", 700.0)
    loads: list[list[tuple[int, bool]]] = []
    opened, write = SqliteWriter.__init__, SqliteWriter.write

    def watched_opening(self: SqliteWriter, *arguments: Any) -> None:
        loads.append([])
        opened(self, *arguments)

    def watched(self: SqliteWriter, batch: Any) -> None:
        loads[-1].append((len(batch), batch.last))
        write(self, batch)

    monkeypatch.setattr(SqliteWriter, "__init__", watched_opening)
    monkeypatch.setattr(SqliteWriter, "write", watched)
    stored = load_refused_at(420, store, tmp_path)
    refused = loads[0]
    ends = np.cumsum([rows for rows, _ in refused])[[last for _, last in refused]]
    assert len(refused) > 2 * len(ends) > 2
    assert stored == int(ends[ends < 420][-1])


def test_after_a_batch_that_failed_none_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = shop(tmp_path, {"type": "sqlite"})
    batches: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(SqliteWriter, "write", lambda self, batch: batches.append((self, batch)))
        load(store)
    place = place_of(store.config, store._provider.online_store, store.get_feature_view("view"))
    assert isinstance(place, SqlitePlace)
    writer, (first, second, third) = SqliteWriter(place, 0.2), [batch for _, batch in batches[:3]]
    writer.write(replace(first, last=False))
    with pytest.raises(TypeError):
        writer.write(replace(second, times=None, last=False))
    with pytest.raises(OnlineStoreError, match="Load again"):
        writer.write(third)
    writer.close()
    assert "shop_view" not in sqlite_contents(tmp_path / "s") or not sqlite_contents(tmp_path / "s")["shop_view"]


def test_a_damaged_file_and_a_missing_table(tmp_path: Path) -> None:
    store, _ = shop(tmp_path, {"type": "sqlite"})
    database = tmp_path / "s" / "online.db"
    connection = sqlite3.connect(database)
    connection.execute("DROP TABLE shop_view")
    connection.commit()
    connection.close()
    with pytest.raises(NotReadyError, match="feast apply"):
        load(store)
    with pytest.raises(NotReadyError, match="feast apply"):
        EmbeddingReader(store, "view", "vector").read([1], NOW)
    database.write_bytes(b"this is no database" * 1000)
    with pytest.raises(OnlineStoreError, match="damaged"):
        load(store)
