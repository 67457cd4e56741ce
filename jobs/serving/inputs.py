"""From the rows that were read to a ranker's tensors: whatever is known of items alone is encoded once per release.

Legend: N candidates, R requests, I rows of an item view, C ids and categories, X crosses, M numeric inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from feature_repo.contracts.errors import NotReadyError
from jobs.features.encode import IdTable
from jobs.features.ranking import RankerEncoder
from jobs.serving.rows import PlainRows, SortedIds

if TYPE_CHECKING:
    from jobs.serving.rankers import Rows
    from models.downstream.batches import RankerBatch
    from models.downstream.inputs import RankerSpec


@dataclass(frozen=True)
class _Part:
    """Some of a ranker's columns, encoded: which of the C and of the M they are, int64 [I, c] and float32 [I, m]."""

    cat_at: list[int]
    cats: np.ndarray
    num_at: list[int]
    nums: np.ndarray

    @classmethod
    def of(cls, encoder: RankerEncoder, frame: pl.DataFrame) -> _Part:
        encoded, fields = encoder.encode(frame), encoder.fields
        cats = {at: encoded[name] for at, name in enumerate((*fields.ids, *fields.cats)) if name in encoded}
        nums = encoder.numbers(encoded, [name for name in fields.nums if name in encoded])
        return cls(list(cats), _stacked(cats, frame.height, np.int64), list(nums), _stacked(nums, frame.height, "f4"))

    def put(self, columns: np.ndarray, nums: np.ndarray, rows: np.ndarray) -> None:
        """Write the given rows, int64 [N], into the inputs of N candidates."""
        columns[:, self.cat_at] = self.cats[rows]
        nums[:, self.num_at] = self.nums[rows]


class RankerInputs:
    """Makes the tensors of one ranker from rows as they were read.

    Parameters
    ----------
    plain
        Plain item views; all their rows are encoded here.
    asked
        Columns that come with each request: of the user and of the context.

    Raises
    ------
    NotReadyError
        If a column that the ranker reads comes from nowhere.
    """

    def __init__(
        self,
        encoder: RankerEncoder,
        spec: RankerSpec,
        plain: Mapping[str, PlainRows],
        asked: set[str],
        *,
        integer_ids: bool,
    ) -> None:
        from models.downstream.batches import table_layouts

        known = {name for rows in plain.values() for name in rows.frame.columns} | asked | {"item_id"}
        missing = [name for name in encoder.columns if name not in known]
        if missing:
            raise NotReadyError(
                f"A ranker reads {', '.join(missing)}, which no view has that may be read now. Refresh and materialize."
            )
        self._encoder, self._spec = encoder, spec
        self._items = {view: _Part.of(encoder, rows.frame) for view, rows in plain.items()}
        self._ids = _ItemIds(encoder.ids["item_id"], integer_ids)
        self._item_at = encoder.fields.ids.index("item_id")
        self._layouts = [(list(layout.columns), np.array(layout.offsets)) for layout in table_layouts(spec)]

    def batch(self, rows: Rows) -> RankerBatch:
        """Return the candidates as the model takes them."""
        import torch

        from models.downstream.batches import RankerBatch

        count, spec = len(rows.who), self._spec
        # Crosses read ids and categories, so their columns stand behind them, as in the specification.
        columns = np.empty((count, len(spec.cats) + len(spec.crosses)), np.int64)
        nums = np.empty((count, spec.nums), np.float32)
        for view, part in self._items.items():
            part.put(columns, nums, rows.items[view])
        _Part.of(self._encoder, pl.concat([rows.users, rows.contexts], how="horizontal")).put(columns, nums, rows.who)
        columns[:, self._item_at] = self._ids.encode(rows.item_ids)
        cats = columns[:, : len(spec.cats)]
        columns[:, len(spec.cats) :] = self._encoder.crosses(cats)
        vectors, present = [], np.empty((count, len(spec.embeddings)), np.float32)
        for at, (view, _) in enumerate(spec.embeddings):
            read, user = rows.vectors[view], view.startswith("user")
            vectors.append(torch.from_numpy(read.values[rows.who] if user else read.values))
            present[:, at] = read.found[rows.who] if user else read.found
        ids = tuple(torch.from_numpy(columns[:, chosen] + offsets) for chosen, offsets in self._layouts)
        return RankerBatch(ids, torch.from_numpy(nums), tuple(vectors), torch.from_numpy(present))


class _ItemIds:
    """Rows of an id table, found without making a text of every id."""

    def __init__(self, table: IdTable, integer: bool) -> None:
        self._table = table
        own = pl.Series(table.frequent, dtype=pl.String)
        ids = own.cast(pl.Int64) if integer else own
        order = ids.arg_sort()
        self._found = SortedIds(ids[order].to_arrow())
        # The last one is for ids that are not found.
        self._rows = np.append(order.to_numpy().astype(np.int64) + 1, 0)

    def encode(self, ids: pa.Array) -> np.ndarray:
        if self._table.buckets:
            return self._table.encode(pl.Series(pl.from_arrow(ids)))
        return self._rows[self._found.rows(ids)]


def _stacked(columns: Mapping[int, np.ndarray], rows: int, kind: Any) -> np.ndarray:
    return np.stack(list(columns.values()), axis=1).astype(kind) if columns else np.empty((rows, 0), kind)
