"""Statistics and rules of a training set: every label once, and nothing in it that the label could not know."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from validation.rules import Rule, must, warn
from validation.specs import Bounds, TrainingSetSpec
from validation.tables import Summary, iter_batches, write_summary


def training_set_schema(spec: TrainingSetSpec) -> dict[str, pa.DataType | None]:
    """Return the columns that must be there; their types are the training set's own business."""
    names = [spec.time_column, *spec.label_rates, *spec.hit_floors, *spec.feature_times]
    return dict.fromkeys(names)


def training_set_statistics(path: Path, spec: TrainingSetSpec, workdir: Path) -> tuple[Path, Summary]:
    """Write one row of statistics of a training set and return it.

    Per label ``<label>.invalid`` (null, or neither 0 nor 1) and ``<label>.rate``; per feature ``<column>.hits``
    (share of rows); over all ``null_times`` and ``future_rows`` (rows with a feature newer than their label).
    """
    workdir.mkdir(parents=True, exist_ok=True)
    rows, null_times, future = 0, 0, 0
    invalid = dict.fromkeys(spec.label_rates, 0)
    positive = dict.fromkeys(spec.label_rates, 0)
    hits = dict.fromkeys(spec.hit_floors, 0)
    for batch in iter_batches(path, list(training_set_schema(spec))):
        rows += len(batch)
        moment = batch.column(spec.time_column)
        null_times += moment.null_count
        for name in spec.label_rates:
            label = batch.column(name).cast(pa.float64())
            ones, zeros = _count(pc.equal(label, 1.0)), _count(pc.equal(label, 0.0))
            positive[name] += ones
            invalid[name] += len(batch) - ones - zeros
        for name in spec.hit_floors:
            hits[name] += len(batch) - batch.column(name).null_count
        future += _future_rows(batch, spec)
    summary: Summary = {
        "training_set": spec.name,
        "rows": rows,
        "null_times": null_times,
        "future_rows": future + (spec.leaks or 0),
        "feature_times_known": int(bool(spec.feature_times) or spec.leaks is not None),
        **{f"{name}.invalid": count for name, count in invalid.items()},
        **{f"{name}.rate": count / rows for name, count in positive.items()},
        **{f"{name}.hits": count / rows for name, count in hits.items()},
    }
    return write_summary(workdir / f"{spec.name}.summary.parquet", summary), summary


def training_set_rules(spec: TrainingSetSpec, bounds: Bounds) -> list[Rule]:
    """Return every rule for a training set."""
    rules = [
        must("rows_conserved", "rows", (spec.labels_in, spec.labels_in), "the join lost or multiplied label rows"),
        must("times_present", "null_times", (0, 0), "labels without a moment"),
        must("no_future_rows", "future_rows", (0, 0), "a feature is newer than its label"),
        warn("feature_times_known", "feature_times_known", (1, 1),
             "nobody measured when the features became readable, so leaks cannot be excluded"),
    ]  # fmt: skip
    for name, declared in spec.label_rates.items():
        rules.append(must(f"{name}_valid", f"{name}.invalid", (0, 0), "labels other than 0 and 1"))
        rules += _rate_rules(name, declared, spec, bounds)
    for name, floor in spec.hit_floors.items():
        rules += _hit_rules(name, floor, spec, bounds)
    return rules


def _rate_rules(name: str, declared: tuple[float, float], spec: TrainingSetSpec, bounds: Bounds) -> list[Rule]:
    why = "the label rate is unlike before: labels were lost, doubled or are not complete yet"
    if name not in spec.past_rates:
        return [must(f"{name}_rate", f"{name}.rate", declared, why)]
    past, rows = spec.past_rates[name]
    # Four standard errors of the difference of two samples: a small set may lie anywhere within them.
    noise = 4 * math.sqrt(past * (1 - past) * (1 / spec.labels_in + 1 / max(rows, 1)))

    def around(factor: float) -> tuple[float, float]:
        return max(declared[0], past / factor - noise), min(declared[1], past * factor + noise)

    note = f"{past:.4g} in {rows:,} rows of the past, declared {declared[0]:g} to {declared[1]:g}"
    rate = f"{name}.rate"
    return [
        must(f"{name}_rate", rate, around(bounds.label_rate_factor), why, note),
        warn(f"{name}_rate_usual", rate, around(bounds.usual_label_rate_factor), "the label rate moved"),
    ]


def _hit_rules(name: str, floor: float, spec: TrainingSetSpec, bounds: Bounds) -> list[Rule]:
    why = "the join found too few entities"
    if name not in spec.past_hits:
        return [must(f"{name}_hits", f"{name}.hits", (floor, None), why)]
    past = spec.past_hits[name]
    least, usual = max(floor, bounds.hit_share * past), max(floor, bounds.usual_hit_share * past)
    return [
        must(f"{name}_hits", f"{name}.hits", (least, None), why, f"{past:.4g} last time, declared floor {floor:g}"),
        warn(f"{name}_hits_usual", f"{name}.hits", (usual, None), "the join found fewer entities than last time"),
    ]


def _future_rows(batch: pa.RecordBatch, spec: TrainingSetSpec) -> int:
    newer = None
    for name in spec.feature_times:
        later = pc.greater(batch.column(name), batch.column(spec.time_column)).fill_null(False)
        newer = later if newer is None else pc.or_(newer, later)
    return 0 if newer is None else _count(newer)


def _count(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)
