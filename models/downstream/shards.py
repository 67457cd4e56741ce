"""Training-set shards as a stream of tensors, for training sets that do not fit into memory.

Legend: B batch, V rows of one part of a shard, D embedding dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from feature_repo.contracts.errors import InputDataError, LakeError
from feature_repo.contracts.types import Problem

Batch = dict[str, Tensor]


class ShardDataset(IterableDataset[Batch]):
    """Batches of tensors from Parquet or Arrow shards, shuffled by shard and within a buffer.

    Numbers become tensors that share the memory of the Arrow column; of an uncompressed ``.arrow`` shard that is
    the mapped file itself. With a shuffle the rows of the buffer and of each batch are copied; without one only a
    batch that spans two parts is. Vectors with gaps between rows are copied too. Batches must not be written to.

    Parameters
    ----------
    files
        Shards. A worker process reads every n-th one.
    columns
        Scalar columns. Each becomes a tensor [B]; nulls become NaN in floats and are refused elsewhere.
    vectors
        Columns of vectors and their D. Each becomes a tensor [B, D]; a row without a vector gets zeros, and False
        in ``<column>/found`` [B].
    batch_size
        B; the last batch of a pass may be smaller.
    buffer_rows
        Rows held and shuffled together, at least B. 0 keeps the order of files and rows.
    seed
        Together with the epoch (:meth:`set_epoch`) decides the order.

    Raises
    ------
    InputDataError
        While iterating, if a column is missing, holds text, or vectors differ in length.
    LakeError
        If a shard cannot be read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        columns: Sequence[str],
        vectors: Mapping[str, int] | None = None,
        *,
        batch_size: int,
        buffer_rows: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._files = list(files)
        self._columns, self._vectors = list(columns), dict(vectors or {})
        self._batch_size = batch_size
        self._buffer_rows = max(buffer_rows, batch_size) if buffer_rows else 0
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose another order for the next pass."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """Yield one pass over this worker's shards."""
        worker = get_worker_info()
        generator = np.random.default_rng([self._seed, self._epoch])
        order = generator.permutation(len(self._files)) if self._buffer_rows else np.arange(len(self._files))
        mine = order if worker is None else order[worker.id :: worker.num_workers]
        parts = (part for number in mine for part in self._parts(self._files[number]))
        yield from self._shuffled(parts, generator) if self._buffer_rows else self._in_order(parts)

    def _in_order(self, parts: Iterator[Batch]) -> Iterator[Batch]:
        """Yield views of the parts; only a batch that spans two of them is copied."""
        held: Batch = {}
        for part in parts:
            start = 0
            if _rows(held):
                start = self._batch_size - _rows(held)
                held = _joined(held, _cut(part, 0, start))
                if _rows(held) < self._batch_size:
                    continue
                yield held
            whole = max(start, _rows(part) - (_rows(part) - start) % self._batch_size)
            for at in range(start, whole, self._batch_size):
                yield _cut(part, at, at + self._batch_size)
            held = _cut(part, whole, _rows(part))
        if _rows(held):
            yield held

    def _shuffled(self, parts: Iterator[Batch], generator: np.random.Generator) -> Iterator[Batch]:
        """Fill the buffer, yield it in random order, and keep the rows that make no whole batch for the next."""
        held: Batch = {}
        for part in itertools.chain(parts, [None]):
            if part is not None:
                held = _joined(held, part)
                if _rows(held) < self._buffer_rows:
                    continue
            count = _rows(held)
            stop = count if part is None else count - count % self._batch_size
            order = torch.from_numpy(generator.permutation(count))
            for start in range(0, stop, self._batch_size):
                chosen = order[start : min(start + self._batch_size, stop)]
                yield {name: tensor[chosen] for name, tensor in held.items()}
            held = {name: tensor[order[stop:]] for name, tensor in held.items()}

    def _parts(self, file: Path) -> Iterator[Batch]:
        """Yield a shard as tensors, one record batch or row group at a time."""
        names = [*self._columns, *self._vectors]
        try:
            if file.suffix == ".arrow":
                reader = pa.ipc.open_file(pa.memory_map(str(file)))
                for number in range(reader.num_record_batches):
                    yield self._tensors(pa.Table.from_batches([reader.get_batch(number)]), file)
            else:
                with pq.ParquetFile(file, memory_map=True) as parquet:
                    there = [name for name in names if name in parquet.schema_arrow.names]
                    for number in range(parquet.num_row_groups):
                        yield self._tensors(parquet.read_row_group(number, columns=there), file)
        except (OSError, pa.ArrowInvalid) as error:
            raise LakeError(f"Could not read the shard {file}: {error}. Make the training set again.") from error

    def _tensors(self, table: pa.Table, file: Path) -> Batch:
        missing = [name for name in (*self._columns, *self._vectors) if name not in table.column_names]
        if missing:
            raise _refused(file, missing[0], "is missing", table.num_rows)
        tensors = {name: _scalars(_whole(table[name]), file, name) for name in self._columns}
        for name, width in self._vectors.items():
            tensors[name], tensors[f"{name}/found"] = _matrix(_whole(table[name]), width, file, name)
        return tensors


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _scalars(column: pa.Array, file: Path, name: str) -> Tensor:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", tz=column.type.tz)).cast(pa.int64())
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise _refused(file, name, f"is {column.type}, which is no number", len(column))
    if column.null_count:
        if not pa.types.is_floating(column.type):
            raise _refused(file, name, "has nulls, which integers cannot show", column.null_count)
        column = pc.fill_null(column, float("nan"))
    return _tensor(column)


def _matrix(column: pa.Array, width: int, file: Path, name: str) -> tuple[Tensor, Tensor]:
    """Return [V, D] and which rows have a vector [V]; with one in every row the first shares the column's memory."""
    found = torch.from_numpy(pc.is_valid(column).to_numpy(zero_copy_only=False))
    if not pc.all(pc.equal(pc.list_value_length(column), width)).as_py() and found.any():
        raise _refused(file, name, f"holds vectors that have not {width} numbers", len(column))
    flat = column.flatten()
    if flat.null_count:
        raise _refused(file, name, "has nulls within vectors", flat.null_count)
    matrix = _tensor(flat).view(-1, width)
    if len(matrix) < len(found):
        whole = torch.zeros(len(found), width, dtype=matrix.dtype)
        whole[found] = matrix
        matrix = whole
    return matrix, found


def _tensor(column: pa.Array) -> Tensor:
    """Return numbers as a tensor over the same memory, which must not be written to."""
    return torch.from_dlpack(column)


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    return {name: tensor[start:stop] for name, tensor in batch.items()}


def _joined(first: Batch, second: Batch) -> Batch:
    if not _rows(first) or not _rows(second):
        return second if not _rows(first) else first
    return {name: torch.cat([first[name], second[name]]) for name in first}


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values()))) if batch else 0


def _refused(file: Path, name: str, reason: str, rows: int) -> InputDataError:
    return InputDataError([Problem(str(file), name, reason, rows, "Choose other columns or make the set again.")])
