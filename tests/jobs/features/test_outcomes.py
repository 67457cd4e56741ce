"""What was shown and chosen before a moment: which rows, what they count, what is known of them besides."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from feature_repo.lake import Home
from jobs import ingest
from jobs.features import outcomes as module
from jobs.features.labels import Opportunities
from jobs.features.log import EventLog
from jobs.features.outcomes import NEGATIVES, ONE_IN, OutcomeReader, OutcomeRows, Read, additive_logits

START = datetime(2024, 1, 1, tzinfo=UTC)
USERS, ITEMS, SHOWN = 30, 20, 3000


def ingested(rows: list[tuple[Any, ...]], folder: Path) -> EventLog:
    """Return the log of events: time, user, item, type, impression and surface."""
    names = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id", "surface"]
    pl.DataFrame(rows, schema=names, orient="row").sort("event_timestamp").write_parquet(folder / "events.parquet")
    config = ingest.IngestConfig(
        home=folder / "home", name="log", events=(str(folder / "events.parquet"),), now=START + timedelta(days=20)
    )
    ingest.run(config)
    return EventLog(Home(Path(config.home)))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """Ten days of impressions on two surfaces, one click in ten or two in ten an hour later, and a view each."""
    draw = np.random.default_rng(0)
    rows: list[tuple[Any, ...]] = []
    for number in range(SHOWN):
        moment = START + timedelta(seconds=int(10 * 86400 * number / SHOWN))
        user, item, feed = int(draw.integers(USERS)), int(draw.integers(ITEMS)), bool(draw.integers(2))
        surface = "feed" if feed else "search"
        rows.append((moment, user, item, "impression", number, surface))
        if draw.random() < (0.1 if feed else 0.2):
            rows.append((moment + timedelta(hours=1), user, item, "click", number, surface))
        rows.append((moment, user, int(draw.integers(5)) if moment.day % 2 else 19, "view", None, None))
    return ingested(rows, tmp_path_factory.mktemp("shown"))


def read(log: EventLog, as_of: datetime, *, days: int = 30, items: int = ITEMS) -> OutcomeRows:
    reader = OutcomeReader(log, as_of, timedelta(days=days), np.arange(USERS), np.arange(items))
    return reader.clicks(("click", "view")).rows


def test_every_click_is_read_and_others_stand_for_those_that_are_not(log: EventLog) -> None:
    rows = read(log, START + timedelta(days=11))
    shown = rows.rated == 1
    clicks = log.record.counts["click"]
    assert rows.happened[shown].sum() == clicks > 300
    left_out = rows.weight[shown & (rows.happened == 0)]
    assert set(np.round(left_out, 3)) == {float(ONE_IN)}
    assert left_out.sum() == pytest.approx(SHOWN - clicks, rel=0.1)


def test_what_an_impression_stands_for_counts(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a log keeps a share of what was shown, its weights say so."""
    before = read(log, START + timedelta(days=11))
    whole = log.window
    monkeypatch.setattr(log, "window", lambda *time: whole(*time).with_columns(weight=pl.lit(3.0)))
    after = read(log, START + timedelta(days=11))
    shown = before.rated == 1
    assert np.allclose(after.weight[shown], 3 * before.weight[shown])


def test_what_was_not_known_at_the_moment_is_not_read(log: EventLog) -> None:
    """As of half past noon a click of one o'clock is none, though its impression is there."""
    as_of = START + timedelta(days=5, minutes=30)
    rows = read(log, as_of)
    clicks = log.window(None, as_of).filter(pl.col("event_type") == "click").collect()
    assert rows.happened[rows.rated == 1].sum() == len(clicks)
    late = log.window(as_of, as_of + timedelta(hours=1)).filter(pl.col("event_type") == "click").collect()
    assert len(late) > 0  # impressions before the moment, clicked after it
    near = read(log, as_of, days=1)
    assert 0 < len(near.user) < len(rows.user) / 3


