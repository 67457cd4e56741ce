"""A retrain from the old weights: kept near them it goes on with its version, let loose it becomes the next one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import torch

from feature_repo import lifecycle
from feature_repo.contracts.errors import ConfigError, NotReadyError
from feature_repo.contracts.naming import join_key
from feature_repo.views import feast_objects
from jobs import lineage, refresh, train_upstream, versions, warm_start
from jobs.workspace import Workspace
from models.upstream.alignment import alignment_loss
from tests.lifecycle.conftest import CUT

DRIFT = {"cosine_mean", "cosine_p01", "turned_share", "identity", "space", "dimension_order", "rank_ratio", "smoothing"}


def test_near_the_old_weights_the_version_goes_on(learned: Workspace) -> None:
    result = warm_start.run(learned, "v1", CUT)
    assert result.continues == "v1" and result.version is None and result.reasons() == []
    assert result.space.space_id != learned.ledger.version("v1").space_id
    assert [version.version for version in learned.ledger.versions()] == ["v1"]
    assert warm_start.run(learned, "v1", CUT) == result
    words = f"{result.space.space_id} (trained on from it) from 2017-10-08"
    assert versions.details(learned, "v1")["continued by"] == words
    before, after = CUT - timedelta(days=14), CUT + timedelta(days=14)
    assert lifecycle.model_at(learned.ledger, "v1", before).space_id == learned.ledger.version("v1").space_id
    done = refresh.run(learned, "v1", after)
    own = learned.ledger.version("v1").space_id
    assert {item.snapshot.space_id for item in done.publications} == {own}
    # What was published is what the new model says, smoothed: the gate ran it again, and so does this.
    told = {check.name: check.passed for item in done.publications for check in item.snapshot.verdict.checks}
    assert told["agreement"] is True
    model = refresh.Upstream(learned, result.space)
    ids, fresh, _ = model.infer("item", after)
    old_ids, old = refresh.read_vectors(
        learned.home.root / learned.ledger.snapshots("item_embedding_v1")[-2].path, "item_id"
    )
    earlier, known = refresh.aligned(ids, old_ids, old)
    _, stored = refresh.read_vectors(learned.home.root / done.publications[1].snapshot.path, join_key("item"))
    assert np.allclose(stored, refresh.stabilize(fresh, earlier, known, 0.8), atol=1e-5)
    _check_lineage(learned, result.space.space_id)
    with pytest.raises(ConfigError, match="trained on events up to 2017-10-08 already"):
        warm_start.run(learned, "v1", CUT - timedelta(days=7))


def _check_lineage(ws: Workspace, model: str) -> None:
    """Check that the version names the model that continues it, and the model its start and what it made."""
    own, events = ws.ledger.version("v1").space_id, f"events/{ws.log.fingerprint}"
    whole = lineage.graph(ws)
    assert whole.find("v1").facts["continued by"] == f"{model} (trained on from it) from 2017-10-08"
    assert whole.find(model).facts["trained on from"] == own
    later, before = (f"snapshot/item_embedding_v1-201710{day}T000000Z" for day in (22, "08"))
    assert {f"space/{model}", "version/v1", before, events} == set(whole.sources[later])
    # What lay there before the retrain was made by the version's own model, although the new one's time had begun.
    assert f"space/{own}" in whole.sources[before] and f"space/{model}" not in whole.sources[before]
    assert f"space/{own}" in {node.key for node in whole.upstream(f"space/{model}")}
    assert later in {node.key for node in whole.downstream(f"space/{model}")}
    log = whole.find(ws.log.fingerprint[:8])
    assert log.facts["rows"] == ws.log.record.rows and log.facts["log"] == ws.log.record.name
    assert whole.sources["snapshot/user_stats-20171008T000000Z"] == [events]
    summed = {row["name"]: row["facts"] for row in lineage.rows(whole, ws.log.fingerprint[:8])["Made of it"]}
    assert "space" not in summed["user_stats"] and f"space: {own}" in summed["user_embedding_v1"]
    tags = feast_objects(ws.home, ws.ledger)["item_embedding_v1"].tags
    assert tags["continued_by"] == model and tags["event_fingerprint"] == ws.log.fingerprint


def test_let_loose_it_becomes_the_next_version_and_the_gate_says_why(learned: Workspace) -> None:
    """The very training of the test above but for the weight of the alignment loss."""
    result = warm_start.run(learned, "v1", CUT, alignment=0.0)
    assert result.continues is None and result.version == "v2"
    assert {check.name for _, check in result.reasons()} <= DRIFT
    assert any(check.name == "cosine_mean" for _, check in result.reasons())
    assert learned.ledger.version("v2").space_id == result.space.space_id
    assert len(lifecycle.models_of(learned.ledger, "v1")) == 1
    again = Workspace.open(learned.home.root)
    assert train_upstream.run(again, "v2").reused
    assert warm_start.run(again, "v1", CUT, alignment=0.0).version == "v2"
    assert versions.next_version(again) == "v3"


def test_there_must_be_something_to_go_on_from(learned: Workspace) -> None:
    with pytest.raises(ConfigError, match="already: choose a later"):
        warm_start.run(learned, "v1", learned.splits.upstream_end)
    for item in learned.ledger.snapshots("item_embedding_v1"):
        learned.ledger.put_snapshot(replace(item, accepted=False))
    with pytest.raises(NotReadyError, match="item_embedding_v1 has no snapshot before 2017-10-08"):
        warm_start.run(learned, "v1", CUT)


def test_the_alignment_loss_is_one_less_the_cosine() -> None:
    new, old = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    assert float(alignment_loss(new, old)) == pytest.approx(1.0)
    assert float(alignment_loss(new, new)) == pytest.approx(0.0)
