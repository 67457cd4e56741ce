"""One request of one user and many candidates, out of the rows of a training set, as serving ranks it.

Legend: N candidates, C ids and categories, X crosses, M numeric inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from jobs.features.ranking import RankerEncoder
from models.downstream.inputs import RankerData, gathered
from models.downstream.ranker import Ranker
from models.downstream.request import Asked, Candidates, Columns, RequestRanker, Sources


def sources_of(encoder: RankerEncoder, embeddings: Iterable[str]) -> Sources:
    """Return where serving finds the inputs: a plain view of items, the request, or for an item's id a look-up."""
    cats, nums = (*encoder.fields.ids, *encoder.fields.cats), encoder.numbers_read
    views = sorted({name.split("__")[0] for name in (*cats, *nums) if name.startswith("item_") and "__" in name})

    def of(names: tuple[str, ...], view: str) -> tuple[int, ...]:
        return tuple(at for at, name in enumerate(names) if name.startswith(f"{view}__"))

    items = tuple(Columns(of(cats, view), of(nums, view)) for view in views)
    ahead = {at for part in items for at in part.cats} | {encoder.fields.ids.index("item_id")}
    numbers = {at for part in items for at in part.nums}
    asked = Columns(
        tuple(at for at in range(len(cats)) if at not in ahead),
        tuple(at for at in range(len(nums)) if at not in numbers),
    )
    return Sources(asked, items, frozenset(name for name in embeddings if name.startswith("user")))


def of_one_user(encoder: RankerEncoder, data: RankerData, row: int) -> RankerData:
    """Return all rows as if the user of one row had been asked about their items, at that row's moment."""
    asked = sources_of(encoder, ()).asked
    cats, nums = data.cats.copy(), data.nums.copy()
    cats[:, asked.cats], nums[:, asked.nums] = cats[row, asked.cats], nums[row, asked.nums]
    embeddings = {}
    for name, value in data.embeddings.items():
        table, index = gathered(value)
        embeddings[name] = (table, np.full_like(index, index[row]) if name.startswith("user") else index)
    return replace(data, cats=cats, nums=nums, crosses=encoder.crosses(cats), embeddings=embeddings)


class OneRequest:
    """A request: each call gathers what serving gathers for it, and ranks.

    Parameters
    ----------
    data
        The candidates, all of one user (:func:`of_one_user`).
    """

    def __init__(self, ranker: Ranker, encoder: RankerEncoder, data: RankerData) -> None:
        names = [name for name, _ in ranker.spec.embeddings]
        sources = sources_of(encoder, names)
        self._ready = RequestRanker(ranker, sources)
        self._columns = np.concatenate([data.cats, data.crosses], axis=1).astype(np.int64)
        self._known = [
            self._ready.encode(at, self._ready.items[at].ids(self._columns), data.nums[:, part.nums])
            for at, part in enumerate(sources.items)
        ]
        self._nums = data.nums[:1, sources.asked.nums]
        found = {name: gathered(data.embeddings[name]) for name in names if name in data.embeddings}
        self._users = [found[name] for name in found if name in sources.asked_embeddings]
        self._items = [found[name] for name in found if name not in sources.asked_embeddings]
        self._rows = np.arange(len(data))

    def __call__(self) -> Tensor:
        """Return logits [N]."""
        users = tuple(torch.from_numpy(table[np.maximum(index[:1], 0)]) for table, index in self._users)
        items = tuple(torch.from_numpy(table.take(np.maximum(index, 0), axis=0)) for table, index in self._items)
        here = [index >= 0 for _, index in self._items]
        present = None if all(there.all() for there in here) else torch.from_numpy(np.stack(here, 1).astype(np.float32))
        return self.rank(users, items, tuple(bool(index[0] >= 0) for _, index in self._users), present)

    def rank(
        self, users: tuple[Tensor, ...], items: tuple[Tensor, ...], known: tuple[bool, ...], present: Tensor | None
    ) -> Tensor:
        """Return logits [N] for vectors that are there already, [1, D] of the user and [N, D] of the items."""
        asked = Asked(self._ready.asked.ids(self._columns[:1]), self._nums, users, known)
        plain = tuple(torch.from_numpy(table.take(self._rows, axis=0)) for table in self._known)
        ids = self._ready.lookups.ids(self._columns.take(self._rows, axis=0))
        return self._ready(asked, Candidates(plain, ids, items, present))
