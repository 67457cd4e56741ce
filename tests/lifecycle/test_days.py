"""Several refreshes of one day: the last stands for the day, none compounds, and what was readable stays readable."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from benchmarks import small_home
from benchmarks.small_home import START, WEEK
from feature_repo.contracts.errors import SnapshotRefusedError
from feature_repo.lifecycle import day_of, earlier_days
from jobs import lineage
from jobs.cli import app
from jobs.refresh import SMOOTHED_WITH, Upstream, aligned, read_vectors, stabilize
from jobs.workspace import Workspace
from tests.lifecycle.conftest import CUT

DAY, NOON = START + 4 * WEEK, timedelta(hours=12)


def test_midnight_ends_the_day_before_it() -> None:
    midnight = datetime(2024, 2, 4, tzinfo=UTC)
    assert day_of(midnight).isoformat() == "2024-02-03"
    assert day_of(midnight + timedelta(seconds=1)).isoformat() == "2024-02-04"
    assert day_of(midnight + timedelta(days=1)).isoformat() == "2024-02-04"
    assert day_of(datetime(2024, 2, 4, 1, tzinfo=timezone(timedelta(hours=5)))).isoformat() == "2024-02-03"


def test_the_last_accepted_refresh_stands_for_its_day(ws: Workspace) -> None:
    for hours in (0, 6, 18, 24, 36):
        small_home.refresh(ws, "v1", DAY + timedelta(hours=hours))
    with pytest.raises(SnapshotRefusedError):
        small_home.refresh(ws, "v1", DAY + timedelta(hours=42), accept=False)

    def standing(as_of: datetime) -> list[datetime]:
        return [item.as_of for item in earlier_days(ws.ledger, "user_embedding_v1", as_of)]

    weeks = [START + number * WEEK for number in range(4)]
    assert standing(DAY) == weeks
    assert standing(DAY + timedelta(hours=6)) == standing(DAY + timedelta(hours=24)) == [*weeks, DAY]
    assert standing(DAY + timedelta(hours=30)) == [*weeks, DAY, DAY + timedelta(hours=24)]
    assert standing(DAY + WEEK) == [*weeks, DAY, DAY + timedelta(hours=24), DAY + timedelta(hours=36)]
    assert standing(START) == []


def refreshed(ws: Workspace, *moments: datetime) -> list[list[np.ndarray]]:
    """Refresh v1 by the command, at each moment; return the vectors of users and items as they were published."""
    found = []
    for moment in moments:
        asked = ["refresh", "v1", "--as-of", moment.isoformat(), "--home", str(ws.home.root)]
        done = CliRunner().invoke(app, asked, catch_exceptions=False)
        assert done.exit_code == 0 and "2 snapshots published" in done.output, done.output
        files = [ws.home.snapshot_file(f"{entity}_embedding_v1", moment) for entity in ("user", "item")]
        found.append([read_vectors(file, file.parent.name.split("_")[0] + "_id")[1] for file in files])
    return found


def test_refreshes_of_one_day_are_smoothed_with_the_day_before_and_do_not_compound(
    learned: Workspace, tmp_path: Path
) -> None:
    shutil.copytree(learned.home.root, tmp_path / "once")
    once = Workspace.open(tmp_path / "once")
    noon, evening, next_day = CUT + NOON, CUT + 1.5 * NOON, CUT + 3 * NOON
    first, second, later = refreshed(learned, noon, evening, next_day)
    model = Upstream(learned, learned.ledger.space(learned.ledger.version("v1").space_id))
    for place, entity in enumerate(("user", "item")):
        key, view = f"{entity}_id", f"{entity}_embedding_v1"
        before = read_vectors(learned.home.snapshot_file(view, CUT), key)
        for moment, stored, base in (
            (noon, first[place], before),
            (evening, second[place], before),  # not the noon's
            (next_day, later[place], read_vectors(learned.home.snapshot_file(view, evening), key)),
        ):
            ids, fresh, _ = model.infer(entity, moment)  # type: ignore[arg-type]
            assert np.array_equal(stored, stabilize(fresh, *aligned(ids, *base), 0.8)), (entity, moment)
        told = pq.read_schema(learned.home.snapshot_file(view, evening)).metadata[SMOOTHED_WITH.encode()]
        assert told.decode() == f"{view}-20171008T000000Z"
        # The gate ran the model and the smoothing again, from the day before as well.
        checks = {check.name: check.passed for check in learned.ledger.snapshots(view)[-2].verdict.checks}
        assert checks["agreement"] is True
    # Who refreshed less often on that day has the same vectors, bit by bit, from its last refresh on.
    assert [np.array_equal(*pair) for pair in zip(second, refreshed(once, evening)[0], strict=True)] == [True, True]
    assert [np.array_equal(*pair) for pair in zip(later, refreshed(once, next_day)[0], strict=True)] == [True, True]
    whole = lineage.graph(learned)
    assert "snapshot/user_embedding_v1-20171008T180000Z" in whole.sources["snapshot/user_embedding_v1-20171009T120000Z"]
    sources = whole.sources["snapshot/user_embedding_v1-20171008T180000Z"]
    assert [key for key in sources if key.startswith("snapshot")] == ["snapshot/user_embedding_v1-20171008T000000Z"]


def test_what_the_gate_computes_again_is_computed_here_however_small(learned: Workspace) -> None:
    class Workers:
        def vectors(self, *_: object) -> tuple[np.ndarray, np.ndarray]:
            raise AssertionError("sent to workers")

    model = Upstream(learned, learned.ledger.space(learned.ledger.version("v1").space_id))
    model._spark = Workers()  # type: ignore[assignment]
    whole = np.arange(len(model.ids("item", CUT)))
    assert len(model.infer("item", CUT, whole)[1]) == len(whole) > 0
    with pytest.raises(AssertionError, match="sent to workers"):
        model.infer("item", CUT)


def test_what_was_readable_within_the_day_stays_readable(ws: Workspace) -> None:
    from jobs import apply
    from jobs.store import open_store

    for hours in (0, 12, 18):
        small_home.refresh(ws, "v1", DAY + timedelta(hours=hours))
    apply.run(ws)
    times = [DAY + timedelta(hours=hours) for hours in (12.5, 14, 20)]
    labels = pd.DataFrame({"user_id": [100] * 3, "event_timestamp": pd.to_datetime(times)})
    read = open_store(ws.home).get_historical_features(labels, ["user_embedding_v1:available_us"]).to_df()
    clocks = pd.to_datetime(read.sort_values("event_timestamp")["available_us"], unit="us", utc=True)
    # Each was known an hour after its moment; the later ones took nothing away from the earlier ones.
    assert [clock.hour for clock in clocks] == [1, 13, 19]
