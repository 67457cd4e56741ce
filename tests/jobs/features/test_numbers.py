"""Items' numbers against what is usual: by kind, as known then, and the same at every moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.lake import Home
from jobs import ingest
from jobs.features.log import EventLog
from jobs.features.numbers import WIDEST, ItemNumbers

START = datetime(2024, 1, 1, tzinfo=UTC)
ITEMS, LATE = 400, 40


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """Two kinds of items, of which one costs ten times as much; the last forty are known from the tenth day on."""
    folder = tmp_path_factory.mktemp("priced")
    return ingested(folder, catalogue())


def catalogue() -> pl.DataFrame:
    draw = np.random.default_rng(0)
    kind = np.arange(ITEMS) % 2
    price = np.exp(kind * np.log(10.0) + 3 + 0.5 * draw.standard_normal(ITEMS))
    since = [START + timedelta(days=10 if item >= ITEMS - LATE else -1) for item in range(ITEMS)]
    table = pl.DataFrame({"item_id": range(ITEMS), "event_timestamp": since, "price": price, "weight": price**0.3})
    return table.with_columns(
        kind=pl.Series(["cheap" if number == 0 else "dear" for number in kind]),
        price=pl.when(pl.col("item_id") == 7).then(None).otherwise("price"),
    )


def ingested(folder: Path, items: pl.DataFrame) -> EventLog:
    times = [START + timedelta(hours=6 * step) for step in range(ITEMS)]
    events = pl.DataFrame(
        {"event_timestamp": times, "user_id": 1, "item_id": range(ITEMS), "event_type": "view"},
        schema_overrides={"user_id": pl.Int64},
    )
    events.write_parquet(folder / "events.parquet")
    items.write_parquet(folder / "items.parquet")
    config = ingest.IngestConfig(
        home=folder / "home",
        name="log",
        events=(str(folder / "events.parquet"),),
        items=str(folder / "items.parquet"),
        now=START + timedelta(days=200),
    )
    ingest.run(config)
    return EventLog(Home(Path(config.home)))


def told(log: EventLog, days: int = 20) -> np.ndarray:
    moment = START + timedelta(days=days)
    return ItemNumbers.fit(log, ("price",), moment).of(log, moment)[:, 0]


def test_what_is_dear_is_so_beside_its_kind(log: EventLog) -> None:
    found, items = told(log), catalogue()
    kind, price = items["kind"].to_numpy() == "dear", items["price"].fill_null(1.0).to_numpy()
    known = np.arange(ITEMS) != 7
    assert abs(found[kind].mean()) < 0.1 and abs(found[~kind & known].mean()) < 0.1
    assert found[known].std() == pytest.approx(1.0, abs=0.05)
    for group in (kind & known, ~kind & known):
        assert np.corrcoef(found[group], np.log(price[group]))[0, 1] > 0.98
    assert found[7] == 0.0 and np.abs(found).max() <= WIDEST


def test_numbers_stand_beside_one_another(log: EventLog) -> None:
    moment = START + timedelta(days=20)
    both = ItemNumbers.fit(log, ("price", "weight"), moment).of(log, moment)
    assert both.shape == (ITEMS, 2) and both.dtype == np.float32
    assert np.array_equal(both[:, 0], told(log))
    assert ItemNumbers.fit(log, (), moment).of(log, moment).shape == (ITEMS, 0)


def test_what_was_not_known_then_says_nothing(log: EventLog) -> None:
    moment = START + timedelta(days=5)
    early = ItemNumbers.fit(log, ("price",), moment)
    before, after = (early.of(log, START + timedelta(days=days))[:, 0] for days in (5, 20))
    assert not before[-LATE:].any() and (after[-LATE:] != 0).all()
    # What is usual is that of the moment it was learned at, whatever comes later.
    assert np.array_equal(before[:-LATE], after[:-LATE])


def test_a_kind_that_is_new_and_a_number_that_never_differs(tmp_path: Path) -> None:
    items = catalogue().with_columns(
        kind=pl.when(pl.col("item_id") >= ITEMS - LATE).then(pl.lit("new")).otherwise("kind"),
        weight=pl.lit(3.5),
        price=pl.when(pl.col("item_id") == 8).then(1e12).otherwise("price"),
    )
    log = ingested(tmp_path, items)
    fitted = ItemNumbers.fit(log, ("price", "weight"), START + timedelta(days=5))
    found = fitted.of(log, START + timedelta(days=20))
    assert np.isfinite(found).all() and np.abs(found[:, 1]).max() < 1e-6
    assert found[8, 0] == WIDEST
    # Of a new kind nothing is usual but what is so of all.
    late, price = found[-LATE:, 0], np.log(items["price"].to_numpy()[-LATE:].astype(float))
    assert np.corrcoef(late, price)[0, 1] > 0.9
