"""What is published has a verdict that was written down."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_repo.contracts.errors import LakeError, SnapshotRefusedError
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


def test_the_page_of_a_verdict_is_filed_before_anyone_can_read_the_snapshot(tmp_path: Path) -> None:
    ws = Workspace(Home(tmp_path), Config())
    published = tmp_path / "lake" / "user_counts"

    def judged(accepted: bool) -> Verdict:
        return Verdict(accepted, (Check("rows", "critical", accepted, 2, "at least 1", ""),), page="<h1>seen</h1>")

    def publish_at(as_of: datetime, accepted: bool) -> None:
        table = clocked(pa.table({"user_id": [1, 2], "clicks": [3, 4]}), as_of)
        publish(ws, VIEW, table, as_of, space_id=None, available_at=as_of, gate=lambda staged: judged(accepted))

    publish_at(MOMENT, True)
    with pytest.raises(SnapshotRefusedError):
        publish_at(MOMENT + timedelta(days=7), False)
    pages = tmp_path / "reports" / "gate" / "data_docs"
    assert sorted(path.stem for path in (pages / "validations").iterdir()) == [
        "user_counts-20240101T000000Z",
        "user_counts-20240108T000000Z",
    ]
    assert (pages / "static" / "css" / "bootstrap.min.css").exists()

    # Where the page cannot be filed, nothing is published.
    shutil.rmtree(pages)
    pages.write_text("in the way")
    with pytest.raises((LakeError, OSError)):
        publish_at(MOMENT + timedelta(days=14), True)
    assert [path.name for path in published.glob("*.parquet")] == ["20240101T000000Z.parquet"]
