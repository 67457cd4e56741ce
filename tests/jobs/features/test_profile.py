"""Counts and rates of every event type: what an upstream may read beside the counts of two windows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from feature_repo.lake import Home
from jobs import ingest
from jobs.features.history import profile, profile_columns
from jobs.features.log import EventLog
from jobs.features.row_summary import RowSummary
from jobs.features.tables import Tables, fit_encoder

START = datetime(2024, 1, 1, tzinfo=UTC)
AS_OF, COVERAGE = START + timedelta(days=20), timedelta(days=15)


def ingested(folder: Path, rows: list[tuple[object, ...]]) -> EventLog:
    names = ["event_timestamp", "user_id", "item_id", "event_type"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "events.parquet")
    events, home = (str(folder / "events.parquet"),), folder / "home"
    ingest.run(ingest.IngestConfig(home=home, name="profiles", events=events, now=START + timedelta(days=60)))
    return EventLog(Home(home))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """User 1 takes two of four clicked things into the cart, user 2 none of four; what is old or new must not count."""
    rows: list[tuple[object, ...]] = []
    for user, item in ((1, 1), (2, 2)):
        for minute in range(8):
            time = START + timedelta(days=10, minutes=minute)
            rows.append((time, user, item, "impression"))
            if minute % 2 == 0:
                rows.append((time, user, item, "click"))
    rows += [(START + timedelta(days=10, minutes=minute), 1, 1, "add_to_cart") for minute in (4, 6)]
    rows += [(START + timedelta(days=day), 2, 1, "add_to_cart") for day in (1, 20)]
    return ingested(tmp_path_factory.mktemp("log"), rows)


def test_rates_are_relative_to_everybody_and_shrunk_towards_it(log: EventLog) -> None:
    found = profile(log, "user", AS_OF, COVERAGE)
    by_user = {row["user_code"]: row for row in found.to_dicts()}
    assert list(found.columns)[1:] == profile_columns(log)
    # Two carts of eight clicks are the mean, 1/4; twenty clicks count as much as the mean over all.
    carts = [row["profile:add_to_cart count"] for row in by_user.values()]
    assert carts == [2.0, 0.0]
    rates = [row["profile:add_to_cart rate"] for row in by_user.values()]
    np.testing.assert_allclose(rates, [(2 + 5) / 24 / 0.25, 5 / 24 / 0.25])
    np.testing.assert_allclose([row["profile:click rate"] for row in by_user.values()], [1.0, 1.0])


def test_without_impressions_clicks_have_no_rate_and_without_clicks_nothing_has(tmp_path: Path) -> None:
    for name, kinds, expected in (
        ("clicks", ["click", "conversion"], ["click count", "conversion count", "conversion rate"]),
        ("views", ["view", "save"], ["save count", "view count"]),
    ):
        (tmp_path / name).mkdir()
        rows = [(START + timedelta(hours=at), 1, 1, kind) for at, kind in enumerate(kinds)]
        found = profile_columns(ingested(tmp_path / name, rows))
        assert found == [f"profile:{column}" for column in expected]


def test_tables_read_profiles_where_the_encoder_learned_them(log: EventLog) -> None:
    rows = RowSummary(log, [])
    rows.of_user += 1
    rows.of_item += 1
    encoders = [
        fit_encoder(log, rows, [AS_OF], None, COVERAGE, sequence_length=2, interests=2, top_items=2, profiles=profiles)
        for profiles in (False, True)
    ]
    assert [encoder.reads_profiles for encoder in encoders] == [False, True]
    plain, told = (Tables(log, encoder, None, COVERAGE).items(AS_OF, np.array([0, 1])).nums for encoder in encoders)
    assert told.shape[1] == plain.shape[1] + len(profile_columns(log))
    np.testing.assert_array_equal(told[:, : plain.shape[1]], plain)
    rate = encoders[1].columns["item_nums"].index("profile:add_to_cart rate")
    assert told[0, rate] > 0 > told[1, rate]
