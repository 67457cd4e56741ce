"""A reader that never rests: it holds everything that can be read against what it has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.small_home import START, vectors
from feature_repo import lifecycle, releases
from feature_repo.contracts.errors import HeadwaterError
from feature_repo.contracts.naming import ENTITIES
from feature_repo.contracts.types import Snapshot
from feature_repo.lake import Home, sha256_of
from feature_repo.stores.twin import current
from jobs.refresh import read_vectors
from jobs.release import check_parts
from jobs.workspace import Workspace


def watch(root: Path, feast: bool, ready: Any, stop: Any, found: Any) -> None:
    """Set `ready` after a first read, read until `stop` is set, and put loops and errors into the queue `found`."""
    errors: list[str] = []
    loops = 0
    ws = Workspace.open(root)
    store: Any = None
    while not stop.is_set() or loops == 0:
        loops += 1
        try:
            errors += _snapshots(ws) + _bridged(ws) + _release(ws)
            if feast and (root / "feast" / "registry.db").exists():
                from jobs.store import open_store

                store = store or open_store(Home(root))
                errors += _online(ws, store)
        except Exception as error:  # whatever a reader meets is what this measures
            errors.append(f"{type(error).__name__}: {error}")
        ready.set()
    found.put((loops, errors[:5], len(errors)))


def _snapshots(ws: Workspace) -> list[str]:
    """Check that every accepted snapshot of the ledger is there, with the recorded bytes and the right values."""
    return [
        f"{item.snapshot_id} is not what the ledger says"
        for item in ws.ledger.snapshots(accepted=True)
        # Asked once more: a snapshot may be pruned between the two looks.
        if not _intact(ws, item) and item in ws.ledger.snapshots(accepted=True) and not _intact(ws, item)
    ]


def _intact(ws: Workspace, item: Snapshot) -> bool:
    path = ws.home.root / item.path
    try:
        if sha256_of(path) != item.sha256:
            return False
        _, stored = read_vectors(path, f"{item.entity}_id")
        twin = current(path)
    except (OSError, HeadwaterError):
        return False
    expected = vectors(item.version or "", item.entity, item.as_of)
    return np.array_equal(stored, expected) and (twin is None or twin.rows == item.rows)


def _bridged(ws: Workspace) -> list[str]:
    """Check that users and items that a bridge made are published together."""
    carried = lifecycle.bridged(ws.ledger)
    known = {item.snapshot_id for item in ws.ledger.snapshots(accepted=True)}
    return [
        f"{name} was published alone"
        for name in carried
        if {f"{entity}_{name.split('_', 1)[1]}" for entity in ENTITIES} - known
    ]


def _release(ws: Workspace) -> list[str]:
    live = releases.current_release(ws.ledger)
    if live is None:
        return []
    check_parts(ws, live)
    return []


def _online(ws: Workspace, store: Any) -> list[str]:
    """Check that each vector online is the one that its clock says, for some ids of every embedding view known."""
    from feast.errors import FeatureViewNotFoundException

    wrong = []
    for view in ws.ledger.views():
        key = f"{view.entity}_id"
        names = [f"{view.name}:embedding", f"{view.name}:available_us"]
        try:
            answer = store.get_online_features(names, [{key: value} for value in range(100, 110)]).to_dict()
        except FeatureViewNotFoundException:
            continue
        except Exception as error:
            if "no such table" in str(error):  # registered this moment, and nothing was ever loaded
                continue
            raise
        for place, (vector, clock) in enumerate(zip(answer["embedding"], answer["available_us"], strict=True)):
            if vector is None and clock is None:
                continue
            as_of = START + (np.datetime64(clock, "us").item().replace(tzinfo=START.tzinfo) - START)
            expected = vectors(view.version or "", view.entity, as_of - ws.config.availability_lag)[place]
            if not np.array_equal(np.asarray(vector, np.float32), expected):
                wrong.append(f"{view.name} answers for {key} {100 + place} with a vector of another moment")
    return wrong
