"""A home folder with two versions of made-up vectors, two consumers and everything else as it really is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import small_home
from jobs.workspace import Workspace


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    """Two versions with four snapshots each, a trained ranker on v1, retrieval on v1; Feast was not touched."""
    return small_home.build(tmp_path / "home")


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same, applied and materialized; for tests that change nothing of it but releases."""
    from jobs import apply, materialize

    workspace = small_home.build(tmp_path_factory.mktemp("online") / "home")
    apply.run(workspace)
    materialize.run(workspace, small_home.NOW)
    return workspace
