"""Candidates of one item snapshot: by index, among those a filter leaves, and the popular ones for the unknown user.

Legend: R requests, I items of the snapshot, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from feature_repo.contracts.errors import ConfigError
from feature_repo.stores.list_reader import Lists
from jobs.own_choices import ITEMS, STRENGTHS, OwnChoices, placed
from jobs.serving.rows import PlainRows

if TYPE_CHECKING:
    from models.downstream.retrieval import Own

_FILTERS_HELD = 64
_BY = ("conversions_28d", "clicks_28d", "activity_28d", "impressions_28d")


class Candidates:
    """The items of one snapshot, to be searched.

    Parameters
    ----------
    folder
        Of the index.
    plain
        Plain item views: attributes for filters, counts for popularity.
    now
        Microseconds.
    own_choices
        What the release adds for items of a user's own; None for nothing.
    """

    def __init__(
        self,
        folder: Path,
        plain: Mapping[str, PlainRows],
        now: int,
        own_choices: OwnChoices | None = None,
    ) -> None:
        from models.downstream.index_files import load_index

        self._index = load_index(folder)
        self.notes = self._index.notes | ({"own_choices": own_choices.told()} if own_choices else {})
        self.ids = pa.array(self._index.ids)
        self._attributes = self._columns(plain.get("item_attributes"), now)
        self._popular = self._by_popularity(plain.get("item_stats"), now)
        self._held: dict[str, np.ndarray] = {}
        self._own_choices = own_choices or OwnChoices()
        self._places = {item: place for place, item in enumerate(self.ids.to_pylist())} if own_choices else {}

    def __len__(self) -> int:
        return len(self.ids)

    def own(self, chosen: Lists | None) -> Own | None:
        """Return what the choices of R users add, [R, N]; None where the release adds nothing for them."""
        if chosen is None:
            return None
        return self._own_choices.of(placed(chosen.values[ITEMS], chosen.values[STRENGTHS], self._places))

    def search(
        self, users: np.ndarray, space_id: str, k: int, among: np.ndarray | None, own: Own | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of the K best items and their inner products, [R, K]; -1 where there are fewer.

        The order may count popularity and a user's own choices too (`jobs.popularity`, `jobs.own_choices`); the
        products are those of the vectors alone.
        """
        from feature_repo.contracts.spaces import require_same

        require_same(
            self._index.space_id,
            space_id,
            what="the item index and the users that search it",
            remedy="Release an index of the version that serving reads.",
        )
        index = self._index.index
        positions, _ = index.search(users, min(k, len(self)), among, own)
        return positions, index.products(users, positions)

    def popular(self, k: int, among: np.ndarray | None) -> np.ndarray:
        """Return the positions of the most popular items of the last four weeks, int64 [K]."""
        chosen = self._popular
        if among is not None:
            mask = np.zeros(len(self), np.bool_)
            mask[among] = True
            chosen = chosen[mask[chosen]]
        return chosen[:k]

    def among(self, filters: Mapping[str, Any]) -> np.ndarray | None:
        """Return the positions that pass all filters, int64; None where there is none to pass.

        Parameters
        ----------
        filters
            Item attribute -> values that it may have.

        Raises
        ------
        ConfigError
            If items have no such attribute.
        """
        if not filters:
            return None
        name = repr(sorted((key, [str(value) for value in values]) for key, values in filters.items()))
        if name not in self._held:
            passed = np.ones(len(self), np.bool_)
            for key, values in filters.items():
                if key not in self._attributes:
                    raise ConfigError(
                        f"Items have no such attribute. They have {', '.join(self._attributes) or 'none'}."
                    )
                column = self._attributes[key]
                passed &= column.is_in([str(value) for value in values]).fill_null(False).to_numpy()
            if len(self._held) >= _FILTERS_HELD:
                self._held.pop(next(iter(self._held)))
            self._held[name] = np.flatnonzero(passed)
        return self._held[name]

    def _columns(self, rows: PlainRows | None, now: int) -> dict[str, pl.Series]:
        if rows is None:
            return {}
        found = rows.frame[(rows.find(self.ids, now) % rows.frame.height).tolist()]
        names = {name: name.split("__", 1)[1] for name in found.columns if not name.endswith("__available_us")}
        return {short: found[name].cast(pl.String) for name, short in names.items()}

    def _by_popularity(self, rows: PlainRows | None, now: int) -> np.ndarray:
        if rows is None:
            return np.arange(len(self))
        found = rows.frame[(rows.find(self.ids, now) % rows.frame.height).tolist()]
        counts = [found[f"item_stats__{name}"].fill_null(0).to_numpy() for name in _BY]
        return np.lexsort([np.arange(len(self)), *(-count for count in reversed(counts))])
