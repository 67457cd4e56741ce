"""Statistics and rules of a snapshot of plain features (counts, attributes): narrow already, no vectors."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from validation.clocks import Clocks
from validation.comparison import compare_ids, read_previous, seconds_after
from validation.files import CLOCK, ID_TYPES
from validation.rules import Rule, previous_rules, whole_rules
from validation.specs import Bounds, FeatureSpec
from validation.tables import Summary, duplicates, iter_batches, read_column, write_summary


def feature_schema(spec: FeatureSpec) -> dict[str, pa.DataType | None]:
    """Return the columns and types that the snapshot must have."""
    return {
        f"{spec.entity}_id": ID_TYPES[spec.id_type],
        **dict(spec.columns),
        "event_timestamp": CLOCK,
        "created": CLOCK,
    }


def feature_statistics(path: Path, spec: FeatureSpec, workdir: Path, previous: Path | None) -> tuple[Path, Summary]:
    """Write one row of statistics of a feature snapshot, whose schema has been checked, and return it.

    Per feature column: ``<column>.nulls``, and for numbers, or the numbers in lists, ``<column>.nonfinite`` and
    ``<column>.negative``; for lists ``<column>.gaps`` (nulls in them), ``<column>.uneven`` (lists of another length
    than the row's first) and ``<column>.repeated`` (values that a list has twice). As ``features_...`` their sums over
    the columns in which they are a fault.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    id_name = f"{spec.entity}_id"
    ids = read_column(path, id_name)
    duplicate_N, distinct = duplicates(_keys(path, ids) if spec.own_times else ids)
    clocks = Clocks(spec.as_of, None if spec.own_times else spec.available_at, spec.checked_at)
    counts: dict[str, int] = {}
    for batch in iter_batches(path, [*spec.columns, "event_timestamp", "created"]):
        clocks.add(batch)
        for name in spec.columns:
            values = batch.column(name)
            found = _column_counts(values)
            if pa.types.is_list(values.type):
                found |= _list_counts(values, batch.column(_lists(spec)[0]))
            for statistic, count in found.items():
                key = f"{name}.{statistic}"
                counts[key] = counts.get(key, 0) + count
    summary: Summary = {
        "snapshot": spec.snapshot_id,
        "rows": len(ids),
        "null_ids": ids.null_count,
        "duplicate_keys": int(duplicate_N.sum()),
        "distinct_keys": distinct,
        **counts,
        **{
            f"features_{statistic}": sum(counts[f"{name}.{statistic}"] for name in columns)
            for statistic, columns, _ in _faults(spec).values()
        },
        **clocks.totals(),
    }
    if previous is not None:
        summary |= compare_ids(ids, read_previous(previous, id_name))[0]
        summary |= seconds_after(previous, spec.available_at)
    return write_summary(workdir / f"{spec.snapshot_id}.summary.parquet", summary), summary


def _keys(path: Path, ids: pa.Array) -> pa.Array:
    """Return one key per row from its id and its moment; null where the id is null."""
    moments = read_column(path, "event_timestamp").cast(pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(moments, ids.cast(pa.string()), "|")


def _column_counts(values: pa.Array) -> dict[str, int]:
    counts = {"nulls": values.null_count}
    values = values.flatten() if pa.types.is_list(values.type) else values
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        present = values.drop_null()
        finite = pc.is_finite(present)
        counts["nonfinite"] = len(present) - int(pc.sum(finite).as_py() or 0)
        counts["negative"] = int(pc.sum(pc.less(present, pa.scalar(0, present.type))).as_py() or 0)
    return counts


def _list_counts(lists: pa.Array, first: pa.Array) -> dict[str, int]:
    lengths, wanted = (pc.list_value_length(each).fill_null(0) for each in (lists, first))
    flat, parents = lists.flatten(), pc.list_parent_indices(lists)
    pairs = pa.table({"row": parents, "value": flat}).group_by(["row", "value"]).aggregate([])
    return {
        "gaps": flat.null_count,
        "uneven": int(pc.sum(pc.not_equal(lengths, wanted)).as_py() or 0),
        "repeated": len(flat) - pairs.num_rows,
    }


def _lists(spec: FeatureSpec) -> list[str]:
    return [name for name, kind in spec.columns.items() if pa.types.is_list(kind)]


def feature_rules(spec: FeatureSpec, bounds: Bounds, summary: Summary) -> list[Rule]:
    """Return every rule for a feature snapshot."""
    rules = [
        Rule("id_not_null", "summary", "null_ids", 0, 0, why="rows without an entity"),
        Rule("id_unique", "summary", "duplicate_keys", 0, 0, why="an entity has two rows of one moment"),
        *whole_rules(spec.min_rows, spec.max_rows),
    ]
    # One expectation per fault rather than per column: each costs Great Expectations milliseconds.
    for fault, (statistic, columns, why) in _faults(spec).items():
        if columns:
            guilty = [name for name in columns if summary[f"{name}.{statistic}"]]
            told = f"{why} in {', '.join(guilty)}" if guilty else why
            rules.append(Rule(f"features_{fault}", "summary", f"features_{statistic}", 0, 0, why=told))
    if "previous_rows" in summary:
        rules += previous_rules(bounds)
    return rules


def _faults(spec: FeatureSpec) -> dict[str, tuple[str, list[str], str]]:
    """Return per fault the statistic that counts it, the columns it is a fault in, and what it means."""
    lists = _lists(spec)
    kinds = {name: kind.value_type if name in lists else kind for name, kind in spec.columns.items()}
    floats = [name for name, kind in kinds.items() if pa.types.is_floating(kind)]
    numbers = [n for n, kind in kinds.items() if n in floats or (pa.types.is_integer(kind) and n not in spec.distinct)]
    return {
        "not_null": ("nulls", [name for name in spec.columns if name not in spec.nullable], "a feature is missing"),
        "finite": ("nonfinite", floats, "NaN or infinite"),
        "not_negative": ("negative", [n for n in numbers if n not in spec.may_be_negative], "a count below zero"),
        "without_gaps": ("gaps", lists, "a list has an empty place"),
        "side_by_side": ("uneven", lists, "lists of one row have different lengths"),
        "listed_once": ("repeated", [name for name in lists if name in spec.distinct], "a list has a value twice"),
    }
