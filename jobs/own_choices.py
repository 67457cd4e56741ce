"""What retrieval adds to a user's product with items of the user's own, out of the published choices.

A vector says what someone likes, and not whether it is taken again and again: that is read where it is published, in
``user_choices`` as of the snapshot's own moment. Evaluation, release and serving read the same rows.

Legend: U users, I items, N own items of a user at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feature_repo.contracts.naming import choices_view, join_key
from feature_repo.contracts.types import Snapshot
from jobs.workspace import Workspace

if TYPE_CHECKING:
    import polars as pl

    from models.downstream.retrieval import Own

ITEMS, STRENGTHS = "items", "strengths"


@dataclass(frozen=True)
class OwnChoices:
    """How much a user's own items gain: weight * log(1 + strength).

    Attributes
    ----------
    weight
        Against inner products of vectors of length 1; 0 adds nothing.
    """

    weight: float = 0.0

    @classmethod
    def read(cls, told: dict[str, Any] | None) -> OwnChoices:
        """Return what :meth:`told` wrote; nothing is added where nothing was written."""
        return cls(told["weight"]) if told else cls()

    def told(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"weight": self.weight}

    def own(self, ws: Workspace, users: Snapshot, user_ids: pl.Series, item_ids: pl.Series) -> Own | None:
        """Return what is added per user, ``Own`` [U, N]; None where nothing is.

        Parameters
        ----------
        users
            The snapshot whose users are asked about: choices are those as of its moment.
        user_ids, item_ids
            U and I ids, each once. Own items that are not among the latter are left out.
        """
        import polars as pl

        chosen = self.choices(ws, users)
        if chosen is None:
            return None
        rows = pl.read_parquet(ws.home.root / chosen.path, columns=[join_key("user"), ITEMS, STRENGTHS])
        found = pl.DataFrame({join_key("user"): user_ids}).join(
            rows, on=join_key("user"), how="left", maintain_order="left"
        )
        places = {item: place for place, item in enumerate(item_ids.to_list())}
        return self.placed(found[ITEMS].to_list(), found[STRENGTHS].to_list(), places)

    def placed(
        self,
        items: Sequence[Sequence[Any] | None],
        strengths: Sequence[Sequence[float] | None],
        places: Mapping[Any, int],
    ) -> Own:
        """Return what is added per user, ``Own`` [U, N], from U lists of items and as many of strengths.

        Parameters
        ----------
        places
            Item id -> its position; items that have none are left out.
        """
        import numpy as np

        from models.downstream.retrieval import Own

        both = [zip(mine or (), counts or (), strict=True) for mine, counts in zip(items, strengths, strict=True)]
        listed = [[(places[item], strength) for item, strength in pairs if item in places] for pairs in both]
        shape = (len(listed), max(map(len, listed), default=0))
        positions, known = np.full(shape, -1, np.int64), np.zeros(shape)
        for row, mine in enumerate(listed):
            for column, (place, strength) in enumerate(mine):
                positions[row, column], known[row, column] = place, strength
        return Own(positions, (self.weight * np.log1p(known)).astype(np.float32))

    def choices(self, ws: Workspace, users: Snapshot) -> Snapshot | None:
        """Return the last snapshot of the choices up to a user snapshot's moment; None where nothing is added."""
        if not self.weight:
            return None
        found = [s for s in ws.ledger.snapshots(choices_view(), accepted=True) if s.as_of <= users.as_of]
        return found[-1] if found else None
