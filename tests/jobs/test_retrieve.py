"""What retrieval is asked: choices after a snapshot could be read, and nothing older or newer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs import ingest
from jobs.config import Config
from jobs.retrieve import HORIZON, question, surfaces_of
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


def test_choices_of_a_surface_are_those_that_followed_an_impression_on_it(tmp_path: Path) -> None:
    later = AS_OF + timedelta(days=1)
    rows = [
        (AS_OF - timedelta(days=3), 1, 10, "impression", 1, "feed"),
        (AS_OF - timedelta(days=3), 1, 10, "click", 1, None),
        (later, 1, 11, "impression", 2, "search"),
        (later, 1, 11, "click", 2, None),
        (later, 1, 12, "impression", 3, "feed"),
        (later, 1, 12, "click", 3, None),
        (later, 2, 10, "impression", 4, "feed"),
        (later, 2, 10, "click", 4, None),
    ]
    columns = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id", "surface"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(tmp_path / "events.parquet")
    home, events = tmp_path / "home", (str(tmp_path / "events.parquet"),)
    ingest.run(ingest.IngestConfig(home=home, name="tiny", events=events, now=AS_OF + timedelta(days=99)))
    ws = Workspace.open(home)
    assert surfaces_of(ws) == ["feed", "search"]
    users, items = pl.Series([1, 2]), pl.Series([10, 11, 12])
    feed = question(ws, users, items, AS_OF, surface="feed")
    search = question(ws, users, items, AS_OF, surface="search")
    assert feed is not None and search is not None
    assert feed.asked.tolist() == [0, 1] and [found.tolist() for found in feed.relevant] == [[2], [0]]
    assert search.asked.tolist() == [0] and [found.tolist() for found in search.relevant] == [[1]]
    assert feed.pairs[1].tolist() == [0] and search.pairs[1].tolist() == []
