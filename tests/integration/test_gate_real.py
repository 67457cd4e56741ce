"""The gate on real snapshots of a small demo: every corruption is refused by its check, no clean refresh is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from feature_repo.contracts.errors import ConfigError, LakeError, NotFoundError, SnapshotRefusedError
from feature_repo.contracts.types import Entity
from jobs import (
    apply,
    backfill,
    canary,
    canary_retrieval,
    demo,
    gate_faults,
    refresh,
    snapshot,
    train_downstream,
    train_upstream,
    training_set,
)
from jobs.cli import app
from jobs.config import Config, Consumer, Upstream
from jobs.config import save as save_config
from jobs.workspace import Workspace
from validation.faults import FAULTS

NOW = datetime(2018, 1, 2, tzinfo=UTC)
SMALL = Config(
    preset="debug",
    epochs=3,
    upstreams=(Upstream(version="v1"), Upstream(version="v2", click_weight=0.0)),
    consumers=(),
    history_actions=demo.CONFIG.history_actions,
    refresh_days=14,
    processes=1,
)


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("gate") / "home"
    demo.ingest_journey(root, households=80)
    opened = Workspace.open(root)
    save_config(SMALL, opened.home)
    opened = Workspace.open(root)
    for version in ("v1", "v2"):
        train_upstream.run(opened, version)
    backfill.run(opened)
    return opened


@pytest.fixture(scope="module")
def moment(ws: Workspace) -> datetime:
    """The moment whose snapshots are damaged: with enough history for learnt bounds."""
    moments = [item.as_of for item in ws.ledger.snapshots("item_embedding_v1", accepted=True)]
    return moments[2 * len(moments) // 3]


@pytest.fixture(scope="module")
def outcomes(ws: Workspace, moment: datetime) -> dict[str, gate_faults.Outcome]:
    found = gate_faults.inject(ws, "v1", "v2", "item", moment)
    return {outcome.fault: outcome for outcome in found}


def test_fifty_clean_refreshes_were_all_accepted(ws: Workspace) -> None:
    snapshots = [item for item in ws.ledger.snapshots() if item.version is not None]
    assert len(snapshots) >= 50
    assert all(item.accepted for item in snapshots)
    assert all(item.verdict.seconds for item in snapshots)
    agreed = [check.passed for item in snapshots for check in item.verdict.checks if check.name == "agreement"]
    assert agreed == [True] * len(snapshots)
    new = {item.snapshot_id: item.rows for item in snapshots if item.entity == "item"}
    assert len(set(new.values())) > 10


def test_there_are_at_least_fifty_kinds_of_corruption() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert sum(fault.expected == "refused" for fault in FAULTS) >= 50


@pytest.mark.parametrize("fault", [fault.name for fault in FAULTS])
def test_a_corruption_of_a_real_snapshot(fault: str, outcomes: dict[str, gate_faults.Outcome]) -> None:
    outcome = outcomes[fault]
    assert outcome.right, outcome


def test_slow_drift_is_refused_within_twenty_refreshes(ws: Workspace) -> None:
    first = ws.ledger.snapshots("item_embedding_v1", accepted=True)[0]
    outcome = gate_faults.slow_drift(ws, "v1", "item", first.as_of)
    assert outcome.right, outcome


def invoke(ws: Workspace, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments, "--home", str(ws.home.root)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_check_accepts_refuses_and_publishes_nothing(ws: Workspace, moment: datetime, tmp_path: Path) -> None:
    good = ws.home.snapshot_file("item_embedding_v1", moment)
    before = sorted(ws.home.root.rglob("*.parquet")), ws.ledger.snapshots()
    code, out = invoke(ws, "snapshot", "check", str(good), "--version", "v1", "--as-of", moment.isoformat())
    assert code == 0
    assert "agreement" in out and "at least 0.98" in out and out.rstrip().endswith("accepted")

    bad = tmp_path / "bad.parquet"
    pl.read_parquet(good).with_columns(pl.col("item_id").shuffle(seed=1)).write_parquet(bad)
    arguments = ["snapshot", "check", str(bad), "--version", "v1", "--as-of", moment.isoformat(), "--json"]
    code, out = invoke(ws, *arguments)
    verdict = json.loads(out)
    assert code == 3
    assert verdict["accepted"] is False and verdict["seconds"] > 0
    assert all({"name", "observed", "bound", "passed"} <= check.keys() for check in verdict["checks"])
    assert (sorted(ws.home.root.rglob("*.parquet")), ws.ledger.snapshots()) == before


def test_check_needs_to_know_whose_vectors_they_are(ws: Workspace, moment: datetime, tmp_path: Path) -> None:
    path = tmp_path / "nobody.parquet"
    pl.DataFrame({"x": [1]}).write_parquet(path)
    with pytest.raises(ConfigError, match="--entity"):
        snapshot.check(ws, path, "v1", moment)
    assert snapshot.check(ws, path, "v1", moment, entity="user").accepted is False
    with pytest.raises(NotFoundError, match="v9"):
        snapshot.check(ws, path, "v9", moment)


@pytest.fixture
def refused(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> tuple[str, datetime]:
    """A refresh whose model went wrong: its user snapshot is refused and lies in quarantine."""
    at = ws.ledger.snapshots("user_embedding_v1", accepted=True)[-1].as_of
    late = at + timedelta(days=1)
    original = refresh.Upstream.infer

    def permuted(self: refresh.Upstream, entity: str, as_of: datetime, only: object = None) -> object:
        ids, vectors, norms = original(self, entity, as_of, only)  # type: ignore[arg-type]
        order = np.random.default_rng(as_of.day).permutation(vectors.shape[1])
        return ids, vectors[:, order], norms

    monkeypatch.setattr(refresh.Upstream, "infer", permuted)
    with pytest.raises(SnapshotRefusedError):
        refresh.run(ws, "v1", late)
    return ws.ledger.snapshots("user_embedding_v1", accepted=False)[-1].snapshot_id, late


def test_a_refused_snapshot_lies_whole_in_quarantine_and_readers_keep_the_old_one(
    ws: Workspace, refused: tuple[str, datetime]
) -> None:
    snapshot_id, late = refused
    record = ws.ledger.snapshot(snapshot_id)
    folder = ws.home.quarantine / snapshot_id
    assert ws.home.root / record.path == folder / "snapshot.parquet"
    assert pq.read_metadata(folder / "snapshot.parquet").num_rows == record.rows
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["accepted"] is False and verdict["checks"]
    assert not ws.home.snapshot_file("user_embedding_v1", late).exists()
    assert "refused" in invoke(ws, "snapshot", "list", "--refused")[1]


def test_discarding_removes_the_rows_and_keeps_the_record(ws: Workspace, refused: tuple[str, datetime]) -> None:
    snapshot_id, _ = refused
    code, _ = invoke(ws, "snapshot", "discard", snapshot_id, "--by", "Ada", "--why", "wrong model")
    assert code == 0
    assert not (ws.home.quarantine / snapshot_id).exists()
    assert ws.ledger.snapshot(snapshot_id).accepted is False
    states = {row["snapshot"]: row["state"] for row in snapshot.rows(ws)}
    assert states[snapshot_id] == "discarded by Ada: wrong model"
    with pytest.raises(LakeError, match="Refresh"):
        snapshot.accept(ws, snapshot_id, by="Ada", why="after all", now=NOW)


def test_a_file_that_was_changed_in_quarantine_is_not_accepted(ws: Workspace, refused: tuple[str, datetime]) -> None:
    snapshot_id, _ = refused
    path = ws.home.root / ws.ledger.snapshot(snapshot_id).path
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(LakeError, match="not the file that was refused"):
        snapshot.accept(ws, snapshot_id, by="Ada", why="the gate is wrong", now=NOW)


def test_a_person_may_overrule_with_name_and_reason(ws: Workspace, refused: tuple[str, datetime]) -> None:
    snapshot_id, late = refused
    with pytest.raises(ConfigError, match="--why"):
        snapshot.accept(ws, snapshot_id, by="Ada", why=" ", now=NOW)
    code, _ = invoke(ws, "snapshot", "accept", snapshot_id, "--by", "Ada", "--why", "a new order of dimensions")
    assert code == 0
    record = ws.ledger.snapshot(snapshot_id)
    assert record.accepted is True and record.verdict.accepted is False
    assert ws.home.root / record.path == ws.home.snapshot_file("user_embedding_v1", late)
    assert (ws.home.root / record.path).exists() and not (ws.home.quarantine / snapshot_id).exists()
    decision = ws.ledger.decisions()[-1]
    assert (decision.action, decision.by, decision.why) == ("accept", "Ada", "a new order of dimensions")
    with pytest.raises(ConfigError, match="not refused"):
        snapshot.discard(ws, snapshot_id, by="Ada", why="", now=NOW)


def test_nobody_can_overrule_what_no_reader_could_read(
    ws: Workspace, refused: tuple[str, datetime], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    record = ws.ledger.snapshot(refused[0])
    if record.accepted:
        pytest.fail("the fixture's snapshot must be refused")
    unread = replace(record, verdict=replace(record.verdict, checks=(), error="The gate could not finish"))
    monkeypatch.setattr(type(ws.ledger), "snapshot", lambda *_: unread)
    with pytest.raises(ConfigError, match="cannot be overruled"):
        snapshot.accept(ws, refused[0], by="Ada", why="trust me", now=NOW)


@pytest.fixture(scope="module")
def ranked(ws: Workspace) -> Workspace:
    """The same home with a live click ranker."""
    consumer = Consumer(name="ctr_ranker", task="ctr", versions=("v1",))
    save_config(SMALL.model_copy(update={"consumers": (consumer,), "seeds": 1}), ws.home)
    opened = Workspace.open(ws.home.root)
    apply.run(opened)
    training_set.run(opened, "ctr_ranker")
    train_downstream.run(opened, "ctr_ranker")
    return opened


def test_a_canary_compares_two_snapshots_on_the_same_rows(ranked: Workspace, moment: datetime, tmp_path: Path) -> None:
    path = ranked.home.snapshot_file("item_embedding_v1", moment)
    damaged = tmp_path / "damaged.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(pl.col("embedding").shuffle(seed=3)).write_parquet(damaged)

    same = canary.canaries(ranked, "v1", "item", path, path, moment)
    (other,) = canary.canaries(ranked, "v1", "item", damaged, path, moment)

    assert [(item.consumer, item.now) for item in same] == [("ctr_ranker", same[0].before)]
    assert same[0].noise == 0 and same[0].rows > 200
    assert other.before == pytest.approx(same[0].before)
    assert other.now != pytest.approx(other.before, abs=1e-9) and other.noise > 0


def test_a_refresh_asks_the_live_rankers(ranked: Workspace, moment: datetime) -> None:
    path = ranked.home.snapshot_file("item_embedding_v1", moment)
    verdict = snapshot.check(ranked, path, "v1", moment)
    found = next(check for check in verdict.checks if check.name == "canary_ctr_ranker")
    assert verdict.accepted is found.passed is True


def test_no_rows_or_no_ranker_give_no_canary(ranked: Workspace, moment: datetime) -> None:
    path = ranked.home.snapshot_file("item_embedding_v1", moment)
    assert canary.canaries(ranked, "v1", "item", path, path, moment - timedelta(days=300)) == ()
    assert canary.canaries(ranked, "v2", "item", path, path, moment) == ()


@pytest.fixture(scope="module")
def retrieving(ws: Workspace) -> Workspace:
    """The same home with a live retrieval consumer."""
    record = {"views": ["user_embedding_v1", "item_embedding_v1"], "artifact": "artifacts/retrieval-1"}
    ws.ledger.put_consumer("retrieval", "retrieval", ["v1"], record)
    # Eighty households hardly convert; what they buy is there every week.
    save_config(SMALL.model_copy(update={"retrieval_actions": ("purchase",)}), ws.home)
    return Workspace.open(ws.home.root)


@pytest.mark.parametrize("entity", ["user", "item"])
def test_the_canary_of_retrieval_sees_vectors_of_others(
    retrieving: Workspace, moment: datetime, tmp_path: Path, entity: Entity
) -> None:
    path = retrieving.home.snapshot_file(f"{entity}_embedding_v1", moment)
    damaged = tmp_path / "damaged.parquet"
    pl.read_parquet(path).with_columns(pl.col("embedding").shuffle(seed=3)).write_parquet(damaged)

    (same,) = canary_retrieval.retrieval_canaries(retrieving, "v1", entity, path, path, moment)
    (other,) = canary_retrieval.retrieval_canaries(retrieving, "v1", entity, damaged, path, moment)

    assert (same.consumer, same.metric.split("@")[0], same.noise) == ("retrieval", "recall", 0)
    assert same.now == same.before == other.before > 0 and same.rows >= canary.MIN_POSITIVES
    assert other.now < other.before and other.noise > 0


def test_a_refresh_that_retrieval_cannot_use_is_refused(
    retrieving: Workspace, moment: datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = retrieving.home.snapshot_file("item_embedding_v1", moment)
    verdict = snapshot.check(retrieving, path, "v1", moment)
    found = next(check for check in verdict.checks if check.name == "canary_retrieval")
    assert verdict.accepted is found.passed is True

    # A model that says the same nonsense again when it is asked again: agreement cannot see it, the canary can.
    original = canary_retrieval.aligned_pair

    def worse(*arguments: Any) -> Any:
        ids, before, now = original(*arguments)
        return ids, before, np.random.default_rng(0).permutation(now)

    monkeypatch.setattr(canary_retrieval, "aligned_pair", worse)
    verdict = snapshot.check(retrieving, path, "v1", moment)
    assert [check.name for check in verdict.failures()] == ["canary_retrieval"]


def test_retrieval_without_choices_or_on_another_version_gives_no_canary(
    retrieving: Workspace, moment: datetime
) -> None:
    path = retrieving.home.snapshot_file("item_embedding_v1", moment)
    early = moment - timedelta(days=300)
    assert canary_retrieval.retrieval_canaries(retrieving, "v1", "item", path, path, early) == ()
    assert canary_retrieval.retrieval_canaries(retrieving, "v2", "item", path, path, moment) == ()
