"""The per-row table of an embedding snapshot: one narrow row per entity, and the totals over all of them.

Shapes: N rows of a batch, D embedding dim.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from validation.measures import RunningMoments, hash_rows, measure_vectors, null_mask
from validation.tables import Summary

OFFENDERS_PER_KIND = 10_000
SAMPLE_ROWS = 100_000


class RowTable:
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
        path.unlink(missing_ok=True)
        self.moments = RunningMoments(dim)
        self._dim = dim
        self._whole = rows <= row_limit
        self._every = max(1, rows // SAMPLE_ROWS)
        self._seen = 0
        self._written_offenders: dict[str, int] = {}
        self._writer: pq.ParquetWriter | None = None
        self._hashes: list[npt.NDArray[np.uint64]] = []
        self._counts = dict.fromkeys(("null_vectors", "bad_lengths", "nonfinite_vectors", "zero_vectors"), 0)
        self._norm = _Range()
        self._raw_norm = _Range()

    def __enter__(self) -> RowTable:
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
        hashes.sort()  # np.unique takes ten times as long
        repeated = int((hashes[1:] == hashes[:-1]).sum())
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
