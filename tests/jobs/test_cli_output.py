"""A wrong home folder is refused by every command that does not begin one; what a summary holds is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from feature_repo.contracts.errors import ConfigError
from jobs.cli import app
from jobs.cli_output import print_lift

BEGIN = {"demo", "ingest parquet", "ingest complete-journey"}
VALUES = {"as_of": "2024-01-01", "kind": "cron"}
NEEDED = {"version register": ["--space", "1111111111111111"], "training-set": ["ctr_ranker"]}


def commands(found: Any, *names: str) -> Iterator[tuple[str, Any]]:
    for name, command in getattr(found, "commands", {}).items():
        yield from commands(command, *names, name)
    if not hasattr(found, "commands"):
        yield " ".join(names), found


def asked(name: str, command: Any) -> list[str]:
    """Return the command with something for everything that it needs."""
    words = name.split() + NEEDED.get(name, [])
    for parameter in command.params:
        if parameter.required:
            value = VALUES.get(parameter.name, "v1")
            words += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
    return words


READ = {
    name: asked(name, command)
    for name, command in commands(typer.main.get_command(app))
    if name not in BEGIN and any(parameter.name == "home" for parameter in command.params)
}


@pytest.mark.parametrize("name", READ)
def test_a_home_folder_that_does_not_exist_is_refused_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*READ[name], "--home", "nowhere"])
    assert isinstance(done.exception, ConfigError), done.output
    assert "nowhere does not exist" in str(done.exception) and "headwater ingest" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "papers").mkdir()
    monkeypatch.delenv("HEADWATER_HOME", raising=False)
    for words in (["doctor", "--home", "papers"], ["run", "--home", "papers"], ["status"]):
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, ConfigError), done.output
    assert [path.name for path in tmp_path.rglob("*")] == ["papers"]


def test_commands_that_begin_a_home_and_those_without_one_are_the_rest() -> None:
    everything = dict(commands(typer.main.get_command(app)))
    assert set(everything) - set(READ) == BEGIN | {"plan", "simulate"}


def test_a_run_that_measured_retrieval_alone_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    recalls = {"recall_at_10": 0.1, "recall_at_50": 0.2, "recall_at_100": 0.25}
    row = {"model": "DERM v1", **recalls, "ratio_to_popularity_at_100": 2.0, "ratio_ci95": [1.9, 2.1]}
    print_lift({"lift": [], "retrieval": [row]})
    assert "0.2500" in capsys.readouterr().out
