"""An event log as a whole: nothing lost, nothing from the future, and like its own past."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from validation import gate as gates
from validation.gate import Gate
from validation.specs import EventsSpec

NOW = datetime(2024, 6, 1, tzinfo=UTC)
ROWS = 12_000


def log() -> pl.DataFrame:
    """Return a hundred days, in which every third event is a click or a conversion."""
    kinds = ["impression", "impression", "click", "impression", "impression", "conversion"]
    return pl.DataFrame(
        {
            "event_timestamp": [NOW - timedelta(days=100) * (1 - row / ROWS) for row in range(ROWS)],
            "user_id": [row % 50 for row in range(ROWS)],
            "item_id": [row % 70 for row in range(ROWS)],
            "event_type": [kinds[row % 6] for row in range(ROWS)],
            "weight": pl.Series([1.0] * ROWS, dtype=pl.Float32),
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )


def spec(**changes: Any) -> EventsSpec:
    values: dict[str, Any] = {"name": "toy", "rows_in": ROWS, "rows_refused": 0, "tolerated": 0, "now": NOW}
    return EventsSpec(**(values | {"known_ids": {"user": pl.Series(range(50))}} | changes))


def first(**values: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Change the values of the first row."""

    def change(events: pl.DataFrame) -> pl.DataFrame:
        at = pl.int_range(pl.len()) == 0
        return events.with_columns(
            pl.when(at).then(pl.lit(value, events.schema[name])).otherwise(pl.col(name)).alias(name)
            for name, value in values.items()
        )

    return change


FAULTS: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], dict[str, Any], str]] = {
    "a row lost": (lambda events: events.slice(1), {}, "rows_conserved"),
    "rows twice": (lambda events: pl.concat([events, events]), {}, "rows_conserved"),
    "more refused than tolerated": (
        lambda events: events.slice(2),
        {"rows_refused": 2, "tolerated": 1},
        "rows_refused",
    ),
    "no moment": (first(event_timestamp=None), {}, "times_present"),
    "no user": (first(user_id=None), {}, "ids_present"),
    "from the future": (first(event_timestamp=NOW + timedelta(days=2)), {}, "no_future_events"),
    "weight zero": (first(weight=0.0), {}, "weights"),
    "weight missing": (first(weight=None), {}, "weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_log_is_refused(fault: str, gate: Gate, tmp_path: Path) -> None:
    change, changes, check = FAULTS[fault]
    verdict = gate.check_events(change(log()), spec(**changes), workdir=tmp_path)
    assert verdict.accepted is False
    assert [failure.name for failure in verdict.failures()] == [check], verdict


def test_a_good_log_passes_with_nothing_to_say(gate: Gate, tmp_path: Path) -> None:
    verdict = gate.check_events(log(), spec(), workdir=tmp_path)
    assert verdict.accepted and all(check.passed for check in verdict.checks), verdict
    assert {"click_rate_usual", "user_hits_usual"} <= {check.name for check in verdict.checks}


def test_a_log_that_ends_without_clicks_or_knows_few_users_warns(gate: Gate, tmp_path: Path) -> None:
    late = pl.col("event_timestamp") > NOW - timedelta(days=28)
    fewer = (pl.col("event_type") != "click") | ~late | (pl.int_range(pl.len()) % 5 == 0)
    events = log().filter(fewer)
    known = {"user": pl.Series(range(20))}
    verdict = gate.check_events(events, spec(rows_in=len(events), known_ids=known), workdir=tmp_path)
    failed = {check.name for check in verdict.checks if not check.passed}
    assert verdict.accepted and failed == {"click_rate_usual", "conversion_rate_usual", "user_hits_usual"}


def test_an_empty_log_and_a_crash_refuse(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = gate.check_events(log().slice(0, 0), spec(rows_in=0), workdir=tmp_path)
    assert empty.accepted is False and empty.error

    def crash(*_: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(gates, "event_statistics", crash)
    verdict = gate.check_events(log(), spec(), workdir=tmp_path)
    assert verdict.accepted is False and "disk on fire" in (verdict.error or "")
