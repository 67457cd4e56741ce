"""The per-row table of an embedding snapshot: one narrow row per entity, and the totals over all of them.

A snapshot is measured part by part, here or on other machines; parts are put together in the order of their rows.
Shapes: N rows of a part, D embedding dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from validation.clocks import Clocks
from validation.measures import RunningMoments, VectorMeasures, hash_rows, measure_vectors
from validation.tables import Summary

OFFENDERS_PER_KIND = 10_000
SAMPLE_ROWS = 100_000
SCHEMA = (
    ("length", pa.int32()),
    ("norm", pa.float32()),
    ("raw_norm", pa.float32()),
    ("nonfinite", pa.int32()),
    ("max_abs", pa.float32()),
    ("is_null", pa.int8()),
)


class Totals:
    """Counts, norms, moments and hashes over all rows of a part, or of several that were merged.

    Attributes
    ----------
    repeated_vectors
        Vectors that equal an earlier one, among those whose hashes were taken to be counted elsewhere.
    """

    def __init__(self, dim: int) -> None:
        self.moments = RunningMoments(dim)
        self.repeated_vectors = 0
        self._dim = dim
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._counts = dict.fromkeys(("null_vectors", "bad_lengths", "nonfinite_vectors", "zero_vectors"), 0)
        self._norm, self._raw_norm = _Range(), _Range()

    def add(self, measured: VectorMeasures, rows: pa.Table) -> None:
        """Add the measures of one batch and its narrow rows."""
        for name, mask_N in _bad_vectors(rows, self._dim).items():
            self._counts[name] += int(mask_N.sum())
        self._norm.add(measured.norm_N)
        self._raw_norm.add(rows["raw_norm"].to_numpy())
        self.moments.add(measured.usable_UD)
        self._hashes.append(hash_rows(measured.usable_UD))

    def merge(self, other: Totals) -> None:
        """Add the totals of other rows."""
        for name, count in other._counts.items():
            self._counts[name] += count
        self._norm.merge(other._norm)
        self._raw_norm.merge(other._raw_norm)
        self.moments.merge(other.moments)
        self.repeated_vectors += other.repeated_vectors
        self._hashes += other._hashes

    def take_hashes(self) -> npt.NDArray[np.uint64]:
        """Return a hash of every usable vector, and keep none: whoever takes them counts the equal ones."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *self._hashes])
        self._hashes = []
        return hashes

    def summary(self) -> Summary:
        """Return the counts and norms."""
        hashes = np.concatenate([np.zeros(0, np.uint64), *self._hashes])
        hashes.sort()  # np.unique takes ten times as long
        repeated = self.repeated_vectors + int((hashes[1:] == hashes[:-1]).sum())
        usable = self.moments.count
        return {
            **self._counts,
            **self._norm.totals("norm"),
            **self._raw_norm.totals("raw_norm"),
            "duplicate_vectors": repeated,
            "duplicate_vector_share": repeated / usable if usable else np.nan,
        }


@dataclass(frozen=True)
class Part:
    """Some rows of a snapshot, measured.

    Attributes
    ----------
    rows
        Narrow rows: ``id`` and the columns of `SCHEMA`; all of the part's, or those that may be kept.
    number_N
        int64: which rows of the snapshot `rows` are, ascending.
    measured
        How many rows the part has.
    totals, clocks
        Over every row of the part.
    """

    rows: pa.Table
    number_N: npt.NDArray[np.int64]
    measured: int
    totals: Totals
    clocks: Clocks


