"""A Feast view over Parquet files without a registry, asked through any offline store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, FileSource
from feast.data_format import ParquetFormat
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.repo_config import RepoConfig
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

# The random cases are shared by several tests, and a test folder is no package.
sys.path.append(str(Path(__file__).parent))

from feature_repo.stores.job import PitRetrievalJob
from feature_repo.stores.pit import PitOfflineStore, PitOfflineStoreConfig

KINDS = {"number": Int64, "text": String, "vector": Array(Float32)}
VALUE_TYPES = {"int": (Int64, ValueType.INT64), "string": (String, ValueType.STRING)}
REGISTRY: Any = SimpleNamespace(list_on_demand_feature_views=lambda *args, **kwargs: [])


def make_view(
    path: Path | str,
    name: str = "view",
    *,
    keys: dict[str, str] | None = None,
    features: tuple[str, ...] = ("number", "text", "vector"),
    ttl: timedelta | None = None,
    created: str = "created",
    **source: Any,
) -> FeatureView:
    """Return a view whose entity fields are known without an apply; `keys` maps join keys to int or string."""
    keys = {"id": "int"} if keys is None else keys
    entities = [Entity(name=key, join_keys=[key], value_type=VALUE_TYPES[kind][1]) for key, kind in keys.items()]
    return FeatureView(
        name=name,
        entities=entities,
        ttl=ttl,
        schema=[
            *(Field(name=key, dtype=VALUE_TYPES[kind][0]) for key, kind in keys.items()),
            *(Field(name=feature, dtype=KINDS[feature]) for feature in features),
        ],
        source=FileSource(
            name=f"{name}_source",
            path=str(path),
            file_format=ParquetFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column=created,
            **source,
        ),
    )


def config_of(offline: Any, repository: Path) -> RepoConfig:
    """Return a repository configuration around one offline store."""
    return RepoConfig(
        project="test",
        provider="local",
        registry="unused.db",
        offline_store=offline,
        online_store=None,
        repo_path=repository,
        entity_key_serialization_version=3,
    )


def ask(
    offline: Any,
    views: list[FeatureView],
    labels: Any,
    *,
    full: bool = True,
    refs: list[str] | None = None,
    **kwargs: Any,
) -> pa.Table:
    """Return historical features of all fields of some views through the store that `offline` configures."""
    return job_of(offline, views, labels, full=full, refs=refs, **kwargs).to_arrow()


def job_of(
    offline: Any,
    views: list[FeatureView],
    labels: Any,
    *,
    full: bool = True,
    refs: list[str] | None = None,
    **kwargs: Any,
) -> PitRetrievalJob:
    """Return the retrieval job itself."""
    stores = {
        PitOfflineStoreConfig: PitOfflineStore,
        DuckDBOfflineStoreConfig: DuckDBOfflineStore,
        DaskOfflineStoreConfig: DaskOfflineStore,
    }
    repository = kwargs.pop("repository", Path("/"))
    refs = refs or [f"{view.projection.name_to_use()}:{field.name}" for view in views for field in view.features]
    return stores[type(offline)].get_historical_features(
        config_of(offline, repository), views, refs, labels, REGISTRY, "test", full, **kwargs
    )


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
