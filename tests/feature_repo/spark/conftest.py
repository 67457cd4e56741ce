"""A small Spark session, and a Feast view over Parquet that Spark reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from feast import FeatureView
from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

from tests.feature_repo.stores import feast_views


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


def make_view(path: Path | str, name: str = "view", **settings: Any) -> FeatureView:
    """Return a view over Parquet, or over a query if `settings` hold one."""
    place: dict[str, Any] = {} if "query" in settings else {"path": str(path), "file_format": "parquet"}
    return feast_views.view_over(SparkSource, name, **place, **settings)


def ask_for_job(views: list[FeatureView], labels: Any, *, full: bool = True, **settings: Any) -> Any:
    """Return the retrieval job for all features of some views."""
    from feature_repo.stores.spark_pit import SparkPitOfflineStore, SparkPitOfflineStoreConfig

    offline = SparkPitOfflineStoreConfig(**settings)
    return feast_views.job_of(SparkPitOfflineStore, offline, views, labels, full=full)


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
