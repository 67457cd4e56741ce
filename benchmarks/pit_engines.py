"""The engines that benchmarks/pit.py compares. Each takes prepared input and returns how many rows it gave.

All get the labels in memory in the form they like best (not timed) and give an Arrow table in memory; the streamed
ones get a file and write Parquet. Every engine may use all cores and keeps its own defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.pit_data import TTL, Size, key_of, labels_file

Run = Callable[[], int]
STREAM_LIMIT_GB = 4.0
_REGISTRY: Any = SimpleNamespace(list_on_demand_feature_views=lambda *args, **kwargs: [])


def feast_views(size: Size, folder: Path) -> list[Any]:
    """Return the size's views as Feast objects, which need no registry to be joined."""
    from feast import Entity, FeatureView, Field, FileSource
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float32, Int64
    from feast.value_type import ValueType

    views = []
    for name in size.view_names:
        key = key_of(name)
        source = FileSource(
            name=f"{name}_source",
            path=str(folder / size.stored / name),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        entity = Entity(name=key, join_keys=[key], value_type=ValueType.INT64)
        schema = [Field(name=key, dtype=Int64), Field(name="embedding", dtype=Array(Float32))]
        views.append(FeatureView(name=name, entities=[entity], ttl=TTL, schema=schema, source=source))
    return views


def feast_job(size: Size, folder: Path, store: str, labels: Any, **settings: Any) -> Any:
    """Ask a Feast offline store for the size's features."""
    from feast.repo_config import RepoConfig

    config = RepoConfig(
        project="bench",
        provider="local",
        registry="unused.db",
        offline_store={"type": store, **settings},
        online_store=None,
        repo_path=folder,
        entity_key_serialization_version=3,
    )
    from feast.infra.offline_stores.dask import DaskOfflineStore
    from feast.infra.offline_stores.duckdb import DuckDBOfflineStore

    from feature_repo.stores.pit import PitOfflineStore

    classes = {"duckdb": DuckDBOfflineStore, "dask": DaskOfflineStore}
    views = feast_views(size, folder)
    references = [f"{view.name}:embedding" for view in views]
    return classes.get(store, PitOfflineStore).get_historical_features(
        config, views, references, labels, _REGISTRY, "bench", True
    )


def _feast(store: str, **settings: Any) -> Callable[[Size, Path], Run]:
    def prepare(size: Size, folder: Path) -> Run:
        import warnings

        warnings.filterwarnings("ignore")
        labels = pq.read_table(labels_file(size, folder)).to_pandas()
        feast_job(size, folder, store, labels.iloc[:1], **settings)  # imports
        return lambda: int(feast_job(size, folder, store, labels, **settings).to_arrow().num_rows)

    return prepare


def _feast_streamed(**settings: Any) -> Callable[[Size, Path], Run]:
    def prepare(size: Size, folder: Path) -> Run:
        labels = str(labels_file(size, folder))
        store = "feature_repo.stores.pit.PitOfflineStore"
        settings["memory_limit_gb"] = STREAM_LIMIT_GB
        feast_job(size, folder, store, labels, **settings)

        def run() -> int:
            with TemporaryDirectory(dir=folder) as out:
                files = feast_job(size, folder, store, labels, **settings).to_shards(Path(out))
                return sum(pq.read_metadata(file).num_rows for file in files)

        return run

    return prepare


def polars_join_asof(size: Size, folder: Path) -> Run:
    """One `join_asof` per view, vectors carried along."""
    import polars as pl

    labels = pl.read_parquet(labels_file(size, folder)).sort("event_timestamp")

    def run() -> int:
        joined = labels.lazy()
        for view in size.view_names:
            rows = pl.scan_parquet(folder / size.stored / view / "*.parquet").select(
                key_of(view), "event_timestamp", pl.col("embedding").alias(view)
            )
            # The files come in the order of their time, so the rows are sorted already.
            joined = joined.join_asof(
                rows.set_sorted("event_timestamp"), on="event_timestamp", by=key_of(view), tolerance=TTL
            )
        return joined.collect().to_arrow().num_rows

    return run


def _asof_query(size: Size, folder: Path, labels: str) -> str:
    columns, joins = [], []
    for view in size.view_names:
        days = int(TTL.days)
        fresh = f"labels.event_timestamp - {view}.event_timestamp <= interval {days} day"
        columns.append(f"case when {fresh} then {view}.embedding end as {view}")
        joins.append(
            f"asof left join '{folder / size.stored / view}/*.parquet' {view} on labels.{key_of(view)} = "
            f"{view}.{key_of(view)} and labels.event_timestamp >= {view}.event_timestamp"
        )
    return f"select labels.*, {', '.join(columns)} from {labels} labels {' '.join(joins)}"


def duckdb_asof(size: Size, folder: Path) -> Run:
    """DuckDB's own ASOF join, vectors carried along."""
    import duckdb

    connection = duckdb.connect()
    connection.register("given", pq.read_table(labels_file(size, folder)))
    query = _asof_query(size, folder, "given")
    return lambda: int(connection.sql(query).to_arrow_table().num_rows)


def duckdb_asof_streamed(size: Size, folder: Path) -> Run:
    """The same from file to file; DuckDB spills what does not fit into the same limit as ours."""
    import duckdb

    connection = duckdb.connect()
    connection.sql(f"set memory_limit = '{STREAM_LIMIT_GB}GB'")
    connection.sql(f"set temp_directory = '{folder / 'spill'}'")
    query = _asof_query(size, folder, f"'{labels_file(size, folder)}'")

    def run() -> int:
        with TemporaryDirectory(dir=folder) as out:
            connection.sql(f"copy ({query}) to '{out}/joined.parquet' (compression lz4, preserve_order true)")
            return pq.read_metadata(f"{out}/joined.parquet").num_rows

    return run


def _floor(twins: str, streamed: bool) -> Callable[[Size, Path], Run]:
    """Return what remains of ours when the row of every label is known beforehand: read the vectors, write them."""

    def prepare(size: Size, folder: Path) -> Run:
        from feature_repo.stores.gather import gather
        from feature_repo.stores.join import Settings, row_numbers
        from feature_repo.stores.shards import write_shard

        labels = pq.read_table(labels_file(size, folder))
        store = "feature_repo.stores.pit.PitOfflineStore"
        job = feast_job(size, folder, store, labels.slice(0, 1).to_pandas(), twins=twins)
        times = labels["event_timestamp"].cast(pa.int64()).to_numpy()
        known = [
            row_numbers(labels, times, np.argsort(times, kind="stable"), view, Settings(threads=2))
            for view in job._views
        ]

        def part(start: int, stop: int) -> pa.Table:
            columns = [
                gather(view.source, rows[start:stop], ["embedding"], 2)[0]
                for view, rows in zip(job._views, known, strict=True)
            ]
            return pa.table(columns, names=size.view_names)

        def run() -> int:
            if not streamed:
                return int(part(0, labels.num_rows).num_rows)
            step, rows = 500_000, 0
            with TemporaryDirectory(dir=folder) as out:
                for start in range(0, labels.num_rows, step):
                    file = Path(out) / f"{start}.parquet"
                    write_shard(iter([part(start, start + step)]), file, "parquet")
                    rows += pq.read_metadata(file).num_rows
            return rows

        return run

    return prepare


PIT = "feature_repo.stores.pit.PitOfflineStore"
ENGINES: dict[str, Callable[[Size, Path], Run]] = {
    "headwater, twins": _feast(PIT, twins="use"),
    "headwater, plain Parquet": _feast(PIT, twins="off"),
    "feast duckdb": _feast("duckdb"),
    "feast dask": _feast("dask"),
    "polars join_asof": polars_join_asof,
    "duckdb asof": duckdb_asof,
    "floor, twins": _floor("use", False),
    "floor, plain Parquet": _floor("off", False),
}
STREAMED: dict[str, Callable[[Size, Path], Run]] = {
    "headwater, twins": _feast_streamed(twins="use"),
    "headwater, plain Parquet": _feast_streamed(twins="off"),
    "duckdb asof": duckdb_asof_streamed,
    "floor, twins": _floor("use", True),
    "floor, plain Parquet": _floor("off", True),
}
