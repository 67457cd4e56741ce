"""A backfill counts every snapshot once, attributes as well, which hold at every moment."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from typer.testing import CliRunner

from feature_repo.contracts.types import Version
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


def test_a_version_for_which_no_moment_is_due_is_named(learned: Workspace) -> None:
    own = learned.ledger.space(learned.ledger.version("v1").space_id)
    learned.ledger.put_space(replace(own, space_id="f" * 16, train_end=CUT.replace(year=2027)))
    learned.ledger.put_version(Version("v2", "f" * 16, "too late", "me", None))
    asked = ["backfill", "--end", f"{CUT + timedelta(hours=1):%Y-%m-%dT%H:%M}", "--home", str(learned.home.root)]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert "v2: no moment was due. v2 was trained on events up to 2027-10-08" in done.output
    assert "v1: no moment" not in done.output
    nothing = backfill.run(learned, CUT, CUT)
    assert list(nothing.idle) == ["v1", "v2"] and "No refresh is scheduled" in nothing.idle["v1"]
