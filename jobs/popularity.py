"""What retrieval adds to an item's product for how often it was chosen lately, out of the published counts of items.

Vectors of length 1 say who likes what, and of two items that one likes equally nothing says which is bought more. The
counts are those of ``item_stats`` as of the snapshot's own moment: evaluation, release and serving read the same rows.

Legend: I items.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.naming import join_key, stats_view
from feature_repo.contracts.types import Snapshot
from jobs.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

VIEW = stats_view("item")
_COLUMNS = {"impression": "impressions_28d", "click": "clicks_28d", "conversion": "conversions_28d"}


@dataclass(frozen=True)
class Popularity:
    """How much an item's counts add to its products: weight * log(1 + count).

    Attributes
    ----------
    weight
        Against inner products of vectors of length 1; 0 adds nothing.
    columns
        Of ``item_stats``, summed.
    """

    weight: float = 0.0
    columns: tuple[str, ...] = ()

    @classmethod
    def of_actions(cls, actions: Iterable[str], weight: float) -> Popularity:
        """Return it for event types: outcomes have columns of their own, everything else is counted as activity."""
        return cls(weight, tuple(dict.fromkeys(_COLUMNS.get(action, "activity_28d") for action in actions)))

    @classmethod
    def read(cls, told: dict[str, Any] | None) -> Popularity:
        """Return what :meth:`told` wrote; nothing is added where nothing was written."""
        return cls(told["weight"], tuple(told["columns"])) if told else cls()

    def told(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"weight": self.weight, "columns": list(self.columns)}

    def offsets(self, ws: Workspace, items: Snapshot, ids: pl.Series) -> np.ndarray | None:
        """Return what is added per item, float32 [I]; None where nothing is.

        Parameters
        ----------
        items
            The snapshot whose items are searched: counts are those as of its moment.
        ids
            Of the items, I of them. Who is not counted adds nothing.
        """
        import numpy as np
        import polars as pl

        counted = self.counts(ws, items)
        if counted is None:
            return None
        frame = pl.read_parquet(ws.home.root / counted.path, columns=[join_key("item"), *self.columns])
        counts = frame.select(pl.col(join_key("item")), count=pl.sum_horizontal(self.columns).cast(pl.Float64))
        found = pl.DataFrame({join_key("item"): ids}).join(
            counts, on=join_key("item"), how="left", maintain_order="left"
        )
        return (self.weight * np.log1p(found["count"].fill_null(0).to_numpy())).astype(np.float32)

    def counts(self, ws: Workspace, items: Snapshot) -> Snapshot | None:
        """Return the last snapshot of the counts up to an item snapshot's moment; None where nothing is added."""
        if not self.weight:
            return None
        found = [s for s in ws.ledger.snapshots(VIEW, accepted=True) if s.as_of <= items.as_of]
        return found[-1] if found else None
