"""Training batches: every row once, features of an allowed moment only, chances counted as they are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.lake import Home
from jobs import ingest
from jobs.features.batches import TrainingRows, grid_positions, moments
from jobs.features.labels import as_known_at, opportunities
from jobs.features.log import EventLog
from jobs.features.tables import Tables, fit_encoder

START = datetime(2024, 1, 1, tzinfo=UTC)
LAG, COVERAGE = timedelta(hours=1), timedelta(days=40)
CUTOFF = START + timedelta(days=50)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingRows, pl.DataFrame, list[datetime]]:
    rng = np.random.default_rng(3)
    rows = []
    for number in range(3000):
        time = START + timedelta(minutes=int(rng.integers(0, 60 * 1440)))
        user, item = int(rng.integers(30)), int(300 * rng.random() ** 4)
        rows.append((time, user, item, "impression", number))
        if rng.random() < 0.4:
            rows.append((time, user, item, "click", number))
        rows.append((time, user, int(300 * rng.random() ** 4), "view", None))
    folder = tmp_path_factory.mktemp("log")
    names = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "events.parquet")
    pl.DataFrame({"item_id": range(300), "kind": [f"k{i % 5}" for i in range(300)]}).write_csv(folder / "items.csv")
    ingest.run(
        ingest.IngestConfig(
            home=folder / "home",
            name="random",
            events=(str(folder / "events.parquet"),),
            items=(str(folder / "items.csv"),),
            now=START + timedelta(days=400),
        )
    )
    log = EventLog(Home(Path(folder / "home")))
    known = as_known_at(opportunities(log), CUTOFF)
    grid = moments(START + timedelta(days=14), CUTOFF, timedelta(days=7))
    encoder = fit_encoder(log, known, grid, ("view",), COVERAGE, sequence_length=5, interests=3, top_items=4)
    tables = Tables(log, encoder, ("view",), COVERAGE)
    made = TrainingRows(tables, known, grid, lag=LAG, until=CUTOFF, positives="click", activity_pairs=True)
    return made, known, grid


def test_grid_positions_take_the_last_moment_that_was_available() -> None:
    grid = moments(START, START + timedelta(days=3), timedelta(days=1))
    times = [START + LAG - timedelta(microseconds=1), START + LAG, START + timedelta(days=1), START + timedelta(days=9)]
    assert grid_positions(pl.Series(times), grid, LAG).tolist() == [-1, 0, 0, 2]


def test_an_epoch_holds_every_row_once_and_is_repeatable(training: tuple) -> None:
    made, known, grid = training
    batches = list(made.epoch(0, batch_rows=128, seed=1))
    assert len(batches) == made.steps(128)
    assert sum(len(batch.click) for batch in batches) == made.rows
    usable = known.filter(pl.col("event_timestamp") >= grid[0] + LAG).height
    assert made.rows + made.without_history == known.height and made.rows <= usable
    pairs = {}
    for batch in batches:
        for user, item in zip(batch.user_key[batch.user_index], batch.item_key[batch.item_index], strict=True):
            pairs[int(user), int(item)] = pairs.get((int(user), int(item)), 0) + 1
        assert len(set(batch.user_key.tolist())) == len(batch.user_key)
    clicks = sum(float(batch.click.sum()) for batch in batches)
    again = list(made.epoch(0, batch_rows=128, seed=1))
    assert all(a.user_index.equal(b.user_index) and a.click.equal(b.click) for a, b in zip(batches, again, strict=True))
    other = list(made.epoch(1, batch_rows=128, seed=1))
    assert clicks == sum(float(batch.click.sum()) for batch in other)
    assert any(len(a.click) != len(b.click) or not a.click.equal(b.click) for a, b in zip(batches, other, strict=True))


def test_activity_pairs_lie_between_their_moment_and_the_next(training: tuple) -> None:
    made, _, grid = training
    counted = sum(len(batch.pos_user_index) for batch in made.epoch(0, batch_rows=128, seed=1))
    activity = made._tables.activity
    expected = 0
    for index, moment in enumerate(grid):
        end = grid[index + 1] if index + 1 < len(grid) else CUTOFF
        low, high = (int(t.timestamp() * 1e6) for t in (moment + LAG, min(end, CUTOFF)))
        seen = set(activity.user[activity.time_us < int(moment.timestamp() * 1e6)].tolist())
        inside = (activity.time_us >= low) & (activity.time_us < high)
        expected += sum(user in seen for user in activity.user[inside].tolist())
    assert counted == expected > 0


def test_log_q_is_the_chance_to_be_in_a_batch(training: tuple) -> None:
    made, _, _ = training
    batches = list(made.epoch(0, batch_rows=128, seed=1))
    said = {int(k): float(q) for b in batches for k, q in zip(b.item_key, b.item_log_q, strict=True)}
    seen: dict[int, int] = {}
    for batch in batches:
        for key in batch.item_key.tolist():
            seen[key] = seen.get(key, 0) + 1
    chance = np.array([seen[key] / len(batches) for key in said])
    assert np.corrcoef(chance, np.exp(list(said.values())))[0, 1] > 0.8
    assert max(said.values()) <= 0.0
