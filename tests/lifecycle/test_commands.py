"""What commands print and how they end: a remedy that they name can be followed."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from feature_repo.contracts.errors import NotFoundError
from jobs import compare
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
