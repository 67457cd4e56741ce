"""A backfill counts every snapshot once, attributes as well, which hold at every moment."""

from __future__ import annotations

from datetime import timedelta

from typer.testing import CliRunner

from jobs import backfill
from jobs.cli import app
from jobs.workspace import Workspace
from tests.lifecycle.conftest import CUT


def test_a_backfill_counts_each_snapshot_once(learned: Workspace) -> None:
    known = {item.snapshot_id for item in learned.ledger.snapshots()}
    again = backfill.run(learned, end=CUT + timedelta(hours=1))
    assert again.reused and len(again.moments) > 3
    assert sorted(item.snapshot.snapshot_id for item in again.publications) == sorted(known)
    asked = ["backfill", "--end", f"{CUT + timedelta(days=15):%Y-%m-%d}", "--home", str(learned.home.root)]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    new = len(learned.ledger.snapshots()) - len(known)
    assert new == 5, "counts and vectors of users and items, and what users chose"
    assert f"{new} snapshots published, {len(known)} were there already." in done.output
