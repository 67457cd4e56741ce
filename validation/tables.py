"""Reading id columns and batches, and writing the one-row table of statistics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from validation.measures import null_mask

BATCH_ROWS = 65_536

Summary = dict[str, float | int | str]


def iter_batches(path: Path, columns: list[str], row_groups: list[int] | None = None) -> Iterator[pa.RecordBatch]:
    """Stream columns of a Parquet file; one large row group does not come into memory at once.

    Not memory-mapped: pages of the file would count as memory of the gate.
    """
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=columns, row_groups=row_groups)


def write_summary(path: Path, summary: Summary) -> Path:
    """Write one row of statistics; numbers as float64, so that a missing one is NaN."""
    columns = {name: [value if isinstance(value, str) else float(value)] for name, value in summary.items()}
    pq.write_table(pa.table(columns), path)
    return path


def read_column(path: Path, name: str) -> pa.Array:
    """Return one column of a Parquet file as one array."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        column = file.read(columns=[name]).column(0)
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
