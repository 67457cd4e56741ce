"""Feature snapshots and training sets go through the same gate."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.errors import ConfigError
from validation.specs import FeatureSpec, TrainingSetSpec

ROWS = 60
CLOCK = pa.timestamp("us", "UTC")
COUNTS = {"clicks_7d": pa.int64(), "ctr_28d": pa.float64(), "segment": pa.string()}
Change = Callable[[dict[str, Any]], Any]


def features(kit: Any) -> dict[str, Any]:
    return {
        "user_id": pa.array(np.arange(ROWS)),
        "clicks_7d": pa.array(np.arange(ROWS) % 5, pa.int64()),
        "ctr_28d": pa.array([None, *np.linspace(0, 1, ROWS - 1)], pa.float64()),
        "segment": pa.array([None, *["a"] * (ROWS - 1)]),
        "event_timestamp": pa.array([kit.as_of + kit.lag] * ROWS, CLOCK),
        "created": pa.array([kit.as_of + kit.lag] * ROWS, CLOCK),
    }


def feature_spec(kit: Any, **changes: Any) -> FeatureSpec:
    values: dict[str, Any] = {
        "snapshot_id": "user_stats",
        "entity": "user",
        "id_type": "int64",
        "columns": COUNTS,
        "as_of": kit.as_of,
        "available_at": kit.as_of + kit.lag,
        "min_rows": 50,
        "nullable": frozenset({"ctr_28d", "segment"}),
    }
    return FeatureSpec(**(values | changes))


def replaced(name: str, row: int, value: Any) -> Change:
    def change(columns: dict[str, Any]) -> None:
        values = columns[name].to_pylist()
        values[row] = value
        columns[name] = pa.array(values, columns[name].type)

    return change


def moved(name: str, delta: timedelta) -> Change:
    def change(columns: dict[str, Any]) -> None:
        columns[name] = pa.array([moment + delta for moment in columns[name].to_pylist()], CLOCK)

    return change


FEATURE_FAULTS: dict[str, tuple[Change, str]] = {
    "missing column": (lambda columns: columns.pop("clicks_7d"), "file_columns"),
    "other type": (lambda c: c.update(clicks_7d=c["clicks_7d"].cast(pa.float64())), "file_types"),
    "naive clock": (lambda c: c.update(created=c["created"].cast(pa.timestamp("us"))), "file_time_zone"),
    "null id": (replaced("user_id", 3, None), "id_not_null"),
    "duplicate id": (replaced("user_id", 3, 4), "id_unique"),
    "null count": (replaced("clicks_7d", 3, None), "features_not_null"),
    "negative count": (replaced("clicks_7d", 3, -1), "features_not_negative"),
    "NaN": (replaced("ctr_28d", 3, float("nan")), "features_finite"),
    "infinity": (replaced("ctr_28d", 3, float("inf")), "features_finite"),
    "too few rows": (lambda c: c.update({name: values[:40] for name, values in c.items()}), "row_count"),
    "wrong clock": (moved("event_timestamp", timedelta(hours=1)), "event_timestamp"),
    "written too early": (moved("created", -timedelta(days=1)), "created_after_as_of"),
}


def test_good_features_pass(kit: Any, gate: Any) -> None:
    before = features(kit)
    moved("event_timestamp", -kit.week)(before)
    previous = kit.write(pa.table(before), "previous")
    path = kit.write(pa.table(features(kit)), "features")

    verdict = gate.check_features(path, feature_spec(kit), workdir=kit.folder, previous=previous)

    assert verdict.accepted is True, verdict
    assert {"coverage", "new_share", "row_ratio", "after_previous"} <= {check.name for check in verdict.checks}


@pytest.mark.parametrize("fault", FEATURE_FAULTS)
def test_bad_features_are_refused(fault: str, kit: Any, gate: Any) -> None:
    change, check = FEATURE_FAULTS[fault]
    columns = features(kit)
    change(columns)

    path = kit.write(pa.table(columns), "features")
    verdict = gate.check_features(path, feature_spec(kit), workdir=kit.folder)

    assert verdict.accepted is False
    assert check in {failure.name for failure in verdict.failures()}, verdict


LISTS = {"items": pa.list_(pa.int64()), "strengths": pa.list_(pa.float32())}
LIST_FAULTS: dict[str, tuple[Change, str]] = {
    "null list": (replaced("items", 3, None), "features_not_null"),
    "gap in a list": (replaced("items", 3, [1, None]), "features_without_gaps"),
    "item twice": (replaced("items", 3, [7, 7]), "features_listed_once"),
    "other length": (replaced("strengths", 3, [0.5]), "features_side_by_side"),
    "negative strength": (replaced("strengths", 3, [0.5, -0.5]), "features_not_negative"),
    "NaN": (replaced("strengths", 3, [0.5, float("nan")]), "features_finite"),
    "shorter integers": (lambda c: c.update(items=c["items"].cast(pa.list_(pa.int32()))), "file_types"),
}


def lists(kit: Any) -> dict[str, Any]:
    """Return rows with two items each, the first with none; an item has a negative id, and two users have the same."""
    columns = features(kit)
    items = [[], *([row, -row] for row in range(1, ROWS))]
    columns |= {
        "items": pa.array(items, LISTS["items"]),
        "strengths": pa.array([[0.5] * len(mine) for mine in items], LISTS["strengths"]),
    }
    return {name: columns[name] for name in ("user_id", *LISTS, "event_timestamp", "created")}


def test_lists_that_lie_side_by_side_pass(kit: Any, gate: Any) -> None:
    spec = feature_spec(kit, columns=LISTS, nullable=frozenset(), distinct=frozenset({"items"}))
    path = kit.write(pa.table(lists(kit)), "choices")
    verdict = gate.check_features(path, spec, workdir=kit.folder)
    assert verdict.accepted is True, verdict


@pytest.mark.parametrize("fault", LIST_FAULTS)
def test_bad_lists_are_refused(fault: str, kit: Any, gate: Any) -> None:
    change, check = LIST_FAULTS[fault]
    columns = lists(kit)
    change(columns)
    spec = feature_spec(kit, columns=LISTS, nullable=frozenset(), distinct=frozenset({"items"}))
    path = kit.write(pa.table(columns), "choices")
    verdict = gate.check_features(path, spec, workdir=kit.folder)
    assert verdict.accepted is False
    assert check in {failure.name for failure in verdict.failures()}, verdict


def test_a_feature_that_may_be_negative_is_let_through(kit: Any, gate: Any) -> None:
    columns = features(kit)
    replaced("clicks_7d", 3, -1)(columns)
    spec = feature_spec(kit, may_be_negative=frozenset({"clicks_7d"}))
    path = kit.write(pa.table(columns), "features")
    assert gate.check_features(path, spec, workdir=kit.folder).accepted is True


def test_attributes_that_change_have_moments_of_their_own(kit: Any, gate: Any) -> None:
    columns = features(kit)
    replaced("user_id", 3, 4)(columns)
    replaced("event_timestamp", 3, kit.as_of - kit.week)(columns)
    path = kit.write(pa.table(columns), "attributes")
    assert gate.check_features(path, feature_spec(kit, own_times=True), workdir=kit.folder).accepted is True
    strict = gate.check_features(path, feature_spec(kit), workdir=kit.folder)
    assert {failure.name for failure in strict.failures()} == {"id_unique", "event_timestamp"}

    replaced("event_timestamp", 3, kit.as_of + kit.lag)(columns)
    path = kit.write(pa.table(columns), "twice")
    verdict = gate.check_features(path, feature_spec(kit, own_times=True), workdir=kit.folder)
    assert [failure.name for failure in verdict.failures()] == ["id_unique"]


def test_the_copied_clock_of_features_must_agree(kit: Any, gate: Any) -> None:
    columns = features(kit)
    columns["available_us"] = columns["event_timestamp"].cast(pa.int64())
    spec = feature_spec(kit, columns=COUNTS | {"available_us": pa.int64()})
    path = kit.write(pa.table(columns), "features")
    assert gate.check_features(path, spec, workdir=kit.folder).accepted is True
    replaced("available_us", 3, 7)(columns)
    path = kit.write(pa.table(columns), "features")
    verdict = gate.check_features(path, spec, workdir=kit.folder)
    assert [failure.name for failure in verdict.failures()] == ["available_us"]


def test_a_misspelt_column_in_the_claim_is_refused_when_made(kit: Any) -> None:
    with pytest.raises(ConfigError, match="clicks_8d"):
        feature_spec(kit, nullable=frozenset({"clicks_8d"}))


def training(kit: Any) -> dict[str, Any]:
    times = [kit.as_of + timedelta(minutes=row) for row in range(ROWS)]
    return {
        "event_timestamp": pa.array(times, CLOCK),
        "click": pa.array(np.arange(ROWS) % 4 == 0).cast(pa.int8()),
        "user_norm": pa.array([None if row % 10 == 0 else 1.0 for row in range(ROWS)], pa.float32()),
        "user_time": pa.array([None if row % 10 == 0 else times[row] for row in range(ROWS)], CLOCK),
    }


def training_spec(**changes: Any) -> TrainingSetSpec:
    values: dict[str, Any] = {
        "name": "ctr_v1",
        "labels_in": ROWS,
        "label_rates": {"click": (0.1, 0.5)},
        "hit_floors": {"user_norm": 0.8},
        "feature_times": ("user_time",),
    }
    return TrainingSetSpec(**(values | changes))


TRAINING_FAULTS: dict[str, tuple[Change, dict[str, Any], str]] = {
    "a label lost": (lambda columns: None, {"labels_in": ROWS + 1}, "rows_conserved"),
    "labels multiplied": (lambda columns: None, {"labels_in": ROWS - 1}, "rows_conserved"),
    "no label column": (lambda columns: columns.pop("click"), {}, "file_columns"),
    "label null": (replaced("click", 1, None), {}, "click_valid"),
    "label two": (replaced("click", 1, 2), {}, "click_valid"),
    "label rate too low": (lambda columns: None, {"label_rates": {"click": (0.3, 0.5)}}, "click_rate"),
    "label rate unlike the past": (lambda columns: None, {"past_rates": {"click": (0.02, 10**6)}}, "click_rate"),
    "half as many hits as last time": (
        lambda columns: columns.update(
            user_norm=pa.array([1.0] * (ROWS // 3) + [None] * (ROWS - ROWS // 3), pa.float32())
        ),
        {"hit_floors": {"user_norm": 0.001}, "past_hits": {"user_norm": 0.9}},
        "user_norm_hits",
    ),
    "join hits too few": (lambda columns: None, {"hit_floors": {"user_norm": 0.95}}, "user_norm_hits"),
    "feature from the future": (moved("event_timestamp", -timedelta(microseconds=1)), {}, "no_future_rows"),
    "leaks counted by the caller": (lambda columns: None, {"leaks": 2}, "no_future_rows"),
    "label without a moment": (replaced("event_timestamp", 1, None), {}, "times_present"),
}


def test_a_good_training_set_passes(kit: Any, gate: Any) -> None:
    path = kit.write(pa.table(training(kit)), "training")
    verdict = gate.check_training_set(path, training_spec(), workdir=kit.folder)
    assert verdict.accepted is True, verdict
    assert all(check.passed for check in verdict.checks)


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_a_bad_training_set_is_refused(fault: str, kit: Any, gate: Any) -> None:
    change, changes, check = TRAINING_FAULTS[fault]
    columns = training(kit)
    change(columns)

    path = kit.write(pa.table(columns), "training")
    verdict = gate.check_training_set(path, training_spec(**changes), workdir=kit.folder)

    assert verdict.accepted is False
    assert [failure.name for failure in verdict.failures()] == [check], verdict


def test_unmeasured_feature_times_are_said_aloud(kit: Any, gate: Any) -> None:
    path = kit.write(pa.table(training(kit)), "training")
    verdict = gate.check_training_set(path, training_spec(feature_times=()), workdir=kit.folder)
    assert verdict.accepted is True
    assert [check.name for check in verdict.checks if not check.passed] == ["feature_times_known"]


def test_bounds_from_the_past_name_it_and_leave_room_for_chance(kit: Any, gate: Any) -> None:
    path = kit.write(pa.table(training(kit)), "training")

    def verdict(**changes: Any) -> Any:
        return gate.check_training_set(path, training_spec(**changes), workdir=kit.folder)

    # The rate is 0.25: more than a third of 0.5; five times 0.05, but three times that and chance reach it in 60 rows.
    rate = next(c for c in verdict(past_rates={"click": (0.5, 10**6)}).checks if c.name == "click_rate")
    assert rate.passed and "0.5 in 1,000,000 rows of the past" in rate.bound
    warned = verdict(past_rates={"click": (0.05, 10**6)})
    assert warned.accepted and [c.name for c in warned.checks if not c.passed] == ["click_rate_usual"]
    hits = next(c for c in verdict(past_hits={"user_norm": 1.0}).checks if c.name == "user_norm_hits")
    assert hits.passed and "1 last time" in hits.bound
    with pytest.raises(ConfigError, match="nobody"):
        training_spec(past_hits={"nobody": 1.0})


@pytest.mark.parametrize(
    ("new", "failed"), [(0, set()), (60, {"new_share_usual"}), (95, {"new_share", "new_share_usual"})]
)
def test_new_entities_are_counted_against_the_previous_snapshot(
    new: int, failed: set[str], kit: Any, gate: Any
) -> None:
    ids = np.arange(1000)
    before, now = features(kit), features(kit)
    count = len(now["user_id"])
    before["user_id"], now["user_id"] = ids[:count], ids[count * new // 100 :][:count]
    moved("event_timestamp", -kit.week)(before)
    previous, path = kit.write(pa.table(before), "previous"), kit.write(pa.table(now), "features")

    verdict = gate.check_features(path, feature_spec(kit), workdir=kit.folder, previous=previous)

    assert {check.name for check in verdict.checks if check.name.startswith("new_") and not check.passed} == failed
    assert next(check for check in verdict.checks if check.name == "new_share").observed == pytest.approx(new / 100)
