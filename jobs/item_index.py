"""The item index of one snapshot: built once, with its recall against exact search measured and kept beside it.

A retrieval consumer that learned to count popularity has its own index: items carry it as one number more.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from feature_repo.contracts.errors import NotReadyError
from feature_repo.contracts.naming import embedding_view, join_key
from feature_repo.contracts.spaces import require_same
from feature_repo.contracts.types import Snapshot
from feature_repo.lake import replacing_folder
from jobs.popularity import Popularity
from jobs.workspace import Workspace


def find_or_build(ws: Workspace, snapshot: Snapshot, popularity: Popularity) -> Path:
    """Return the folder of a snapshot's index, built now if need be; others wait while one builds.

    Recall is measured with the user vectors of the same version that were the latest at the snapshot's moment.

    Raises
    ------
    SpaceMismatchError
        If the snapshot is of another space than its version stands for.
    BusyError
        If another process builds this index right now.
    """
    from jobs.refresh import read_vectors
    from models.downstream.index_files import NOTES_FILE, save_index

    version = snapshot.version
    if version is None:
        raise NotReadyError(f"{snapshot.snapshot_id} holds no vectors. Name an item embedding.")
    space_id = ws.ledger.version(version).space_id
    require_same(
        space_id,
        snapshot.space_id or "none",
        what=f"{version} and its snapshot {snapshot.snapshot_id}",
        remedy="Refresh the version again.",
    )
    counted = popularity.counts(ws, snapshot)
    # Other counts or another weight: another index.
    added = "" if counted is None else f"-{_digest([counted.sha256, popularity.told()])}"
    folder = ws.home.artifacts / f"index-{version}-{snapshot.sha256[:12]}{added}"
    if (folder / NOTES_FILE).exists():
        return folder
    ws.home.artifacts.mkdir(parents=True, exist_ok=True)
    with ws.home.lock(f"index-{version}"):
        if not (folder / NOTES_FILE).exists():
            ids, vectors = read_vectors(ws.home.root / snapshot.path, join_key("item"))
            users = [
                found
                for found in ws.ledger.snapshots(embedding_view("user", version), accepted=True)
                if found.as_of <= snapshot.as_of and (ws.home.root / found.path).exists()
            ]
            queries = read_vectors(ws.home.root / users[-1].path, join_key("user"))[1] if users else None
            notes: dict[str, Any] = {"version": version, "snapshot_id": snapshot.snapshot_id}
            if counted is not None:
                notes |= {"popularity": popularity.told(), "counts": counted.snapshot_id}
            offsets = popularity.offsets(ws, snapshot, ids)
            with replacing_folder(folder) as staged:
                save_index(
                    staged, ids.to_numpy(), vectors, space_id=space_id, notes=notes, queries=queries, offsets=offsets
                )
    return folder


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
