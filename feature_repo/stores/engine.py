"""The Feast plug-in for materialization: from Arrow to the online store's own bytes.

Adopt it in any Feast repository with two lines in ``feature_store.yaml``::

    batch_engine:
        type: feature_repo.stores.engine.ArrowComputeEngine

SQLite and Redis are written directly, with the bytes that Feast would have written. Whatever is not known to come
out the same (other stores, transformations, types that are not packed) goes Feast's own way, and the log says why.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.infra.common.materialization_job import MaterializationJobStatus, MaterializationTask
from feast.infra.compute_engines.dag.context import ColumnInfo
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.local.job import LocalMaterializationJob
from feast.infra.compute_engines.local.nodes import LocalSourceReadNode
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import _validate_vector_field_lengths
from pydantic import Field

from feature_repo.contracts.errors import ConfigError
from feature_repo.failpoints import durable
from feature_repo.stores import latest
from feature_repo.stores.batches import Batch, ViewColumns, Writer, pack
from feature_repo.stores.latest import LatestRows
from feature_repo.stores.places import RedisPlace, SqlitePlace, place_of
from feature_repo.stores.wire import CannotPackError

logger = logging.getLogger(__name__)
_MOST_ROWS = 65_536
# Packed at once within a chunk: it stays in the processor's cache, and memory that was touched is used again.
_PIECE_BYTES = 1e6


class ArrowComputeEngineConfig(FeastConfigBaseModel):
    """Settings under ``batch_engine`` in ``feature_store.yaml``."""

    type: Literal["feature_repo.stores.engine.ArrowComputeEngine"] = "feature_repo.stores.engine.ArrowComputeEngine"

    backend: str | None = None
    """Feast's own setting: data frames of its own way, "pandas" or "polars"."""

    chunk_mb: float = Field(32.0, gt=0)
    """About how much is stored at once, whole or not at all; ``online_write_batch_size`` gives rows instead."""

    wait_seconds: float = Field(30.0, ge=0)
    """How long to wait for another process that holds the SQLite file."""

    spark_from_rows: int | None = Field(None, ge=0)
    """From how many rows on Spark's workers store them, each a part: into Redis, with an offline store on Spark.

    Sources that are no local Parquet go to the workers whatever their size. By default this process stores all rows.
    """

    progress: bool | None = None
    """Whether to draw a progress bar; by default where there is a terminal."""


