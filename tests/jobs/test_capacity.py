"""The capacity model: figures held against sums made by hand, its page and command against what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import capacity_tables
from feature_repo.contracts.errors import ConfigError
from jobs import capacity
from jobs.cli import app

WORK = capacity.Workload(users=1_000_000, items=10_000, dim=256, refreshes=90)


def units(tmp_path: Path, **values: float) -> capacity.UnitCosts:
    """Return unit costs that are next to nothing but the given ones."""
    known = json.loads(capacity.UNIT_COSTS.read_text())
    entries = {
        name: {key: 1e-18 for key in ("fixed", "per_float", "value") if key in entry} for name, entry in known.items()
    }
    entries["label_dim"]["value"] = 64
    for name, value in values.items():
        entries[name]["fixed" if "fixed" in entries[name] else "value"] = value
    file = tmp_path / "units.json"
    file.write_text(json.dumps(entries))
    return capacity.UnitCosts(file)


def test_storage_is_rows_times_refreshes_times_bytes(tmp_path: Path) -> None:
    plan = capacity.run(replace(WORK, versions=2), units=units(tmp_path, parquet_bytes=1000, twin_bytes=500))
    assert plan.value("snapshots, Parquet") == pytest.approx(2 * 1_010_000 * 90 * 1000 / 1e9)
    assert plan.value("lake") == pytest.approx(2 * 1_010_000 * 90 * 1500 / 1e9)


def test_a_cost_of_a_row_grows_with_its_floats() -> None:
    known = capacity.UnitCosts()
    entry = known.entries["redis_bytes"]
    assert known.row("redis_bytes", 128) == entry["fixed"] + 128 * entry["per_float"]
    # A vector cannot take less than its floats.
    for name in ("parquet_bytes", "twin_bytes", "redis_bytes"):
        assert 4 * 256 * 0.85 < known.row(name, 256) < 4 * 256 * 2.5


def test_own_choices_cost_by_the_item_and_nothing_where_there_are_none(tmp_path: Path) -> None:
    costs = {"choices_lake_bytes": 500.0, "choices_redis_bytes": 100.0, "choices_core_seconds": 3.6e-3}
    known = units(tmp_path, **costs)
    plan, none = (capacity.run(replace(WORK, own_choices=listed), units=known) for listed in (50, 0))
    assert plan.value("own choices, with twins") == pytest.approx(1_000_000 * 90 * 500 / 1e9)
    assert plan.value("lake") - none.value("lake") == pytest.approx(plan.value("own choices, with twins"))
    assert plan.value("online store") - none.value("online store") == pytest.approx(0.1)
    assert plan.value("one refresh") == pytest.approx(1.0) and none.value("refresh: own choices") == 0
    longer, shorter = (capacity.run(replace(WORK, own_choices=listed)) for listed in (200, 100))
    assert longer.value("online store: own choices") > 1.5 * shorter.value("online store: own choices")
    at = {plan: {limit.what: limit.users for limit in plan.limits} for plan in (longer, shorter)}
    disk = next(what for what in at[longer] if "disk" in what)
    assert at[longer][disk] < at[shorter][disk]


def test_money_is_of_a_month(tmp_path: Path) -> None:
    known = units(tmp_path, gate_core_seconds=3.6e-3, redis_bytes=1000.0)
    free = capacity.Prices(storage=0, memory=2.0, core=0.5, network=0)
    plan = capacity.run(replace(WORK, days=30, refreshes=30), free, known)
    assert plan.value("one refresh") == pytest.approx(1.01)
    assert plan.value("cores of refreshes") == pytest.approx(1.01 * 0.5 * capacity.MONTH_DAYS)
    assert plan.value("memory online") == pytest.approx(1.01 * 2.0)
    assert plan.value("all") == pytest.approx(1.01 * 0.5 * capacity.MONTH_DAYS + 2.02)


def test_limits_are_where_the_figures_meet_the_machine() -> None:
    plan = capacity.run(WORK)
    assert [limit.users for limit in plan.limits] == sorted(limit.users for limit in plan.limits)
    by_words = {limit.what.split(":")[0]: limit.users for limit in plan.limits}
    at = by_words["one Redis server holds all rows online"]
    full = capacity.run(replace(WORK, users=at, items=at // 100))
    assert full.value("online store") == pytest.approx(WORK.machine_memory, rel=1e-3)
    at = by_words["the lake lies on one disk"]
    assert capacity.run(replace(WORK, users=at, items=at // 100)).value("lake") == pytest.approx(8000, rel=1e-3)
    at = by_words["a refresh on one core takes the whole interval"]
    assert capacity.run(replace(WORK, users=at, items=at // 100)).value("one refresh") == pytest.approx(24, rel=1e-3)
    assert by_words["a snapshot is one Arrow list array"] == (2**31 - 1) // 256


@pytest.mark.parametrize(
    ("text", "number"), [("250000", 250_000), ("10M", 10_000_000), ("1.5k", 1500), ("1B", 10**9), ("1_000", 1000)]
)
def test_numbers_as_people_write_them(text: str, number: int) -> None:
    assert capacity.read_count(text, "users") == number


@pytest.mark.parametrize("text", ["", "ten", "0", "-5", "1.5", "nan", "inf", "M", "10G"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--users is '.*write a whole number"):
        capacity.read_count(text, "users")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 0}, "--dim is 0"),
        ({"refreshes": -1}, "--refreshes is -1"),
        ({"days": 0}, "--days is 0"),
        ({"dim": 10**6}, "--dim is 1000000"),
        ({"events": -1.0}, "cannot be negative"),
        ({"machine_memory": 0.0}, "above 0"),
    ],
)
def test_workloads_that_are_none(change: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(WORK, **change)


def test_the_command_prints_tables_and_json() -> None:
    wanted = ["plan", "--users", "10M", "--items", "100k", "--dim", "256", "--refreshes", "90"]
    printed = CliRunner().invoke(app, wanted)
    assert printed.exit_code == 0
    assert "snapshots, Parquet" in printed.output and "PASSED" in printed.output
    told = json.loads(CliRunner().invoke(app, [*wanted, "--json"]).output)
    plan = capacity.run(capacity.Workload(10_000_000, 100_000, 256, 90))
    assert told["lines"][0]["float32"] == plan.lines[0].float32
    assert told["limits"][0]["users"] == plan.limits[0].users


def test_command_and_page_are_what_the_results_say() -> None:
    costs = json.dumps(capacity_tables.unit_costs(capacity_tables.RESULTS), indent=1) + "\n"
    assert capacity.UNIT_COSTS.read_text() == costs
    page = capacity_tables.PAGE.read_text()
    assert capacity_tables.filled(page) == page
    assert page.count("<!-- table ") == 7