def test_activities_stand_beside_what_others_turned_to_on_that_day(log: EventLog) -> None:
    rows = read(log, START + timedelta(days=2), days=1)
    views = rows.rated == 0
    seen = log.window(START + timedelta(days=1), START + timedelta(days=2)).filter(pl.col("event_type") == "view")
    count = len(seen.collect())
    assert views.sum() == count * (1 + NEGATIVES) and rows.happened[views].sum() == count
    assert np.allclose(rows.offset[views], -np.log(NEGATIVES))
    # On the second of January everybody turned to one item, so no other can stand beside it.
    assert set(rows.item[views]) == {19}
    both_days = read(log, START + timedelta(days=2))
    first = (both_days.rated == 0) & (both_days.item != 19)
    assert set(both_days.item[first]) == set(range(5))
    assert np.array_equal(read(log, START + timedelta(days=2)).item, both_days.item)


def test_an_outcome_has_an_age(log: EventLog) -> None:
    rows = read(log, START + timedelta(days=10, hours=12))
    shown = rows.rated == 1
    for chosen, copies in ((shown, 1), (~shown, 1 + NEGATIVES)):
        assert 0.5 <= rows.age[chosen].min() < 0.6 and 10.4 < rows.age[chosen].max() <= 10.5
        # As even as the log: a tenth of it per day.
        assert np.histogram(rows.age[chosen], 10, (0.5, 10.5))[0] / chosen.sum() == pytest.approx([0.1] * 10, abs=0.02)
        assert copies * len(np.unique(rows.age[chosen])) == pytest.approx(chosen.sum(), rel=0.02)


def test_items_without_a_vector_are_left_out(log: EventLog) -> None:
    rows = read(log, START + timedelta(days=11), items=7)
    assert rows.item.max() == 6 and len(rows.user) > 0


def test_offsets_tell_the_surface(log: EventLog) -> None:
    rows = read(log, START + timedelta(days=11))
    shown = rows.rated == 1
    chance = 1 / (1 + np.exp(-rows.offset[shown]))
    assert np.average(chance, weights=rows.weight[shown]) == pytest.approx(0.15, abs=0.02)
    assert chance.max() > 0.2 and chance.min() < 0.1


def test_rates_are_told_of_each_user_and_item(log: EventLog) -> None:
    as_of = START + timedelta(days=11)
    users, items = np.arange(USERS + 1), np.arange(ITEMS)
    found = OutcomeReader(log, as_of, timedelta(days=30), users, items).clicks(("click",))
    assert found.user_rates.shape == (USERS + 1,) and found.item_rates.shape == (ITEMS,)
    assert found.user_rates[-1] == 0  # nothing was shown to nobody
    shown = log.coded(log.window(None, as_of)).collect()
    counts = [
        np.bincount(shown.filter(pl.col("event_type") == kind)["user_code"], minlength=USERS)
        for kind in ("click", "impression")
    ]
    assert np.corrcoef(found.user_rates[:-1], counts[0] / counts[1])[0, 1] > 0.8  # one in five of the others is read


CLICKS, BUYERS = 2000, 7


