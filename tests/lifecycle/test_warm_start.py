"""A retrain from the old weights: kept near them it goes on with its version, let loose it becomes the next one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from feature_repo import lifecycle
from feature_repo.contracts.errors import ConfigError, NotReadyError
from feature_repo.contracts.naming import join_key
from jobs import backfill, demo, refresh, train_upstream, versions, warm_start
from jobs.config import Config, Upstream
from jobs.config import save as save_config
from jobs.workspace import Workspace
from models.upstream.alignment import alignment_loss

SMALL = Config(
    preset="debug",
    epochs=3,
    upstreams=(Upstream(version="v1"),),
    consumers=(),
    history_actions=demo.CONFIG.history_actions,
    refresh_days=14,
    threads=1,
)
CUT = datetime(2017, 10, 8, tzinfo=UTC)
DRIFT = {"cosine_mean", "cosine_p01", "turned_share", "identity", "space", "dimension_order", "rank_ratio", "smoothing"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("warm") / "home"
    demo.ingest_journey(root, households=80)
    opened = Workspace.open(root)
    save_config(SMALL, opened.home)
    opened = Workspace.open(root)
    train_upstream.run(opened, "v1")
    backfill.run(opened, end=CUT + timedelta(hours=1))
    # Retrains take many passes, so that without the loss they lead somewhere else.
    save_config(SMALL.model_copy(update={"epochs": 20}), opened.home)
    return opened


@pytest.fixture
def ws(trained: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(trained.home.root, tmp_path / "home")
    return Workspace.open(tmp_path / "home")


def test_near_the_old_weights_the_version_goes_on(ws: Workspace) -> None:
    result = warm_start.run(ws, "v1", CUT)
    assert result.continues == "v1" and result.version is None and result.reasons() == []
    assert result.space.space_id != ws.ledger.version("v1").space_id
    assert [version.version for version in ws.ledger.versions()] == ["v1"]
    assert warm_start.run(ws, "v1", CUT) == result
    assert versions.details(ws, "v1")["continued by"] == f"{result.space.space_id} from 2017-10-08"
    before, after = CUT - timedelta(days=14), CUT + timedelta(days=14)
    assert lifecycle.model_at(ws.ledger, "v1", before).space_id == ws.ledger.version("v1").space_id
    done = refresh.run(ws, "v1", after)
    own = ws.ledger.version("v1").space_id
    assert {item.snapshot.space_id for item in done.publications} == {own}
    # What was published is what the new model says, smoothed: the gate ran it again, and so does this.
    told = {check.name: check.passed for item in done.publications for check in item.snapshot.verdict.checks}
    assert told["agreement"] is True
    model = refresh.Upstream(ws, result.space)
    ids, fresh, _ = model.infer("item", after)
    old_ids, old = refresh.read_vectors(ws.home.root / ws.ledger.snapshots("item_embedding_v1")[-2].path, "item_id")
    earlier, known = refresh.aligned(ids, old_ids, old)
    _, stored = refresh.read_vectors(ws.home.root / done.publications[1].snapshot.path, join_key("item"))
    assert np.allclose(stored, refresh.stabilize(fresh, earlier, known, 0.8), atol=1e-5)
    with pytest.raises(ConfigError, match="trained on events up to 2017-10-08 already"):
        warm_start.run(ws, "v1", CUT - timedelta(days=7))


def test_let_loose_it_becomes_the_next_version_and_the_gate_says_why(ws: Workspace) -> None:
    """The very training of the test above but for the weight of the alignment loss."""
    result = warm_start.run(ws, "v1", CUT, alignment=0.0)
    assert result.continues is None and result.version == "v2"
    assert {check.name for _, check in result.reasons()} <= DRIFT
    assert any(check.name == "cosine_mean" for _, check in result.reasons())
    assert ws.ledger.version("v2").space_id == result.space.space_id
    assert len(lifecycle.models_of(ws.ledger, "v1")) == 1
    again = Workspace.open(ws.home.root)
    assert train_upstream.run(again, "v2").reused
    assert warm_start.run(again, "v1", CUT, alignment=0.0).version == "v2"
    assert versions.next_version(again) == "v3"


def test_there_must_be_something_to_go_on_from(ws: Workspace) -> None:
    with pytest.raises(ConfigError, match="already: choose a later"):
        warm_start.run(ws, "v1", ws.splits.upstream_end)
    for item in ws.ledger.snapshots("item_embedding_v1"):
        ws.ledger.put_snapshot(replace(item, accepted=False))
    with pytest.raises(NotReadyError, match="item_embedding_v1 has no snapshot before 2017-10-08"):
        warm_start.run(ws, "v1", CUT)


def test_the_alignment_loss_is_one_less_the_cosine() -> None:
    new, old = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert float(alignment_loss(new, old)) == pytest.approx(1.0)
    assert float(alignment_loss(new, new)) == pytest.approx(0.0)
