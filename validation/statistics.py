"""One streaming pass over an embedding snapshot, written as two narrow Parquet tables.

Great Expectations then validates the narrow tables and never sees a vector. Memory is bounded by the
ids of the snapshot plus one batch of vectors, whatever the number of rows.

Shapes: N rows of the snapshot, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from validation.comparison import compare_snapshots
from validation.measures import RunningMoments, Spread, hash_rows, measure_vectors, null_mask, spread_of

BATCH_ROWS = 65_536
ROW_LIMIT = 1_000_000
OFFENDERS_PER_KIND = 10_000

Summary = dict[str, float | int | str]


@dataclass(frozen=True)
class SnapshotStatistics:
    """Where the two narrow tables lie, the one-row summary as plain values, and the spectrum."""

    rows_path: Path
    summary_path: Path
    summary: Summary
    spread: Spread


def snapshot_statistics(
    path: Path,
    *,
    entity: str,
    dim: int,
    as_of: datetime,
    available_at: datetime,
    stem: str,
    workdir: Path,
    checked_at: datetime | None = None,
    previous: Path | None = None,
    known_ids: pa.Array | None = None,
    row_limit: int = ROW_LIMIT,
) -> SnapshotStatistics:
    """Measure a snapshot whose schema has been checked already.

    Parameters
    ----------
    path
        Parquet file with ``<entity>_id``, ``embedding`` list<float32>, ``norm``, ``event_timestamp`` and
        ``created``.
    dim
        Declared length D of each vector.
    as_of, available_at
        The moments that `created` and `event_timestamp` are held against.
    stem
        The tables are written as ``<stem>.rows.parquet`` and ``<stem>.summary.parquet`` under `workdir`.
    checked_at
        The moment of the check; rows created later are counted. Not counted when None.
    previous
        Snapshot of the same view and version to compare with.
    known_ids
        All ids that may occur; others are counted as unknown.
    row_limit
        Above this many rows the per-row table holds only offending rows (10,000 of each kind at most)
        and an even sample, which bounds the memory of everything behind it.

    Raises
    ------
    pyarrow.ArrowException, OSError
        If a row group cannot be decoded.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    id_name = f"{entity}_id"
    ids = read_ids(path, id_name)
    duplicate_N, distinct = duplicates(ids)
    collector = _Collector(workdir / f"{stem}.rows.parquet", len(ids), row_limit, dim)
    clocks = _Clocks(as_of, available_at, checked_at)
    with collector:
        start = 0
        for batch in _batches(path, [id_name, "embedding", "norm", "event_timestamp", "created"]):
            collector.add(batch, id_name, duplicate_N[start : start + len(batch)])
            clocks.add(batch)
            start += len(batch)
    spread = spread_of(collector.moments)
    summary: Summary = {
        "snapshot": stem,
        "rows": len(ids),
        "null_ids": ids.null_count,
        "duplicate_ids": int(duplicate_N.sum()),
        "distinct_ids": distinct,
        "unknown_ids": 0 if known_ids is None else _unknown(ids, known_ids),
        **collector.totals(),
        **clocks.totals(),
        "effective_rank": spread.effective_rank,
        "total_variance": spread.total_variance,
        "min_dimension_variance": spread.min_variance,
        "dead_dimensions": spread.dead_dimensions,
        "mean_vector_norm": spread.mean_vector_norm,
    }
    if previous is not None:
        summary |= compare_snapshots(path, ids, previous, read_ids(previous, id_name), dim)
        summary |= previous_clock(previous, available_at)
    summary_path = write_summary(workdir / f"{stem}.summary.parquet", summary)
    return SnapshotStatistics(collector.path, summary_path, summary, spread)


def write_summary(path: Path, summary: Summary) -> Path:
    """Write one row of statistics; numbers as float64, so that a missing one is NaN."""
    columns = {name: [value if isinstance(value, str) else float(value)] for name, value in summary.items()}
    pq.write_table(pa.table(columns), path)
    return path


