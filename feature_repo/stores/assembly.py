"""Columns put together from the batches in which Parquet is decoded; vectors are in memory once, not twice.

In a fresh process memory that was never touched is dearer than decoding: vectors of one length are copied out of each
batch, whose memory the next one uses again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Column: TypeAlias = pa.Array | pa.ChunkedArray

_MOST_NUMBERS = np.iinfo(np.int32).max


def assembled(batches: Iterable[pa.RecordBatch], schema: pa.Schema, rows: int) -> pa.Table:
    """Return batches as one table with each column in one piece, as ``Table.combine_chunks`` makes it.

    Parameters
    ----------
    schema
        Of every batch.
    rows
        How many rows they have together.
    """
    if not schema.names:
        return pa.Table.from_batches(batches, schema)  # a table without columns has rows nevertheless
    columns = [_Column(field.type, rows) for field in schema]
    for batch in batches:
        for column, array in zip(columns, batch.columns, strict=True):
            column.add(array)
    return pa.table([column.whole() for column in columns], schema=schema).combine_chunks()


def in_one_piece(column: Column) -> pa.Array:
    """Return a column as one array; what is one already is not copied, as Arrow's own function would."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    if column.num_chunks == 1:
        return column.chunk(0)
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], whole.type)
    return whole


class _Column:
    """One column; its batches are kept unless they are vectors of one length without gaps."""

    def __init__(self, kind: pa.DataType, rows: int) -> None:
        self._kind, self._rows = kind, rows
        self._kept: list[pa.Array] = []
        self._even = pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)
        self._vectors_ND: npt.NDArray | None = None
        self._count = 0

    def add(self, array: pa.Array) -> None:
        vectors_BD = vectors_of(array) if self._even and len(array) else None
        stop = self._count + len(array)
        if vectors_BD is not None and self._vectors_ND is None and self._fits(vectors_BD):
            self._vectors_ND = _empty(self._rows, vectors_BD)
        if vectors_BD is None or self._vectors_ND is None or vectors_BD.shape[1] != self._vectors_ND.shape[1]:
            self._keep(array)
        else:
            self._vectors_ND[self._count : stop] = vectors_BD
            self._count = stop

    def whole(self) -> pa.ChunkedArray:
        self._keep(pa.array([], self._kind))
        return pa.chunked_array([array for array in self._kept if len(array)], self._kind)

    def _fits(self, vectors_BD: npt.NDArray) -> bool:
        return self._rows * vectors_BD.shape[1] <= _MOST_NUMBERS

    def _keep(self, array: pa.Array) -> None:
        """Keep a batch as it is, and all that follow, behind what was copied so far."""
        if self._even and self._vectors_ND is not None:
            numbers = self._vectors_ND[: self._count]
            offsets = np.arange(self._count + 1, dtype=np.int32) * np.int32(numbers.shape[1])
            self._kept.append(pa.ListArray.from_arrays(offsets, pa.array(numbers.reshape(-1)), self._kind))
        self._even = False
        self._kept.append(array)


def _empty(rows: int, like_BD: npt.NDArray) -> npt.NDArray:
    """Return a matrix [rows, D] in Arrow's memory; NumPy would ask for huge pages."""
    width = like_BD.shape[1]
    memory = pa.allocate_buffer(rows * width * like_BD.itemsize)
    return np.frombuffer(memory, like_BD.dtype).reshape(rows, width)


def vectors_of(array: pa.ListArray) -> npt.NDArray | None:
    """Return one list of numbers or more as a matrix [B, D] over their memory; None for gaps or other lengths."""
    widths = np.diff(array.offsets.to_numpy())
    values = array.flatten()
    if array.null_count or values.null_count or widths[0] == 0 or (widths != widths[0]).any():
        return None
    return values.to_numpy().reshape(len(array), -1)
