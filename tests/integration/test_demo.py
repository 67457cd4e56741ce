"""The whole way of the data at a tiny size: real data, real Feast, every stage, killed and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from feature_repo.contracts.naming import embedding_view
from feature_repo.ledger import Ledger
from jobs import demo
from jobs.workspace import Workspace
from tests.integration.conftest import HOUSEHOLDS, TINY


def shards(home: Path, service: str) -> pl.DataFrame:
    return pl.read_parquet(sorted((home / "training_sets" / service).glob("part-*.parquet")))


def test_summary_has_the_agreed_shape(home: Path) -> None:
    summary = json.loads((home / "reports/summary.json").read_text())
    assert {"name", "impressions", "clicks", "conversions", "users", "items"} <= summary["dataset"].keys()
    assert [row["version"] for row in summary["versions"]] == ["v1", "v2"]
    assert all({"version", "space_id", "dim", "snapshots"} <= row.keys() for row in summary["versions"])
    assert len({row["space_id"] for row in summary["versions"]}) == 2
    assert summary["gate"]["accepted"] > 0 and summary["gate"]["refused"] == 0
    assert {row["service"] for row in summary["training_sets"]} == {"ctr_ranker", "cvr_ranker"}
    assert all(row["leaks"] == 0 for row in summary["training_sets"])
    wanted = {"task", "embeddings", "auc", "log_loss", "normalized_entropy", "relative_auc_lift", "ci95", "seeds"}
    assert all(wanted <= row.keys() for row in summary["lift"])
    assert [row["embeddings"] for row in summary["lift"] if row["task"] == "ctr"] == [
        "none",
        "user",
        "user+item",
        "user+item, v2 added",
    ]
    assert all({"model", "recall_at_10", "recall_at_50", "recall_at_100"} <= row.keys() for row in summary["retrieval"])
    assert summary["timings_s"]["total"] > 0
    report = (home / "reports/report.html").read_text(encoding="utf-8")
    assert len(report) > 10_000 and 'href="gate/index.html"' in report


def test_a_run_leaves_the_gates_pages_and_the_verdict_on_the_log(home: Path) -> None:
    snapshots = Workspace.open(home).ledger.snapshots()
    newest = {snapshot.view: snapshot.snapshot_id for snapshot in snapshots}
    pages = home / "reports" / "gate"
    assert {path.stem for path in pages.glob("*.html")} - {"index"} == set(newest.values())
    # The gate makes these itself, of every snapshot.
    judged = {path.stem for path in (pages / "data_docs" / "validations").glob("*.html")}
    assert judged == {snapshot.snapshot_id for snapshot in snapshots}
    assert (pages / "data_docs" / "static" / "css" / "bootstrap.min.css").exists()
    verdict = json.loads((home / "reports" / "ingest_verdict.json").read_text())
    assert verdict["accepted"] is True and len(verdict["checks"]) > 6


def test_the_demo_ends_by_serving_what_training_reads(home: Path) -> None:
    skew = json.loads((home / "reports/skew.json").read_text())
    assert skew["passed"] and skew["rows_exact"] == skew["rows"] > 0
    assert all(view["equal"] == view["rows"] for view in skew["views"])
    assert {score["score"] for score in skew["scores"]} == {"ctr", "cvr", "similarity"}
    assert all(score["differing"] == 0 for score in skew["scores"])


@pytest.mark.parametrize("service", ["ctr_ranker", "cvr_ranker"])
def test_no_feature_is_newer_than_its_label_and_each_is_the_latest_allowed(home: Path, service: str) -> None:
    """Replay the join by a loop over labels that reads the published files and the time rules alone."""
    rows = shards(home, service).sample(250, seed=3)
    ttl = timedelta(days=TINY.ttl_days)
    checked = 0
    for view in (*(embedding_view(e, v) for e in ("user", "item") for v in ("v1", "v2")), "user_stats", "item_stats"):
        key = f"{view.split('_')[0]}_id"
        history: dict[int, list[dict]] = {}
        for row in pl.read_parquet(home / "lake" / view / "*.parquet").to_dicts():
            history.setdefault(row[key], []).append(row)
        for label in rows.to_dicts():
            allowed = [
                row
                for row in history.get(label[key], [])
                if row["event_timestamp"] <= label["event_timestamp"] <= row["event_timestamp"] + ttl
            ]
            got = label[f"{view}__available_us"]
            if not allowed:
                assert got is None
                continue
            latest = max(allowed, key=lambda row: (row["event_timestamp"], row["created"]))
            assert got == latest["available_us"]
            column = "embedding" if "embedding" in latest else "clicks_28d"
            assert label[f"{view}__{column}"] == latest[column]
            checked += 1
    assert checked > 500


def test_training_set_holds_every_label_once(home: Path) -> None:
    rows = shards(home, "ctr_ranker")
    ws = Workspace.open(home)
    events = (
        ws.log.scan()
        .collect()
        .filter((pl.col("event_type") == "impression") & (pl.col("event_timestamp") >= ws.splits.upstream_end))
    )
    assert sorted(rows["impression_id"].to_list()) == sorted(events["impression_id"].to_list())


def test_snapshots_know_nothing_after_their_moment(home: Path) -> None:
    """An entity in a snapshot was seen before as_of; unit vectors; nobody without a history has a row."""
    ws = Workspace.open(home)
    for snapshot in ws.ledger.snapshots(embedding_view("user", "v1"), accepted=True):
        frame = pl.read_parquet(home / snapshot.path)
        seen = (
            ws.log.scan()
            .collect()
            .filter(
                (pl.col("event_timestamp") < snapshot.as_of)
                & (pl.col("event_timestamp") >= snapshot.as_of - timedelta(days=TINY.coverage_days))
                & (pl.col("event_type") == "purchase")
            )["user_id"]
            .unique()
        )
        assert set(frame["user_id"].to_list()) == set(seen.to_list())
        length = frame.select(pl.col("embedding").list.eval(pl.element() ** 2).list.sum()).to_series()
        assert length.is_between(0.999, 1.001).all()


def test_smoothing_is_the_declared_mix_of_old_and_new(home: Path) -> None:
    import numpy as np

    from jobs.refresh import Upstream, read_vectors

    ws = Workspace.open(home)
    first, second = ws.ledger.snapshots("user_embedding_v1", accepted=True)[:2]
    old_ids, old_vectors = read_vectors(home / first.path, "user_id")
    old = dict(zip(old_ids.to_list(), old_vectors, strict=True))
    ids, stored = read_vectors(home / second.path, "user_id")
    upstream = Upstream(ws, ws.ledger.space(second.space_id or ""))
    raw_ids, raw, _ = upstream.infer("user", second.as_of)
    assert raw_ids.to_list() == ids.to_list()
    for position, user in enumerate(ids.to_list()):
        mixed = raw[position].astype(float)
        if user in old:
            mixed = 0.8 * old[user].astype(float) + 0.2 * mixed
        assert np.allclose(stored[position], mixed / np.linalg.norm(mixed), atol=1e-5)


def state(home: Path) -> dict[str, object]:
    """Return what a finished home folder holds, without the clocks of its writing."""
    files: dict[str, object] = {}
    for path in sorted((home / "lake").rglob("*.parquet")):
        frame = pl.read_parquet(path)
        kept = [name for name in frame.columns if name != "created"]
        files[str(path.relative_to(home))] = frame.select(kept).hash_rows(seed=1).sum()
    ledger = Ledger(home / "ledger.db")
    summary = json.loads((home / "reports/summary.json").read_text())
    return {
        "files": files,
        "spaces": {version.version: version.space_id for version in ledger.versions()},
        "snapshots": [(s.snapshot_id, s.rows, s.accepted) for s in ledger.snapshots()],
        "lift": summary["lift"],
        "retrieval": summary["retrieval"],
    }


@pytest.mark.timeout(900)  # a dozen starts of the whole chain, on a machine that may be busy
def test_killed_at_random_moments_and_run_again_it_ends_in_the_same_state(home: Path, tmp_path: Path) -> None:
    """Trained side by side, and the other one after the other: that has no influence either."""
    other = tmp_path / "home"
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]);"
        "from tests.integration.conftest import TINY, HOUSEHOLDS; from jobs import demo;"
        "demo.run(Path(sys.argv[1]), households=HOUSEHOLDS, config=TINY.model_copy(update={'processes': 2}))"
    )
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(other), str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills, patience = 0, 4.0
    while True:
        process = subprocess.Popen(command, cwd=root, env=environment, start_new_session=True)
        try:
            assert process.wait(timeout=patience) == 0
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            patience *= 1.7
            time.sleep(0.1)
    assert kills >= 2
    leftovers = [path for path in other.rglob("*") if path.name.endswith(".part")]
    assert not leftovers
    assert state(other) == state(home)


def test_running_a_finished_demo_again_changes_nothing(home: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "lake").rglob("*.parquet")}
    space = [space.space_id for space in Ledger(home / "ledger.db").spaces()]
    timings = json.loads((home / "reports/timings.json").read_text())
    demo.run(home, households=HOUSEHOLDS, config=TINY)
    again = json.loads((home / "reports/timings.json").read_text())
    long = [stage for stage in timings if stage.startswith(("train", "backfill", "ingest", "retrieve"))]
    assert len(long) > 5 and all(again[stage] == timings[stage] for stage in long)
    assert {path: path.stat().st_mtime_ns for path in (home / "lake").rglob("*.parquet")} == before
    assert [space.space_id for space in Ledger(home / "ledger.db").spaces()] == space


def test_plain_feast_reads_what_was_published(home: Path) -> None:
    """Feast's own command line, with the home folder named; the default home needs no variable."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "HEADWATER_HOME": str(home)}
    from jobs.store import open_store

    store = open_store(Workspace.open(home).home)
    names = {view.name for view in store.list_feature_views()}
    assert {"user_embedding_v1", "item_embedding_v2", "user_stats", "item_attributes"} <= names
    code = (
        "import sys; sys.path.insert(0, 'feature_repo'); import definitions;"
        "print(sorted(n for n, v in vars(definitions).items() if type(v).__name__ == 'FeatureView'))"
    )
    seen = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env=environment
    )
    assert "user_embedding_v1" in seen.stdout
    latest = Workspace.open(home).ledger.snapshots("user_embedding_v1", accepted=True)[-1]
    frame = pl.read_parquet(home / latest.path)
    user, vector = frame["user_id"][0], frame["embedding"][0].to_list()
    online = store.get_online_features(["user_embedding_v1:embedding"], [{"user_id": user}]).to_dict()
    assert online["embedding"][0] == pytest.approx(vector, abs=0)


def test_a_snapshot_becomes_readable_after_the_declared_lag(home: Path) -> None:
    ws = Workspace.open(home)
    snapshot = ws.ledger.snapshots("user_stats", accepted=True)[0]
    assert snapshot.available_at - snapshot.as_of == timedelta(minutes=TINY.availability_lag_minutes)
