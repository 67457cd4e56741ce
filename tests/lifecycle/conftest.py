"""Home folders: one of made-up vectors, two consumers and everything else as it really is, and one of a real model."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from benchmarks import small_home
from jobs.config import Config, Upstream
from jobs.config import save as save_config
from jobs.workspace import Workspace

CUT = datetime(2017, 10, 8, tzinfo=UTC)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Two versions with four snapshots each, a trained ranker on v1, retrieval on v1; Feast was not touched."""
    return small_home.build(tmp_path / "home")


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same, applied and materialized; for tests that change nothing of it but releases."""
    from jobs import apply, materialize

    workspace = small_home.build(tmp_path_factory.mktemp("online") / "home")
    apply.run(workspace)
    materialize.run(workspace, small_home.NOW)
    return workspace


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A real v1 of 80 households, with its own fortnightly snapshots up to CUT."""
    from jobs import backfill, demo, train_upstream

    root = tmp_path_factory.mktemp("learned") / "home"
    demo.ingest_journey(root, households=80)
    small = Config(
        preset="debug",
        epochs=3,
        upstreams=(Upstream(version="v1"),),
        consumers=(),
        history_actions=demo.CONFIG.history_actions,
        refresh_days=14,
        threads=1,
    )
    opened = Workspace.open(root)
    save_config(small, opened.home)
    opened = Workspace.open(root)
    train_upstream.run(opened, "v1")
    backfill.run(opened, end=CUT + timedelta(hours=1))
    # Retrains take many passes, so that without the loss they lead somewhere else.
    save_config(small.model_copy(update={"epochs": 20}), opened.home)
    return opened


@pytest.fixture
def learned(trained: Workspace, tmp_path: Path) -> Workspace:
    """A copy of it."""
    shutil.copytree(trained.home.root, tmp_path / "learned")
    return Workspace.open(tmp_path / "learned")
