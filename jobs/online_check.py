"""Does the online store hold a version's latest snapshot? Every id's clock is read back, and some vectors whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import join_key
from feature_repo.contracts.types import Snapshot
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from feast import FeatureStore

CHUNK, SAMPLE = 2_000, 200


def check_online(ws: Workspace, snapshot: Snapshot, store: FeatureStore) -> None:
    """Compare what the online store answers with a published snapshot.

    Every id of the snapshot must answer with the snapshot's ``available_us``, and a sample of ids with exactly the
    published vectors.

    Raises
    ------
    NotReadyError
        If the store holds something else, or nothing; the message says how many ids and what to run.
    """
    from feast.errors import FeastObjectNotFoundException

    from jobs.refresh import read_vectors

    key = join_key(snapshot.entity)
    ids, vectors = read_vectors(ws.home.root / snapshot.path, key)
    asked = ids.to_list()
    expected = int(snapshot.available_at.timestamp() * 1_000_000)
    view = snapshot.view
    try:
        clocks: list[Any] = []
        for start in range(0, len(asked), CHUNK):
            clocks += _read(store, view, "available_us", key, asked[start : start + CHUNK])
        places = np.unique(np.linspace(0, len(asked) - 1, min(SAMPLE, len(asked))).astype(int))
        sampled = _read(store, view, "embedding", key, [asked[place] for place in places])
    except FeastObjectNotFoundException as error:
        raise NotReadyError(f"Feast does not know {view} yet. Run `headwater apply`, then materialize.") from error
    wrong = sum(clock != expected for clock in clocks)
    if wrong:
        raise NotReadyError(
            f"The online store lacks {wrong:,} of {len(asked):,} rows of {snapshot.snapshot_id}. "
            "Run `headwater materialize` and promote again."
        )
    different = sum(
        vector is None or not np.array_equal(np.asarray(vector, np.float32), vectors[place])
        for place, vector in zip(places, sampled, strict=True)
    )
    if different:
        raise NotReadyError(
            f"{different} of {len(places)} vectors in the online store differ from {snapshot.snapshot_id}, whose clock "
            "they carry. Run `headwater doctor`, materialize again from before that moment, and promote again."
        )


def _read(store: FeatureStore, view: str, feature: str, key: str, ids: list[Any]) -> list[Any]:
    rows = [{key: value} for value in ids]
    answer: dict[str, list[Any]] = store.get_online_features([f"{view}:{feature}"], rows).to_dict()
    return answer[feature]
