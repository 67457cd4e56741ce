"""The streaming statistics equal a slow and obvious computation, whatever the batches and the row limit."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.contracts.errors import LakeError
from validation import tables
from validation.comparison import compare_snapshots
from validation.drift import compare_vectors, unsmooth
from validation.measures import RunningMoments, hash_rows, measure_vectors, spread_of
from validation.row_table import Part
from validation.statistics import Scan, ScanPlan, scan_groups, snapshot_statistics, together

SINGLE = st.floats(width=32)
LISTS = st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), SINGLE), max_size=4)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(LISTS, st.integers(0, 3))
def test_measures_equal_a_slow_computation(lists: list[Any], skip: int) -> None:
    skip = min(skip, len(lists) - 1)
    measured = measure_vectors(pa.array(lists, pa.list_(pa.float32())).slice(skip), dim=3)

    for row, values in enumerate(lists[skip:]):
        assert bool(measured.is_null_N[row]) is (values is None)
        assert measured.length_N[row] == (0 if values is None else len(values))
        if values is None or len(values) != 3:
            assert math.isnan(measured.norm_N[row])
            continue
        numbers = [math.nan if value is None else float(np.float32(value)) for value in values]
        assert measured.nonfinite_N[row] == sum(not math.isfinite(number) for number in numbers)
        norm = math.sqrt(sum(number * number for number in numbers))
        if math.isfinite(norm) and norm < 1e18:
            assert measured.norm_N[row] == pytest.approx(norm, rel=1e-5, abs=1e-18)
            assert measured.max_abs_N[row] == np.float32(max(map(abs, numbers)))


def test_moments_do_not_depend_on_the_batches(kit: Any) -> None:
    vectors = kit.vectors().astype(np.float32)
    moments = RunningMoments(kit.dim)
    for part in np.array_split(vectors, [3, 4, 200]):
        moments.add(part)

    np.testing.assert_allclose(moments.mean_D(), vectors.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.covariance_DD(), np.cov(vectors.T, bias=True), rtol=1e-3, atol=1e-4)


def test_effective_rank_counts_the_directions_in_use() -> None:
    rng = np.random.default_rng(0)
    for directions in (1, 3, 8):
        moments = RunningMoments(8)
        moments.add((rng.normal(size=(4000, directions)) @ np.eye(directions, 8)).astype(np.float32) + 1)
        found = spread_of(moments)
        assert found.effective_rank == pytest.approx(directions, rel=0.02)
        assert found.dead_dimensions == 8 - directions


def test_equal_vectors_have_no_rank_at_all() -> None:
    moments = RunningMoments(5)
    moments.add(np.full((1000, 5), 1 / math.sqrt(5), np.float32))
    found = spread_of(moments)
    assert found.effective_rank == 0
    assert found.dead_dimensions == 5
    assert found.mean_vector_norm == pytest.approx(1)


def test_nothing_measured_is_not_a_number() -> None:
    assert math.isnan(spread_of(RunningMoments(4)).effective_rank)


def test_equal_rows_have_equal_hashes() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    hashes = hash_rows(np.concatenate([rows, rows[:20]]))
    assert len(np.unique(hashes)) == 500


def test_duplicates_of_integers_and_strings() -> None:
    for ids in (pa.array([4, 7, 4, None, 9, None]), pa.array(["a", "b", "a", None, "c", None])):
        mask, distinct = tables.duplicates(ids)
        assert mask.tolist() == [True, False, True, False, False, False]
        assert distinct == 3


def measure(kit: Any, path: Path, **options: Any) -> Any:
    return snapshot_statistics(path, kit.spec(), workdir=kit.folder / "work", **options)


def test_the_narrow_tables_hold_what_they_say(kit: Any) -> None:
    found = measure(kit, kit.write(kit.table(kit.vectors()), "good"), previous=kit.previous())

    rows = pq.read_table(found.rows_path)
    summary = pq.read_table(found.summary_path)
    assert rows.column_names == ["id", "length", "norm", "raw_norm", "nonfinite", "max_abs", "is_null"]
    assert rows.num_rows == kit.rows
    assert summary.num_rows == 1
    assert summary.column("rows")[0].as_py() == kit.rows
    assert summary.column("min_event_timestamp")[0].as_py() == "2017-08-07T06:00:00+00:00"
    assert not any(pa.types.is_list(field.type) for field in [*rows.schema, *summary.schema])
    assert summary.column("coverage")[0].as_py() == 1
    assert summary.column("mean_raw_norm")[0].as_py() == pytest.approx(
        np.linalg.norm(kit.vectors(), axis=1).mean(), rel=1e-5
    )


def test_statistics_do_not_depend_on_batch_size_or_row_groups(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kit.write(kit.table(kit.vectors()), "good")
    whole = measure(kit, path, previous=kit.previous()).summary
    monkeypatch.setattr(tables, "BATCH_ROWS", 37)
    parts = measure(kit, path, previous=kit.previous()).summary

    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert parts[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)), name


def offending(kit: Any) -> pa.Table:
    """Return a snapshot with every kind of offender."""
    vectors = kit.vectors()
    table = kit.table(vectors)
    lists = table.column("embedding").to_pylist()
    lists[101], lists[202], lists[203] = None, [0.0] * kit.dim, lists[203][:-1]
    lists[301][4], lists[302] = math.nan, [2 * value for value in lists[302]]
    ids = table.column("user_id").to_pylist()
    ids[51], ids[52], ids[57] = None, ids[53], 10**6
    norms = table.column("norm").to_pylist()
    norms[333] = -1.0
    for name, values in (("embedding", lists), ("user_id", ids), ("norm", norms)):
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, field.type))
    return table


def test_a_large_snapshot_keeps_every_kind_of_offender(kit: Any, gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("validation.row_table.SAMPLE_ROWS", 20)
    found = measure(kit, kit.write(offending(kit), "large"), row_limit=100)

    kept = pq.read_table(found.rows_path).column("id").to_pylist()
    assert len(kept) < 40
    assert {101, 202, 203, 301, 302, 333, None} <= set(kept)
    assert kept.count(53) == 2


def test_a_sample_compares_each_entity_with_itself_whatever_the_order_of_rows(kit: Any) -> None:
    order = np.random.default_rng(8).permutation(kit.rows)
    vectors = kit.vectors()
    path = kit.write(kit.table(vectors), "now")
    before = kit.write(kit.table(vectors[order], ids=order), "before")

    found = compare_snapshots(path, tables.read_column(path, "user_id"), before, kit.spec(), sample=100)

    assert found["comparable"] == 100
    assert found["unchanged_share"] == 1
    assert found["identity"] == 1


def test_shuffles_rotations_and_drift_have_their_own_signature(kit: Any) -> None:
    rng = np.random.default_rng(4)
    before = kit.vectors().astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(kit.dim, kit.dim)))[0].astype(np.float32)
    drift = compare_vectors((before + 0.4 * rng.normal(size=before.shape)).astype(np.float32), before)
    shuffled = compare_vectors(before[rng.permutation(len(before))], before)
    rotated = compare_vectors(before @ rotation, before)

    assert drift["identity"] > 0.99 and drift["cosine_mean"] > 0.9 and abs(drift["space_gain"]) < 0.01
    assert drift["neighbour_overlap"] > 0.5 and drift["rank_ratio"] == pytest.approx(1, abs=0.1)
    assert shuffled["identity"] == pytest.approx(0.5, abs=0.05) and shuffled["space_gain"] < 0.2
    assert rotated["space_gain"] > 1 and rotated["space_distance"] == pytest.approx(rotated["space_gain"], rel=1e-3)


def test_a_rotation_is_not_found_in_noise(kit: Any) -> None:
    rng = np.random.default_rng(5)
    few = kit.vectors(rows=60).astype(np.float32)
    found = compare_vectors((few + 2 * rng.normal(size=few.shape)).astype(np.float32), few)
    assert found["space_gain"] < 0.1


def test_a_narrow_cone_does_not_hide_a_shuffle(kit: Any) -> None:
    rng = np.random.default_rng(6)
    cone = (0.1 * kit.vectors() + 5).astype(np.float32)
    found = compare_vectors(cone[rng.permutation(len(cone))], cone)
    assert found["cosine_mean"] > 0.9
    assert found["identity"] < 0.6


@pytest.mark.parametrize("keep", [0.55, 0.8, 0.95])
def test_smoothing_can_be_taken_off_again(keep: float, kit: Any) -> None:
    old, fresh = (kit.vectors(seed=seed) for seed in (1, 2))
    old, fresh = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (old, 0.5 * old + fresh))
    mixed = keep * old + (1 - keep) * fresh
    stored = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)

    found, wrong = unsmooth(stored, old.astype(np.float32), keep)

    assert wrong == 0
    # Further away another vector fits as well, and the gate gives the benefit of the doubt.
    near = np.einsum("sd,sd->s", old, fresh) > -(1 - keep) / keep + 0.05
    assert near.sum() > 100
    np.testing.assert_allclose(found[near], fresh[near], atol=1e-3)


def test_vectors_that_no_smoothing_can_make_are_counted(kit: Any) -> None:
    old = kit.vectors().astype(np.float32)
    old /= np.linalg.norm(old, axis=1, keepdims=True)
    found, wrong = unsmooth(-old, old, 0.8)
    assert wrong == len(old)
    np.testing.assert_allclose(np.einsum("sd,sd->s", found, old) < 0, True)


def elsewhere(plan: ScanPlan) -> list[Part]:
    """Measure row groups one by one as other processes would, and bring them back."""
    footer = pq.read_metadata(plan.path)
    sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    assert len(sizes) > 3
    parts = []
    for number in range(len(sizes)):
        sent: ScanPlan = pickle.loads(pickle.dumps(plan))
        found = together(sent, scan_groups(sent, [number], sum(sizes[:number])))
        parts.append(pickle.loads(pickle.dumps(found)))
    return parts


def merged_elsewhere(plan: ScanPlan) -> list[Part]:
    """Merge the parts of another machine there, two and two until one is left, with equal vectors counted apart."""
    parts = elsewhere(plan)
    hashes = np.concatenate([part.totals.take_hashes() for part in parts])
    while len(parts) > 1:
        pairs = (parts[at : at + 2] for at in range(0, len(parts), 2))
        parts = [pickle.loads(pickle.dumps(together(plan, pair))) for pair in pairs]
    parts[0].totals.repeated_vectors = len(hashes) - len(np.unique(hashes))
    return parts


@pytest.mark.parametrize("scan", [elsewhere, merged_elsewhere])
@pytest.mark.parametrize("row_limit", [100, 1_000_000])
def test_parts_measured_elsewhere_give_the_same_tables(
    kit: Any, row_limit: int, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("validation.row_table.SAMPLE_ROWS", 20)
    monkeypatch.setattr("validation.row_table.OFFENDERS_PER_KIND", 3)
    monkeypatch.setattr("validation.statistics.OFFENDERS_PER_KIND", 3)
    table = offending(kit)
    norms = pa.array([-1.0] * 150 + table.column("norm").to_pylist()[150:], pa.float32())
    table = table.set_column(table.schema.get_field_index("norm"), "norm", norms)
    path = kit.folder / "parts.parquet"
    pq.write_table(table, path, row_group_size=90)
    one = measure(kit, path, row_limit=row_limit)
    rows = pq.read_table(one.rows_path)
    other = measure(kit, path, row_limit=row_limit, scan=scan)

    # Texts, because NaN is not NaN.
    assert str(pq.read_table(other.rows_path).to_pylist()) == str(rows.to_pylist())
    assert (rows.num_rows == kit.rows) is (row_limit > kit.rows)
    assert one.summary.keys() == other.summary.keys()
    for name, value in one.summary.items():
        expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-5, abs=1e-9, nan_ok=True)
        assert other.summary[name] == expected, name


def test_a_part_that_is_missing_is_no_snapshot(kit: Any) -> None:
    path = kit.folder / "parts.parquet"
    pq.write_table(kit.table(kit.vectors()), path, row_group_size=90)
    with pytest.raises(LakeError, match="gave 360 rows"):
        measure(kit, path, scan=lambda plan: elsewhere(plan)[:-1])