def read_ids(path: Path, id_name: str) -> pa.Array:
    """Return the id column of a Parquet file as one array."""
    with pq.ParquetFile(path, memory_map=True) as file:
        column = file.read(columns=[id_name]).column(0)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def duplicates(ids: pa.Array) -> tuple[npt.NDArray[np.bool_], int]:
    """Return True (N,) for every row whose id occurs more than once, and the number of distinct ids.

    Null ids are no ids: they count neither as duplicates nor as distinct.
    """
    valid_N = ~null_mask(ids)
    codes = ids.drop_null().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    counts = np.bincount(codes) if len(codes) else np.zeros(0, np.int64)
    mask_N = np.zeros(len(ids), bool)
    mask_N[valid_N] = counts[codes] > 1
    return mask_N, len(counts)


def _unknown(ids: pa.Array, known_ids: pa.Array) -> int:
    return int(pc.sum(pc.invert(pc.is_in(ids.drop_null(), value_set=known_ids.cast(ids.type)))).as_py() or 0)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, memory_map=True, buffer_size=1 << 20) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns)


class _Collector:
    """Writes the per-row table batch by batch and keeps the totals."""

    SCHEMA = (
        ("length", pa.int32()),
        ("norm", pa.float32()),
        ("raw_norm", pa.float32()),
        ("nonfinite", pa.int32()),
        ("max_abs", pa.float32()),
        ("is_null", pa.int8()),
    )

    def __init__(self, path: Path, rows: int, row_limit: int, dim: int) -> None:
        self.path = path
        self.moments = RunningMoments(dim)
        self._dim = dim
        self._whole = rows <= row_limit
        self._every = max(1, rows // 100_000)
        self._seen = 0
        self._written_offenders: dict[str, int] = {}
        self._writer: pq.ParquetWriter | None = None
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._counts = dict.fromkeys(("null_vectors", "bad_lengths", "nonfinite_vectors", "zero_vectors"), 0)
        self._norm = _Range()
        self._raw_norm = _Range()

    def __enter__(self) -> _Collector:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, batch: pa.RecordBatch, id_name: str, duplicate_N: npt.NDArray[np.bool_]) -> None:
        """Measure one batch and write its rows."""
        measured = measure_vectors(batch.column("embedding"), self._dim)
        raw_norm_N = batch.column("norm").to_numpy(zero_copy_only=False).astype(np.float32)
        offences = {
            "null_vectors": measured.is_null_N,
            "bad_lengths": (measured.length_N != self._dim) & ~measured.is_null_N,
            "nonfinite_vectors": measured.nonfinite_N > 0,
            "zero_vectors": measured.max_abs_N == 0,
        }
        for name, mask_N in offences.items():
            self._counts[name] += int(mask_N.sum())
        self._norm.add(measured.norm_N)
        self._raw_norm.add(raw_norm_N)
        self.moments.add(measured.usable_UD)
        self._hashes.append(hash_rows(measured.usable_UD))
        ids = batch.column(id_name)
        values = (measured.length_N, measured.norm_N, raw_norm_N, measured.nonfinite_N, measured.max_abs_N)
        arrays = [*values, measured.is_null_N.astype(np.int8)]
        table = pa.table(
            [ids, *(pa.array(array, kind) for array, (_, kind) in zip(arrays, self.SCHEMA, strict=True))],
            names=["id", *(name for name, _ in self.SCHEMA)],
        )
        if not self._whole:
            odd_norm = ~(np.abs(measured.norm_N - 1.0) <= 1e-3)
            odd_raw = ~(np.isfinite(raw_norm_N) & (raw_norm_N > 0))
            offences |= {"norms": odd_norm, "raw_norms": odd_raw}
            offences |= {"null_ids": null_mask(ids), "duplicate_ids": duplicate_N}
            table = table.filter(pa.array(self._kept(len(batch), offences)))
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema, compression="lz4")
        self._writer.write_table(table)
        self._seen += len(batch)

    def _kept(self, rows: int, offences: dict[str, npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
        keep_N = (np.arange(self._seen, self._seen + rows) % self._every) == 0
        for name, mask_N in offences.items():
            left = OFFENDERS_PER_KIND - self._written_offenders.get(name, 0)
            chosen = np.flatnonzero(mask_N)[: max(0, left)]
            keep_N[chosen] = True
            self._written_offenders[name] = self._written_offenders.get(name, 0) + len(chosen)
        return keep_N

    def totals(self) -> Summary:
        """Return the counts and norms of the whole snapshot."""
        hashes = np.concatenate(self._hashes) if self._hashes else np.zeros(0, np.uint64)
        repeated = len(hashes) - len(np.unique(hashes))
        return {
            **self._counts,
            **self._norm.totals("norm"),
            **self._raw_norm.totals("raw_norm"),
            "duplicate_vectors": repeated,
            "duplicate_vector_share": repeated / len(hashes) if len(hashes) else np.nan,
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

    def totals(self, name: str) -> Summary:
        if self._count == 0:
            return {f"{how}_{name}": np.nan for how in ("min", "max", "mean")}
        return {f"min_{name}": self._min, f"max_{name}": self._max, f"mean_{name}": self._sum / self._count}


class _Clocks:
    """Counts the rows whose clocks are missing or wrong."""

    def __init__(self, as_of: datetime, available_at: datetime, checked_at: datetime | None) -> None:
        self._as_of, self._expected = microseconds(as_of), microseconds(available_at)
        # A minute of tolerance: the writer's and the gate's clocks may be on two machines.
        self._latest = None if checked_at is None else microseconds(checked_at + timedelta(minutes=1))
        self._event, self._created = _MomentRange(), _MomentRange()
        self._wrong_event = self._early = self._late = self._nulls = 0

    def add(self, batch: pa.RecordBatch) -> None:
        for name, seen in (("event_timestamp", self._event), ("created", self._created)):
            column = batch.column(name)
            values = column.drop_null().cast(pa.int64()).to_numpy()
            self._nulls += column.null_count
            seen.add(values)
            if name == "event_timestamp":
                self._wrong_event += int((values != self._expected).sum())
            else:
                self._early += int((values < self._as_of).sum())
                self._late += 0 if self._latest is None else int((values > self._latest).sum())

    def totals(self) -> Summary:
        return {
            "null_clocks": self._nulls,
            "wrong_event_timestamps": self._wrong_event,
            "created_before_as_of": self._early,
            "created_in_future": self._late,
            **self._event.totals("event_timestamp"),
            **self._created.totals("created"),
        }


class _MomentRange:
    def __init__(self) -> None:
        self._low: int | None = None
        self._high: int | None = None

    def add(self, values_N: npt.NDArray[np.int64]) -> None:
        if len(values_N):
            low, high = int(values_N.min()), int(values_N.max())
            self._low = low if self._low is None else min(self._low, low)
            self._high = high if self._high is None else max(self._high, high)

    def totals(self, name: str) -> Summary:
        return {f"min_{name}": iso(self._low), f"max_{name}": iso(self._high)}


def previous_clock(previous: Path, available_at: datetime) -> Summary:
    """Return how long after the previous snapshot's last row this one becomes readable (seconds)."""
    with pq.ParquetFile(previous, memory_map=True) as file:
        latest = pc.max(file.read(columns=["event_timestamp"]).column(0)).as_py()
    return {"seconds_after_previous": np.nan if latest is None else (available_at - latest).total_seconds()}


def microseconds(moment: datetime) -> int:
    """Return microseconds since 1970 in UTC, exactly."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def iso(value: int | None) -> str:
    """Return a moment for a person; far-off values that no calendar holds stay numbers."""
    if value is None:
        return "none"
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)).isoformat()
    except OverflowError:
        return f"{value} us"
