"""One streaming pass over an embedding snapshot, written as two narrow Parquet tables.

Great Expectations then validates the narrow tables and never sees a vector. Memory is bounded by the
ids of the snapshot plus one batch of vectors, whatever the number of rows. The pass is a `Scan`: `scan_here` is the one
of this process, and parts of a file can be measured elsewhere with `scan_groups`.

Shapes: N rows of the snapshot, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.errors import LakeError
from validation.clocks import Clocks
from validation.comparison import compare_anchor, compare_snapshots, norm_ratio, seconds_after
from validation.files import snapshot_schema
from validation.measures import Spread, spread_of
from validation.row_table import OFFENDERS_PER_KIND, Keeper, Part, RowTable, Totals, measured
from validation.specs import SnapshotSpec
from validation.tables import Summary, duplicates, iter_batches, read_column, write_summary

ROW_LIMIT = 1_000_000


@dataclass(frozen=True)
class ScanPlan:
    """What measuring a part of a snapshot takes; small enough to be sent to other machines.

    Attributes
    ----------
    rows, row_limit
        Of the whole snapshot; above the limit not every narrow row is kept.
    duplicate_N
        int64: rows whose id occurs more than once, as many as can be kept.
    """

    path: Path
    entity: str
    id_type: Literal["int64", "string"]
    dim: int
    moments: tuple[datetime, datetime, datetime | None]
    rows: int
    row_limit: int
    duplicate_N: npt.NDArray[np.int64]

    @property
    def id_name(self) -> str:
        """The column of ids."""
        return f"{self.entity}_id"

    def clocks(self) -> Clocks:
        """Return fresh counts of clocks."""
        return Clocks(*self.moments)

    def keeper(self) -> Keeper:
        """Return a fresh choice of rows."""
        return Keeper(self.rows, self.row_limit, self.dim, self.duplicate_N)


Scan: TypeAlias = Callable[[ScanPlan], Iterable[Part]]
"""Measures a snapshot and yields its parts in the order of its rows."""


def scan_here(plan: ScanPlan) -> Iterator[Part]:
    """Measure a snapshot batch by batch in this process."""
    return scan_groups(plan, None, 0)


def scan_groups(plan: ScanPlan, row_groups: list[int] | None, first: int) -> Iterator[Part]:
    """Measure some row groups, which follow one another, of a snapshot.

    Parameters
    ----------
    row_groups
        Their numbers; None for all.
    first
        Number of their first row in the snapshot.
    """
    for batch in iter_batches(plan.path, list(snapshot_schema(plan.entity, plan.id_type)), row_groups):
        yield measured(batch, plan.id_name, first, plan.dim, plan.clocks())
        first += len(batch)


def together(plan: ScanPlan, parts: Iterable[Part]) -> Part:
    """Return parts that follow one another as one, without the rows that a table of the snapshot cannot keep."""
    keeper, totals, clocks = plan.keeper(), Totals(plan.dim), plan.clocks()
    tables, numbers, count = [], [], 0
    for part in parts:
        count += part.measured
        totals.merge(part.totals)
        clocks.merge(part.clocks)
        rows, number_N = keeper.of(part.rows, part.number_N)
        tables.append(rows)
        numbers.append(number_N)
    return Part(pa.concat_tables(tables), np.concatenate(numbers), count, totals, clocks)


@dataclass(frozen=True)
class SnapshotStatistics:
    """Where the two narrow tables lie, the one-row summary as plain values, and the spectrum."""

    rows_path: Path
    summary_path: Path
    summary: Summary
    spread: Spread


def snapshot_statistics(
    path: Path,
    spec: SnapshotSpec,
    *,
    workdir: Path,
    previous: Path | None = None,
    anchor: Path | None = None,
    row_limit: int = ROW_LIMIT,
    scan: Scan = scan_here,
) -> SnapshotStatistics:
    """Measure a snapshot whose schema has been checked already.

    Parameters
    ----------
    path
        Parquet file with the columns of :func:`validation.files.snapshot_schema`.
    workdir
        The tables are written there as ``<snapshot_id>.rows.parquet`` and ``<snapshot_id>.summary.parquet``.
    previous
        Snapshot of the same view and version to compare with.
    anchor
        An old one, to see small steps that add up.
    row_limit
        Above this many rows the per-row table holds only offending rows (10,000 of each kind at most)
        and an even sample, which bounds the memory of everything behind it.
    scan
        Where it is measured.

    Raises
    ------
    pyarrow.ArrowException, OSError
        If a row group cannot be decoded.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    id_name = f"{spec.entity}_id"
    ids = read_column(path, id_name)
    duplicate_N, distinct = duplicates(ids)
    kept_N = np.flatnonzero(duplicate_N)[:OFFENDERS_PER_KIND]
    moments = (spec.as_of, spec.available_at, spec.checked_at)
    plan = ScanPlan(path, spec.entity, spec.id_type, spec.dim, moments, len(ids), row_limit, kept_N)
    clocks, measured_rows = plan.clocks(), 0
    row_table = RowTable(workdir / f"{spec.snapshot_id}.rows.parquet", plan.keeper(), spec.dim)
    with row_table:
        for part in scan(plan):
            row_table.add(part)
            clocks.merge(part.clocks)
            measured_rows += part.measured
    if measured_rows != len(ids):
        raise LakeError(f"{path} gave {measured_rows} rows but its footer says {len(ids)}; write the file again.")
    spread = spread_of(row_table.totals.moments)
    summary: Summary = {
        "snapshot": spec.snapshot_id,
        "rows": len(ids),
        "null_ids": ids.null_count,
        "duplicate_ids": int(duplicate_N.sum()),
        "distinct_ids": distinct,
        "unknown_ids": 0 if spec.known_ids is None else _unknown(ids, spec.known_ids),
        **({} if spec.active_ids is None else _activity(ids, spec.active_ids)),
        **row_table.totals.summary(),
        **clocks.totals(),
        "effective_rank": spread.effective_rank,
        "total_variance": spread.total_variance,
        "min_dimension_variance": spread.min_variance,
        "dead_dimensions": spread.dead_dimensions,
        "mean_vector_norm": spread.mean_vector_norm,
    }
    if previous is not None:
        summary |= compare_snapshots(path, ids, previous, spec)
        summary |= norm_ratio(float(summary["mean_raw_norm"]), previous)
        summary |= seconds_after(previous, spec.available_at)
    if anchor is not None:
        summary |= compare_anchor(path, ids, anchor, spec)
    summary_path = write_summary(workdir / f"{spec.snapshot_id}.summary.parquet", summary)
    return SnapshotStatistics(row_table.path, summary_path, summary, spread)


def _unknown(ids: pa.Array, known_ids: pa.Array) -> int:
    return int(pc.sum(pc.invert(pc.is_in(ids.drop_null(), value_set=known_ids.cast(ids.type)))).as_py() or 0)


def _activity(ids: pa.Array, active_ids: pa.Array) -> Summary:
    """Return the share of active entities that have a row, and the share of rows that are of no active one."""
    active = active_ids.cast(ids.type)
    present = int(pc.sum(pc.is_in(active, value_set=ids.drop_null())).as_py() or 0)
    expected = int(pc.sum(pc.is_in(ids, value_set=active)).as_py() or 0)
    return {
        "active_coverage": present / len(active) if len(active) else np.nan,
        "inactive_share": 1 - expected / len(ids),
    }
