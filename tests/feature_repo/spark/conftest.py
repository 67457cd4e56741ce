"""A small Spark session, and a Feast view over Parquet that Spark reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml
from feast import Entity, FeatureView, Field
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource
from feast.repo_config import RepoConfig
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

# The random cases are those of the DuckDB store.
sys.path.append(str(Path(__file__).parents[1] / "stores"))

KINDS = {"number": Int64, "text": String, "vector": Array(Float32)}
VALUE_TYPES = {"int": (Int64, ValueType.INT64), "string": (String, ValueType.STRING)}
REGISTRY: Any = SimpleNamespace(list_on_demand_feature_views=lambda *args, **kwargs: [])


@pytest.fixture(scope="session")
def session() -> Iterator[Any]:
    """Two threads, as few tasks as make a shuffle, and what the profile asks for; one for all tests of a process."""
    from pyspark.sql import SparkSession

    from feature_repo.profile import REPOSITORY

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    profile = yaml.safe_load((REPOSITORY / "profiles" / "spark.yaml").read_text(encoding="utf-8"))
    for name, value in {
        **profile["offline_store"]["spark_conf"],
        "spark.sql.shuffle.partitions": "2",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        # Small plans: compiling them well takes longer than running them.
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    }.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


def make_view(
    path: Path | str,
    name: str = "view",
    *,
    keys: dict[str, str] | None = None,
    features: tuple[str, ...] = ("number", "text", "vector"),
    ttl: timedelta | None = None,
    created: str = "created",
    tags: dict[str, str] | None = None,
    **source: Any,
) -> FeatureView:
    """Return a view whose entity fields are known without an apply; `keys` maps join keys to int or string."""
    keys = {"id": "int"} if keys is None else keys
    entities = [Entity(name=key, join_keys=[key], value_type=VALUE_TYPES[kind][1]) for key, kind in keys.items()]
    place: dict[str, Any] = {} if "query" in source else {"path": str(path), "file_format": "parquet"}
    return FeatureView(
        name=name,
        entities=entities,
        ttl=ttl,
        schema=[
            *(Field(name=key, dtype=VALUE_TYPES[kind][0]) for key, kind in keys.items()),
            *(Field(name=feature, dtype=KINDS[feature]) for feature in features),
        ],
        source=SparkSource(
            name=f"{name}_source",
            timestamp_field="event_timestamp",
            created_timestamp_column=created,
            tags=tags,
            **place,
            **source,
        ),
    )


def ask_for_job(views: list[FeatureView], labels: Any, *, full: bool = True, **settings: Any) -> Any:
    """Return the retrieval job for all features of some views."""
    from feature_repo.stores.spark_pit import SparkPitOfflineStore, SparkPitOfflineStoreConfig

    config = RepoConfig(
        project="test",
        provider="local",
        registry="unused.db",
        offline_store=SparkPitOfflineStoreConfig(**settings),
        online_store=None,
        repo_path=Path("/"),
        entity_key_serialization_version=3,
    )
    refs = [f"{view.projection.name_to_use()}:{field.name}" for view in views for field in view.features]
    return SparkPitOfflineStore.get_historical_features(config, views, refs, labels, REGISTRY, "test", full)


@pytest.fixture
def view_on() -> Callable[..., FeatureView]:
    """Make a view."""
    return make_view


@pytest.fixture
def job(session: Any) -> Callable[..., Any]:
    """Ask the store for a job."""
    return ask_for_job


@pytest.fixture
def ask(session: Any) -> Callable[..., pa.Table]:
    """Ask the store for the result."""
    return lambda *args, **named: ask_for_job(*args, **named).to_arrow()
