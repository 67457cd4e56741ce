"""What a late stage would refuse is refused before the first one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import small_home
from feature_repo.contracts.errors import ConfigError
from feature_repo.lake import Home
from jobs import chain
from jobs import config as settings
from jobs.cli import app
from jobs.config import Config, Consumer, Upstream
from jobs.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return small_home.build(tmp_path / "home")


def reading(version: str) -> Config:
    return small_home.CONFIG.model_copy(
        update={"consumers": (Consumer(name="ctr_ranker", task="ctr", versions=("v1", version)),)}
    )


def test_an_unknown_version_of_a_consumer_ends_a_run_before_any_training(ws: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"ctr_ranker reads v9, .*there are: v1, v2"):
        chain.run(Workspace(ws.home, reading("v9")))
    assert not (ws.home.reports / "timings.json").exists()


def test_a_folder_without_the_truth_ends_a_run_before_any_training(ws: Workspace, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    wanted = Workspace(ws.home, ws.config.model_copy(update={"truth": truth}))
    with pytest.raises(ConfigError, match="truth holds no Parquet files"):
        chain.run(wanted)
    assert not (ws.home.reports / "timings.json").exists()
    truth.mkdir()
    (truth / "2024-01-01.parquet").touch()
    chain.check(wanted)


def test_versions_of_the_ledger_and_of_the_settings_are_known(ws: Workspace) -> None:
    chain.check(Workspace(ws.home, reading("v2")))
    only_registered = reading("v2").model_copy(update={"upstreams": (Upstream(version="v1"),)})
    chain.check(Workspace(ws.home, only_registered))
    only_configured = reading("v5").model_copy(update={"upstreams": (Upstream(version="v5"),)})
    chain.check(Workspace(ws.home, only_configured))


def test_refused_settings_do_not_replace_those_of_the_home_folder(ws: Workspace, tmp_path: Path) -> None:
    settings.save(reading("v9"), Home(tmp_path / "other"))
    before = (ws.home.root / "config.yaml").read_bytes()
    asked = ["run", "--home", str(ws.home.root), "--config", str(tmp_path / "other" / "config.yaml")]
    done = CliRunner().invoke(app, asked)
    assert isinstance(done.exception, ConfigError) and "v9" in str(done.exception)
    assert (ws.home.root / "config.yaml").read_bytes() == before
