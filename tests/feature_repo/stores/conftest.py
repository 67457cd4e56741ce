"""A Feast view over Parquet files without a registry, asked through any offline store of local files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feast import FeatureView, FileSource
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig

from feature_repo.stores.job import PitRetrievalJob
from feature_repo.stores.pit import PitOfflineStore, PitOfflineStoreConfig
from tests.feature_repo.stores import feast_views

STORES = {
    PitOfflineStoreConfig: PitOfflineStore,
    DuckDBOfflineStoreConfig: DuckDBOfflineStore,
    DaskOfflineStoreConfig: DaskOfflineStore,
}


def make_view(path: Path | str, name: str = "view", **settings: Any) -> FeatureView:
    """Return a view over Parquet; `settings` as of :func:`feast_views.view_over`."""
    return feast_views.view_over(FileSource, name, path=str(path), file_format=ParquetFormat(), **settings)


def job_of(offline: Any, views: list[FeatureView], labels: Any, **settings: Any) -> PitRetrievalJob:
    """Return the retrieval job of some views through the store that `offline` configures."""
    job: PitRetrievalJob = feast_views.job_of(STORES[type(offline)], offline, views, labels, **settings)
    return job


def ask(offline: Any, views: list[FeatureView], labels: Any, **settings: Any) -> pa.Table:
    """Return the result of that job."""
    return job_of(offline, views, labels, **settings).to_arrow()


@pytest.fixture
def feast_view() -> Callable[..., FeatureView]:
    """Make a view."""
    return make_view


@pytest.fixture
def historical() -> Callable[..., pa.Table]:
    """Ask an offline store."""
    return ask


@pytest.fixture
def job() -> Callable[..., PitRetrievalJob]:
    """Ask an offline store for the job."""
    return job_of