@pytest.fixture(scope="module", params=["impression", "click"])
def bought(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """Ten days of clicks, on impressions or alone: carts of some users within minutes, purchases two days later."""
    draw = np.random.default_rng(3)
    rows: list[tuple[Any, ...]] = []
    for number in range(CLICKS):
        moment = START + timedelta(seconds=int(10 * 86400 * number / CLICKS))
        user, item = int(draw.integers(USERS)), int(draw.integers(ITEMS))
        if request.param == "impression":
            rows.append((moment - timedelta(minutes=1), user, item, "impression", number, "feed"))
            rows.append((moment - timedelta(minutes=1), user, item, "impression", CLICKS + number, "feed"))
        rows.append((moment, user, item, "click", number, "feed"))
        if draw.random() < (0.4 if user < BUYERS else 0.1):
            rows.append((moment + timedelta(minutes=5), user, item, "cart", None, None))
        if draw.random() < 0.05:
            rows.append((moment + timedelta(days=2), user, item, "conversion", number, None))
    return ingested(rows, tmp_path_factory.mktemp("bought"))


def after_clicks(log: EventLog, as_of: datetime, days: float = 30) -> Read:
    reader = OutcomeReader(log, as_of, timedelta(days=days), np.arange(USERS + 1), np.arange(ITEMS))
    return reader.conversions(("cart", "conversion"))


@pytest.mark.parametrize("days", [3.0, 30.0])
def test_conversions_are_those_of_the_labels_as_they_had_arrived(bought: EventLog, days: float) -> None:
    as_of = START + timedelta(days=8, hours=5)
    rows = after_clicks(bought, as_of, days).rows
    labels = Opportunities(bought, known_at=as_of, conversions=("cart", "conversion"))
    wanted = labels.between(as_of - timedelta(days=days), as_of).filter(pl.col("click_timestamp").is_not_null())
    assert len(rows.user) == len(wanted) > 100 and set(rows.rated) == {1.0}
    found = {"user_code": rows.user, "item_code": rows.item, "conversion": rows.happened == 1}
    assert pl.DataFrame(found).sort(*found).equals(wanted.select(*found).sort(*found))
    later = Opportunities(bought, conversions=("cart", "conversion")).between(as_of - timedelta(days=days), as_of)
    assert wanted["conversion"].sum() < later["conversion"].sum()


def test_who_buys_much_has_a_rate_and_who_never_clicked_has_none(bought: EventLog) -> None:
    found = after_clicks(bought, START + timedelta(days=10))
    assert found.user_rates[:BUYERS].min() > found.user_rates[BUYERS:-1].mean() and found.user_rates[-1] == 0
    assert found.user_rates[:BUYERS].mean() - found.user_rates[BUYERS:-1].mean() == pytest.approx(1.5, abs=0.5)


def test_a_young_click_is_no_bad_one(bought: EventLog) -> None:
    """Half of the purchases of the last two days have not arrived: the age of a click takes the blame for it."""
    as_of = START + timedelta(days=8)
    labels = Opportunities(bought, known_at=as_of).between(None, as_of)
    assert labels.filter(pl.col("event_timestamp") > as_of - timedelta(days=1))["conversion"].sum() == 0
    reader = OutcomeReader(bought, as_of, timedelta(days=30), np.arange(USERS), np.arange(ITEMS))
    rows = reader.conversions(("conversion",)).rows
    chance = 1 / (1 + np.exp(-rows.offset))
    assert chance.min() < 0.015 and chance.max() > 0.05
    assert chance.mean() == pytest.approx(rows.happened.mean(), rel=0.2)


def test_one_factor_is_its_rate_and_two_add_up() -> None:
    draw = np.random.default_rng(1)
    left, right = draw.integers(3, size=60_000), draw.integers(4, size=60_000)
    truth = -1.5 + np.array([0.0, 0.8, -0.6])[left] + np.array([0.5, -0.5, 0.0, 1.0])[right]
    happened = draw.random(60_000) < 1 / (1 + np.exp(-truth))
    alone, _ = additive_logits(happened, np.ones(60_000), [left], [3])
    for value in range(3):
        rate = happened[left == value].mean()
        assert alone[left == value][0] == pytest.approx(np.log(rate / (1 - rate)), abs=0.02)
    logits, (_, coefficients) = additive_logits(happened, np.ones(60_000), [left, right], [3, 5])
    assert np.abs(logits - truth).max() < 0.12
    assert np.abs(np.diff(coefficients[:4]) - [-1.0, 0.5, 1.0]).max() < 0.1 and coefficients[4] == 0
    assert len(additive_logits(happened[:0], np.ones(0), [left[:0]], [3])[0]) == 0


def test_what_is_missing_is_a_value_too() -> None:
    numbers = module._numbered(pl.Series(["a", None, "b", None]))
    assert numbers[1] == numbers[3] and len(set(numbers)) == 3 and numbers.dtype == np.int64
