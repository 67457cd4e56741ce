"""The Feast store of a home folder: the repository's yaml with this home's registry and online store."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from feature_repo.contracts.errors import ConfigError, MissingExtraError
from feature_repo.lake import Home
from feature_repo.ledger import VARIABLE
from feature_repo.profile import REPOSITORY, reads_with_spark, settings_file

if TYPE_CHECKING:
    from feast import FeatureStore
    from pyspark.sql import SparkSession

__all__ = ["REPOSITORY", "open_store", "spark_session"]


def open_store(home: Home) -> FeatureStore:
    """Return the FeatureStore that reads and writes `home`, as `feast -c feature_repo` does by default.

    ``$HEADWATER_PROFILE`` names another of feature_repo/profiles/, e.g. ``redis``.

    Raises
    ------
    ConfigError
        If there is no such profile.
    MissingExtraError
        If the profile is on Spark and that, or Java, is not installed.
    """
    import ibis
    from feast import FeatureStore
    from feast.repo_config import RepoConfig

    # Feast says at every start that reading while loading helps a SQL registry most.
    logging.getLogger("feast.repo_config").setLevel(logging.ERROR)
    # Feast's DuckDB store goes through ibis, which calls a deprecated name and draws a progress bar of its own.
    warnings.filterwarnings("ignore", message="fetch_arrow_table", category=DeprecationWarning)
    ibis.get_backend().raw_sql("SET enable_progress_bar = false")
    if reads_with_spark():
        _require_spark()
    home.feast.mkdir(parents=True, exist_ok=True)
    values = yaml.safe_load(os.path.expandvars(settings_file().read_text(encoding="utf-8")))
    if values["registry"].get("registry_type") == "sql":
        if VARIABLE not in os.environ:
            raise ConfigError(f"{VARIABLE} is not set: this profile's registry lies in the ledger's database.")
    else:
        values["registry"]["path"] = str(home.feast / Path(values["registry"]["path"]).name)
    if "path" in values["online_store"]:
        values["online_store"]["path"] = str(home.feast / "online.db")
    return FeatureStore(config=RepoConfig(**values, repo_path=REPOSITORY))


def spark_session(home: Home) -> SparkSession:
    """Return the session of the chosen profile, which has to be on Spark."""
    from feature_repo.stores.spark_session import session_of

    return session_of(open_store(home).config.offline_store)


def _require_spark() -> None:
    if importlib.util.find_spec("pyspark") is None:
        raise MissingExtraError("This profile reads with Spark: pip install 'headwater[spark]', and Java 17.")
    from feature_repo.stores.spark_session import require_java

    require_java()
    # Feast says at every call that its Spark store is young; its module sets a filter of its own first.
    importlib.import_module("feature_repo.stores.spark_pit")
    warnings.filterwarnings("ignore", message="The spark .* is an experimental feature", category=RuntimeWarning)
