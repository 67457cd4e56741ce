"""Good snapshots pass: alone, with new entities, with natural drift, rounded, small, and over many weeks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.contracts.types import Check, Verdict
from validation.evidence import Canary, Evidence, RawSample


def names(verdict: Verdict, severity: str) -> set[str]:
    return {check.name for check in verdict.checks if check.severity == severity and not check.passed}


def test_the_first_snapshot_passes_without_a_warning(kit: Any, gate: Any) -> None:
    verdict = gate.check(kit.write(kit.table(kit.vectors()), "first"), kit.spec(), workdir=kit.folder)

    assert verdict.accepted is True
    assert verdict.error is None
    assert names(verdict, "warning") == set()


def test_natural_drift_and_new_entities_pass(kit: Any, gate: Any) -> None:
    path = kit.write(kit.table(kit.vectors(rows=kit.rows + 60)), "next")

    verdict = gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.previous())

    assert verdict.accepted is True, verdict.failures()
    assert {"coverage", "identity", "space", "cosine_mean"} <= {check.name for check in verdict.checks}


def test_every_check_has_a_value_and_a_bound(kit: Any, gate: Any) -> None:
    path = kit.write(kit.table(kit.vectors()), "next")

    verdict = gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.previous())

    assert all(check.observed is not None and check.bound for check in verdict.checks)
    assert all(type(check.passed) is bool for check in verdict.checks)
    assert len({check.name for check in verdict.checks}) == len(verdict.checks)


def test_every_check_is_documented(kit: Any, gate: Any) -> None:
    path = kit.write(kit.table(kit.vectors()), "next")
    everyone = pa.array(range(kit.rows))
    spec = kit.spec(known_ids=everyone, active_ids=everyone, smoothing=0.0)
    vectors, norms = kit.vectors().astype(np.float32), np.linalg.norm(kit.vectors(), axis=1).astype(np.float32)
    evidence = Evidence(RawSample(everyone, vectors, norms), (Canary("name", 100, 0.8, 0.8, 0.01),))
    verdict = gate.check(
        path,
        spec,
        workdir=kit.folder,
        previous=kit.previous(),
        anchor=kit.folder / "previous.parquet",
        evidence=lambda: evidence,
    )
    assert verdict.accepted and "canary_name" in {check.name for check in verdict.checks}, verdict
    smoothed = gate.check(path, kit.spec(smoothing=0.8), workdir=kit.folder, previous=kit.previous())
    verdict = replace(verdict, checks=(*verdict.checks, *smoothed.checks))
    text = (Path(__file__).parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
    for check in verdict.checks:
        assert (
            f"`{check.name.replace('canary_name', 'canary_<consumer>')}`" in text
            or f"`{check.name.removesuffix('_usual')}` / `_usual`" in text
            or (f"`{check.name.removesuffix('_usual')}` / `{check.name}`" in text)
        ), check.name


def test_a_verdict_survives_json_bit_for_bit(kit: Any, gate: Any) -> None:
    path = kit.write(kit.table(kit.vectors()), "next")
    verdicts = [
        gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.previous()),
        gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.previous()),
    ]

    texts = [json.dumps(verdict.to_dict(), allow_nan=False) for verdict in verdicts]

    assert texts[0] == texts[1]
    assert Verdict.from_dict(json.loads(texts[0])) == verdicts[0]
    assert json.dumps(Verdict.from_dict(json.loads(texts[0])).to_dict()) == texts[0]


def test_string_ids_of_items_pass(kit: Any, gate: Any) -> None:
    ids = [f"product-{row:05d}" for row in range(kit.rows)]
    path = kit.write(kit.table(kit.vectors(), ids=ids, entity="item"), "items")
    before = kit.write(kit.table(kit.vectors(), ids=ids, entity="item", at=kit.as_of - kit.week), "before")

    spec = kit.spec(entity="item", id_type="string", known_ids=pa.array(ids))
    verdict = gate.check(path, spec, workdir=kit.folder, previous=before)

    assert verdict.accepted is True, verdict.failures()


def test_many_equal_vectors_only_warn(kit: Any, gate: Any) -> None:
    vectors = kit.vectors()
    vectors[: kit.rows // 3] = vectors[0]

    verdict = gate.check(kit.write(kit.table(vectors), "cold"), kit.spec(), workdir=kit.folder)

    assert verdict.accepted is True, verdict.failures()
    assert "duplicate_vectors" in names(verdict, "warning")


def test_an_unchanged_snapshot_only_warns(kit: Any, gate: Any) -> None:
    before = kit.write(kit.table(kit.vectors(), at=kit.as_of - kit.week), "before")

    verdict = gate.check(kit.write(kit.table(kit.vectors()), "same"), kit.spec(), workdir=kit.folder, previous=before)

    assert verdict.accepted is True, verdict.failures()
    assert names(verdict, "warning") == {"unchanged_usual"}


def test_vectors_of_attributes_alone_may_stay_and_be_equal(kit: Any, gate: Any) -> None:
    vectors = kit.vectors()
    vectors[: kit.rows // 3] = vectors[0]
    before = kit.write(kit.table(vectors, at=kit.as_of - kit.week), "before")
    spec = replace(kit.spec(), of_attributes=True)

    verdict = gate.check(kit.write(kit.table(vectors), "same"), spec, workdir=kit.folder, previous=before)

    assert verdict.accepted is True, verdict.failures()
    assert names(verdict, "warning") == set()


def rewritten(table: pa.Table, vectors: np.ndarray) -> pa.Table:
    offsets = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32))
    lists = pa.ListArray.from_arrays(offsets, pa.array(vectors.astype(np.float32).ravel()))
    return table.set_column(table.schema.get_field_index("embedding"), "embedding", lists)


def test_rounding_to_half_precision_and_to_bytes_is_accepted(kit: Any, gate: Any) -> None:
    table = kit.table(kit.vectors())
    vectors = np.stack(table.column("embedding").to_numpy())
    scale = np.abs(vectors).max() / 127
    for name, rounded in (("half", vectors.astype(np.float16)), ("bytes", np.round(vectors / scale) * scale)):
        path = kit.write(rewritten(table, rounded), name)
        verdict = gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.previous())
        assert verdict.accepted is True, (name, verdict.failures())


def test_a_handful_of_entities_is_not_judged_by_statistics(kit: Any, gate: Any) -> None:
    before = kit.write(kit.table(kit.vectors(rows=5), at=kit.as_of - kit.week), "before")
    path = kit.write(kit.table(kit.vectors(rows=6)), "tiny")

    verdict = gate.check(path, kit.spec(min_rows=1), workdir=kit.folder, previous=before)

    assert verdict.accepted is True, verdict.failures()
    assert "identity" not in {check.name for check in verdict.checks}


def weekly(kit: Any, gate: Any, weeks: int, smoothing: float | None) -> tuple[list[Verdict], np.ndarray, Any]:
    """Run clean refreshes: every week entities join and all of them move; return what lies there at the end."""
    rng = np.random.default_rng(17)
    true = kit.vectors(rows=kit.rows + 12 * weeks)
    stored = true / np.linalg.norm(true, axis=1, keepdims=True)
    history: list[Verdict] = []
    previous, known = None, 0
    for week in range(weeks):
        true = true + 0.3 * rng.normal(size=true.shape)
        fresh = true / np.linalg.norm(true, axis=1, keepdims=True)
        stored[:known] = smoothed(stored[:known], fresh[:known], smoothing or 0)
        known = kit.rows + 12 * week
        at = kit.as_of + week * kit.week
        path = kit.write(kit.table(stored[:known], at=at), f"week-{week}")
        spec = kit.spec(f"week-{week}", at=at, smoothing=smoothing)
        verdict = gate.check(path, spec, workdir=kit.folder, previous=previous, history=history)
        assert verdict.accepted is True, (week, verdict.error, verdict.failures())
        history.append(verdict)
        previous = path
    return history, stored[:known], previous


def smoothed(old: np.ndarray, new: np.ndarray, keep: float) -> np.ndarray:
    mixed = keep * old + (1 - keep) * new
    return mixed / np.linalg.norm(mixed, axis=1, keepdims=True)


@pytest.mark.parametrize("smoothing", [None, 0.8])
def test_weekly_refreshes_raise_no_false_alarm(smoothing: float | None, kit: Any, gate: Any) -> None:
    weekly(kit, gate, weeks=15, smoothing=smoothing)


def some_swapped(vectors: np.ndarray, share: int) -> np.ndarray:
    """Return the vectors with one in `share` rows holding another row's vector."""
    order = np.arange(len(vectors))
    part = np.random.default_rng(23).choice(len(vectors), len(vectors) // share, replace=False)
    order[part] = np.roll(part, 1)
    return vectors[order]


def test_history_tightens_the_bounds_and_says_so(kit: Any, gate: Any) -> None:
    history, stored, previous = weekly(kit, gate, weeks=7, smoothing=None)
    at = kit.as_of + 7 * kit.week
    path = kit.write(kit.table(some_swapped(stored, 20), at=at), "five-percent")
    spec = kit.spec("five-percent", at=at)

    without = gate.check(path, spec, workdir=kit.folder, previous=previous)
    verdict = gate.check(path, spec, workdir=kit.folder, previous=previous, history=history)

    assert without.accepted is True
    failed = {check.name: check for check in verdict.failures()}
    assert {"cosine_p01", "turned_share"} <= set(failed)
    assert "past" in failed["cosine_p01"].bound and "declared floor -0.5" in failed["cosine_p01"].bound


def test_one_percent_of_rows_changed_after_smoothing_is_refused(kit: Any, gate: Any) -> None:
    _, stored, previous = weekly(kit, gate, weeks=2, smoothing=0.8)
    at = kit.as_of + 2 * kit.week
    fresh = stored + 0.05 * np.random.default_rng(3).normal(size=stored.shape)
    good = smoothed(stored, fresh / np.linalg.norm(fresh, axis=1, keepdims=True), 0.8)
    spec = kit.spec("next", at=at, smoothing=0.8)

    clean = gate.check(kit.write(kit.table(good, at=at), "good"), spec, workdir=kit.folder, previous=previous)
    path = kit.write(kit.table(some_swapped(good, 100), at=at), "bad")
    verdict = gate.check(path, spec, workdir=kit.folder, previous=previous)

    assert clean.accepted is True
    assert [failure.name for failure in verdict.failures()] == ["smoothing"]


def test_ids_shuffled_before_smoothing_are_refused(kit: Any, gate: Any) -> None:
    _, stored, previous = weekly(kit, gate, weeks=2, smoothing=0.8)
    at = kit.as_of + 2 * kit.week
    wrong = smoothed(stored, stored[np.random.default_rng(5).permutation(len(stored))], 0.8)
    path = kit.write(kit.table(wrong, at=at), "hidden")

    blind = gate.check(path, kit.spec("hidden", at=at), workdir=kit.folder, previous=previous)
    verdict = gate.check(path, kit.spec("hidden", at=at, smoothing=0.8), workdir=kit.folder, previous=previous)

    assert blind.accepted is True
    assert "identity" in {failure.name for failure in verdict.failures()}


def test_how_many_leave_is_unknown_until_the_first_have_left(kit: Any, gate: Any) -> None:
    history, stored, previous = weekly(kit, gate, weeks=7, smoothing=None)
    at = kit.as_of + 7 * kit.week
    path = kit.write(kit.table(stored[: len(stored) * 7 // 10], at=at), "first-leavers")
    spec = kit.spec("first-leavers", at=at)
    assert gate.check(path, spec, workdir=kit.folder, previous=previous, history=history).accepted is True

    def with_leavers(verdict: Verdict) -> Verdict:
        checks = [replace(check, observed=0.98) if check.name == "coverage" else check for check in verdict.checks]
        return replace(verdict, checks=tuple(checks))

    known = [with_leavers(verdict) for verdict in history]
    verdict = gate.check(path, spec, workdir=kit.folder, previous=previous, history=known)
    assert [failure.name for failure in verdict.failures()] == ["coverage"]


def test_refused_verdicts_are_no_history(kit: Any, gate: Any) -> None:
    check = Check("cosine_mean", "critical", True, 0.99, "at least 0.2")
    refused = [Verdict(False, (check,)) for _ in range(20)]
    path = kit.write(kit.table(kit.vectors()), "next")

    verdict = gate.check(path, kit.spec(), workdir=kit.folder, previous=kit.previous(), history=refused)

    bound = next(item.bound for item in verdict.checks if item.name == "cosine_mean")
    assert bound == "at least 0.2"
