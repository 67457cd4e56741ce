"""What commands print and how they end: a remedy that they name can be followed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from benchmarks.small_home import NOW
from feature_repo.contracts.errors import ConfigError, NotFoundError
from jobs import compare, snapshot
from jobs.cli import app
from jobs.workspace import Workspace


def invoke(ws: Workspace, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(ws.home.root)])


def test_a_new_release_is_named_in_what_comes_next(ws: Workspace) -> None:
    done = invoke(ws, "release", "create", "--name", "spring")
    assert done.exit_code == 0, done.output
    assert done.output.rstrip().endswith("Next: headwater release promote spring")


@pytest.mark.parametrize("pair", [("v1", "v9"), ("v9", "v1")])
def test_versions_that_do_not_exist_are_not_compared(ws: Workspace, pair: tuple[str, str]) -> None:
    with pytest.raises(NotFoundError, match="No version 'v9'"):
        compare.run(ws, *pair)


def test_a_file_that_is_not_there_is_no_refused_snapshot(ws: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nosuch\.parquet does not exist"):
        snapshot.check(ws, tmp_path / "nosuch.parquet", "v1", NOW)
    with pytest.raises(ConfigError, match="is no file"):
        snapshot.check(ws, tmp_path, "v1", NOW)


@pytest.mark.parametrize("command", [["status"], ["snapshot", "list"]])
def test_a_profile_that_does_not_exist_is_refused_by_every_command(
    ws: Workspace, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADWATER_PROFILE", "")  # whose value of before comes back after the test
    for arguments in (["--profile", "nosuch", *command], command):
        refused = invoke(ws, *arguments)
        assert isinstance(refused.exception, ConfigError) and "no profile 'nosuch'; there are" in str(refused.exception)
