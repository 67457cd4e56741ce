"""The oracle of a simulated log: read for exactly the asked impressions, refused where it is another log's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.contracts.errors import ConfigError
from jobs.truth import oracle_logits


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    folder = tmp_path / "truth"
    folder.mkdir()
    for day in range(2):
        ids = np.arange(4) + 10 * day
        columns = {"impression_id": ids, "p_click": (ids + 1) / 40, "p_conversion": (ids + 1) / 80}
        pl.DataFrame(columns).with_columns(pl.col("p_click").cast(pl.Float32)).write_parquet(folder / f"{day}.parquet")
    return folder


def test_logits_come_in_the_order_that_was_asked_for(truth: Path) -> None:
    for task, scale in (("ctr", 40), ("cvr", 80)):
        logits = oracle_logits(truth, task, pl.Series([12, 3, 10]))
        assert np.allclose(1 / (1 + np.exp(-logits)), np.array([13, 4, 11]) / scale, atol=1e-6)


def test_certainties_stay_finite(tmp_path: Path) -> None:
    pl.DataFrame({"impression_id": [1, 2], "p_click": [0.0, 1.0]}).write_parquet(tmp_path / "a.parquet")
    logits = oracle_logits(tmp_path, "ctr", pl.Series([1, 2]))
    assert np.isfinite(logits).all() and logits[0] < -10 < 10 < logits[1]


def test_the_truth_of_another_log_is_refused(truth: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lacks 1 of 2"):
        oracle_logits(truth, "ctr", pl.Series([3, 99]))
    with pytest.raises(ConfigError, match="does not hold the truth"):
        oracle_logits(truth, "ctr", pl.Series(["3", "10"]))
    with pytest.raises(ConfigError, match="no Parquet files"):
        oracle_logits(tmp_path / "nowhere", "ctr", pl.Series([3]))
    pl.DataFrame({"impression_id": [3], "p_click": [0.5]}, schema_overrides={"p_click": pl.Float32}).write_parquet(
        truth / "twice.parquet"
    )
    with pytest.raises(ConfigError, match="some twice"):
        oracle_logits(truth, "ctr", pl.Series([3, 10]))
