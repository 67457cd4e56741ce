"""From arrays to tensors: prepared once per data set, then gathered batch by batch.

Shapes: N rows, B batch, F fields of one table, M numeric inputs, G embedding inputs, E distinct vectors,
D embedding dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.downstream.inputs import RankerData, RankerSpec, gathered

# Above this many rows a table gets sparse gradients: a dense step over it would cost more than the model.
SPARSE_ROWS = 50_000


@dataclass(frozen=True)
class TableLayout:
    """One weight table that several fields of the same dim share, each with its own range of rows.

    One lookup per table instead of one per field: with a dozen fields this is the larger part of the cost.
    """

    dim: int
    rows: int
    sparse: bool
    columns: tuple[int, ...]  # positions in cats followed by crosses
    sizes: tuple[int, ...]  # vocabulary size of each field
    offsets: tuple[int, ...]  # first row of each field


def table_layouts(spec: RankerSpec) -> tuple[TableLayout, ...]:
    """Return the weight tables of a specification: one per (dim, sparse or dense gradients)."""
    groups: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    for column, (_, size, dim) in enumerate((*spec.cats, *spec.crosses)):
        groups.setdefault((dim, size > SPARSE_ROWS), []).append((column, size))
    layouts = []
    for (dim, sparse), fields in sorted(groups.items()):
        columns, sizes = zip(*fields, strict=True)
        offsets = tuple(int(offset) for offset in np.cumsum([0, *sizes[:-1]]))
        layouts.append(TableLayout(dim, sum(sizes), sparse, columns, sizes, offsets))
    return tuple(layouts)


@dataclass(frozen=True)
class RankerBatch:
    """The tensors of B rows."""

    ids: tuple[Tensor, ...]  # one [B, F] per table layout, offsets added
    nums: Tensor  # [B, M], NaN where missing
    vectors: tuple[Tensor, ...]  # one [B, D] per embedding; any finite value where missing
    present: Tensor  # [B, G], 1.0 where the embedding is there


class RankerTensors:
    """The tensors of one data set, ready to be gathered.

    Parameters
    ----------
    data
        The rows; checked against `spec`.
    spec
        Names the inputs to keep.

    Raises
    ------
    ValueError
        If the data does not fit the specification.
    """

    def __init__(self, data: RankerData, spec: RankerSpec) -> None:
        data.check(spec)
        columns = np.concatenate([data.cats, data.crosses], axis=1).astype(np.int64)
        self._ids = tuple(
            torch.from_numpy(columns[:, layout.columns] + np.array(layout.offsets)) for layout in table_layouts(spec)
        )
        self._nums = torch.from_numpy(np.ascontiguousarray(data.nums, dtype=np.float32))
        self._tables: list[Tensor] = []
        self._rows: list[Tensor] = []
        present = np.empty((len(data), len(spec.embeddings)), dtype=np.float32)
        for position, (name, dim) in enumerate(spec.embeddings):
            table, index = gathered(data.embeddings[name])
            missing = index < 0
            present[:, position] = ~missing
            # A missing row reads any vector known to be finite; the model multiplies it by `present` = 0.
            if missing.all():
                table, fallback = np.zeros((1, dim), dtype=np.float32), 0
            else:
                fallback = int(index[~missing][0])
            self._tables.append(torch.from_numpy(np.require(table, np.float32, ["C", "W"])))
            self._rows.append(torch.from_numpy(np.where(missing, fallback, index).astype(np.int64)))
        self._present = torch.from_numpy(present)
        self.label = torch.from_numpy(data.label.astype(np.float32))
        self.weight = torch.from_numpy(data.weight.astype(np.float32))

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, rows: Tensor) -> RankerBatch:
        """Return the batch of the given row positions ``[B]``, int64."""
        return RankerBatch(
            tuple(ids.index_select(0, rows) for ids in self._ids),
            self._nums.index_select(0, rows),
            tuple(
                table.index_select(0, index.index_select(0, rows))
                for table, index in zip(self._tables, self._rows, strict=True)
            ),
            self._present.index_select(0, rows),
        )
