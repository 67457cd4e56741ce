"""One's own log through the whole chain: string ids, no impressions, nothing that the code names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from jobs import chain
from jobs import config as settings
from jobs.cli import app
from jobs.config import Config, Upstream
from jobs.workspace import Workspace

START = datetime(2023, 3, 1, tzinfo=UTC)


def write_log(folder: Path, *, impressions: bool) -> None:
    """Write 150 days of events of 60 readers and 80 books in four genres, tastes fixed per reader."""
    rng = np.random.default_rng(11)
    rows = []
    for number in range(9000):
        reader = int(rng.integers(60))
        genre = reader % 4 if rng.random() < 0.7 else int(rng.integers(4))
        book = genre + 4 * int(rng.integers(20))
        time = START + timedelta(minutes=int(rng.integers(0, 150 * 1440)))
        likes = genre == reader % 4
        if impressions:
            rows.append((time, f"r{reader}", f"b{book}", "impression", number))
        if rng.random() < (0.6 if likes else 0.2) or not impressions:
            rows.append((time, f"r{reader}", f"b{book}", "click", number))
            if rng.random() < (0.5 if likes else 0.1):
                rows.append((time + timedelta(hours=3), f"r{reader}", f"b{book}", "conversion", number))
    columns = ["event_timestamp", "user_id", "item_id", "event_type", "impression_id"]
    frame = pl.DataFrame(rows, schema=columns, orient="row").unique(
        ["event_timestamp", "user_id", "item_id", "event_type"], maintain_order=True
    )
    frame.write_parquet(folder / "log.parquet")
    pl.DataFrame({"item_id": [f"b{i}" for i in range(80)], "genre": [f"g{i % 4}" for i in range(80)]}).write_csv(
        folder / "books.csv"
    )


def prepared(tmp_path: Path, *, impressions: bool) -> Path:
    write_log(tmp_path, impressions=impressions)
    home = tmp_path / "home"
    arguments = ["--events", str(tmp_path / "log.parquet"), "--items", str(tmp_path / "books.csv")]
    result = CliRunner().invoke(app, ["ingest", "parquet", *arguments, "--home", str(home), "--name", "books"])
    assert result.exit_code == 0, result.output
    upstreams = (Upstream(version="v1", contrastive_weight=1.0),)
    consumers = tuple(c.model_copy(update={"versions": ("v1",)}) for c in Config().consumers)
    config = Config(
        preset="debug", epochs=4, seeds=1, bootstrap=20, processes=1, upstreams=upstreams, consumers=consumers
    )
    ws = Workspace.open(home)
    settings.save(config, ws.home)
    return home


def test_without_impressions_the_ctr_task_is_skipped_with_a_word(tmp_path: Path) -> None:
    home = prepared(tmp_path, impressions=False)
    result = chain.run(Workspace.open(home))
    assert [skip["task"] for skip in result.skipped] == ["ctr"]
    assert "no impressions" in result.skipped[0]["why"]
    assert {row["task"] for row in result.summary["lift"]} == {"cvr"}
    assert result.summary["retrieval"]
    assert "ctr" in result.report.path.read_text().lower()
    shown = CliRunner().invoke(app, ["status", "--home", str(home)])
    assert shown.exit_code == 0 and "user_embedding_v1" in shown.output


def test_with_impressions_and_string_ids_all_tasks_run(tmp_path: Path) -> None:
    home = prepared(tmp_path, impressions=True)
    result = chain.run(Workspace.open(home))
    assert result.skipped == []
    assert {row["task"] for row in result.summary["lift"]} == {"ctr", "cvr"}
    auc = {row["embeddings"]: row["auc"] for row in result.summary["lift"] if row["task"] == "ctr"}
    assert auc["user+item"] > 0.55, auc
    rows = pl.read_parquet(sorted((home / "training_sets/ctr_ranker").glob("part-*.parquet")))
    assert rows["user_id"].dtype == pl.String
    assert rows["user_embedding_v1__embedding"].null_count() < rows.height


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["train-upstream", "v1"], "holds no dataset yet"),
        (["run"], "holds no dataset yet"),
        (["materialize"], "headwater apply"),
        (["evaluate"], "train-downstream"),
        (["train-downstream", "ctr_ranker"], "headwater training-set"),
        (["train-upstream", "v9"], "v9"),
    ],
)
def test_a_stage_before_its_time_says_what_to_run(tmp_path: Path, command: list[str], says: str) -> None:
    (tmp_path / "home" / "lake").mkdir(parents=True)
    result = CliRunner().invoke(app, [*command, "--home", str(tmp_path / "home")])
    assert result.exit_code != 0
    assert says in str(result.exception)
