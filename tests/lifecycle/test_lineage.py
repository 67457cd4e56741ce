"""Lineage reaches from the events to the AUC, in both directions, and speaks OpenLineage."""

from __future__ import annotations

import json

import pytest

from benchmarks.small_home import NOW, SPACES
from feature_repo import lifecycle
from feature_repo.contracts.errors import NotFoundError
from jobs import lineage, release
from jobs.workspace import Workspace


def names(nodes: list[lineage.Node]) -> set[str]:
    return {node.key for node in nodes}


def test_from_events_to_the_auc_and_back(ws: Workspace) -> None:
    record = {**ws.ledger.consumers()[0]["record"], "auc": {"none": 0.6, "user+item": 0.7}}
    ws.ledger.put_consumer("ctr_ranker", "ctr", ["v1"], record)
    release.create(ws, now=NOW)
    whole = lineage.graph(ws)
    below = whole.downstream("events/print")
    assert {"space", "version", "snapshot", "view", "training set", "consumer", "index", "release"} == {
        n.kind for n in below
    }
    above = names(whole.upstream("release/r1"))
    first = {"events/print", f"space/{SPACES['v1']}", "version/v1", "snapshot/user_embedding_v1-20240107T000000Z"}
    assert first | {"consumer/ctr_ranker", "training set/ctr_ranker"} <= above
    assert not any("v2" in name for name in above)
    assert whole.find("ctr_ranker").facts["AUC"] == {"none": 0.6, "user+item": 0.7}
    assert whole.find("ctr_ranker").kind == "consumer"


def test_a_training_set_comes_only_from_snapshots_that_it_can_have_read(ws: Workspace) -> None:
    sources = lineage.graph(ws).sources["training set/ctr_ranker"]
    assert sorted(key for key in sources if "user" in key) == [
        "snapshot/user_embedding_v1-20240107T000000Z",
        "snapshot/user_embedding_v1-20240114T000000Z",
    ]


def test_a_bridged_snapshot_names_the_space_it_came_from(ws: Workspace) -> None:
    snapshot = ws.ledger.snapshots("user_embedding_v1", accepted=True)[-1].snapshot_id
    lifecycle.publish(ws.ledger, [ws.ledger.snapshot(snapshot)], lifecycle.Origin("artifacts/bridge", SPACES["v3"]))
    whole = lineage.graph(ws)
    assert f"space/{SPACES['v3']}" in whole.sources[f"snapshot/{snapshot}"]
    assert f"snapshot/{snapshot}" in names(whole.downstream(f"space/{SPACES['v3']}"))


def test_any_artifact_is_found_by_its_name_or_its_path(ws: Workspace) -> None:
    made = release.create(ws, now=NOW)
    assert made.index is not None
    whole = lineage.graph(ws)
    index = whole.find(made.index["artifact"])
    assert index.kind == "index" and whole.find(index.name) == index
    assert whole.sources[index.key] == ["snapshot/item_embedding_v1-20240128T000000Z"]
    assert "release/r1" in names(whole.downstream(index.key))
    assert whole.find(str(ws.home.root / "artifacts" / "ctr_ranker-v1")).kind == "consumer"
    assert whole.find("training_sets/ctr_ranker").kind == "training set"
    assert whole.find(f"artifacts/{SPACES['v2']}/").key == f"space/{SPACES['v2']}"
    assert whole.find("lake/user_embedding_v1").kind == "view"
    assert whole.find("lake/user_embedding_v1/20240107T000000Z.parquet").kind == "snapshot"
    for node in whole.nodes.values():
        assert node.kind == "events" or "events/print" in names(whole.upstream(node.key)), node.key


def test_openlineage_events_name_inputs_before_they_are_read(ws: Workspace) -> None:
    release.create(ws, now=NOW)
    whole = lineage.graph(ws)
    events = lineage.openlineage(whole, "v1")
    assert json.loads(json.dumps(events)) == events
    made = {"events/print"}
    for event in events:
        assert {"eventType", "eventTime", "producer", "schemaURL", "run", "job", "inputs", "outputs"} == event.keys()
        assert {item["name"] for item in event["inputs"]} <= made
        made |= {item["name"] for item in event["outputs"]}
    assert [event["eventType"] for event in events] == ["START", "COMPLETE"] * (len(events) // 2)
    assert len({event["run"]["runId"] for event in events}) == len(events) // 2
    assert "release/r1" in made and not any(name.startswith("snapshot/user_embedding_v2") for name in made)
    assert lineage.openlineage(lineage.graph(ws), "v1") == events


def test_rows_for_a_person_sum_up_snapshots(ws: Workspace) -> None:
    rows = lineage.rows(lineage.graph(ws), "ctr_ranker")
    assert [row["name"] for row in rows["This"]] == ["ctr_ranker"] and rows["Made of it"] == []
    summed = {row["name"]: row["facts"] for row in rows["Made from"] if row["kind"] == "snapshots"}
    assert summed["item_embedding_v1"] == f"2 as of 2024-01-07 to 2024-01-14, space: {SPACES['v1']}"


def test_what_was_made_of_a_views_snapshots_was_made_of_the_view(ws: Workspace) -> None:
    release.create(ws, now=NOW)
    whole = lineage.graph(ws)
    made = {(row["kind"], row["name"]) for row in lineage.rows(whole, "user_embedding_v1")["Made of it"]}
    assert made == {("training set", "ctr_ranker"), ("consumer", "ctr_ranker"), ("release", "r1")}
    assert lineage.rows(whole, "user_embedding_v2")["Made of it"] == []
    assert any(event["job"]["name"] == "make consumer" for event in lineage.openlineage(whole, "user_embedding_v1"))


def test_what_is_unknown_is_said(ws: Workspace) -> None:
    with pytest.raises(NotFoundError, match="Nothing is named 'nothing'"):
        lineage.graph(ws).find("nothing")
    assert lineage.graph(ws).find("pri").name == "print"


def test_a_consumer_of_a_version_that_does_not_exist_hides_nothing(ws: Workspace) -> None:
    consumer = ws.ledger.consumers()[0]
    ws.ledger.put_consumer(consumer["name"], consumer["task"], ["v1", "v9"], consumer["record"])
    found = lineage.graph(ws).find("ctr_ranker")
    assert found.facts["spaces"] == {"v1": SPACES["v1"], "v9": "unknown"}
