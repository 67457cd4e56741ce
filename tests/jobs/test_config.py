"""A log too short for what is derived from it is refused with the length that it needs and what to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from feature_repo.contracts.errors import ConfigError, NotReadyError
from jobs import prepare_upstream, train_upstream
from jobs.cli import app
from jobs.config import WARM_UP, Config, Splits, Upstream, check_length, derive_splits, save
from jobs.workspace import Workspace
from models import presets

START, DAY = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1)


@pytest.mark.parametrize(("refresh_days", "needed"), [(1, 53), (7, 64), (11, 60), (14, 77)])
def test_the_length_that_is_named_is_enough_and_no_shorter_one_is(refresh_days: int, needed: int) -> None:
    every = timedelta(days=refresh_days)
    for days in range(needed, needed + 60):
        check_length(START, START + days * DAY, every)
        assert derive_splits(START, START + days * DAY, every).upstream_end > START + WARM_UP
    for days in (30, needed - 1):
        with pytest.raises(ConfigError, match=f"is {days}.0 days long.* refresh_days {refresh_days} .* {needed} days"):
            check_length(START, START + days * DAY, every)


@pytest.mark.parametrize(
    ("days", "remedy"),
    [
        (30, r"days\. Ingest a longer log"),
        (40, "upstream_end from 2024-01-30 on"),
        (60, "Set refresh_days to 6 in config.yaml"),
    ],
)
def test_the_remedy_is_one_that_helps(days: int, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        check_length(START, START + days * DAY, timedelta(days=7))


def ingested(tmp_path: Path, days: int) -> tuple[Path, str]:
    """Ingest a log of a click every six hours; return its home and what ingest said."""
    times = [START + timedelta(hours=1 + 6 * number) for number in range(4 * days)]
    users = [number % 5 for number in range(len(times))]
    rows = pl.DataFrame({"event_timestamp": times, "user_id": users, "item_id": users, "event_type": "click"})
    rows.write_parquet(tmp_path / "log.parquet")
    asked = ["--events", str(tmp_path / "log.parquet"), "--home", str(tmp_path / "home")]
    done = CliRunner().invoke(app, ["ingest", "parquet", *asked])
    assert done.exit_code == 0, done.output
    return tmp_path / "home", done.output


def test_ingest_and_training_tell_a_short_log(tmp_path: Path) -> None:
    home, told = ingested(tmp_path, 60)
    assert "Before `headwater run`: The log is 59.8 days long" in told and "Next:" not in told
    with pytest.raises(ConfigError, match="needs a log of 64 days"):
        train_upstream.run_all(Workspace.open(home), ["v1"])
    early = Upstream(version="v1", train_end=START + 20 * DAY)
    splits = Splits(
        **{
            name: START + at * DAY
            for name, at in {"upstream_end": 28, "train_end": 40, "valid_end": 50, "end": 60}.items()
        }
    )
    for config in (Config(upstreams=(early,)), Config(upstreams=(Upstream(version="v1"),), splits=splits)):
        save(config, Workspace.open(home).home)
        with pytest.raises(NotReadyError, match=r"leaves out the first 28 days .* 2024-01-29 01:00"):
            prepare_upstream.prepare(Workspace.open(home), config.upstreams[0], presets.debug(), tmp_path / "rows")


def test_ingest_names_the_run_of_a_log_that_is_long_enough(tmp_path: Path) -> None:
    _, told = ingested(tmp_path, 64)
    assert f"Next: headwater run --home {tmp_path / 'home'}" in told
