"""A historical retrieval that Feast can run whole, and that can also be streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow as pa
from feast.infra.offline_stores.duckdb import _write_data_source
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from feature_repo.stores.join import Settings, ViewJoin, join
from feature_repo.stores.labels import Labels, time_range
from feature_repo.stores.shards import ShardFormat, shard_name, write_shard

GIGABYTE = 10**9


class PitRetrievalJob(RetrievalJob):
    """Labels and what to join to them; nothing is read before a result is asked for."""

    def __init__(
        self,
        *,
        config: RepoConfig,
        labels: Labels,
        time_column: str,
        views: Sequence[ViewJoin],
        settings: Settings,
        on_demand: Sequence[OnDemandFeatureView],
        full_feature_names: bool,
        features: Sequence[str],
    ) -> None:
        super().__init__()
        self._config = config
        self._labels = labels
        self._time_column = time_column
        self._views = list(views)
        self._settings = settings
        self._substrait = [view for view in on_demand if view.mode == "substrait"]
        self._on_demand = [view for view in on_demand if view.mode != "substrait"]
        self._full_feature_names = full_feature_names
        self._features = list(features)

    @property
    def rows(self) -> int:
        """How many labels there are, and so how many rows come out."""
        return self._labels.rows

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``<view>__<feature>``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """Transformations that Feast applies to what was joined."""
        return self._on_demand

    @cached_property
    def metadata(self) -> RetrievalMetadata:
        """Names of features and keys, and the range of the labels' times."""
        keys = [name for name in self._labels.schema.names if name != self._time_column]
        first, last = time_range(self._labels.column(self._time_column))
        return RetrievalMetadata(self._features, keys, first, last)

    def to_batches(self, rows: int | None = None) -> Iterator[pa.Table]:
        """Yield the result in the order of the labels, on-demand features included.

        Parameters
        ----------
        rows
            Labels per table; by default as many as the memory limit allows.
        """
        chunk = rows or self._chunk_rows()
        for labels in self._labels.chunks(chunk):
            yield from self._pieces(labels, chunk)

    def to_shards(
        self,
        folder: Path,
        rows: int = 500_000,
        *,
        form: ShardFormat = "parquet",
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Path]:
        """Write the result as files ``part-00000...`` of `rows` rows each and return their paths.

        Each file appears whole or not at all, and one that is there already is kept: a killed run goes on. That
        it came from the same labels and views is the caller's to know.

        Parameters
        ----------
        form
            ``arrow`` is uncompressed and can be mapped into memory; ``parquet`` can be read by anything.
        progress
            Called with rows done and rows in all.
        """
        chunk = self._chunk_rows()
        parts: list[Path] = []
        # Several files from one join where memory allows: each join reads the views' files again.
        for labels in self._labels.chunks(rows * max(1, chunk // rows)):
            slices = [labels.slice(start, rows) for start in range(0, max(labels.num_rows, 1), rows)]
            names = [folder / shard_name(len(parts) + i, form) for i in range(len(slices))]
            todo = [(name, part) for name, part in zip(names, slices, strict=True) if not name.exists()]
            parts += names
            if len(todo) == 1:
                write_shard(self._pieces(todo[0][1], chunk), todo[0][0], form)
            elif todo:
                whole = _Part(self, self._joined(pa.concat_tables([part for _, part in todo]))).to_arrow()
                start = 0
                for name, part in todo:
                    write_shard(iter([whole.slice(start, part.num_rows)]), name, form)
                    start += part.num_rows
            progress(min(len(parts) * rows, self.rows), self.rows)
        return parts

    def _pieces(self, labels: pa.Table, chunk: int) -> Iterator[pa.Table]:
        """Yield the result for some labels in tables of at most `chunk` rows."""
        for start in range(0, max(labels.num_rows, 1), chunk):
            yield _Part(self, self._joined(labels.slice(start, chunk))).to_arrow()

    def persist(self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result, on-demand features included, where Feast's saved datasets go."""
        import ibis

        table = ibis.memtable(self.to_arrow(timeout=timeout))
        _write_data_source(table, storage.to_data_source(), str(self._config.repo_path), "overwrite", allow_overwrite)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        # All labels at once where they are in memory anyway: each file is then read once.
        return pa.concat_tables([self._joined(labels) for labels in self._labels.chunks(max(self._labels.rows, 1))])

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def _joined(self, labels: pa.Table) -> pa.Table:
        table = join(labels, self._time_column, self._views, self._settings)
        if self._substrait:
            import ibis

            expression = ibis.memtable(table)
            for view in self._substrait:
                expression = view.transform_ibis(expression, self._full_feature_names)
            table = expression.to_pyarrow()
        return table

    def _chunk_rows(self) -> int:
        """Labels per table, so that one table takes about a fifth of the memory limit."""
        per_row = self._labels.row_bytes + sum(
            view.source.row_bytes([stored for _, stored in view.features]) for view in self._views
        )
        limit = self._config.offline_store.memory_limit_gb * GIGABYTE
        return max(10_000, int(limit / 5 / max(per_row, 16)))


class _Part(RetrievalJob):
    """One joined table as a job of its own, so that Feast applies on-demand views to it as it does to a whole."""

    def __init__(self, job: PitRetrievalJob, table: pa.Table) -> None:
        self._job, self._table = job, table

    @property
    def full_feature_names(self) -> bool:
        return self._job.full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self._job.on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata:
        return self._job.metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._table.to_pandas()
