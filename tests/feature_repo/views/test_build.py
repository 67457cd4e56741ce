"""Feast objects follow the ledger and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feature_repo.contracts.types import Check, Snapshot, Space, Verdict, Version, View
from feature_repo.lake import Home
from feature_repo.ledger import Ledger
from feature_repo.views import feast_objects

T = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.put_space(Space("s1", 8, T, "print", "artifacts/s1", {"dim": 8}))
    ledger.put_version(Version("v1", "s1", "first", "me", 0.8))
    for name in ("user_embedding_v1", "user_embedding_v2"):
        ledger.put_view(View(name, "user", "v1", "int64", {"embedding": "list<float>"}, 30))
    for day, accepted, view in ((1, True, "user_embedding_v1"), (2, True, "user_embedding_v1")):
        as_of = T + timedelta(days=day)
        verdict = Verdict(accepted, (Check("rows", "critical", accepted, 5, ">= 1"),))
        ledger.put_snapshot(
            Snapshot(f"{view}-{day}", view, "user", "v1", "s1", as_of, as_of, 5, "lake/x", "00", accepted, verdict)
        )
    ledger.put_consumer("ctr", "ctr", ["v1"], {"views": ["user_embedding_v1", "user_embedding_v2"]})
    return ledger


def test_only_what_was_published_is_defined(ledger: Ledger, tmp_path: Path) -> None:
    objects = feast_objects(Home(tmp_path), ledger)
    assert set(objects) == {"user", "item", "user_embedding_v1", "ctr"}
    view = objects["user_embedding_v1"]
    assert view.tags["space_id"] == "s1" and view.ttl == timedelta(days=30)
    assert [projection.name for projection in objects["ctr"].feature_view_projections] == ["user_embedding_v1"]


def test_the_same_ledger_gives_the_same_objects_to_the_byte(ledger: Ledger, tmp_path: Path) -> None:
    """Otherwise every `feast apply` says that every view has changed."""
    first, again = (feast_objects(Home(tmp_path), ledger)["user_embedding_v1"].to_proto() for _ in range(2))
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
