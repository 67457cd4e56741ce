"""Does the online store hold a view's latest snapshot? Every id's clock is read back, and some rows whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import choices_view, join_key
from feature_repo.contracts.types import Snapshot
from jobs.own_choices import ITEMS, STRENGTHS
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from feast import FeatureStore

CHUNK, SAMPLE = 2_000, 200


def check_online(ws: Workspace, snapshot: Snapshot, store: FeatureStore) -> None:
    """Compare what the online store answers with a published snapshot.

    Every id of the snapshot must answer with the snapshot's ``available_us``, and a sample of ids with exactly the
    published vectors, or lists.

    Raises
    ------
    NotReadyError
        If the store holds something else, or nothing; the message says how many ids and what to run.
    """
    from feast.errors import FeastObjectNotFoundException

    key = join_key(snapshot.entity)
    lists = [ITEMS, STRENGTHS] if snapshot.view == choices_view() else ["embedding"]
    published = pl.read_parquet(ws.home.root / snapshot.path, columns=[key, *lists])
    asked = published[key].to_list()
    expected = int(snapshot.available_at.timestamp() * 1_000_000)
    view = snapshot.view
    try:
        clocks: list[Any] = []
        for start in range(0, len(asked), CHUNK):
            clocks += _read(store, view, "available_us", key, asked[start : start + CHUNK])
        places = np.unique(np.linspace(0, len(asked) - 1, min(SAMPLE, len(asked))).astype(int))
        rows = published[places.tolist()]
        sampled = {name: _read(store, view, name, key, rows[key].to_list()) for name in lists}
    except FeastObjectNotFoundException as error:
        raise NotReadyError(f"Feast does not know {view} yet. Run `headwater apply`, then materialize.") from error
    wrong = sum(clock != expected for clock in clocks)
    if wrong:
        raise NotReadyError(
            f"The online store lacks {wrong:,} of {len(asked):,} rows of {snapshot.snapshot_id}. "
            "Run `headwater materialize` and promote again."
        )
    wanted = zip(*(rows[name].to_list() for name in lists), strict=True)
    different = sum(
        any(one is None or list(one) != two for one, two in zip(stored, row, strict=True))
        for stored, row in zip(zip(*sampled.values(), strict=True), wanted, strict=True)
    )
    if different:
        raise NotReadyError(
            f"{different} of {len(places)} rows in the online store differ from {snapshot.snapshot_id}, whose clock "
            "they carry. Run `headwater doctor`, materialize again from before that moment, and promote again."
        )


def _read(store: FeatureStore, view: str, feature: str, key: str, ids: list[Any]) -> list[Any]:
    rows = [{key: value} for value in ids]
    answer: dict[str, list[Any]] = store.get_online_features([f"{view}:{feature}"], rows).to_dict()
    return answer[feature]
