"""What is published has a verdict that was written down."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_repo.contracts.errors import SnapshotRefusedError
from feature_repo.contracts.types import Check, Verdict, View
from feature_repo.lake import Home
from jobs.config import Config
from jobs.publication import clocked, publish
from jobs.workspace import Workspace

VIEW = View("user_counts", "user", None, "int64", {"clicks": "int64", "available_us": "int64"}, 30)
MOMENT = datetime(2024, 1, 1, tzinfo=UTC)


def publish_with(ws: Workspace, observed: Any, as_of: datetime) -> None:
    table = clocked(pa.table({"user_id": [1, 2], "clicks": [3, 4]}), as_of)
    check = Check("rows", "critical", True, observed, "at least 1", "rows of the file")
    publish(ws, VIEW, table, as_of, space_id=None, available_at=as_of, gate=lambda staged: Verdict(True, (check,)))


def test_a_verdict_that_cannot_be_written_down_refuses(tmp_path: Path) -> None:
    ws = Workspace(Home(tmp_path), Config())
    publish_with(ws, 2, MOMENT)
    with pytest.raises(SnapshotRefusedError, match="could not be written down"):
        publish_with(ws, {"not", "JSON"}, MOMENT + timedelta(days=7))
    assert [snapshot.as_of for snapshot in ws.ledger.snapshots("user_counts", accepted=True)] == [MOMENT]
    assert len(list((tmp_path / "lake" / "user_counts").glob("*.parquet"))) == 1
    assert "could not be written down" in next((tmp_path / "quarantine").rglob("verdict.json")).read_text()
