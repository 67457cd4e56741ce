"""Point-in-time joins on one machine and on Spark: our DuckDB store, Feast's own Spark store, ours on Spark.

    python -m benchmarks.scale --scale 0.02    # minutes, to see that it works
    make bench-scale                           # 200k labels x (100k x 30 + 20k x 30), and ten times the labels

Each engine runs in a process of its own, from Parquet files to an Arrow table in memory, once after a run on a single
label that starts what has to be started. `peak_rss_gb` is the process and the Java machine below it together. Spark
runs on all cores of this machine: on few of them that shows what it costs, not how it scales.

`headwater, Spark, vectors carried` is the same search with the vectors inside it: what keys first (ADR 80) saves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.pit import in_own_process
from benchmarks.pit_data import TTL, Size, key_of, labels_file, prepare

RESULTS = Path(__file__).parent / "results" / "scale.json"
SIZES = [
    Size("200k labels x 30 snapshots, 2 views", 200_000, 100_000, 20_000, 30, 2),
    Size("2M labels x 30 snapshots, 2 views", 2_000_000, 100_000, 20_000, 30, 2),
]
SPARK_CONF = {
    "spark.driver.memory": "8g",
    "spark.driver.maxResultSize": "0",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
ENGINES = ("headwater, DuckDB", "headwater, Spark", "headwater, Spark, vectors carried", "feast, Spark")
_REGISTRY: Any = SimpleNamespace(
    list_on_demand_feature_views=lambda *args, **kwargs: [],
    list_entities=lambda *args, **kwargs: _ENTITIES,
    get_entity=lambda name, *args, **kwargs: next(entity for entity in _ENTITIES if entity.name == name),
)
_ENTITIES: list[Any] = []


def spark_views(size: Size, folder: Path, *, as_query: bool) -> list[Any]:
    """Return the size's views over Spark sources; as queries, whose rows have no lasting numbers, or as files."""
    from feast import Entity, FeatureView, Field
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
    from feast.types import Array, Float32, Int64
    from feast.value_type import ValueType

    views = []
    _ENTITIES.clear()
    for name in size.view_names:
        key, files = key_of(name), folder / size.stored / name
        place = (
            {"query": f"SELECT * FROM parquet.`{files}`"}
            if as_query
            else {"path": str(files), "file_format": "parquet"}
        )
        source = SparkSource(
            name=f"{name}_source", timestamp_field="event_timestamp", created_timestamp_column="created", **place
        )
        entity = Entity(name=key, join_keys=[key], value_type=ValueType.INT64)
        _ENTITIES.append(entity)
        schema = [Field(name=key, dtype=Int64), Field(name="embedding", dtype=Array(Float32))]
        views.append(FeatureView(name=name, entities=[entity], ttl=TTL, schema=schema, source=source))
    return views


def on_spark(size: Size, folder: Path, engine: str) -> Callable[[Any], int]:
    """Return what joins a frame of labels with one of the two Spark stores."""
    from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkOfflineStore, SparkOfflineStoreConfig
    from feast.repo_config import RepoConfig

    from feature_repo.stores.spark_pit import SparkPitOfflineStore, SparkPitOfflineStoreConfig

    ours = engine.startswith("headwater")
    conf = {**SPARK_CONF, "spark.sql.session.timeZone": "UTC"}
    config = RepoConfig(
        project="bench",
        provider="local",
        registry="unused.db",
        offline_store=(SparkPitOfflineStoreConfig if ours else SparkOfflineStoreConfig)(spark_conf=conf),
        online_store=None,
        repo_path=folder,
        entity_key_serialization_version=3,
    )
    views = spark_views(size, folder, as_query="carried" in engine)
    references = [f"{view.name}:embedding" for view in views]
    store = SparkPitOfflineStore if ours else SparkOfflineStore

    def run(labels: Any) -> int:
        job = store.get_historical_features(config, views, references, labels, _REGISTRY, "bench", True)
        # Feast's own way to Arrow goes through pandas, which would time that instead: both give what Spark gives.
        table = job.to_arrow() if ours else job.to_spark_df().toArrow()
        return int(table.num_rows)

    return run


def on_duckdb(size: Size, folder: Path) -> Callable[[Any], int]:
    """Return what joins a frame of labels with our DuckDB store on plain Parquet, which is what Spark reads."""
    from benchmarks.pit_engines import PIT, feast_job

    return lambda labels: int(feast_job(size, folder, PIT, labels, twins="off").to_arrow().num_rows)


def measure(engine: str, size: Size, folder: Path) -> dict[str, Any]:
    """Run one engine in this process."""
    import warnings

    warnings.filterwarnings("ignore")
    labels = pq.read_table(labels_file(size, folder)).to_pandas()
    run = on_duckdb(size, folder) if "DuckDB" in engine else on_spark(size, folder, engine)
    run(labels.iloc[:1].copy())
    with Peak() as peak:
        started = time.perf_counter()
        rows = run(labels)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "rows": rows, "rows_per_s": rows / seconds, "peak_rss_gb": peak.bytes / 1e9}


class Peak:
    """The most memory that this process and those below it took at one moment, looked at ten times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.1):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.bytes = max(self.bytes, total)


def merge(records: list[dict[str, Any]], file: Path) -> None:
    """Put records into the list of a file, in place of those of the same engine and size."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    new = {(record["engine"], record["size"]) for record in records}
    kept = [record for record in known if (record["engine"], record["size"]) not in new]
    file.write_text(json.dumps([*kept, *records], indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print a table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="times the labels and entities")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the sizes to run")
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=ENGINES, help="all by default")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds per engine and size")
    parser.add_argument("--data", type=Path, help="folder for the files; kept if given")
    parser.add_argument("--out", type=Path, help="where the results go; by default only those at scale 1 are kept")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run is not None:
        print(json.dumps(measure(chosen.run, SIZES[chosen.size].scaled(chosen.scale), chosen.data)), flush=True)
        return
    out = chosen.out or (RESULTS if chosen.scale == 1 else None)
    print("| size | engine | seconds | rows/s | peak RSS, GB |\n|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = (chosen.data or Path(scratch)).resolve()
        for number in chosen.only or range(len(SIZES)):
            size = SIZES[number].scaled(chosen.scale)
            prepare(size, folder)
            for engine in chosen.engines:
                found = in_own_process("benchmarks.scale", engine, number, chosen.scale, folder, chosen.timeout)
                labels = {"labels": size.labels, "users": size.users, "items": size.items}
                if out is not None:
                    merge([{"engine": engine, "size": size.name, **labels, **found}], out)
                cells = "- | - | -" if "error" in found else "{seconds:.1f} | {rows_per_s:,.0f} | {peak_rss_gb:.2f}"
                print(
                    f"| {size.name} | {engine} | {cells.format(**found)} | {found.get('error', '')}".rstrip(),
                    flush=True,
                )
    if out is not None:
        print(f"written to {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
