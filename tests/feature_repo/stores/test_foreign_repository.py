"""The plug-in in a repository that Feast's own `init` makes: one line of its feature_store.yaml is changed."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

from feature_repo.stores.job import PitRetrievalJob

pytestmark = pytest.mark.filterwarnings("ignore")
FEAST = Path(sys.executable).parent / "feast"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run `feast init`, adopt the plug-in, run `feast apply`."""
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run([FEAST, "init", "drivers"], cwd=folder, check=True, capture_output=True)
    repository = folder / "drivers" / "feature_repo"
    with open(repository / "feature_store.yaml", "a", encoding="utf-8") as settings:
        settings.write("\noffline_store: {type: feature_repo.stores.pit.PitOfflineStore}\n")
    subprocess.run([FEAST, "apply"], cwd=repository, check=True, capture_output=True)
    return repository


@pytest.fixture
def store(repository: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    """Open it from another folder than the repository: its source paths are relative."""
    monkeypatch.chdir(repository.parent.parent)
    return FeatureStore(repo_path=str(repository))


@pytest.fixture
def labels(repository: Path) -> pd.DataFrame:
    """Take some rows of the example data as labels, a little later and some far too late."""
    rows = pq.read_table(repository / "data/driver_stats.parquet", columns=["driver_id", "event_timestamp"]).to_pandas()
    rows = rows.iloc[::7].reset_index(drop=True)
    late = pd.to_timedelta([0, 30, 60 * 24 * 400] * len(rows), unit="min")[: len(rows)]
    rows["event_timestamp"] = rows["event_timestamp"] + late
    rows["val_to_add"], rows["val_to_add_2"] = 1, range(len(rows))
    return rows


def newest(repository: Path, labels: pd.DataFrame) -> list[float | None]:
    """Return each label's conv_rate by a loop over the example data; its view's ttl is a day."""
    stored = pq.read_table(repository / "data/driver_stats.parquet").to_pandas()
    found: list[float | None] = []
    for driver, moment in zip(labels["driver_id"], labels["event_timestamp"], strict=True):
        rows = stored[(stored["driver_id"] == driver) & (stored["event_timestamp"] <= moment)]
        rows = rows[moment - rows["event_timestamp"] <= timedelta(days=1)]
        rows = rows.sort_values(["event_timestamp", "created"], kind="stable")
        found.append(None if rows.empty else float(rows["conv_rate"].iloc[-1]))
    return found


def test_a_service_with_on_demand_features(store: FeatureStore, repository: Path, labels: pd.DataFrame) -> None:
    job = store.get_historical_features(labels, features=store.get_feature_service("driver_activity_v2"))
    assert isinstance(job, PitRetrievalJob)
    result = job.to_df()
    wanted = newest(repository, labels)
    assert None in wanted and wanted.count(None) < len(wanted)
    assert [None if pd.isna(value) else value for value in result["conv_rate"]] == wanted
    known = result["conv_rate"].notna()
    difference = result["conv_rate_plus_val2"] - result["conv_rate"] - result["val_to_add_2"]
    assert difference[known].abs().max() < 1e-6
    assert result["driver_metadata"].map(type).isin([dict, type(None)]).all()


def test_labels_from_a_file_stream_into_shards(store: FeatureStore, repository: Path, labels: pd.DataFrame) -> None:
    labels.iloc[:100].to_parquet(repository / "data/labels_1.parquet")
    labels.iloc[100:].to_parquet(repository / "data/labels_2.parquet")
    features = ["driver_hourly_stats:conv_rate", "transformed_conv_rate:conv_rate_plus_val1"]
    job = store.get_historical_features("data/labels_*.parquet", features, full_feature_names=True)
    assert isinstance(job, PitRetrievalJob)
    tables = list(job.to_batches(64))
    assert {table.num_rows for table in tables[:-1]} == {64}
    files = job.to_shards(repository / "joined", 70)
    rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    wanted = newest(repository, labels)
    assert [None if pd.isna(value) else value for value in rows["driver_hourly_stats__conv_rate"]] == wanted
    added = rows["transformed_conv_rate__conv_rate_plus_val1"] - rows["driver_hourly_stats__conv_rate"]
    assert (added.dropna() - 1).abs().max() < 1e-6


def test_a_saved_dataset_holds_what_was_joined(store: FeatureStore, repository: Path, labels: pd.DataFrame) -> None:
    job = store.get_historical_features(labels, features=["driver_hourly_stats:conv_rate"])
    path = repository / "data/saved.parquet"
    saved = store.create_saved_dataset(job, "rates", SavedDatasetFileStorage(path=str(path)), allow_overwrite=True)
    assert saved.to_df()["conv_rate"].notna().sum() == sum(value is not None for value in newest(repository, labels))


def test_everything_else_goes_on_as_before(store: FeatureStore, repository: Path) -> None:
    store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime.now(UTC), feature_views=["driver_hourly_stats"])
    online = store.get_online_features(["driver_hourly_stats:conv_rate"], [{"driver_id": 1001}]).to_dict()
    stored = pq.read_table(repository / "data/driver_stats.parquet").to_pandas()
    rates = stored[stored["driver_id"] == 1001].sort_values("event_timestamp")["conv_rate"]
    assert online["conv_rate"][0] == pytest.approx(rates.iloc[-1])
    before = len(stored)
    row = stored.iloc[:1].assign(event_timestamp=pd.Timestamp.now("UTC").floor("s"))
    store.write_to_offline_store("driver_hourly_stats", row, reorder_columns=True)
    assert pq.read_metadata(repository / "data/driver_stats.parquet").num_rows == before + 1


def test_the_feast_command_runs_on_it(repository: Path) -> None:
    shown = subprocess.run(
        [FEAST, "feature-views", "list"],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert "driver_hourly_stats" in shown.stdout