class Keeper:
    """Which narrow rows are kept: all, or above a limit the first offenders of every kind and an even sample.

    Parameters
    ----------
    rows, row_limit
        Of the whole snapshot.
    duplicate_N
        int64: rows of the snapshot whose id occurs more than once, ascending.
    """

    def __init__(self, rows: int, row_limit: int, dim: int, duplicate_N: npt.NDArray[np.int64]) -> None:
        self._whole, self._every = rows <= row_limit, max(1, rows // SAMPLE_ROWS)
        self._dim, self._duplicate_N = dim, duplicate_N
        self._kept: dict[str, int] = {}

    def of(self, rows: pa.Table, number_N: npt.NDArray[np.int64]) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Return what is kept of narrow rows, which have to come in order, and their numbers."""
        if self._whole:
            return rows, number_N
        norm_N, raw_norm_N = rows["norm"].to_numpy(), rows["raw_norm"].to_numpy()
        offences = _bad_vectors(rows, self._dim) | {
            "norms": ~(np.abs(norm_N - 1.0) <= 1e-3),
            "raw_norms": ~(np.isfinite(raw_norm_N) & (raw_norm_N > 0)),
            "null_ids": rows["id"].is_null().to_numpy(),
            "duplicate_ids": np.isin(number_N, self._duplicate_N),
        }
        keep_N = number_N % self._every == 0
        for name, mask_N in offences.items():
            before = self._kept.get(name, 0)
            chosen = np.flatnonzero(mask_N)[: max(0, OFFENDERS_PER_KIND - before)]
            keep_N[chosen] = True
            self._kept[name] = before + len(chosen)
        return rows.filter(pa.array(keep_N)), number_N[keep_N]


class RowTable:
    """Writes the narrow rows of a snapshot's parts as they come, and keeps the totals."""

    def __init__(self, path: Path, keeper: Keeper, dim: int) -> None:
        self.path, self.totals = path, Totals(dim)
        path.unlink(missing_ok=True)
        self._keeper = keeper
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> RowTable:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, part: Part) -> None:
        """Write the rows of the next part that are kept."""
        self.totals.merge(part.totals)
        rows, _ = self._keeper.of(part.rows, part.number_N)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, rows.schema, compression="lz4")
        self._writer.write_table(rows)


def measured(batch: pa.RecordBatch, id_name: str, first: int, dim: int, clocks: Clocks) -> Part:
    """Return a batch as a part.

    Parameters
    ----------
    batch
        Columns of the snapshot.
    first
        Number of its first row in the snapshot.
    clocks
        Fresh ones, which count the batch's.
    """
    found = measure_vectors(batch.column("embedding"), dim)
    raw_norm_N = batch.column("norm").to_numpy(zero_copy_only=False).astype(np.float32)
    values = (found.length_N, found.norm_N, raw_norm_N, found.nonfinite_N, found.max_abs_N)
    arrays = [*values, found.is_null_N.astype(np.int8)]
    rows = pa.table(
        [batch.column(id_name), *(pa.array(array, kind) for array, (_, kind) in zip(arrays, SCHEMA, strict=True))],
        names=["id", *(name for name, _ in SCHEMA)],
    )
    totals = Totals(dim)
    totals.add(found, rows)
    clocks.add(batch)
    return Part(rows, np.arange(first, first + len(batch)), len(batch), totals, clocks)


def _bad_vectors(rows: pa.Table, dim: int) -> dict[str, npt.NDArray[np.bool_]]:
    is_null_N = rows["is_null"].to_numpy() == 1
    return {
        "null_vectors": is_null_N,
        "bad_lengths": (rows["length"].to_numpy() != dim) & ~is_null_N,
        "nonfinite_vectors": rows["nonfinite"].to_numpy() > 0,
        "zero_vectors": rows["max_abs"].to_numpy() == 0,
    }


class _Range:
    """Running min, max and mean of the finite values; NaN when there are none."""

    def __init__(self) -> None:
        self._min, self._max, self._sum, self._count = np.inf, -np.inf, 0.0, 0

    def add(self, values_N: npt.NDArray[np.float32]) -> None:
        finite = values_N[np.isfinite(values_N)]
        if len(finite):
            self._min = min(self._min, float(finite.min()))
            self._max = max(self._max, float(finite.max()))
            self._sum += float(finite.sum(dtype=np.float64))
            self._count += len(finite)

    def merge(self, other: _Range) -> None:
        self._min, self._max = min(self._min, other._min), max(self._max, other._max)
        self._sum, self._count = self._sum + other._sum, self._count + other._count

    def totals(self, name: str) -> Summary:
        if self._count == 0:
            return {f"{how}_{name}": np.nan for how in ("min", "max", "mean")}
        return {f"min_{name}": self._min, f"max_{name}": self._max, f"mean_{name}": self._sum / self._count}
