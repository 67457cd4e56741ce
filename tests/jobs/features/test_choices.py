"""Own choices against a slow loop that reads the rules and nothing of the code."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.lake import Home
from jobs import ingest
from jobs.features.choices import own_choices
from jobs.features.log import EventLog

START = datetime(2024, 1, 1, tzinfo=UTC)
AS_OF = START + timedelta(days=30)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """Forty days of events of 12 users and 20 items; an action at the very moment, and one long ago."""
    rng = np.random.default_rng(8)
    rows = [
        (
            START + timedelta(seconds=int(rng.integers(0, 40 * 86_400))),
            int(rng.integers(12)),
            int(rng.integers(20)),
            kind,
        )
        for kind in ("buy", "save", "view")
        for _ in range(250)
    ]
    rows += [(AS_OF, 1, 19, "buy"), (AS_OF - timedelta(days=20), 20, 3, "buy"), (AS_OF, 21, 3, "buy")]
    columns = ["event_timestamp", "user_id", "item_id", "event_type"]
    folder = tmp_path_factory.mktemp("log")
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / "events.parquet")
    config = ingest.IngestConfig(
        home=folder / "home", name="random", events=(str(folder / "events.parquet"),), now=START + timedelta(days=99)
    )
    ingest.run(config)
    return EventLog(Home(Path(folder / "home")))


@pytest.mark.parametrize(("half_life", "kept"), [(2.0, 50), (9.0, 3)])
def test_choices_are_those_before_the_moment_as_they_faded(log: EventLog, half_life: float, kept: int) -> None:
    counted: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for row in log.scan().collect().to_dicts():
        days = (AS_OF - row["event_timestamp"]) / timedelta(days=1)
        faded = 0.5 ** (days / half_life)
        if row["event_type"] in ("buy", "save") and days > 0 and faded >= 0.01:
            counted[row["user_id"]][row["item_id"]] += faded

    users = pl.Series([11, 20, 21, *range(11)])
    found = own_choices(log, users, AS_OF, ("buy", "save"), timedelta(days=half_life), kept)

    assert found.schema["items"] == pl.List(pl.Int64) and found.schema["strengths"] == pl.List(pl.Float32)
    assert found["user_id"].to_list() == users.to_list()
    for user, items, strengths in found.iter_rows():
        expected = sorted(counted[user].items(), key=lambda pair: (-pair[1], pair[0]))[:kept]
        assert items == [item for item, _ in expected]
        assert strengths == pytest.approx([strength for _, strength in expected], abs=1e-5)
    assert found.filter(pl.col("user_id") == 21)["items"].to_list() == [[]]


def test_nobody_has_chosen_before_the_log_begins(log: EventLog) -> None:
    found = own_choices(log, pl.Series([1, 2]), START, ("buy",), timedelta(days=9), 5)
    assert found["items"].to_list() == [[], []] and found["strengths"].to_list() == [[], []]
