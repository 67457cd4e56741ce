"""A consumer is recorded only with versions that exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import small_home
from feature_repo.contracts.errors import ConfigError, NotFoundError, NotReadyError
from jobs import apply, retrieve
from jobs.config import Consumer, Upstream
from jobs.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return small_home.build(tmp_path / "home")


def reading(ws: Workspace, *consumers: Consumer, upstreams: tuple[Upstream, ...] = ()) -> Workspace:
    changes = {"consumers": consumers, "upstreams": (*ws.config.upstreams, *upstreams)}
    return Workspace(ws.home, ws.config.model_copy(update=changes))


def test_a_version_that_does_not_exist_leaves_every_consumer_as_it_was(ws: Workspace) -> None:
    before = ws.ledger.consumers()
    fine = Consumer(name="ctr_ranker", task="ctr", versions=("v1", "v2"))
    wrong = Consumer(name="cvr_ranker", task="cvr", versions=("v2", "v9"))
    with pytest.raises(ConfigError, match=r"cvr_ranker reads v9, .*there are: v1, v2"):
        apply.run(reading(ws, fine, wrong))
    assert ws.ledger.consumers() == before


def test_a_version_that_is_not_trained_yet_names_its_training(ws: Workspace) -> None:
    before = ws.ledger.consumers()
    early = reading(ws, Consumer(name="ctr_ranker", task="ctr", versions=("v4",)), upstreams=(Upstream(version="v4"),))
    with pytest.raises(NotReadyError, match="headwater train-upstream v4"):
        apply.run(early)
    assert ws.ledger.consumers() == before


def test_retrieval_records_no_version_that_does_not_exist(ws: Workspace) -> None:
    wrong = reading(ws, Consumer(name="retrieval", task="retrieval", versions=("v1", "v9")))
    with pytest.raises(NotFoundError, match="No version 'v9'"):
        retrieve.run(wrong, "retrieval")
