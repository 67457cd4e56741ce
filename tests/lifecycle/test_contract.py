"""Vectors of two spaces never meet: not offline, not online, not in a ranker, not in an index, not in a release."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.small_home import NOW, SPACES, START, vectors
from feature_repo.contracts.errors import NotFoundError, SpaceMismatchError
from feature_repo.contracts.spaces import check_pins, check_read
from feature_repo.lake import write_json
from feature_repo.stores.bank import ItemBank
from feature_repo.stores.packed import EmbeddingReader
from feature_repo.views import feast_objects
from jobs import release, train_downstream
from jobs.serving.candidates import Candidates
from jobs.store import open_store
from jobs.workspace import Workspace
from models.downstream.index_files import load_index, save_index

MIXED = ["user_embedding_v1:embedding", "item_embedding_v2:embedding"]
PAIRS = [*MIXED, "item_embedding_v1:embedding", "user_embedding_v2:embedding"]


def test_every_artifact_says_its_space(ws: Workspace) -> None:
    views = {name: found for name, found in feast_objects(ws.home, ws.ledger).items() if "embedding" in name}
    assert {view.tags["space_id"] for view in views.values()} == {SPACES["v1"], SPACES["v2"]}
    assert feast_objects(ws.home, ws.ledger)["ctr_ranker"].tags["space_ids"] == SPACES["v1"]
    assert {item.space_id for item in ws.ledger.snapshots("user_embedding_v2")} == {SPACES["v2"]}
    assert ws.ledger.training_sets()[0]["spaces"] == {"v1": SPACES["v1"]}
    made = release.create(ws, now=NOW)
    assert made.versions == {"v1": SPACES["v1"]}
    assert made.index is not None and made.index["space_id"] == SPACES["v1"]
    assert load_index(ws.home.root / made.index["artifact"]).space_id == SPACES["v1"]


def test_mixed_reads_are_refused_online_by_plain_feast(online: Workspace) -> None:
    store = open_store(online.home)
    rows = [{"user_id": 100, "item_id": 100}]
    with pytest.raises(SpaceMismatchError, match="is read together with"):
        store.get_online_features(MIXED, rows)
    both = store.get_online_features(PAIRS, rows, full_feature_names=True).to_dict()
    assert both["user_embedding_v1__embedding"][0] is not None
    alone = store.get_online_features(["user_embedding_v1:embedding"], [{"user_id": 100}]).to_dict()
    assert np.array_equal(np.float32(alone["embedding"][0]), vectors("v1", "user", START + timedelta(weeks=3))[0])


def test_feast_shows_versions_spaces_freshness_and_owners_and_applying_again_changes_nothing(
    online: Workspace, tmp_path: Path
) -> None:
    """Feast's own command, on the same home folder, finds nothing to change and drops no live view."""

    def registered() -> dict[str, Any]:
        store = open_store(online.home)
        found: list[Any] = [*store.list_feature_views(), *store.list_feature_services(), *store.list_entities()]
        return {item.name: (item, getattr(item, "materialization_intervals", None)) for item in found}

    store = open_store(online.home)
    service, view = store.get_feature_service("ctr_ranker"), store.get_feature_view("user_embedding_v1")
    assert service.owner == "downstream team" and view.owner == "me"
    assert (service.tags["versions"], service.tags["space_ids"]) == ("v1", SPACES["v1"])
    assert service.tags["upstream_owners"] == "me" and service.tags["event_fingerprints"] == "print"
    fresh = (START + timedelta(weeks=3)).isoformat()
    assert service.tags["latest_as_of"] == f"user_embedding_v1={fresh},item_embedding_v1={fresh}"
    assert (view.tags["version"], view.tags["space_id"], view.tags["latest_as_of"]) == ("v1", SPACES["v1"], fresh)
    before = registered()
    assert {f"{entity}_embedding_{version}" for entity in ("user", "item") for version in ("v1", "v2")} <= before.keys()
    root = Path(__file__).resolve().parents[2]
    values = yaml.safe_load((root / "feature_repo" / "feature_store.yaml").read_text())
    values["registry"]["path"] = str(online.home.feast / "registry.db")
    values["online_store"]["path"] = str(online.home.feast / "online.db")
    (tmp_path / "store.yaml").write_text(yaml.safe_dump(values))
    feast = [str(Path(sys.executable).parent / "feast"), "-c", "feature_repo", "-f", str(tmp_path / "store.yaml")]
    environment = {**os.environ, "HEADWATER_HOME": str(online.home.root)}
    done = subprocess.run([*feast, "apply"], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0 and "Applying changes for project headwater" in done.stdout, done.stdout + done.stderr
    assert not [word for word in ("Created", "Updated", "Deleted", "Removing") if word in done.stdout], done.stdout
    assert registered() == before


def test_readers_of_two_spaces_give_no_products(online: Workspace) -> None:
    """Who reads the stores' bytes himself meets the same check where vectors are multiplied."""
    users = EmbeddingReader(open_store(online.home), "user_embedding_v1", "embedding")
    banks = {
        version: ItemBank(online.home.root / item.path, "item_id", "embedding")
        for version in ("v1", "v2")
        for item in online.ledger.snapshots(f"item_embedding_{version}", accepted=True)[-1:]
    }
    assert users.space_id == SPACES["v1"] and banks["v2"].space_id == SPACES["v2"]
    asked, answers = users.read([100, 101], NOW), {name: bank.read([100, 102], NOW) for name, bank in banks.items()}
    week = START + timedelta(weeks=3)
    expected = vectors("v1", "user", week)[:2] @ vectors("v1", "item", week)[[0, 2]].T
    assert np.allclose(asked.scores(answers["v1"]), expected, atol=1e-6)
    with pytest.raises(SpaceMismatchError, match=r"the vectors of two reads \(1{16} and 2{16}\)"):
        asked.scores(answers["v2"])
    users.close()


def test_mixed_reads_are_refused_offline_by_plain_feast(online: Workspace) -> None:
    store = open_store(online.home)
    label = START + timedelta(days=3)
    labels = pd.DataFrame({"user_id": [100], "item_id": [100], "event_timestamp": pd.to_datetime([label])})
    with pytest.raises(SpaceMismatchError, match="their products mean nothing"):
        store.get_historical_features(labels, MIXED, full_feature_names=True)
    joined = store.get_historical_features(labels, PAIRS, full_feature_names=True).to_df()
    assert np.array_equal(joined["item_embedding_v2__embedding"][0], vectors("v2", "item", START)[0])


def test_a_read_needs_both_sides_of_a_space() -> None:
    check_read([])
    check_read([("user", "a", "u1"), ("user", "b", "u2")])
    check_read([("user", "a", "u1"), ("item", "a", "i1")])
    with pytest.raises(SpaceMismatchError, match="u2"):
        check_read([("user", "a", "u1"), ("user", "b", "u2"), ("item", "a", "i1")])


def test_a_consumer_is_fed_only_the_space_it_learned(ws: Workspace) -> None:
    with pytest.raises(SpaceMismatchError, match=r"ctr was trained with space a as 'v1', but is given b"):
        check_pins({"v1": "a"}, {"v1": "b"}, who="ctr")
    with pytest.raises(SpaceMismatchError, match="is given None"):
        check_pins({"v1": "a"}, {}, who="ctr")
    write_json({"spaces": {"v1": SPACES["v2"]}}, ws.home.artifacts / "ctr_ranker-v1" / "consumer.json")
    with pytest.raises(SpaceMismatchError, match="The consumer ctr_ranker was trained with space 2222"):
        release.create(ws, now=NOW)


def test_a_ranker_does_not_learn_from_another_space(ws: Workspace) -> None:
    manifest = {"rows": 10, "request": {"views": []}, "spaces": {"v1": SPACES["v2"]}}
    write_json(manifest, ws.home.training_sets / "ctr_ranker" / "manifest.json")
    with pytest.raises(SpaceMismatchError, match="The training set of ctr_ranker"):
        train_downstream.run(ws, "ctr_ranker")


def test_an_index_is_searched_by_its_own_space_only(tmp_path: Path) -> None:
    items = vectors("v1", "item", START)
    save_index(tmp_path / "index", np.arange(len(items)) + 7, items, space_id="a", notes={"snapshot_id": "s"})
    index = load_index(tmp_path / "index")
    ids, scores = index.search(items[:5], 3, space_id="a")
    assert ids[:, 0].tolist() == [7, 8, 9, 10, 11] and np.allclose(scores[:, 0], 1, atol=1e-5)
    with pytest.raises(SpaceMismatchError, match="item index"):
        index.search(items[:5], 3, space_id="b")
    online = Candidates(tmp_path / "index", {}, 0)
    assert online.search(items[:5], "a", 3, None)[0][:, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(SpaceMismatchError, match="the item index and the users that search it"):
        online.search(items[:5], "b", 3, None)
    with pytest.raises(TypeError, match="space_id"):
        index.search(items[:5], 3)  # type: ignore[call-arg]
    (tmp_path / "index" / "ids.npy").unlink()
    with pytest.raises(NotFoundError, match=r"ids\.npy missing"):
        load_index(tmp_path / "index")


def test_a_snapshot_of_another_space_gets_no_index(ws: Workspace) -> None:
    latest = ws.ledger.snapshots("item_embedding_v1", accepted=True)[-1]
    ws.ledger.put_snapshot(type(latest)(**{**latest.__dict__, "space_id": SPACES["v2"]}))
    with pytest.raises(SpaceMismatchError, match="v1 and its snapshot"):
        release.create(ws, now=NOW)
    assert pq.read_metadata(ws.home.root / latest.path).num_rows == latest.rows
