"""A home folder in which everything is real but the models: vectors come from a seed, and every gate says yes.

The crash matrix and the tests of versions and releases work on copies of it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from feature_repo.contracts.naming import ENTITIES, embedding_view, join_key
from feature_repo.contracts.types import Check, Entity, Space, Verdict, Version, View
from feature_repo.lake import write_json
from feature_repo.lifecycle import Origin
from jobs.config import Config, Consumer, Splits, Upstream, save
from jobs.publication import Candidate, Publication, clocked, publish_together, published
from jobs.refresh import EMBEDDING_FIELDS, vector_table
from jobs.workspace import Workspace

START, WEEK, DIM = datetime(2024, 1, 7, tzinfo=UTC), timedelta(days=7), 8
NOW = START + 3 * WEEK + timedelta(hours=2)
SPACES = {"v1": "1111111111111111", "v2": "2222222222222222", "v3": "3333333333333333"}
SIZES = {"user": 60, "item": 40}
CONFIG = Config(
    splits=Splits(upstream_end=START, train_end=START + 2 * WEEK, valid_end=START + 3 * WEEK, end=START + 9 * WEEK),
    ttl_days=14,
    upstreams=(Upstream(version="v1"), Upstream(version="v2", seed=1)),
    consumers=(
        Consumer(name="ctr_ranker", task="ctr", versions=("v1",)),
        Consumer(name="retrieval", task="retrieval", versions=("v1",)),
    ),
)


def build(root: Path, *, refreshes: int = 4) -> Workspace:
    """Make the home folder: v1 and v2 with weekly snapshots, v3 trained only, both consumers trained on v1."""
    ws = Workspace.open(root)
    save(CONFIG, ws.home)
    ws = Workspace.open(root)
    for version, space_id in SPACES.items():
        ws.ledger.put_space(Space(space_id, DIM, START, "print", f"artifacts/{space_id}", {"dim": DIM}))
        if version != "v3":
            ws.ledger.put_version(Version(version, space_id, f"the {version}", "me", None))
    for week in range(refreshes):
        for version in ("v1", "v2"):
            refresh(ws, version, START + week * WEEK)
    train(ws, "ctr_ranker", "v1")
    record = {"views": [embedding_view(entity, "v1") for entity in ENTITIES], "artifact": "artifacts/retrieval-1"}
    write_json({"space_id": SPACES["v1"]}, ws.home.artifacts / "retrieval-1" / "index.json")
    ws.ledger.put_consumer("retrieval", "retrieval", ["v1"], record)
    return ws


def vectors(version: str, entity: str, as_of: datetime) -> np.ndarray:
    """Return unit vectors float32 [N, D] that depend on nothing but what they are for."""
    seed = [int(version[1:]), len(entity), int((as_of - START) / WEEK)]
    values = np.random.default_rng(seed).normal(size=(SIZES[entity], DIM))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def refresh(
    ws: Workspace, version: str, as_of: datetime, *, accept: bool = True, bridge: Origin | None = None
) -> list[Publication]:
    """Publish both entities' vectors as a refresh does, or as a bridge does, with a gate that knows its answer."""
    verdict = Verdict(accept, (Check("rows", "critical", accept, 1, ">= 1"),))
    found: list[Publication] = []
    waiting: list[Candidate] = []
    clocks: dict[str, Any] = {
        "space_id": ws.ledger.version(version).space_id,
        "available_at": as_of + ws.config.availability_lag,
    }
    with ws.home.lock(f"refresh-{version}"):
        for entity in ENTITIES:
            done = published(ws, embedding_view(entity, version), as_of)
            if done is not None:
                found.append(Publication(done, 0.0, reused=True))
                continue
            waiting.append(candidate(ws, version, entity, as_of, verdict))
            if bridge is None:
                found += publish_together(ws, [waiting.pop()], as_of, **clocks)
        if waiting:
            found += publish_together(ws, waiting, as_of, origin=bridge, **clocks)
    return found


def candidate(ws: Workspace, version: str, entity: Entity, as_of: datetime, verdict: Verdict) -> Candidate:
    """Return what asks to become the snapshot of a view, with a gate that gives `verdict`."""
    values = vectors(version, entity, as_of)
    ids = pl.Series(np.arange(len(values), dtype=np.int64) + 100)
    rows = vector_table(join_key(entity), ids, values, np.ones(len(values), np.float32))
    rows = rows.replace_schema_metadata({"space_id": ws.ledger.version(version).space_id, "version": version})
    view = View(embedding_view(entity, version), entity, version, "int64", EMBEDDING_FIELDS, ws.config.ttl_days)
    return Candidate(view, clocked(rows, as_of + ws.config.availability_lag), lambda staged: verdict)


def train(ws: Workspace, consumer: str, version: str) -> None:
    """Write what stands for a trained ranker and the training set it learned from."""
    views = [embedding_view(entity, version) for entity in ENTITIES]
    folder = ws.home.artifacts / f"{consumer}-{version}"
    write_json({"spaces": {version: ws.ledger.version(version).space_id}, "variants": []}, folder / "consumer.json")
    (folder / "weights").write_bytes(version.encode() * 100)
    manifest = {
        "service": consumer,
        "task": "ctr",
        "request": {"views": views, "fingerprint": "print"},
        "spaces": {version: ws.ledger.version(version).space_id},
        "start": START.isoformat(),
        "end": (START + 2 * WEEK).isoformat(),
        "rows": 10,
        "files": [],
    }
    write_json(manifest, ws.home.training_sets / consumer / "manifest.json")
    ws.ledger.put_training_set(consumer, manifest)
    record = {"views": views, "artifact": str(folder.relative_to(ws.home.root))}
    ws.ledger.put_consumer(consumer, "ctr", [version], record)