class ArrowComputeEngine(LocalComputeEngine):
    """Feast's local engine with another way of materializing.

    A view is stored in chunks, each whole or not at all. Feast moves the view's watermark after the last one, so a
    run that was killed or failed is run again: what is stored already is passed over (Redis) or written again
    as it is (SQLite).
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        known = {name: settings[name] for name in ArrowComputeEngineConfig.model_fields if name in settings}
        self.settings = ArrowComputeEngineConfig(**known)

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **kwargs: Any
    ) -> LocalMaterializationJob:
        try:
            self._store(registry, task)
        except CannotPackError as reason:
            logger.warning("%s goes Feast's own way: %s", task.feature_view.name, reason)
            return super()._materialize_one(registry, task, **kwargs)
        except Exception as error:
            return LocalMaterializationJob(_job_id(task), MaterializationJobStatus.ERROR, error)
        return LocalMaterializationJob(_job_id(task), MaterializationJobStatus.SUCCEEDED)

    def _store(self, registry: BaseRegistry, task: MaterializationTask) -> None:
        view = task.feature_view
        _check_view(task)
        columns = ViewColumns.of(view)
        place = place_of(self.repo_config, self.online_store, view)
        least = self._least_for_workers(place)
        rows = self._rows_of_files(task, columns)
        if least is not None and (rows is None or rows.rows >= least):
            self._store_by_workers(registry, task, columns, rows)
            return
        with closing(_writer(place, self.settings.wait_seconds)) as writer:
            rows = self._rows_by_feast(registry, task, columns) if rows is None else rows
            size = self._size(rows)
            with self._bar(task, rows.rows) as advance, _one_behind(writer, advance, view.name) as store:
                if writer.scratch is None:
                    chosen: Iterator[tuple[pa.Table, bool]] = ((table, True) for table in rows.batches(size))
                else:
                    piece = max(1, int(_PIECE_BYTES / max(rows.row_bytes, 1.0)))
                    chosen = rows.in_key_order(size, piece, writer.scratch)
                for table, last in chosen:
                    _validate_vector_field_lengths(table, view)
                    store(replace(pack(table, columns), last=last))

    def _size(self, rows: LatestRows) -> int:
        """Return how many rows are stored at once."""
        fitting = max(1, min(_MOST_ROWS, int(self.settings.chunk_mb * 1e6 / max(rows.row_bytes, 1.0))))
        return self.repo_config.materialization_config.online_write_batch_size or fitting

    def _rows_of_files(self, task: MaterializationTask, columns: ViewColumns) -> LatestRows | None:
        source = task.feature_view.batch_source
        assert source is not None
        path = _local_parquet(self.repo_config, source)
        if path is None:
            return None
        return latest.of_files(path, columns, source.field_mapping, task.start_time, task.end_time)

    def _rows_by_feast(self, registry: BaseRegistry, task: MaterializationTask, columns: ViewColumns) -> LatestRows:
        source = task.feature_view.batch_source
        assert source is not None
        node = LocalSourceReadNode("source", source, self._column_info(registry, task), task.start_time, task.end_time)
        found = node.execute(self.get_execution_context(registry, task))
        return latest.of_table(found.data, columns)

    def _least_for_workers(self, place: SqlitePlace | RedisPlace) -> int | None:
        """Return from how many rows on workers store them; None where they never do."""
        least = self.settings.spark_from_rows
        on_spark = hasattr(self.repo_config.offline_store, "spark_conf")
        if least is not None and not (on_spark and isinstance(place, RedisPlace)):
            raise ConfigError(
                "spark_from_rows, under batch_engine, needs Redis online and an offline store on Spark. Take it out of "
                "the settings, or see docs/spark.md."
            )
        return least

    def _store_by_workers(
        self, registry: BaseRegistry, task: MaterializationTask, columns: ViewColumns, rows: LatestRows | None
    ) -> None:
        from feature_repo.stores import spark_load
        from feature_repo.stores.spark_session import session_of

        session = session_of(self.repo_config.offline_store)
        view = task.feature_view
        target = spark_load.Target(self.repo_config, type(self.online_store), view, columns)
        if rows is not None:
            with self._bar(task, rows.rows) as advance:
                spark_load.of_files(session, rows, self._size(rows), target, advance)
            return
        source, info = view.batch_source, self._column_info(registry, task)
        assert source is not None
        names = info.join_keys, info.feature_cols, info.ts_col, info.created_ts_col
        chosen: Any = self.offline_store.pull_latest_from_table_or_query(
            self.repo_config, source, *names, task.start_time, task.end_time
        )
        with self._bar(task, 0) as advance:
            spark_load.of_frame(chosen.to_spark_df(), info.field_mapping or {}, target, advance)

    def _column_info(self, registry: BaseRegistry, task: MaterializationTask) -> ColumnInfo:
        backend = self._get_backend(self.get_execution_context(registry, task))
        return LocalFeatureBuilder(registry, task, backend=backend).get_column_info(task.feature_view)

    @contextmanager
    def _bar(self, task: MaterializationTask, rows: int) -> Iterator[Any]:
        wanted = self.settings.progress
        if task.tqdm_builder is None or not (sys.stderr.isatty() if wanted is None else wanted):
            yield lambda done: None
            return
        with task.tqdm_builder(rows) as bar:
            yield bar.update


@contextmanager
def _one_behind(writer: Writer, advance: Callable[[int], object], name: str) -> Iterator[Any]:
    """Yield a function that stores a batch while the next ones are packed; three are in memory at most."""
    with ThreadPoolExecutor(1, thread_name_prefix="materialize") as thread:
        waiting: deque[Future[None]] = deque()

        def store(batch: Batch) -> None:
            while len(waiting) > 1:
                waiting.popleft().result()
            waiting.append(thread.submit(write, batch))

        def write(batch: Batch) -> None:
            with durable(f"online rows {name}") if batch.last else nullcontext():
                writer.write(batch)
            advance(len(batch))

        yield store
        while waiting:
            waiting.popleft().result()


def _check_view(task: MaterializationTask) -> None:
    """Raise CannotPackError where Feast would do more than load the latest rows of a source."""
    view = task.feature_view
    more = ["aggregations", "feature_transformation", "source_views", "stream_source", "filter", "enable_validation"]
    reasons = {f"it has {name}": bool(getattr(view, name, None)) for name in more} | {
        "it has no batch source": view.batch_source is None,
        "it has no entities": DUMMY_ENTITY_NAME in view.entities,
        "it has no features": not view.features,
        "it is not stored online alone": not view.online or view.offline,
        "not only the latest rows are asked for": not task.only_latest or task.disable_event_timestamp,
    }
    for reason, holds in reasons.items():
        if holds:
            raise CannotPackError(reason)


def _writer(place: SqlitePlace | RedisPlace, wait_seconds: float) -> Writer:
    if isinstance(place, SqlitePlace):
        from feature_repo.stores.online_sqlite import SqliteWriter

        return SqliteWriter(place, wait_seconds)
    from feature_repo.stores.online_redis import RedisWriter

    return RedisWriter(place)


def _local_parquet(config: RepoConfig, source: DataSource) -> Path | None:
    """Return where a source's Parquet lies on this machine, whether DuckDB or Spark joins it; None for any other."""
    if isinstance(source, FileSource):
        parquet = source.file_format is None or isinstance(source.file_format, ParquetFormat)
    elif isinstance(source, SparkSource):
        parquet = bool(source.path) and source.file_format == "parquet" and source.table_format is None
    else:
        return None
    path = source.path.removeprefix("file://") if parquet else "://"
    return None if "://" in path else Path(FileSource.get_uri_for_file_path(config.repo_path, path))


def _job_id(task: MaterializationTask) -> str:
    return f"{task.feature_view.name}-{task.start_time}-{task.end_time}"
