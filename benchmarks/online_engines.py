"""What benchmarks/online.py compares: ways into an online store and out of it, and the files they load."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 64
MOMENT = datetime(2024, 3, 10, tzinfo=UTC)
NOW = MOMENT + timedelta(hours=1)
WARM_ROWS = 200
# From a number of candidates to what reads so many, by the number of the call.
Reads: TypeAlias = Callable[[int], Callable[[int], Any]]
VECTORS = {"embedding": "list<float>"}
ENGINES = {"feast": "local", "ours": "feature_repo.stores.engine.ArrowComputeEngine"}


def prepare(folder: Path, size: int) -> None:
    """Write one snapshot of `size` vectors, ids in no order, and a small one to warm up."""
    for rows in (size, WARM_ROWS):
        draw = np.random.default_rng(rows)
        numbers = draw.normal(size=(rows, DIM)).astype(np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), DIM).cast(pa.list_(pa.float32()))
        clock = pa.array(np.full(rows, int(MOMENT.timestamp() * 1e6)), pa.timestamp("us", tz="UTC"))
        columns = {"item_id": pa.array(draw.permutation(rows)), "embedding": vectors}
        table = pa.table({**columns, "event_timestamp": clock, "created": clock})
        pq.write_table(table, folder / f"items_{rows}.parquet", compression="zstd", row_group_size=128 * 1024)


def feature_store(
    folder: Path, store: str, port: int, size: int, engine: str, home: str, kinds: Mapping[str, str] | None = None
) -> Any:
    """Return a Feast store on DuckDB with the view ``items`` of a size and the small view ``warm``."""
    from feast import FileSource

    place = folder / home
    place.mkdir(exist_ok=True)
    online = (
        {"type": "sqlite", "path": str(place / "online.db")}
        if store == "sqlite"
        else {"type": "redis", "connection_string": f"127.0.0.1:{port}"}
    )
    settings = {
        "registry": str(place / "registry.db"),
        "online_store": online,
        "offline_store": {"type": "duckdb"},
        "batch_engine": {"type": engine},
        "repo_path": place,
    }
    return store_with(settings, folder, size, FileSource, kinds)


def store_with(
    settings: dict[str, Any],
    folder: Path,
    size: int,
    source: Callable[..., Any],
    kinds: Mapping[str, str] | None = None,
) -> Any:
    """Return a Feast store of given settings with both views of :func:`prepare`'s files, read as a kind of source.

    `kinds` are the files' features and their types; by default those that :func:`prepare` writes.
    """
    from feast import Entity, FeatureStore, FeatureView, Field
    from feast.repo_config import RepoConfig
    from feast.types import Int64
    from feast.value_type import ValueType

    from feature_repo.views.build import TYPES

    config = RepoConfig(project="bench", provider="local", entity_key_serialization_version=3, **settings)
    opened = FeatureStore(config=config)
    item = Entity(name="item_id", join_keys=["item_id"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=name,
            entities=[item],
            ttl=timedelta(days=7),
            schema=[
                Field(name="item_id", dtype=Int64),
                *(Field(name=field, dtype=TYPES[kind]) for field, kind in (kinds or VECTORS).items()),
            ],
            source=source(
                name=f"{name}_source",
                path=str(folder / f"items_{rows}.parquet"),
                timestamp_field="event_timestamp",
                created_timestamp_column="created",
            ),
        )
        for name, rows in (("items", size), ("warm", WARM_ROWS))
    ]
    opened.apply([item, *views])
    return opened


def _emptied(folder: Path, store: str, port: int, home: str) -> None:
    (folder / home / "online.db").unlink(missing_ok=True)
    (folder / home / "registry.db").unlink(missing_ok=True)
    if store == "redis":
        import redis

        redis.Redis(port=port).flushall()


def load_by(name: str, kinds: Mapping[str, str] | None = None) -> Callable[..., Callable[[], None]]:
    """Return what loads a view with an engine of Feast's interface; `kinds` as in :func:`store_with`."""

    def prepared(folder: Path, store: str, port: int, size: int) -> Callable[[], None]:
        home = f"{name}_{store}"
        _emptied(folder, store, port, home)
        opened = feature_store(folder, store, port, size, ENGINES[name], home, kinds)
        span = (MOMENT - timedelta(days=1), MOMENT + timedelta(days=1))
        opened.materialize(*span, feature_views=["warm"])
        return lambda: opened.materialize(*span, feature_views=["items"])

    return prepared


