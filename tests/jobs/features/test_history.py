"""Histories, counts and labels against slow loops that read the rules and nothing of the code."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.lake import Home
from jobs import ingest
from jobs.features.history import INTEREST_HALF_LIFE, Activity, known_items, stats
from jobs.features.labels import as_known_at, late_outcomes, opportunities
from jobs.features.log import EventLog

START = datetime(2024, 1, 1, tzinfo=UTC)
COVERAGE = timedelta(days=30)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """Forty days of random events of 12 users and 20 items, with late clicks and conversions."""
    rng = np.random.default_rng(5)
    rows = []
    for number in range(900):
        time = START + timedelta(seconds=int(rng.integers(0, 40 * 86_400)))
        user, item = int(rng.integers(12)), int(rng.integers(20))
        weight = float(rng.choice([1.0, 4.0]))
        rows.append((time, user, item, "impression", number, weight))
        if rng.random() < 0.4:
            click = time + timedelta(minutes=int(rng.integers(0, 3000)))
            rows.append((click, user, item, "click", number, 1.0))
            if rng.random() < 0.5:
                rows.append((click + timedelta(hours=int(rng.integers(0, 90))), user, item, "conversion", number, 1.0))
        if rng.random() < 0.5:
            rows.append((time, user, int(rng.integers(20)), "view", None, 1.0))
    columns = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id", "weight"]
    folder = tmp_path_factory.mktemp("log")
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / "events.parquet")
    pl.DataFrame({"item_id": range(20), "kind": [f"k{i % 4}" for i in range(20)]}).write_parquet(
        folder / "items.parquet"
    )
    ingest.run(
        ingest.IngestConfig(
            home=folder / "home",
            name="random",
            events=(str(folder / "events.parquet"),),
            items=(str(folder / "items.parquet"),),
            now=START + timedelta(days=400),
        )
    )
    return EventLog(Home(Path(folder / "home")))


def rows_of(log: EventLog) -> list[dict]:
    return log.coded(log.scan()).collect().to_dicts()


@pytest.mark.parametrize("day", [3, 17, 40])
def test_stats_count_what_a_loop_counts(log: EventLog, day: int) -> None:
    as_of = START + timedelta(days=day)
    expected: dict[int, dict[str, float]] = {}
    names = {"impression": "impressions", "click": "clicks", "conversion": "conversions"}
    for row in rows_of(log):
        age = as_of - row["event_timestamp"]
        if not timedelta(0) < age <= COVERAGE:
            continue
        counts = expected.setdefault(row["user_id"], {})
        for days in (7, 28):
            if age <= timedelta(days=days):
                name = f"{names.get(row['event_type'], 'activity')}_{days}d"
                counts[name] = counts.get(name, 0) + row["weight"]
    frame = stats(log, "user", as_of, COVERAGE)
    assert frame["user_id"].to_list() == sorted(expected)
    for row in frame.to_dicts():
        for name in (column for column in frame.columns if column.endswith("d") and "_id" not in column):
            assert row[name] == pytest.approx(expected[row["user_id"]].get(name, 0.0)), name


@pytest.mark.parametrize("actions", [None, ("view",)])
def test_histories_hold_the_last_actions_strictly_before(log: EventLog, actions: tuple[str, ...] | None) -> None:
    as_of, length = START + timedelta(days=20, hours=5), 6
    activity = Activity(log, actions)
    items = np.array([[1 + code % 4] for code in range(20)], np.int32)
    history = activity.before(as_of, length=length, interests=3, top_items=4, item_values=items, coverage=COVERAGE)
    found: dict[int, list[dict]] = {}
    for row in rows_of(log):
        if row["event_type"] == "impression" or (actions and row["event_type"] not in actions):
            continue
        if as_of - COVERAGE <= row["event_timestamp"] < as_of:
            found.setdefault(row["user_code"], []).append(row)
    assert history.user_code.tolist() == sorted(found)
    for position, user in enumerate(history.user_code.tolist()):
        times = sorted((row["event_timestamp"] for row in found[user]), reverse=True)[:length]
        ages = [(as_of - time) / timedelta(hours=1) for time in times]
        assert history.age_hours[position, : len(ages)] == pytest.approx(ages, rel=1e-5)
        assert (history.item_code[position, len(ages) :] == -1).all()
        newest_first = history.item_code[position, : len(ages)].tolist()
        assert set(newest_first) <= {row["item_code"] for row in found[user]}
        weight: dict[int, float] = {}
        for row in found[user]:
            decayed = 0.5 ** ((as_of - row["event_timestamp"]) / INTEREST_HALF_LIFE)
            value = 1 + row["item_code"] % 4
            weight[value] = weight.get(value, 0.0) + decayed
        best = sorted(weight.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
        assert history.interest_value[position, 0, : len(best)].tolist() == [value for value, _ in best]
        shares = [share / sum(weight.values()) for _, share in best]
        assert history.interest_weight[position, 0, : len(best)] == pytest.approx(shares, rel=1e-4)
        strength: dict[int, float] = {}
        for row in found[user]:
            decayed = 0.5 ** ((as_of - row["event_timestamp"]) / INTEREST_HALF_LIFE)
            strength[row["item_code"]] = strength.get(row["item_code"], 0.0) + decayed
        top = sorted(strength.items(), key=lambda pair: (-pair[1], pair[0]))[:4]
        padding = [-1] * (4 - len(top))
        assert history.top_item[position].tolist() == [code for code, _ in top] + padding
        logs = [math.log1p(value) for _, value in top]
        weights = [value / sum(logs) for value in logs] + [0.0] * len(padding)
        assert history.top_weight[position] == pytest.approx(weights, rel=1e-4)


def test_items_with_too_few_events_before_the_moment_are_cold(log: EventLog) -> None:
    as_of = START + timedelta(days=3)
    counts: dict[int, int] = {}
    for row in rows_of(log):
        if row["event_timestamp"] < as_of:
            counts[row["item_id"]] = counts.get(row["item_id"], 0) + 1
    expected = {item for item, count in counts.items() if count >= 7}
    assert 0 < len(expected) < len(counts)
    assert set(known_items(log, as_of, COVERAGE, 7)["item_id"].to_list()) == expected


def test_outcomes_are_known_only_once_they_arrived(log: EventLog) -> None:
    moment = START + timedelta(days=15)
    events = rows_of(log)
    known = {row["impression_id"]: row for row in as_known_at(opportunities(log), moment).to_dicts()}
    late = 0
    for row in events:
        if row["event_type"] != "impression" or row["event_timestamp"] >= moment:
            assert row["event_type"] != "impression" or row["impression_id"] not in known
            continue
        outcomes = [o for o in events if o["impression_id"] == row["impression_id"] and o["event_type"] != "impression"]
        for kind in ("click", "conversion"):
            times = [o["event_timestamp"] for o in outcomes if o["event_type"] == kind]
            assert known[row["impression_id"]][kind] == any(time < moment for time in times)
        late += any(o["event_timestamp"] >= moment for o in outcomes)
    assert late > 0
    assert late_outcomes(opportunities(log), moment) == late


def test_two_reads_of_one_moment_are_equal_to_the_bit(log: EventLog) -> None:
    as_of = START + timedelta(days=25)
    items = np.array([[1 + code % 4] for code in range(20)], np.int32)
    first, second = (
        Activity(log, None).before(as_of, length=8, interests=3, top_items=4, item_values=items, coverage=COVERAGE)
        for _ in range(2)
    )
    for name in first.__dict__:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
