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
    from models.downstream.ranker import Ranker
    from models.downstream.request import Asked, Candidates, Sources


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

    def put_cats(self, columns: np.ndarray, rows: np.ndarray) -> None:
        """Write the ids and categories of the given rows, int64 [N], into those of N candidates."""
        columns[:, self.cat_at] = self.cats[rows]

    def put_nums(self, nums: np.ndarray, rows: np.ndarray) -> None:
        """Write the numbers of the given rows, int64 [N], into those of N candidates."""
        nums[:, self.num_at] = self.nums[rows]

    def widened(self, columns: int) -> np.ndarray:
        """Return its ids and categories at their places among so many columns, int64 [I, columns]; others are 0."""
        found = np.zeros((len(self.cats), columns), np.int64)
        found[:, self.cat_at] = self.cats
        return found


class RankerInputs:
    """Makes the tensors of one ranker from rows as they were read.

    Parameters
    ----------
    ranker
        Trained.
    plain
        Plain item views; all their rows are encoded here.
    asked
        Columns that come with each request: of the user and of the context.

    Attributes
    ----------
    ready
        The ranker, ready for what :meth:`requests` returns.

    Raises
    ------
    NotReadyError
        If a column that the ranker reads comes from nowhere.
    """

    def __init__(
        self,
        encoder: RankerEncoder,
        ranker: Ranker,
        plain: Mapping[str, PlainRows],
        asked: set[str],
        *,
        integer_ids: bool,
    ) -> None:
        from models.downstream.batches import table_layouts
        from models.downstream.request import RequestRanker

        known = {name for rows in plain.values() for name in rows.frame.columns} | asked | {"item_id"}
        missing = [name for name in encoder.columns if name not in known]
        if missing:
            raise NotReadyError(
                f"A ranker reads {', '.join(missing)}, which no view has that may be read now. Refresh and materialize."
            )
        self._encoder, self._spec = encoder, ranker.spec
        self._items = {view: _Part.of(encoder, rows.frame) for view, rows in plain.items()}
        self._ids = _ItemIds(encoder.ids["item_id"], integer_ids)
        self._item_at = encoder.fields.ids.index("item_id")
        self._layouts = [(list(layout.columns), np.array(layout.offsets)) for layout in table_layouts(ranker.spec)]
        self.ready = RequestRanker(ranker, self._sources())
        self._known = self._encoded()

    def batch(self, rows: Rows) -> RankerBatch:
        """Return the candidates of all requests as the trained model takes them."""
        import torch

        from models.downstream.batches import RankerBatch

        count, spec = len(rows.who), self._spec
        asked = self._asked(rows)
        columns = self._columns(rows, asked)
        nums = np.empty((count, spec.nums), np.float32)
        for view, part in self._items.items():
            part.put_nums(nums, rows.items[view])
        asked.put_nums(nums, rows.who)
        vectors, present = [], np.empty((count, len(spec.embeddings)), np.float32)
        for at, (view, _) in enumerate(spec.embeddings):
            read, user = rows.vectors[view], view.startswith("user")
            vectors.append(torch.from_numpy(read.values[rows.who] if user else read.values))
            present[:, at] = read.found[rows.who] if user else read.found
        ids = tuple(torch.from_numpy(columns[:, chosen] + offsets) for chosen, offsets in self._layouts)
        return RankerBatch(ids, torch.from_numpy(nums), tuple(vectors), torch.from_numpy(present))

    def requests(self, rows: Rows) -> list[tuple[Asked, Candidates]]:
        """Return every request that has candidates as `ready` takes it, in the order of the rows."""
        import torch

        from models.downstream.request import Asked, Candidates

        asked = self._asked(rows)
        columns, nums = self._columns(rows, asked), asked.nums
        own = [rows.vectors[view] for view, _ in self._spec.embeddings if not view.startswith("user")]
        users = [rows.vectors[view] for view, _ in self._spec.embeddings if view.startswith("user")]
        ends = np.searchsorted(rows.who, np.arange(len(nums)), side="right").tolist()
        found = []
        for request, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if start == end:
                continue
            # By a list, and so copied: the bytes of an online store lie at any address.
            vectors = tuple(torch.from_numpy(read.values[[request]]) for read in users)
            present = tuple(bool(read.found[request]) for read in users)
            of_user = Asked(self.ready.asked.ids(columns[start : start + 1]), nums[[request]], vectors, present)
            here = [read.found[start:end] for read in own]
            of_items = Candidates(
                tuple(
                    torch.from_numpy(self._known[view].take(rows.items[view][start:end], axis=0))
                    for view in self._items
                ),
                self.ready.lookups.ids(columns[start:end]),
                tuple(torch.from_numpy(read.values[start:end]) for read in own),
                None
                if all(there.all() for there in here)
                else torch.from_numpy(np.stack(here, axis=1).astype(np.float32)),
            )
            found.append((of_user, of_items))
        return found

    def _sources(self) -> Sources:
        """Return where the inputs come from: a view of items, or the request, or for the item's id a look-up."""
        from models.downstream.request import Columns, Sources

        parts = self._items.values()
        cats = {self._item_at, *(at for part in parts for at in part.cat_at)}
        nums = {at for part in parts for at in part.num_at}
        spec = self._spec
        return Sources(
            Columns(
                tuple(at for at in range(len(spec.cats)) if at not in cats),
                tuple(at for at in range(spec.nums) if at not in nums),
            ),
            tuple(Columns(tuple(part.cat_at), tuple(part.num_at)) for part in parts),
            frozenset(view for view, _ in spec.embeddings if view.startswith("user")),
        )

    def _encoded(self) -> dict[str, np.ndarray]:
        """Return all rows of every plain item view as `ready` takes them."""
        width = len(self._spec.cats) + len(self._spec.crosses)
        return {
            view: self.ready.encode(at, self.ready.items[at].ids(part.widened(width)), part.nums)
            for at, (view, part) in enumerate(self._items.items())
        }

    def _asked(self, rows: Rows) -> _Part:
        return _Part.of(self._encoder, pl.concat([rows.users, rows.contexts], how="horizontal"))

    def _columns(self, rows: Rows, asked: _Part) -> np.ndarray:
        """Return ids, categories and crosses of all candidates, int64 [N, C + X]."""
        spec = self._spec
        # Crosses read ids and categories, so their columns stand behind them, as in the specification.
        columns = np.empty((len(rows.who), len(spec.cats) + len(spec.crosses)), np.int64)
        for view, part in self._items.items():
            part.put_cats(columns, rows.items[view])
        asked.put_cats(columns, rows.who)
        columns[:, self._item_at] = self._ids.encode(rows.item_ids)
        columns[:, len(spec.cats) :] = self._encoder.crosses(columns[:, : len(spec.cats)])
        return columns


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
