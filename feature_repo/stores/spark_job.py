"""A historical retrieval on Spark: to Arrow on the driver, to a Spark frame, or to shards that the workers write."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.contrib.spark_offline_store.spark import SparkRetrievalJob
from feast.infra.offline_stores.offline_store import RetrievalMetadata
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from feature_repo.contracts.errors import ConfigError, LakeError
from feature_repo.stores.shards import ShardFormat, shard_name, write_shard
from feature_repo.stores.spark_join import Found, Sought, find
from feature_repo.stores.spark_rows import ROW, SparkView, key_kinds
from feature_repo.stores.spark_session import enforce

if TYPE_CHECKING:
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.repo_config import RepoConfig
    from pyspark.sql import DataFrame, SparkSession

    from feature_repo.stores.spark_labels import SparkLabels

_SHARD = "_hw_shard"


class SparkFrameJob(SparkRetrievalJob):
    """What Feast's Spark store selects, with times that know they are UTC and vectors of the width they have."""

    def __init__(self, job: SparkRetrievalJob) -> None:
        super().__init__(job.spark_session, job.query, job.full_feature_names, job._config)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        enforce(self.spark_session, self._config.offline_store)
        return plain(self.to_spark_df().toArrow())

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()


class SparkPitRetrievalJob(SparkRetrievalJob):
    """Labels and what to join to them; no stored row is read before a result is asked for."""

    def __init__(
        self,
        *,
        session: SparkSession,
        config: RepoConfig,
        labels: SparkLabels,
        time_column: str,
        views: Sequence[SparkView],
        span: tuple[int, int] | None,
        strict: bool,
        on_demand: list[OnDemandFeatureView],
        full_feature_names: bool,
        metadata: RetrievalMetadata,
    ) -> None:
        super().__init__(session, "", full_feature_names, config, on_demand, metadata)
        self._labels, self._views = labels, list(views)
        store = config.offline_store
        frame = labels.sought(time_column, key_kinds(views), store.naive_timestamps)
        self._sought = Sought(frame, labels.rows, span)
        self._strict = strict

    @property
    def rows(self) -> int:
        """How many labels there are, and so how many rows come out."""
        return self._labels.rows

    def to_spark_df(self) -> DataFrame:
        """Return labels and features as a Spark frame; like any such frame it promises no order."""
        return self._found().beside(self._labels.whole()).drop(ROW)

    def to_shards(
        self,
        folder: Path,
        rows: int = 500_000,
        *,
        form: ShardFormat = "parquet",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Path]:
        """Write the result as files ``part-00000...`` of `rows` rows each, in the order of the labels.

        Spark's workers write, so `folder` has to be one that all of them reach. Each file appears whole or not at
        all, and one that is there already is kept: a killed run goes on.

        Raises
        ------
        ConfigError
            If on-demand features are asked for, which only `to_arrow` and `to_df` compute.
        """
        if self.on_demand_feature_views:
            names = ", ".join(view.name for view in self.on_demand_feature_views)
            raise ConfigError(f"{names}: on-demand features are not computed in shards on Spark. Use to_arrow.")
        count = max(1, -(-self.rows // rows))
        files = [folder / shard_name(number, form) for number in range(count)]
        missing = [number for number, file in enumerate(files) if not file.exists()]
        progress(min((count - len(missing)) * rows, self.rows), self.rows)
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder, rows, form, missing, count)
        progress(self.rows, self.rows)
        return files

    def _write(self, folder: Path, rows: int, form: ShardFormat, missing: list[int], count: int) -> None:
        found = self._found()
        try:
            labels = self._labels.whole()
            joined = found.beside(labels)
            schema = self._schema(joined)
            if self.rows == 0:
                write_shard(iter([schema.empty_table()]), folder / shard_name(0, form), form)
                return
            shard = F.call_function("div", F.col(ROW), F.lit(rows)).cast("int")
            numbered = joined.withColumn(_SHARD, shard).filter(F.col(_SHARD).isin(missing))
            # A worker has a working directory of its own.
            write = partial(_write_shard, folder=folder.resolve(), form=form, schema=schema)
            # A shard's number is its partition's: each worker writes whole files, in the order of the labels.
            shards = numbered.repartitionById(count, _SHARD).sortWithinPartitions(ROW)
            written = shards.mapInArrow(write, "rows bigint").agg(F.sum("rows")).first()
            expected = sum(min(rows, self.rows - number * rows) for number in missing)
            if written is None or written[0] != expected:
                raise LakeError(f"{folder} got {written} rows of {expected}. Remove its part files and run again.")
        finally:
            found.release()

    def _schema(self, joined: DataFrame) -> pa.Schema:
        """Return the result's columns: the labels' in the labels' own types, then the features'."""
        sparks = plain(to_arrow_schema(joined.drop(ROW).schema, timezone="UTC").empty_table()).schema
        return pa.schema(
            [*self._labels.schema, *(field for field in sparks if field.name not in self._labels.schema.names)]
        )

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        labels = self._labels.arrow()
        found = self._found()
        try:
            base = self._sought.frame.select(ROW) if labels is not None else self._labels.whole()
            # Sorted here: Spark would run the whole join twice to learn the ranges it sorts by.
            table = found.beside(base).toArrow().sort_by(ROW).drop_columns(ROW)
        finally:
            found.release()
        table = plain(table)
        if labels is None:
            return table
        return pa.table([*labels.columns, *table.columns], names=[*labels.column_names, *table.column_names])

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def _found(self) -> Found:
        settings: Any = self._config.offline_store
        # The plan may be older than somebody's change of the session.
        enforce(self.spark_session, settings)
        return find(self._sought, self._views, strict=self._strict, broadcast_rows=settings.broadcast_rows)


def plain(table: pa.Table) -> pa.Table:
    """Return a table of Spark's with the names Arrow gives to parts of lists, and times in UTC."""
    fields = []
    for field in table.schema:
        kind = field.type
        if pa.types.is_list(kind):
            kind = pa.list_(kind.value_type)
        elif pa.types.is_timestamp(kind):
            kind = pa.timestamp("us", "UTC")
        fields.append(pa.field(field.name, kind))
    return table.cast(pa.schema(fields))


def _write_shard(
    batches: Iterator[pa.RecordBatch], folder: Path, form: ShardFormat, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Write one partition, which is one shard, on a worker."""
    filled = (batch for batch in batches if batch.num_rows)
    first = next(filled, None)
    if first is None:
        return
    number, rows = first.column(_SHARD)[0].as_py(), 0

    def tables() -> Iterator[pa.Table]:
        nonlocal rows
        for batch in itertools.chain([first], filled):
            rows += batch.num_rows
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)

    write_shard(tables(), folder / shard_name(number, form), form)
    yield pa.RecordBatch.from_pydict({"rows": [rows]})
