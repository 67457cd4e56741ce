"""The plain views of a moment: published once, and again where settings make other rows of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from jobs import ingest, refresh_plain, versions
from jobs.config import Config
from jobs.workspace import Workspace

AS_OF = datetime(2024, 3, 1, tzinfo=UTC)


@pytest.fixture(params=["int64", "string"])
def ws(tmp_path: Path, request: pytest.FixtureRequest) -> Workspace:
    """Five users with views and buys of twenty items; user 4 only views."""
    text = request.param == "string"
    rows = [
        (AS_OF - timedelta(days=1 + at % 60), at % 5, (7 * at) % 20, "view" if at % 3 or at % 5 == 4 else "buy")
        for at in range(300)
    ]
    columns = ["event_timestamp", "user_id", "item_id", "event_type"]
    events = pl.DataFrame(rows, schema=columns, orient="row")
    if text:
        events = events.with_columns(pl.format("{}-x", pl.col(name)).alias(name) for name in ("user_id", "item_id"))
    events.write_parquet(tmp_path / "events.parquet")
    home = tmp_path / "home"
    config = ingest.IngestConfig(
        home=home, name="tiny", events=(str(tmp_path / "events.parquet"),), now=AS_OF + timedelta(days=9)
    )
    ingest.run(config)
    return Workspace(Workspace.open(home).home, Config(retrieval_actions=("buy",)))


def choices(ws: Workspace) -> pl.DataFrame | None:
    """Return the rows of the one snapshot of own choices; None without one."""
    found = ws.ledger.snapshots("user_choices")
    assert len(found) <= 1
    return pl.read_parquet(ws.home.root / found[0].path) if found else None


def test_choices_are_published_for_whoever_has_counts(ws: Workspace) -> None:
    result = refresh_plain.run(ws, AS_OF)
    assert all(publication.snapshot.accepted for publication in result.publications)
    rows = choices(ws)
    assert rows is not None
    counted = pl.read_parquet(ws.home.lake / "user_stats" / "*.parquet")
    assert sorted(rows["user_id"]) == sorted(counted["user_id"])
    lengths = dict(zip(rows["user_id"].cast(pl.String).str.head(1), rows["items"].list.len(), strict=True))
    assert lengths.pop("4") == 0 and min(lengths.values()) > 0
    assert (rows["items"].list.len() == rows["strengths"].list.len()).all()
    again = refresh_plain.run(ws, AS_OF)
    assert all(publication.reused for publication in again.publications)


@pytest.mark.parametrize(
    "change", [{"own_choices": 2}, {"own_choices_half_life_days": 3.0}, {"retrieval_actions": ("view",)}]
)
def test_other_settings_publish_choices_again_and_nothing_else(ws: Workspace, change: dict) -> None:
    refresh_plain.run(ws, AS_OF)
    before = choices(ws)
    assert before is not None
    other = Workspace(ws.home, ws.config.model_copy(update=change))
    result = refresh_plain.run(other, AS_OF)
    assert [p.snapshot.view for p in result.publications if not p.reused] == ["user_choices"]
    after = choices(ws)
    assert after is not None and not after.select("items", "strengths").equals(before.select("items", "strengths"))
    assert all(publication.reused for publication in refresh_plain.run(other, AS_OF).publications)


def test_no_choices_are_published_where_none_are_wanted(ws: Workspace) -> None:
    refresh_plain.run(Workspace(ws.home, ws.config.model_copy(update={"own_choices": 0})), AS_OF)
    assert choices(ws) is None


def test_pruned_counts_and_choices_are_gone_and_are_not_made_again(ws: Workspace) -> None:
    moments = [AS_OF - timedelta(days=days) for days in (21, 14, 0)]
    for moment in moments:
        refresh_plain.run(ws, moment)
    files = {item.snapshot_id: ws.home.root / item.path for item in ws.ledger.snapshots()}
    planned = versions.prune(ws, keep=timedelta(days=15), dry_run=True)
    assert all(file.exists() for file in files.values())
    assert versions.prune(ws, keep=timedelta(days=15)) == planned
    assert sorted(planned.removed) == [
        f"{view}-20240209T000000Z" for view in ("item_stats", "user_choices", "user_stats")
    ]
    assert all(file.exists() != (name in planned.removed) for name, file in files.items())
    assert refresh_plain.run(ws, moments[0]).publications == ()
    assert all(publication.reused for publication in refresh_plain.run(ws, moments[1]).publications)
    assert refresh_plain.run(ws, AS_OF - timedelta(days=7)).publications
