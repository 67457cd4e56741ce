"""The Feast plug-in: historical features by the engine of this package, everything else by Feast's DuckDB store.

Adopt it in any Feast repository with one line in ``feature_store.yaml``::

    offline_store:
        type: feature_repo.stores.pit.PitOfflineStore
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.feature_view import FeatureView
from feast.infra.offline_stores.duckdb import (
    DuckDBOfflineStore,
    DuckDBOfflineStoreConfig,
    _read_data_source,
    _write_data_source,
)
from feast.infra.offline_stores.file_source import FileSource
from feast.infra.offline_stores.ibis import (
    pull_all_from_table_or_query_ibis,
    pull_latest_from_table_or_query_ibis,
)
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from ibis.expr import datatypes as dt
from pydantic import Field

from feature_repo.contracts.errors import ConfigError
from feature_repo.stores.job import GIGABYTE, PitRetrievalJob
from feature_repo.stores.join import Settings, ViewJoin
from feature_repo.stores.labels import FileLabels, Labels, TableLabels
from feature_repo.stores.reading import Rules, reading_of
from feature_repo.stores.sources import File, Source, TableFile, Twins, open_files
from feature_repo.stores.spaces import check_views

# What one stored row's keys and clocks take while they are sorted.
_BYTES_PER_KEY = 64
_SQL = re.compile(r"\s*(select|with)\s", re.IGNORECASE)


class PitOfflineStoreConfig(Rules, DuckDBOfflineStoreConfig):
    """Settings under ``offline_store`` in ``feature_store.yaml``."""

    type: Literal["feature_repo.stores.pit.PitOfflineStore"] = "feature_repo.stores.pit.PitOfflineStore"

    twins: Twins = "use"
    """Memory-mapped twins of the Parquet files: off, use those that are current, build those that are not."""

    memory_limit_gb: float = Field(4.0, gt=0.25)
    """About how much memory a streamed join may take."""

    threads: int | None = Field(None, ge=1)
    """Parts of files that are read at the same time; all available cores by default."""


class PitOfflineStore(DuckDBOfflineStore):
    """Feast's DuckDB store with another historical join, and with relative paths that mean the repository."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **kwargs: Any,
    ) -> RetrievalJob:
        """Return a job that joins features to labels as each label's time knew them.

        Parameters
        ----------
        entity_df
            The labels: a data frame, or the path or glob of Parquet files, which may be larger than memory.
        filter_by_created_timestamp
            Strict mode for this call.

        Raises
        ------
        ConfigError
            If `entity_df` is neither of these.
        InputDataError
            If the labels lack columns or have timestamps without a time zone.
        SpaceMismatchError
            If user and item vectors of different spaces would be joined to one label.
        """
        check_views(feature_views)
        store = config.offline_store
        labels = _labels(config, entity_df)
        empty = labels.schema.empty_table().to_pandas()
        time_column = infer_event_timestamp_from_entity_df(dict(zip(empty.columns, empty.dtypes, strict=True)))
        strict = store.strict or filter_by_created_timestamp
        joins = [_view_join(config, view, feature_refs, full_feature_names, strict) for view in feature_views]
        settings = Settings(
            strict=strict,
            naive=store.naive_timestamps,
            threads=store.threads or len(os.sched_getaffinity(0)),
            piece_rows=int(store.memory_limit_gb * GIGABYTE / 16 / _BYTES_PER_KEY),
        )
        return PitRetrievalJob(
            config=config,
            labels=labels,
            time_column=time_column,
            views=joins,
            settings=settings,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            features=feature_refs,
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """Return the latest row of each key in a time range, as Feast's DuckDB store does."""
        return pull_latest_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            **_reading(config),
        )

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Return all rows in a time range, as Feast's DuckDB store does."""
        return pull_all_from_table_or_query_ibis(
            config=config,
            data_source=data_source,
            join_key_columns=join_key_columns,
            feature_name_columns=feature_name_columns,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column,
            start_date=start_date,
            end_date=end_date,
            **_reading(config),
        )

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to a view's source, as Feast's DuckDB store does."""
        view = copy.copy(feature_view)
        if view.batch_source is not None:
            view.batch_source = _absolute(config, view.batch_source)
        DuckDBOfflineStore.offline_write_batch(config, view, table, progress)


def _labels(config: RepoConfig, entity_df: pd.DataFrame | str | None) -> Labels:
    if isinstance(entity_df, pd.DataFrame):
        return TableLabels(pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata(None))
    if isinstance(entity_df, str) and not _SQL.match(entity_df):
        return FileLabels(_path(config, str(entity_df)))
    given = "nothing" if entity_df is None else f"'{str(entity_df)[:60]}'"
    raise ConfigError(
        f"The labels (entity_df) are {given}. This store runs no SQL and makes no labels from a time range: pass a "
        "data frame, or the path or glob of Parquet files."
    )


def _view_join(
    config: RepoConfig, view: FeatureView, feature_refs: Sequence[str], full_feature_names: bool, strict: bool
) -> ViewJoin:
    read = reading_of(config, view, feature_refs, full_feature_names, strict)
    assert view.batch_source is not None
    files = _files(config, view.batch_source, [name for _, name in read.keys], [name for _, name in read.features])
    return ViewJoin(view.name, Source(files, read.clocks), read.keys, read.ttl, read.features)


def _files(config: RepoConfig, source: DataSource, keys: Sequence[str], features: Sequence[str]) -> Sequence[File]:
    """Open a view's files; what only Feast can read (other formats, places, partition columns) is read by Feast."""
    if isinstance(source, FileSource) and _is_local_parquet(source):
        files = open_files(_path(config, source.path), keys, config.offline_store.twins)
        named = {name for file in files for name in file.schema.names}
        if named >= {*keys, *features}:
            return files
    return [TableFile(_read(config, source).to_pyarrow())]


def _reading(config: RepoConfig) -> dict[str, Any]:
    """Return how Feast's own queries read and write files."""
    store = config.offline_store
    return {
        "data_source_reader": partial(_read, config),
        "data_source_writer": _write_data_source,
        "staging_location": store.staging_location,
        "staging_location_endpoint_override": store.staging_location_endpoint_override,
    }


def _read(config: RepoConfig, source: DataSource, repo_path: str = "") -> Any:
    """Read a source as Feast's DuckDB store does, with nanoseconds, which DuckDB cannot compare, as microseconds."""
    table = _read_data_source(_absolute(config, source), str(config.repo_path))
    # Ibis does not know DuckDB's name for nanoseconds with a time zone.
    fine = {
        name: table[name].cast(dt.Timestamp(timezone="UTC"))
        for name, kind in table.schema().items()
        if isinstance(kind, dt.Unknown) and "TIMESTAMPTZ_NS" in str(kind)
    }
    return table.mutate(**fine) if fine else table


def _is_local_parquet(source: FileSource) -> bool:
    if "://" in source.path.removeprefix("file://"):
        return False
    return source.file_format is None or isinstance(source.file_format, ParquetFormat)


def _path(config: RepoConfig, path: str) -> Path:
    return Path(FileSource.get_uri_for_file_path(config.repo_path, path.removeprefix("file://")))


def _absolute(config: RepoConfig, source: DataSource) -> DataSource:
    """Return a file source with its path resolved against the repository; any other as it is."""
    if not isinstance(source, FileSource) or "://" in source.path:
        return source
    resolved = copy.deepcopy(source)
    resolved.file_options.uri = str(_path(config, source.path))
    return resolved
