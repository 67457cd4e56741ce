"""A new model goes on in an old space: what is published is of the old space, on record, and through the gate."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest

from benchmarks import small_home
from benchmarks.small_home import SPACES, START, WEEK
from feature_repo import lifecycle
from feature_repo.contracts.errors import ConfigError, NotReadyError, SnapshotRefusedError
from feature_repo.contracts.types import Check, Verdict
from feature_repo.views import feast_objects
from jobs import bridge, compare, lineage, refresh
from jobs.workspace import Workspace

TURN = np.linalg.qr(np.random.default_rng(1).normal(size=(small_home.DIM, small_home.DIM)))[0].astype(np.float32)
LATER = START + 6 * WEEK
original = small_home.vectors


def turned(version: str, entity: str, as_of: datetime) -> np.ndarray:
    """The second version is the first one, rotated."""
    return original("v1", entity, as_of) @ (TURN if version == "v2" else np.eye(small_home.DIM, dtype=np.float32))


class Model:
    """Stands for the second version's model: gives its vectors for every entity."""

    tables = None
    origin: ClassVar[dict[str, str]] = {}

    def __init__(self, ws: Workspace, space: Any) -> None:
        self.space = space

    def ids(self, entity: str, as_of: datetime) -> pl.Series:
        return pl.Series(np.arange(small_home.SIZES[entity], dtype=np.int64) + 100)

    def infer(self, entity: str, as_of: datetime, only: object = None) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        vectors = turned("v2", entity, as_of)
        return self.ids(entity, as_of), vectors, np.ones(len(vectors), np.float32)


@pytest.fixture
def bridged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(small_home, "vectors", turned)
    monkeypatch.setattr(small_home, "SIZES", {"user": 300, "item": 200})
    monkeypatch.setattr(refresh, "Upstream", Model)
    verdict = Verdict(True, (Check("rows", "critical", True, 1, ">= 1"),))
    monkeypatch.setattr(refresh, "judge", lambda *_: verdict)
    return small_home.build(tmp_path / "home")


def test_a_rotated_space_is_carried_over(bridged: Workspace) -> None:
    ws = bridged
    result = bridge.run(ws, "v2", "v1", LATER)
    for publication in result.publications:
        snapshot = publication.snapshot
        assert snapshot.space_id == SPACES["v1"] and snapshot.version == "v1"
        _, stored = refresh.read_vectors(ws.home.root / snapshot.path, f"{snapshot.entity}_id")
        assert np.einsum("nd,nd->n", stored, original("v1", snapshot.entity, LATER)).mean() > 0.99
        record = lifecycle.bridged(ws.ledger)[snapshot.snapshot_id]
        assert record["from_space"] == SPACES["v2"] and (ws.home.root / record["artifact"]).is_dir()
        assert result.held_out[snapshot.entity][result.kinds[snapshot.entity]] > 0.99

    whole, bridge_key = lineage.graph(ws), f"bridge/{result.artifact.name}"
    assert whole.find("v1").facts["continued by"] == f"{SPACES['v2']} (v2, over a bridge) from 2024-02-18"
    sources = whole.sources[f"snapshot/{result.publications[0].snapshot.snapshot_id}"]
    assert {bridge_key, f"space/{SPACES['v2']}"} <= set(sources)
    assert len([key for key in whole.sources[bridge_key] if key.startswith("snapshot")]) == 12
    tags = feast_objects(ws.home, ws.ledger)["user_embedding_v1"].tags
    assert tags["bridged_from"] == SPACES["v2"] and tags["bridge"].endswith(result.artifact.name)


def test_the_bridge_stays_the_same_and_the_moment_is_published_once(bridged: Workspace) -> None:
    first = bridge.run(bridged, "v2", "v1", LATER)
    again = bridge.run(bridged, "v2", "v1", LATER)
    later = bridge.run(bridged, "v2", "v1", LATER + WEEK)
    assert [item.reused for item in again.publications] == [True, True]
    assert first.artifact == later.artifact
    assert bridge.common_moments(bridged, "v2", "v1")[-1] == START + 3 * WEEK


def test_what_cannot_be_bridged_is_refused(bridged: Workspace) -> None:
    with pytest.raises(ConfigError, match="has a snapshot of its own"):
        bridge.run(bridged, "v2", "v1", START + 3 * WEEK)
    with pytest.raises(ConfigError, match="no bridge into itself"):
        bridge.run(bridged, "v1", "v1", LATER)
    with pytest.raises(NotReadyError, match="was trained on events up to"):
        bridge.run(bridged, "v2", "v1", START - WEEK)
    with pytest.raises(NotReadyError, match="no snapshots of one moment up to"):
        bridge.common_moments(bridged, "v2", "v1", START - WEEK)


def test_users_are_not_published_when_items_are_refused(bridged: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = bridged
    before = ws.ledger.snapshots(accepted=True)

    def judge(ws: Workspace, upstream: Any, version: str, entity: str, path: Path, as_of: datetime) -> Verdict:
        passed = entity == "user"
        return Verdict(passed, (Check("identity", "critical", passed, 0.8, "at least 0.95"),))

    def again(*_: object) -> Verdict:
        # Asked last: nothing may have been moved before the last gate has spoken.
        assert not ws.home.snapshot_file("user_embedding_v1", LATER).exists()
        return Verdict(True, (Check("rows", "critical", True, 1, ">= 1"),))

    monkeypatch.setattr(refresh, "judge", judge)
    with pytest.raises(SnapshotRefusedError, match=r"user_embedding_v1-20240218T000000Z passed and is not published"):
        bridge.run(ws, "v2", "v1", LATER)
    assert ws.ledger.snapshots(accepted=True) == before
    assert not ws.home.snapshot_file("user_embedding_v1", LATER).exists()
    assert not lifecycle.bridged(ws.ledger)
    held = ws.ledger.snapshot("item_embedding_v1-20240218T000000Z")
    assert not held.accepted and (ws.home.root / held.path).exists()
    monkeypatch.setattr(refresh, "judge", again)
    result = bridge.run(ws, "v2", "v1", LATER)
    assert {item.snapshot.snapshot_id for item in result.publications} == set(lifecycle.bridged(ws.ledger))


def test_a_snapshot_of_the_own_model_is_no_bridged_one_any_more(bridged: Workspace) -> None:
    result = bridge.run(bridged, "v2", "v1", LATER)
    lifecycle.publish(bridged.ledger, [item.snapshot for item in result.publications])
    assert not lifecycle.bridged(bridged.ledger)


def test_the_stability_report_of_a_rotation(bridged: Workspace) -> None:
    result = compare.run(bridged, "v1", "v2")
    assert result.as_of == START + 3 * WEEK and result.consumers == []
    for row in result.entities:
        assert row["in both"] == small_home.SIZES[row["entity"]]
        assert abs(row["cosine raw"]) < 0.7 and row["cosine aligned"] > 0.999
        assert row["overlap@10"] > 0.98
        assert row["effective rank v1"] == pytest.approx(row["effective rank v2"], rel=1e-3)
