"""Features by row number: read once, part by part, straight into their place in the result.

Vectors of one length go from the file's buffer into one preallocated buffer; no Python object is made per row.
Legend: N labels, V labels that found a row, D embedding dim.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from feature_repo.stores.clocks import BoolArray, Int64Array
from feature_repo.stores.sources import Source, Unit

_MAX_OFFSET = 2**31 - 1


def by_number(numbers: Int64Array) -> Int64Array:
    """Return the labels that found a row, by its number: int64 [V]."""
    places = np.flatnonzero(numbers >= 0)
    return places[np.argsort(numbers[places])]


def gather(
    source: Source, numbers: Int64Array, columns: Sequence[str], threads: int, order: Int64Array | None = None
) -> list[pa.ChunkedArray]:
    """Return columns of a view's rows in the order of the labels, null where a label found no row.

    Parameters
    ----------
    source
        The view's rows.
    numbers
        int64 [N]: each label's row number, or -1.
    columns
        Names in the files. Lists of floats come back as ``list`` whatever the layout of the file.
    threads
        Parts that are read at the same time.
    order
        What :func:`by_number` returns, where it is known.
    """
    if order is None:
        order = by_number(numbers)
    spans = source.spans(numbers[order])
    found = numbers >= 0
    collectors: dict[str, _Collector] = {
        name: _Vectors(found, source.type_of(name)) if _is_vector(source.type_of(name)) else _Values(len(spans))
        for name in columns
    }
    _collect(source, spans, numbers[order], order, collectors, threads)
    uneven = {
        name: _Values(len(spans)) for name, each in collectors.items() if isinstance(each, _Vectors) and each.uneven
    }
    if uneven:
        _collect(source, spans, numbers[order], order, dict(uneven), threads)
        collectors |= uneven
    return [collectors[name].finish(order, len(numbers), source.type_of(name)) for name in columns]


def _collect(
    source: Source,
    spans: Sequence[tuple[Unit, int, int]],
    ascending: Int64Array,
    order: Int64Array,
    collectors: dict[str, _Collector],
    threads: int,
) -> None:
    def work(job: tuple[int, tuple[Unit, int, int]]) -> None:
        step, (unit, start, stop) = job
        table = source.read(unit, list(collectors))
        rows = ascending[start:stop] - unit.first
        for name, collector in collectors.items():
            collector.put(step, _array(table[name]), rows, order[start:stop])

    if threads == 1 or len(spans) == 1:
        for job in enumerate(spans):
            work(job)
        return
    with ThreadPoolExecutor(threads) as pool:
        # list: an error in a thread is raised here.
        list(pool.map(work, enumerate(spans)))


class _Collector(Protocol):
    def put(self, step: int, column: pa.Array, rows: Int64Array, labels: Int64Array) -> None:
        """Take the given rows of one part's column for the given labels."""

    def finish(self, order: Int64Array, count: int, kind: pa.DataType) -> pa.ChunkedArray:
        """Return the whole column; `order` holds the labels with a row, by row number."""


class _Values:
    """Any type: Arrow's own take, part by part, then one more into the order of the labels."""

    def __init__(self, steps: int) -> None:
        self._parts: list[pa.Array | None] = [None] * steps

    def put(self, step: int, column: pa.Array, rows: Int64Array, labels: Int64Array) -> None:
        self._parts[step] = column.take(pa.array(rows))

    def finish(self, order: Int64Array, count: int, kind: pa.DataType) -> pa.ChunkedArray:
        parts = [part for part in self._parts if part is not None]
        if not parts:
            return pa.chunked_array([pa.nulls(count, _plain_list(kind))])
        if any(part.type != parts[0].type for part in parts):
            tables = [pa.table({"": part}) for part in parts]
            parts = pa.concat_tables(tables, promote_options="permissive").column(0).chunks
        whole = pa.concat_arrays(parts)
        position = np.full(count, -1, np.int64)
        position[order] = np.arange(len(order))
        taken = whole.take(pa.array(position, mask=position < 0))
        return pa.chunked_array([taken.cast(_plain_list(taken.type))])


