"""Feast views without a registry, asked through an offline store: what the tests of DuckDB and of Spark share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from feast import Entity, FeatureView, Field
from feast.data_source import DataSource
from feast.repo_config import RepoConfig
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

KINDS = {"number": Int64, "text": String, "vector": Array(Float32)}
VALUE_TYPES = {"int": (Int64, ValueType.INT64), "string": (String, ValueType.STRING)}
REGISTRY: Any = SimpleNamespace(list_on_demand_feature_views=lambda *args, **kwargs: [])


def view_over(
    source: Callable[..., DataSource],
    name: str = "view",
    *,
    keys: dict[str, str] | None = None,
    features: tuple[str, ...] = ("number", "text", "vector"),
    ttl: timedelta | None = None,
    created: str = "created",
    **more: Any,
) -> FeatureView:
    """Return a view whose entity fields are known without an apply; `keys` maps join keys to int or string.

    `source` makes its source and gets `more`.
    """
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
        source=source(
            name=f"{name}_source", timestamp_field="event_timestamp", created_timestamp_column=created, **more
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


def job_of(
    store: Any,
    offline: Any,
    views: Sequence[FeatureView],
    labels: Any,
    *,
    full: bool = True,
    refs: list[str] | None = None,
    repository: Path = Path("/"),
    **more: Any,
) -> Any:
    """Return the retrieval job of all features of some views, asked of a store with its settings `offline`."""
    refs = refs or [f"{view.projection.name_to_use()}:{field.name}" for view in views for field in view.features]
    config = config_of(offline, repository)
    return store.get_historical_features(config, views, refs, labels, REGISTRY, "test", full, **more)
