"""What retrieval is asked: choices after a snapshot could be read, and nothing older or newer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs import ingest
from jobs.config import Config
from jobs.retrieve import HORIZON, question
from jobs.workspace import Workspace

AS_OF = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    lag = HOUR
    rows = [
        (AS_OF - timedelta(days=89), 1, 10, "view"),
        (AS_OF - timedelta(days=2), 1, 10, "view"),
        (AS_OF - timedelta(days=2), 2, 11, "view"),
        (AS_OF - timedelta(days=95), 2, 12, "view"),  # older than what is covered
        (AS_OF + lag / 2, 1, 11, "view"),  # before the snapshot could be read
        (AS_OF + lag, 1, 12, "view"),
        (AS_OF + timedelta(days=3), 1, 12, "view"),  # again: counts once
        (AS_OF + timedelta(days=3), 1, 10, "save"),  # another action
        (AS_OF + timedelta(days=4), 3, 10, "view"),  # a user without a vector
        (AS_OF + timedelta(days=4), 1, 13, "view"),  # an item without a vector
        (AS_OF + lag + HORIZON, 2, 10, "view"),  # too late
    ]
    columns = ["event_timestamp", "user_id", "item_id", "event_type"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(tmp_path / "events.parquet")
    home = tmp_path / "home"
    events = (str(tmp_path / "events.parquet"),)
    ingest.run(ingest.IngestConfig(home=home, name="tiny", events=events, now=AS_OF + timedelta(days=99)))
    opened = Workspace.open(home)
    return Workspace(opened.home, Config(retrieval_actions=("view",)))


def test_only_choices_within_the_horizon_are_asked_for(ws: Workspace) -> None:
    asked = question(ws, pl.Series([1, 2]), pl.Series([10, 11, 12]), AS_OF)
    assert asked is not None
    assert asked.asked.tolist() == [0]
    assert [found.tolist() for found in asked.relevant] == [[2]]
    pairs = sorted(zip(*(side.tolist() for side in asked.pairs), strict=True))
    assert pairs == [(0, 0), (0, 0), (1, 1)]
    assert asked.popular[0, :3].tolist() == [0, 1, 2]


def test_a_ranking_is_scored_against_popularity(ws: Workspace) -> None:
    asked = question(ws, pl.Series([1, 2]), pl.Series([10, 11, 12]), AS_OF)
    assert asked is not None
    users, items = np.eye(3, dtype=np.float32)[[2, 0]], np.eye(3, dtype=np.float32)
    ranked = asked.rank(users, items)
    assert ranked[0, 0] == 2
    assert asked.score(ranked).recall[10].value == 1.0


def test_nobody_asks_after_the_log_has_ended(ws: Workspace) -> None:
    assert question(ws, pl.Series([1, 2]), pl.Series([10, 11, 12]), AS_OF + timedelta(days=60)) is None
