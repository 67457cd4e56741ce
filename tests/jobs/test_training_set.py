"""Training sets with labels of one's own, over a home folder whose snapshots are written by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from feature_repo.contracts.errors import ConfigError, LakeError
from feature_repo.contracts.types import Space, Verdict, Version, View
from feature_repo.stores import twin
from jobs import apply, training_set
from jobs import config as settings
from jobs.cli import app
from jobs.config import Config, Consumer, Splits, Upstream
from jobs.publication import clocked, publish
from jobs.refresh import EMBEDDING_FIELDS
from jobs.workspace import Workspace

START = datetime(2024, 1, 1, tzinfo=UTC)
LAG = timedelta(hours=1)
USERS = 6
pytestmark = pytest.mark.filterwarnings("ignore")


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def snapshot(ws: Workspace, as_of: datetime, users: list[int], space: str) -> None:
    """Publish vectors that tell user and day."""
    vectors = [[float(user), float((as_of - START).days)] for user in users]
    table = pa.table(
        {
            "user_id": pa.array(users, pa.int64()),
            "embedding": pa.array(vectors, pa.list_(pa.float32())),
            "norm": pa.array([1.0] * len(users), pa.float32()),
        }
    )
    view = View("user_embedding_v1", "user", "v1", "int64", EMBEDDING_FIELDS, 10)
    publish(
        ws,
        view,
        clocked(table, as_of + LAG),
        as_of,
        space_id=space,
        available_at=as_of + LAG,
        gate=lambda staged: Verdict(True, ()),
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Ten days of events and three snapshots; user 5 is in the last one only, which its model's data outlasts."""
    rows = []
    for number in range(200):
        moment, user = day(number * 0.05), number % USERS
        rows.append((moment, user, number % 4, "impression", number))
        if number % 3 == 0:
            rows.append((moment + timedelta(minutes=5), user, number % 4, "click", number))
    columns = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(tmp_path / "log.parquet")
    home = tmp_path / "home"
    done = CliRunner().invoke(
        app, ["ingest", "parquet", "--events", str(tmp_path / "log.parquet"), "--home", str(home), "--name", "tiny"]
    )
    assert done.exit_code == 0, done.output
    ws = Workspace.open(home)
    splits = Splits(upstream_end=day(2), train_end=day(6), valid_end=day(8), end=day(10))
    consumers = (Consumer(name="ctr_ranker", task="ctr", versions=("v1",)),)
    settings.save(Config(splits=splits, upstreams=(Upstream(version="v1"),), consumers=consumers), ws.home)
    ws = Workspace.open(home)
    ws.ledger.put_space(Space("s1", 2, day(5), "f", "artifacts/none"))
    ws.ledger.put_version(Version("v1", "s1", "", "", None))
    snapshot(ws, day(2), [0, 1, 2, 3, 4], "s1")
    snapshot(ws, day(4), [0, 1, 2, 3, 4], "s1")
    snapshot(ws, day(8), [0, 1, 2, 3, 4, 5], "s1")
    apply.run(ws)
    return home


def write_labels(path: Path, rows: list[tuple[int, float, bool]]) -> Path:
    """Write labels (user, day, click); the click arrives a day later."""
    moments = [day(number) for _, number, _ in rows]
    pl.DataFrame(
        {
            "user_id": [user for user, _, _ in rows],
            "event_timestamp": moments,
            "click": [click for _, _, click in rows],
            "label_timestamp": [moment + timedelta(days=1) if rows[i][2] else None for i, moment in enumerate(moments)],
        },
        schema_overrides={
            "event_timestamp": pl.Datetime("us", "UTC"),
            "label_timestamp": pl.Datetime("us", "UTC"),
        },
    ).write_parquet(path)
    return path


ROWS = [
    (0, 3.0, True),
    (0, 4.5, False),
    (5, 5.0, False),
    (1, 1.0, False),
    (2, 19.0, True),
    (9, 9.0, False),
    (3, 5.5, True),
]


def joined(folder: Path) -> list[Any]:
    files = sorted(folder.glob("part-*.parquet"))
    return pl.read_parquet(files)["user_embedding_v1__embedding"].to_list()


