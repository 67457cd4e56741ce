"""What commands print and how they end: a remedy that they name can be followed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from typer.testing import CliRunner, Result

from benchmarks.small_home import NOW
from feature_repo.contracts.errors import ConfigError, NotFoundError
from feature_repo.contracts.types import Verdict, View
from jobs import cli_run, compare, snapshot, status
from jobs.cli import app
from jobs.publication import clocked, publish
from jobs.refresh_plain import ALWAYS
from jobs.workspace import Workspace


def invoke(ws: Workspace, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--home", str(ws.home.root)])


def test_a_new_release_and_its_home_are_named_in_what_comes_next(ws: Workspace) -> None:
    done = invoke(ws, "release", "create", "--name", "spring")
    assert done.exit_code == 0, done.output
    assert done.output.rstrip().endswith(f"Next: headwater release promote spring --home {ws.home.root}")


def test_what_comes_next_leaves_out_the_home_that_commands_take_anyway(ws: Workspace) -> None:
    home = {"HEADWATER_HOME": str(ws.home.root)}
    done = CliRunner().invoke(app, ["release", "create", "--name", "spring"], env=home)
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


def test_what_holds_always_has_no_age(ws: Workspace) -> None:
    table = clocked(pa.table({"user_id": [1], "age": ["18-24"]}), ALWAYS)
    view = View("user_attributes", "user", None, "int64", {"age": "string"}, 0)
    publish(ws, view, table, ALWAYS, space_id=None, available_at=ALWAYS, gate=lambda staged: Verdict(True, ()))
    rows = {row["view"]: (row["latest as_of"], row["age"]) for row in status.run(ws, NOW).tables["Views"]}
    assert rows["user_attributes"] == ("always", "-")
    assert rows["user_embedding_v1"] == ("2024-01-28 00:00", "1 h")


def test_report_and_numbers_lie_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli_run, "print_lift", lambda _: None)
    reports = tmp_path / "mine" / "reports"
    summary = {"timings_s": {}, "gate": {"accepted": 1, "refused": 0}}
    report = SimpleNamespace(path=reports / "report.html")
    cli_run._finish(SimpleNamespace(summary=summary, skipped=[], served=None, report=report), Path("mine"))
    told = capsys.readouterr().out
    assert f"Report:  {reports / 'report.html'}\nNumbers: {reports / 'summary.json'}\n" in told