class _Vectors:
    """Lists of numbers of one length: copied into one buffer of V x D.

    A part with gaps inside a vector, or with another length, sets `uneven`; the column is then read again as
    any other type.
    """

    def __init__(self, found: BoolArray, kind: pa.DataType) -> None:
        self.uneven = False
        self._found = found
        self._slots = np.cumsum(found) - 1
        self._value_type = kind.value_type
        self._buffer: Any = None
        self._present: BoolArray | None = None
        self._lock = threading.Lock()

    def put(self, step: int, column: pa.Array, rows: Int64Array, labels: Int64Array) -> None:
        if self.uneven:
            return
        if column.null_count:
            valid = column.is_valid().to_numpy(zero_copy_only=False)[rows]
            with self._lock:
                if self._present is None:
                    self._present = np.ones(len(self._found), np.bool_)
            self._present[labels[~valid]] = False
            rows, labels = rows[valid], labels[valid]
        if len(rows) == 0:
            return
        matrix, index = _matrix(column, rows)
        if matrix is None or column.type.value_type != self._value_type or not self._fits(matrix):
            self.uneven = True
            return
        # As opaque blocks: one copy of D numbers each, not D copies of one.
        block = np.dtype((np.void, matrix.dtype.itemsize * matrix.shape[1]))
        self._buffer.view(block)[self._slots[labels], 0] = matrix.view(block)[index, 0]

    def _fits(self, matrix: Any) -> bool:
        with self._lock:
            if self._buffer is None:
                self._buffer = np.zeros((int(self._found.sum()), matrix.shape[1]), matrix.dtype)
        return bool(self._buffer.shape[1] == matrix.shape[1])

    def finish(self, order: Int64Array, count: int, kind: pa.DataType) -> pa.ChunkedArray:
        kind = pa.list_(self._value_type)
        if self._buffer is None:
            return pa.chunked_array([pa.nulls(count, kind)])
        present, values = self._found, self._buffer
        if self._present is not None:
            present = self._found & self._present
            values = values[present[self._found]]
        width = values.shape[1]
        step = max(1, _MAX_OFFSET // width)
        used = np.concatenate([[0], np.cumsum(present)])
        chunks = []
        for start in range(0, count, step):
            stop = min(start + step, count)
            here = used[start : stop + 1]
            offsets = pa.array(((here - here[0]) * width).astype(np.int32))
            flat = pa.array(values[here[0] : here[-1]].reshape(-1), self._value_type)
            missing = ~present[start:stop]
            mask = pa.array(missing) if missing.any() else None
            chunks.append(pa.ListArray.from_arrays(offsets, flat, mask=mask))
        return pa.chunked_array(chunks, kind)


def _matrix(column: pa.Array, rows: Int64Array) -> tuple[Any, Int64Array]:
    """Return numbers as a matrix that shares the column's memory, and the rows' positions in it; None if uneven."""
    values = column.values
    if values.null_count:
        return None, rows
    flat = values.to_numpy(zero_copy_only=True)
    if pa.types.is_fixed_size_list(column.type):
        width, index = column.type.list_size, rows + column.offset
    else:
        offsets = column.offsets.to_numpy()
        starts = offsets[rows].astype(np.int64)
        widths = offsets[rows + 1] - starts
        width = int(widths[0])
        if width == 0 or (widths != width).any() or (starts % width).any():
            return None, rows
        index = starts // width
    if width == 0:
        return None, rows
    return flat[: len(flat) // width * width].reshape(-1, width), index


def _is_vector(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return listed and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _plain_list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind.value_type) if _is_vector(kind) else kind


def _array(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0) if whole.num_chunks else pa.nulls(0, whole.type)
    return whole
