"""The profiles on Spark are the same definitions; what they need is said where it is missing. No Spark runs here."""

from __future__ import annotations

import importlib.util
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

import jobs.store
from feature_repo.contracts.errors import MissingExtraError
from feature_repo.contracts.types import Snapshot, Verdict, View
from feature_repo.lake import Home
from feature_repo.ledger import Ledger
from feature_repo.views import feast_objects

T = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(("profile", "embedded"), [("spark", "feature_store"), ("spark_redis", "profiles/redis")])
def test_spark_differs_in_the_offline_store_alone(profile: str, embedded: str) -> None:
    spark, other = (
        yaml.safe_load((jobs.store.REPOSITORY / f"{name}.yaml").read_text(encoding="utf-8"))
        for name in (f"profiles/{profile}", embedded)
    )
    assert spark.pop("offline_store")["type"] == "feature_repo.stores.spark_pit.SparkPitOfflineStore"
    assert other.pop("offline_store")["type"] == "feature_repo.stores.pit.PitOfflineStore"
    assert spark["registry"].pop("path") != other["registry"].pop("path")
    assert spark == other


def test_sources_follow_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, home = Ledger(tmp_path / "ledger.db"), Home(tmp_path)
    ledger.put_view(View("user_stats", "user", None, "int64", {"clicks": "int64"}, 30))
    verdict = Verdict(True, ())
    ledger.put_snapshot(
        Snapshot("user_stats-1", "user_stats", "user", None, None, T, T, 5, "lake/x", "00", True, verdict)
    )
    sources = {}
    for profile in ("", "redis", "spark", "spark_redis"):
        monkeypatch.setenv("HEADWATER_PROFILE", profile)
        sources[profile] = feast_objects(home, ledger)["user_stats"].batch_source
    assert {type(source).__name__ for name, source in sources.items() if "spark" in name} == {"SparkSource"}
    assert {type(source).__name__ for name, source in sources.items() if "spark" not in name} == {"FileSource"}
    assert len({source.path for source in sources.values()}) == 1
    assert sources["spark"].created_timestamp_column == sources[""].created_timestamp_column == "created"


def test_what_spark_needs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_PROFILE", "spark")
    known = importlib.util.find_spec
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", lambda name: None if name == "pyspark" else known(name))
        with pytest.raises(MissingExtraError, match=r"headwater\[spark\]"):
            jobs.store.open_store(Home(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: known("json") if name == "pyspark" else known(name))
    with pytest.raises(MissingExtraError, match="Java 17"):
        jobs.store.open_store(Home(tmp_path))
