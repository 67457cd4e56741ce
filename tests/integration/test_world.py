"""A simulated log through the whole chain: no code names it, and the lift table places every row below its oracle."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from feature_repo.contracts.errors import ConfigError
from jobs import chain, evaluate, ingest, simulate
from jobs import config as settings
from jobs.cli import app
from jobs.config import Consumer, Upstream
from jobs.workspace import Workspace
from jobs.world.config import WorldConfig

WORLD = WorldConfig(users=120, items=150, days=45, seed=2, impressions=30_000)


def test_the_lift_table_says_which_share_of_the_possible_gain_was_captured(tmp_path: Path) -> None:
    world = simulate.run(WORLD, tmp_path / "world").folder
    tables = {name: (str(world / f"{name}.parquet"),) for name in ("users", "items")}
    events = (str(world / "events"),)
    ingest.run(
        ingest.IngestConfig(home=tmp_path / "home", name="world", events=events, **tables, now=datetime.now(UTC))
    )
    ws = Workspace.open(tmp_path / "home")
    small = {
        "preset": "debug",
        "seeds": 2,
        "bootstrap": 20,
        "processes": 1,
        "upstreams": (Upstream(version="v1"),),
        "consumers": (Consumer(name="ctr_ranker", task="ctr", versions=("v1",), seeds=1),),
    }
    # The settings that simulate wrote, as `headwater run --config` takes them, and smaller models.
    settings.save(settings.read(world / "config.yaml").model_copy(update=small), ws.home)
    ws = Workspace.open(ws.home.root)
    assert ws.config.truth == world / "truth"
    summary = chain.run(ws).summary
    (oracle,) = summary["oracle"]
    rows = {row["embeddings"]: row for row in summary["lift"]}
    assert oracle["share_of_possible_gain"] == 1 and rows["none"]["share_of_possible_gain"] == 0
    assert all(row["auc"] < oracle["auc"] for row in summary["lift"])
    assert all(row["seeds"] == 1 for row in summary["lift"])  # its own number, not the home's
    both, none = rows["user+item"], rows["none"]
    expected = (both["auc"] - none["auc"]) / (oracle["auc"] - none["auc"])
    assert both["share_of_possible_gain"] == pytest.approx(expected)
    assert both["share_ci95"][0] <= both["share_of_possible_gain"] <= both["share_ci95"][1]
    shown = CliRunner().invoke(app, ["evaluate", "--home", str(ws.home.root), "--truth", str(world / "truth")])
    assert shown.exit_code == 0 and "oracle" in shown.output and "share of possible gain" in shown.output
    other = simulate.run(WORLD.model_copy(update={"days": 3}), tmp_path / "other").folder
    with pytest.raises(ConfigError, match="truth of another log"):
        evaluate.run(ws, truth=other / "truth")
