"""The Feast plug-in for Spark: historical features by the rules of docs/point-in-time.md, on Spark.

Adopt it in any Feast repository whose sources are SparkSource::

    offline_store:
        type: feature_repo.stores.spark_pit.SparkPitOfflineStore

Everything but the historical join is Feast's Spark store, in a session that is in UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from feast.data_source import DataSource
from feast.feature_view import FeatureView
from feast.feature_view_utils import has_transformation
from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkOfflineStore, SparkOfflineStoreConfig
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from pydantic import Field
from pyspark.sql import DataFrame, SparkSession

from feature_repo.contracts.errors import ConfigError
from feature_repo.stores.join import check_columns
from feature_repo.stores.labels import time_range
from feature_repo.stores.reading import Reading, Rules, reading_of
from feature_repo.stores.spaces import check_views
from feature_repo.stores.spark_job import SparkFrameJob, SparkPitRetrievalJob
from feature_repo.stores.spark_labels import FrameLabels, ParquetLabels, QueryLabels, SparkLabels
from feature_repo.stores.spark_rows import PLACE, SparkView, checked, number_files, read_parquet, with_numbers
from feature_repo.stores.spark_session import session_of

_SQL = re.compile(r"\s*(select|with)\s", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SparkPitOfflineStoreConfig(Rules, SparkOfflineStoreConfig):
    """Settings under ``offline_store`` in ``feature_store.yaml``; `spark_conf` is Feast's."""

    type: Literal["feature_repo.stores.spark_pit.SparkPitOfflineStore"] = (
        "feature_repo.stores.spark_pit.SparkPitOfflineStore"
    )

    broadcast_rows: int = Field(1_000_000, ge=0)
    """Up to so many labels are sent to every executor, which saves moving vectors nobody asked for."""


class SparkPitOfflineStore(SparkOfflineStore):
    """Feast's Spark store with another historical join, and with UTC throughout."""

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | DataFrame | str | None,
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
            The labels: a pandas or Spark frame, a query, or the path or glob of Parquet files.
        filter_by_created_timestamp
            Strict mode for this call.

        Raises
        ------
        ConfigError
            If `entity_df` or a view's source is none that can be read.
        InputDataError
            If columns are missing, do not fit, or are timestamps without a time zone.
        SpaceMismatchError
            If user and item vectors of different spaces would be joined to one label.
        """
        check_views(feature_views)
        store = config.offline_store
        session = session_of(store)
        strict = store.strict or filter_by_created_timestamp
        labels = _labels(session, config, entity_df)
        empty = labels.schema.empty_table()
        frame = empty.to_pandas()
        time_column = infer_event_timestamp_from_entity_df(dict(zip(frame.columns, frame.dtypes, strict=True)))
        readings = [reading_of(config, view, feature_refs, full_feature_names, strict) for view in feature_views]
        check_columns(empty, time_column, readings)
        views = [_view(session, config, view, read) for view, read in zip(feature_views, readings, strict=True)]
        first, last = time_range(labels.column(time_column))
        return SparkPitRetrievalJob(
            session=session,
            config=config,
            labels=labels,
            time_column=time_column,
            views=views,
            span=None if first is None or last is None else (_micros(first), _micros(last)),
            strict=strict,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                feature_refs, [name for name in labels.schema.names if name != time_column], first, last
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(config: RepoConfig, *arguments: Any, **named: Any) -> RetrievalJob:
        """Return the latest row of each key in a time range, as Feast's Spark store does in UTC."""
        session_of(config.offline_store)
        job: Any = SparkOfflineStore.pull_latest_from_table_or_query(config, *arguments, **named)
        return SparkFrameJob(job)

    @staticmethod
    def pull_all_from_table_or_query(config: RepoConfig, *arguments: Any, **named: Any) -> RetrievalJob:
        """Return all rows in a time range, as Feast's Spark store does in UTC."""
        session_of(config.offline_store)
        job: Any = SparkOfflineStore.pull_all_from_table_or_query(config, *arguments, **named)
        return SparkFrameJob(job)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig, feature_view: FeatureView, table: pa.Table, progress: Callable[[int], Any] | None
    ) -> None:
        """Append rows to a view's source, as Feast's Spark store does in UTC."""
        session_of(config.offline_store)
        SparkOfflineStore.offline_write_batch(config, feature_view, table, progress)


def _labels(session: SparkSession, config: RepoConfig, entity_df: Any) -> SparkLabels:
    if isinstance(entity_df, pd.DataFrame):
        table = pa.Table.from_pandas(entity_df, preserve_index=False).replace_schema_metadata(None)
        return FrameLabels(session, table)
    if isinstance(entity_df, str):
        if _SQL.match(entity_df):
            return QueryLabels(session.sql(entity_df))
        return ParquetLabels(session, Path(_path(config, entity_df).removeprefix("file://")))
    if entity_df is not None and hasattr(entity_df, "sparkSession"):
        return QueryLabels(entity_df)
    given = "nothing" if entity_df is None else f"'{str(entity_df)[:60]}'"
    raise ConfigError(
        f"The labels (entity_df) are {given}. This store makes no labels from a time range: pass a pandas or Spark "
        "frame, a query, or the path or glob of Parquet files."
    )


def _view(session: SparkSession, config: RepoConfig, view: FeatureView, read: Reading) -> SparkView:
    """Open a view's source; rows of Parquet files have numbers that last."""
    source = view.batch_source
    if not isinstance(source, SparkSource):
        raise ConfigError(f"The source of '{view.name}' is {type(source).__name__}; this store reads SparkSource.")
    if has_transformation(view):
        raise ConfigError(f"'{view.name}' is transformed when it is read; this store joins what is stored.")
    files = source.path and source.file_format == "parquet" and source.table_format is None and not source.query
    frame = read_parquet(session, [_path(config, source.path)]) if files else _opened(session, source)
    checked(read, frame)
    if files:
        frame = with_numbers(frame, number_files(frame), PLACE)
    return SparkView(read, frame, bool(files))


def _opened(session: SparkSession, source: DataSource) -> DataFrame:
    return session.sql(f"SELECT * FROM {source.get_table_query_string()}")


def _path(config: RepoConfig, path: str) -> str:
    """Return a path that is relative to the repository as an absolute one; other places as they are."""
    if "://" in path:
        return path
    return f"file://{Path(config.repo_path or '.').resolve() / path}"


def _micros(moment: datetime) -> int:
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
