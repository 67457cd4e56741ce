"""The Spark session of a feature store, in UTC whatever it was before."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ZONE = "spark.sql.session.timeZone"
# Nanoseconds in Parquet, which Spark refuses otherwise, come as integers and are rounded here (ADR 15).
_NEEDED = {ZONE: "UTC", "spark.sql.legacy.parquet.nanosAsLong": "true"}


def session_of(settings: Any) -> SparkSession:
    """Return the active Spark session, or a new one, with the settings of ``offline_store`` really in force.

    Raises
    ------
    ConfigError
        If the session that is there has another value of a setting that it cannot change.
    MissingExtraError
        If there is no Java to run Spark on.
    """
    from feast.infra.offline_stores.contrib.spark_offline_store.spark import (
        get_spark_session_or_start_new_with_repoconfig,
    )

    require_java()
    # Workers run this interpreter, which has the packages; Spark's own choice is any python3 of the path.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = get_spark_session_or_start_new_with_repoconfig(settings)
    enforce(session, settings)
    return session


def enforce(session: SparkSession, settings: Any) -> None:
    """Set what the join relies on and what ``spark_conf`` asks for; Spark ignores the latter in an old session.

    Called again before a plan runs, which may be long after it was made.

    Raises
    ------
    ConfigError
        If a value cannot be changed any more.
    """
    for name, value in {**(settings.spark_conf or {}), **_NEEDED}.items():
        found = session.conf.get(name, None)
        if found == value:
            continue
        if not session.conf.isModifiable(name):
            raise ConfigError(
                f"The Spark session that is running has {name} = {found}, and spark_conf asks for {value}, which can "
                "be set at its start only. Stop that session, or take the setting out of spark_conf."
            )
        session.conf.set(name, value)
    zone = session.conf.get(ZONE, None)
    if zone != "UTC":
        raise ConfigError(f"Spark's session has the time zone {zone} and does not take UTC: {ZONE} must be settable.")


def require_java() -> None:
    """Raise MissingExtraError where there is no Java."""
    home = os.environ.get("JAVA_HOME")
    if not (home and os.path.exists(os.path.join(home, "bin", "java"))) and shutil.which("java") is None:
        raise MissingExtraError("Spark needs Java 17: install openjdk-17-jre-headless, or set JAVA_HOME to a Java.")
