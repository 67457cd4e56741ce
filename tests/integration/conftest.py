"""The demo at a tiny size, run once for all integration tests; those that change it work on a copy."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs import demo
from jobs.config import Config, Upstream
from jobs.workspace import Workspace

TINY = Config(
    preset="debug",
    epochs=3,
    upstreams=(
        Upstream(version="v1", contrastive_weight=1.0),
        Upstream(version="v2", click_weight=0.0, contrastive_weight=1.0),
    ),
    history_actions=demo.CONFIG.history_actions,
    retrieval_actions=demo.CONFIG.retrieval_actions,
    refresh_days=14,
    ttl_days=30,
    seeds=1,
    bootstrap=20,
    processes=1,
)
HOUSEHOLDS = 80


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "home"
    demo.run(root, households=HOUSEHOLDS, config=TINY)
    return root


@pytest.fixture(scope="module")
def released(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A copy of the finished demo with two releases: `both` is live, `clicks` has no conversion ranker."""
    from jobs import apply, release

    root = tmp_path_factory.mktemp("released") / "home"
    shutil.copytree(home, root)
    ws = Workspace.open(root)
    apply.run(ws)
    now = datetime.now(UTC)
    release.create(ws, ["ctr_ranker", "retrieval"], name="clicks", now=now)
    release.create(ws, ["ctr_ranker", "cvr_ranker", "retrieval"], name="both", now=now)
    release.promote(ws, "clicks", by="me", now=now)
    release.promote(ws, "both", by="me", now=now)
    return ws