def test_labels_of_ones_own(home: Path, tmp_path: Path) -> None:
    labels, out = write_labels(tmp_path / "labels.parquet", ROWS), tmp_path / "joined"
    arguments = ["training-set", "--service", "ctr_ranker", "--labels", str(labels), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--home", str(home)])
    assert done.exit_code == 0, done.exception
    assert "rows/s" in done.output
    assert joined(out) == [[0.0, 2.0], [0.0, 4.0], None, None, None, None, [3.0, 4.0]]
    manifest = training_set.read_json(out / "manifest.json")
    assert manifest["rows"] == 7 and manifest["leaks"] == 0
    assert manifest["gate"]["accepted"] is True
    assert manifest["hit_rates"] == {"user_embedding_v1": pytest.approx(3 / 7)}
    # Naive: 0 at days 3 and 4.5, 5 at day 5, 1 at day 1, 3 at day 5.5 would all read the snapshot of day 8.
    # Before: user 5 at day 5, user 1 at day 1, user 9 is unknown. Past ttl: user 2, 11 days after day 8.
    # The model's data ends on day 5: the snapshots of days 2 and 4 came too early.
    wanted = {"naive_join_would_leak": 5, "before_any_snapshot": 3, "past_ttl": 1, "model_trained_after_as_of": 3}
    assert manifest["leak_report"]["user_embedding_v1"] == wanted
    assert manifest["leak_report"]["any view"] == wanted
    # Of the labels before day 6, the click of day 5.5 arrives after it.
    assert manifest["leak_report"]["labels"] == {"outcomes_after_train_end": 1}
    recorded = {record["service"]: record for record in Workspace.open(home).ledger.training_sets()}
    assert recorded["ctr_ranker: joined"]["leak_report"] == manifest["leak_report"]


def test_a_killed_run_goes_on(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_set, "SHARD_ROWS", 2)
    labels, out = write_labels(tmp_path / "labels.parquet", ROWS), tmp_path / "joined"
    ws = Workspace.open(home)
    first = training_set.run(ws, "ctr_ranker", labels=labels, out=out)
    assert len(first.manifest["files"]) == 4
    (out / "manifest.json").unlink()
    (out / "part-00002.parquet").unlink()
    untouched = (out / "part-00001.parquet").stat().st_mtime_ns
    again = training_set.run(ws, "ctr_ranker", labels=labels, out=out)
    assert again.manifest["leak_report"] == first.manifest["leak_report"] and not again.reused
    assert (out / "part-00001.parquet").stat().st_mtime_ns == untouched
    assert joined(out)[4:] == [None, None, [3.0, 4.0]]
    assert training_set.run(ws, "ctr_ranker", labels=labels, out=out).reused


def test_other_labels_start_anew_and_nothing_of_a_stranger_is_removed(home: Path, tmp_path: Path) -> None:
    ws, out = Workspace.open(home), tmp_path / "joined"
    training_set.run(ws, "ctr_ranker", labels=write_labels(tmp_path / "a.parquet", ROWS), out=out)
    training_set.run(ws, "ctr_ranker", labels=write_labels(tmp_path / "b.parquet", ROWS[:2]), out=out)
    assert joined(out) == [[0.0, 2.0], [0.0, 4.0]]
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "part-00000.parquet").write_text("mine")
    with pytest.raises(ConfigError, match="no training set"):
        training_set.run(ws, "ctr_ranker", labels=tmp_path / "b.parquet", out=strange)
    assert (strange / "part-00000.parquet").read_text() == "mine"


def test_the_logs_own_labels(home: Path) -> None:
    result = training_set.run(Workspace.open(home), "ctr_ranker")
    assert result.manifest["rows"] == 160 and result.manifest["gate"]["accepted"]
    assert 0 < result.manifest["hit_rates"]["user_embedding_v1"] < 1


def test_the_gate_refuses_labels_that_find_nothing(home: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.parquet", [(77, 5.0, True), (78, 5.0, False)])
    with pytest.raises(LakeError, match="hits"):
        training_set.run(Workspace.open(home), "ctr_ranker", labels=labels, out=tmp_path / "joined")
    assert not (tmp_path / "joined/manifest.json").exists()


def rate_bound(result: training_set.Result) -> str:
    checks = result.manifest["gate"]["checks"]
    return next(check["bound"] for check in checks if check["name"] == "click_rate")


def test_the_label_rate_is_held_against_the_log_before_and_then_against_the_last_set(home: Path) -> None:
    ws = Workspace.open(home)
    first = training_set.run(ws, "ctr_ranker")
    # Before day 2, when the set begins, the log has 40 impressions, of which every third was clicked.
    assert "0.35 in 40 rows of the past" in rate_bound(first)
    manifest = ws.ledger.training_sets()[0]
    (first.folder / "manifest.json").unlink()
    second = training_set.run(ws, "ctr_ranker")
    assert f"{manifest['label_rate']:.4g} in 160 rows of the past" in rate_bound(second)

    (first.folder / "manifest.json").unlink()
    ws.ledger.put_training_set("ctr_ranker", {**manifest, "label_rate": 0.02, "rows": 100_000})
    with pytest.raises(LakeError, match=r"click_rate .*label_rate_factor"):
        training_set.run(ws, "ctr_ranker")
    settings.save(ws.config.model_copy(update={"label_rate_factor": 50.0}), ws.home)
    assert training_set.run(Workspace.open(home), "ctr_ranker").manifest["gate"]["accepted"]


def test_sampled_labels_are_not_held_against_the_log(home: Path, tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "labels.parquet", ROWS)
    result = training_set.run(Workspace.open(home), "ctr_ranker", labels=labels, out=tmp_path / "joined")
    assert "past" not in rate_bound(result)


def test_published_snapshots_have_a_twin(home: Path) -> None:
    for file in sorted((home / "lake/user_embedding_v1").glob("*.parquet")):
        found = twin.current(file)
        assert found is not None and found.keys == ("user_id",)


def test_labels_without_a_folder_are_refused(home: Path) -> None:
    done = CliRunner().invoke(app, ["training-set", "ctr_ranker", "--labels", "x.parquet", "--home", str(home)])
    assert done.exit_code != 0 and "--out DIR" in str(done.exception)