def load_floor(folder: Path, store: str, port: int, size: int) -> Callable[[], None]:
    """Return what stores ready bytes with the store's own client."""
    from feast.value_type import ValueType

    from feature_repo.stores import wire

    table = pq.read_table(folder / f"items_{size}.parquet").sort_by("item_id")
    keys = wire.as_list(wire.entity_keys([("item_id", table["item_id"], ValueType.INT64)]))
    values = wire.as_list(wire.values(table["embedding"], ValueType.FLOAT_LIST))
    _emptied(folder, store, port, f"floor_{store}")
    if store == "redis":
        import redis

        client = redis.Redis(port=port)

        def pipelines() -> None:
            for start in range(0, size, 10_000):
                pipe = client.pipeline(transaction=False)
                for key, value in zip(keys[start : start + 10_000], values[start : start + 10_000], strict=True):
                    pipe.hset(key, mapping={b"_ts:items": b"\x08\x80\xab\xb3\xaf\x06", b"\x01\x02\x03\x04": value})
                pipe.execute()

        return pipelines
    (folder / f"floor_{store}").mkdir(exist_ok=True)
    connection = sqlite3.connect(folder / f"floor_{store}" / "online.db", isolation_level=None)
    connection.execute(
        "CREATE TABLE items (entity_key BLOB, feature_name TEXT, value BLOB, value_text TEXT, vector_value BLOB, "
        "event_ts timestamp, created_ts timestamp, PRIMARY KEY(entity_key, feature_name))"
    )
    connection.execute("CREATE INDEX items_ek ON items (entity_key)")
    stored = sorted((key, "embedding", value, 1710028800, 1710028800) for key, value in zip(keys, values, strict=True))

    def one_transaction() -> None:
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO items (entity_key, feature_name, value, event_ts, created_ts) VALUES (?, ?, ?, ?, ?)", stored
        )
        connection.execute("COMMIT")

    return one_transaction


def read_feast(folder: Path, store: str, port: int, rows: int) -> Reads:
    """Read by Feast's SDK, to a dictionary."""
    opened = feature_store(folder, store, port, rows, ENGINES["ours"], f"ours_{store}")

    def prepared(size: int) -> Callable[[int], Any]:
        asked = [{"item_id": draw.tolist()} for draw in _draws(rows, size)]
        assert None not in opened.get_online_features(["items:embedding"], asked[0]).to_dict()["embedding"]
        return lambda call: opened.get_online_features(["items:embedding"], asked[call % len(asked)]).to_dict()

    return prepared


def read_reader(folder: Path, store: str, port: int, rows: int) -> Reads:
    """Read by EmbeddingReader, to an array."""
    from feature_repo.stores.packed import EmbeddingReader

    opened = feature_store(folder, store, port, rows, ENGINES["ours"], f"ours_{store}")
    return _by(EmbeddingReader(opened, "items", "embedding"), rows)


def read_bank(folder: Path, store: str, port: int, rows: int) -> Reads:
    """Read by ItemBank, to an array; it asks no store."""
    from feature_repo.stores.bank import ItemBank

    return _by(ItemBank(folder / f"items_{rows}.parquet", "item_id", "embedding", ttl=timedelta(days=7)), rows)


def _by(reader: Any, rows: int) -> Reads:
    def prepared(size: int) -> Callable[[int], Any]:
        asked = _draws(rows, size)
        assert reader.read(asked[0], NOW).found.all()
        return lambda call: reader.read(asked[call % len(asked)], NOW)

    return prepared


def read_floor(folder: Path, store: str, port: int, rows: int) -> Reads:
    """Read the same vectors with nothing around them, to an array."""
    table = pq.read_table(folder / f"items_{rows}.parquet")
    packed = np.stack(table["embedding"].to_pylist()).astype("<f4")
    stored = [(b"floor:%d" % key, packed[row].tobytes()) for row, key in enumerate(table["item_id"].to_pylist())]
    if store == "redis":
        import redis

        client = redis.Redis(port=port)
        client.mset(dict(stored))
        return _floor(lambda keys: client.mget(keys), rows)
    connection = sqlite3.connect(folder / "floor.db")
    connection.execute("CREATE TABLE packed (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
    connection.executemany("INSERT INTO packed VALUES (?, ?)", stored)
    connection.commit()

    def select(keys: list[bytes]) -> list[bytes]:
        query = f"SELECT value FROM packed WHERE key IN ({','.join('?' * len(keys))})"
        return [value for (value,) in connection.execute(query, keys).fetchall()]

    return _floor(select, rows)


def _floor(get: Callable[[list[bytes]], Any], rows: int) -> Reads:
    def prepared(size: int) -> Callable[[int], Any]:
        asked = [[b"floor:%d" % key for key in draw.tolist()] for draw in _draws(rows, size)]
        return lambda call: np.frombuffer(b"".join(get(asked[call % len(asked)])), "<f4").reshape(-1, DIM)

    return prepared


def _draws(rows: int, size: int) -> list[np.ndarray]:
    draw = np.random.default_rng(size)
    return [draw.choice(rows, size, replace=False) for _ in range(50)]


LOADERS = {"feast": load_by("feast"), "ours": load_by("ours"), "floor": load_floor}
READERS: dict[str, Callable[..., Reads]] = {
    "feast": read_feast,
    "ours": read_reader,
    "ours, bank": read_bank,
    "floor": read_floor,
}
