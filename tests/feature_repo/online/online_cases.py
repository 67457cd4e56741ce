"""Feast repositories with one online store and one engine, and everything that an online store holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import redis
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.repo_config import RepoConfig
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.value_type import ValueType

OURS = "feature_repo.stores.engine.ArrowComputeEngine"
STOCK = "local"
T0 = datetime(2024, 3, 10, 7, 30, 0, 123456, tzinfo=UTC)
CLOCK = pa.timestamp("us", tz="UTC")
FEAST_TYPES: dict[str, Any] = {
    "int64": Int64,
    "int32": Int32,
    "float": Float32,
    "double": Float64,
    "bool": Bool,
    "string": String,
    "moment": UnixTimestamp,
    "vector": Array(Float32),
    "wide": Array(Float64),
    "numbers": Array(Int64),
    "words": Array(String),
    "small": Array(Int32),
}
KEY_TYPES = {"int64": (Int64, ValueType.INT64), "string": (String, ValueType.STRING), "int32": (Int32, ValueType.INT32)}


def parquet_source(**settings: Any) -> FileSource:
    """Return a source of Parquet files."""
    return FileSource(file_format=ParquetFormat(), **settings)


def view_of(
    path: Path,
    features: dict[str, str],
    *,
    name: str = "view",
    keys: dict[str, str] | None = None,
    ttl: timedelta = timedelta(days=3650),
    created: bool = True,
    source_of: Callable[..., DataSource] = parquet_source,
    **source: Any,
) -> FeatureView:
    """Return a view over what a kind of source reads; `features` and `keys` map names to the words above."""
    keys = keys or {"item_id": "int64"}
    entities = [Entity(name=key, join_keys=[key], value_type=KEY_TYPES[kind][1]) for key, kind in keys.items()]
    schema = [Field(name=key, dtype=KEY_TYPES[kind][0]) for key, kind in keys.items()]
    return FeatureView(
        name=name,
        entities=entities,
        ttl=ttl,
        schema=[*schema, *(Field(name=feature, dtype=FEAST_TYPES[kind]) for feature, kind in features.items())],
        source=source_of(
            name=f"{name}_source",
            path=str(path),
            timestamp_field="event_timestamp",
            created_timestamp_column="created" if created else None,
            **source,
        ),
    )


def store_of(
    folder: Path,
    online: dict[str, Any],
    engine: str | dict[str, Any],
    views: Sequence[FeatureView],
    offline: dict[str, Any] | None = None,
) -> Any:
    """Return a store with the views applied."""
    folder.mkdir(parents=True, exist_ok=True)
    if online["type"] == "sqlite" and "path" not in online:
        online = {**online, "path": str(folder / "online.db")}
    config = RepoConfig(
        project="shop",
        provider="local",
        registry=str(folder / "registry.db"),
        online_store=online,
        offline_store=offline or {"type": "duckdb"},
        batch_engine=engine if isinstance(engine, dict) else {"type": engine},
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply([*{entity.name: entity for view in views for entity in _entities(view)}.values(), *views])
    return store


def _entities(view: FeatureView) -> list[Entity]:
    kinds = {field.name: field.dtype for field in view.schema}
    names = {str(dtype): value for dtype, value in KEY_TYPES.values()}
    return [Entity(name=key, join_keys=[key], value_type=names[str(kinds[key])]) for key in view.entities]


def rows(columns: dict[str, pa.Array], times: Sequence[datetime] | None = None) -> pa.Table:
    """Return columns with clocks beside them."""
    count = len(next(iter(columns.values())))
    moments = pa.array(times or [T0] * count, CLOCK)
    return pa.table({**columns, "event_timestamp": moments, "created": moments})


def written(path: Path, table: pa.Table) -> Path:
    """Write a table to a Parquet file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def load(store: Any, views: Sequence[str] | None = None, end: datetime = T0 + timedelta(days=1)) -> None:
    """Materialize everything that the cases hold."""
    store.materialize(datetime(1980, 1, 1, tzinfo=UTC), end, feature_views=list(views) if views else None)


def sqlite_contents(folder: Path) -> dict[str, set[tuple[Any, ...]]]:
    """Return every table of an online store with all its rows, bytes as bytes."""
    connection = sqlite3.connect(folder / "online.db")
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found = {name: set(connection.execute(f'SELECT * FROM "{name}"')) for name in tables}
    connection.close()
    return found


def redis_contents(client: redis.Redis) -> dict[bytes, dict[bytes, bytes]]:
    """Return every hash of a database."""
    return {key: client.hgetall(key) for key in client.keys("*")}
