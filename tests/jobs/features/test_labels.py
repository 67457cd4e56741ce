"""Which events count as the outcome of an opportunity, and from when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from feature_repo.contracts.errors import ConfigError
from feature_repo.lake import Home
from jobs import ingest
from jobs.features.labels import Opportunities
from jobs.features.log import EventLog

START = datetime(2024, 1, 1, tzinfo=UTC)
BOTH = ("add_to_cart", "conversion")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """Impression 1 ends with a cart, 2 with a cart and a purchase a day later, 3 with a purchase, 4 with a click."""
    followed = {1: {"add_to_cart": 2}, 2: {"add_to_cart": 3, "conversion": 27}, 3: {"conversion": 4}, 4: {}}
    rows = []
    for number, events in followed.items():
        for kind, hours in {"impression": 0, "click": 1, **events}.items():
            rows.append((START + timedelta(hours=hours), number, 7, kind, number))
    folder = tmp_path_factory.mktemp("log")
    names = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "events.parquet")
    home = folder / "home"
    ingest.run(
        ingest.IngestConfig(
            home=home, name="carts", events=(str(folder / "events.parquet"),), now=START + timedelta(days=9)
        )
    )
    return EventLog(Home(Path(home)))


def outcomes(rows: pl.DataFrame) -> dict[int, float | None]:
    """Return the hours from the start to the conversion, by impression; None where there is none."""
    hours = (pl.col("conversion_timestamp") - START).dt.total_minutes() / 60
    found = dict(rows.select("impression_id", hours).iter_rows())
    assert rows["conversion"].to_list() == [hour is not None for hour in found.values()]
    return found


def test_conversions_are_purchases_unless_told_otherwise(log: EventLog) -> None:
    assert outcomes(Opportunities(log).between(None, None)) == {1: None, 2: 27.0, 3: 4.0, 4: None}


def test_the_first_of_the_named_events_counts(log: EventLog) -> None:
    assert outcomes(Opportunities(log, conversions=BOTH).between(None, None)) == {1: 2.0, 2: 3.0, 3: 4.0, 4: None}


def test_an_event_that_comes_later_is_not_known(log: EventLog) -> None:
    rows = Opportunities(log, conversions=BOTH, known_at=START + timedelta(hours=3)).between(None, None)
    assert outcomes(rows) == {1: 2.0, 2: None, 3: None, 4: None}


def test_an_event_type_that_the_log_does_not_have_is_named(log: EventLog) -> None:
    with pytest.raises(ConfigError, match=r"names basket, which the log does not have.*add_to_cart"):
        Opportunities(log, conversions=("basket", "conversion"))


def test_activity_belongs_to_the_latest_click_of_its_user_and_item_within_a_week(tmp_path: Path) -> None:
    def at(hours: float, user: int, item: int, kind: str, number: int | None) -> tuple[object, ...]:
        return START + timedelta(hours=hours), user, item, kind, number

    rows = [
        *(at(hour, 1, 7, "impression", number) for number, hour in ((1, 0), (2, 10))),
        *(at(hour, 1, 7, "click", number) for number, hour in ((1, 1), (2, 11))),
        at(9, 1, 7, "add_to_cart", None),  # after the first click
        at(20, 1, 7, "add_to_cart", None),  # after the second
        at(21, 1, 8, "add_to_cart", None),  # of an item that was never clicked
        at(22, 2, 7, "add_to_cart", None),  # of a user who never clicked
        at(0, 3, 7, "impression", 3),
        at(1, 3, 7, "click", 3),
        at(1 + 24 * 7.5, 3, 7, "add_to_cart", None),  # too late
    ]
    names = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "events.parquet")
    ingest.run(
        ingest.IngestConfig(
            home=tmp_path / "home", name="ties", events=(str(tmp_path / "events.parquet"),), now=START + timedelta(30)
        )
    )
    found = Opportunities(EventLog(Home(tmp_path / "home")), conversions=("add_to_cart",)).between(None, None)
    assert outcomes(found) == {1: 9.0, 2: 20.0, 3: None}
