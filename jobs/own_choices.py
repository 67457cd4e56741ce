"""What retrieval adds to a user's product with items of the user's own, out of the published choices.

A vector says what someone likes, and not whether it is taken again and again: that is read where it is published, in
``user_choices`` as of the snapshot's own moment. Evaluation, release and serving read the same rows.

Legend: U users, I items, N own items of a user at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.contracts.naming import choices_view, join_key
from feature_repo.contracts.types import Snapshot
from jobs.workspace import Workspace
from models.downstream.retrieval import Own

if TYPE_CHECKING:
    import polars as pl

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

    def of(self, known: Own | None) -> Own | None:
        """Return what is added for known choices; None where nothing is."""
        return None if known is None or not self.weight else Own(known.positions, self.weight * known.added)


def known_choices(ws: Workspace, users: Snapshot, user_ids: pl.Series, item_ids: pl.Series) -> Own | None:
    """Return the choices of some users, [U, N], what is added not weighed yet; None where none may be read.

    Parameters
    ----------
    users
        The snapshot that they are of: choices are those as of its moment.
    user_ids, item_ids
        U and I ids, each once. Own items that are not among the latter are left out.
    """
    import polars as pl

    chosen = choices_before(ws, users)
    if chosen is None:
        return None
    rows = pl.read_parquet(ws.home.root / chosen.path, columns=[join_key("user"), ITEMS, STRENGTHS])
    found = pl.DataFrame({join_key("user"): user_ids}).join(
        rows, on=join_key("user"), how="left", maintain_order="left"
    )
    places = {item: place for place, item in enumerate(item_ids.to_list())}
    return placed(found[ITEMS].to_list(), found[STRENGTHS].to_list(), places)


def placed(
    items: Sequence[Sequence[Any] | None], strengths: Sequence[Sequence[float] | None], places: Mapping[Any, int]
) -> Own:
    """Return U lists of items and as many of strengths as choices, [U, N], what is added not weighed yet.

    Parameters
    ----------
    places
        Item id -> its position; items that have none are left out.
    """
    both = [zip(mine or (), counts or (), strict=True) for mine, counts in zip(items, strengths, strict=True)]
    listed = [[(places[item], strength) for item, strength in pairs if item in places] for pairs in both]
    shape = (len(listed), max(map(len, listed), default=0))
    positions, known = np.full(shape, -1, np.int64), np.zeros(shape)
    for row, mine in enumerate(listed):
        for column, (place, strength) in enumerate(mine):
            positions[row, column], known[row, column] = place, strength
    return Own(positions, np.log1p(known).astype(np.float32))


def choices_before(ws: Workspace, users: Snapshot) -> Snapshot | None:
    """Return the last choices that could be read with a snapshot of users.

    None where there are none as of its moment or before, all are older than their time to live, or the settings
    publish none.
    """
    if not ws.config.own_choices:
        return None
    found = [s for s in ws.ledger.snapshots(choices_view(), accepted=True) if s.as_of <= users.as_of]
    return found[-1] if found and users.as_of - found[-1].as_of <= ws.config.ttl else None
