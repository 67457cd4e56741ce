"""A rehearsal leaves the home folder as it was, and each way of feeding reads what that way could have read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.small_home import START, WEEK, vectors
from feature_repo.contracts.errors import NotReadyError
from feature_repo.lake import write_json
from jobs import doctor, rehearsal
from jobs.workspace import Workspace

CUT = START + 2 * WEEK


def files(root: Path) -> list[str]:
    return sorted(str(path) for path in root.rglob("*") if path.is_file())


def test_the_scratch_copy_forgets_later_snapshots_and_the_home_folder_keeps_them(ws: Workspace) -> None:
    before, known = files(ws.home.root), ws.ledger.snapshots()
    with rehearsal._scratch(ws, "v1", CUT) as scratch:
        kept = [item for item in scratch.ledger.snapshots() if item.version == "v1"]
        assert {item.as_of for item in kept} == {START, START + WEEK}
        assert all((scratch.home.root / item.path).exists() for item in kept)
        assert not scratch.home.snapshot_file("user_embedding_v1", CUT).exists()
        assert len([item for item in scratch.ledger.snapshots() if item.version == "v2"]) == 8
        (scratch.home.artifacts / "new").mkdir()
    assert files(ws.home.root) == before and ws.ledger.snapshots() == known
    assert doctor.run(ws, dry_run=True).findings == tuple(
        item for item in doctor.run(ws, dry_run=True).findings if "The model of" in item.what
    )


def test_each_way_of_feeding_reads_the_latest_vector_that_it_could_have(ws: Workspace) -> None:
    with rehearsal._scratch(ws, "v1", CUT) as scratch:
        feeds = rehearsal._feeds(ws, scratch, "v1", CUT)
        lag = ws.config.availability_lag
        asked = [
            (100, CUT + lag),  # the very moment of publication
            (101, CUT + lag - timedelta(seconds=1)),
            (102, START + WEEK + ws.config.ttl + lag + timedelta(seconds=1)),  # past the last kept one's time to live
            (999, CUT + WEEK),
            (103, datetime(2023, 1, 1, tzinfo=UTC)),
        ]
        ids, times = pl.Series([item for item, _ in asked]), pl.Series([moment for _, moment in asked])
        read = {way: feeds[way]["user"].joined("user", ids, times) for way in rehearsal.WAYS}
    week = [vectors("v1", "user", START + number * WEEK) for number in range(4)]
    wanted = {
        rehearsal.OWN: [week[2][0], week[1][1], week[3][2], None, None],
        rehearsal.STOPPED: [week[1][0], week[1][1], None, None, None],
        rehearsal.KEPT: [week[1][0], week[1][1], week[1][2], None, None],
        rehearsal.BRIDGED: [week[1][0], week[1][1], None, None, None],  # nothing was bridged in this copy
    }
    for way, (table, place) in read.items():
        for row, vector in enumerate(wanted[way]):
            assert (place[row] < 0) == (vector is None), (way, row)
            assert vector is None or np.array_equal(table[place[row]], vector), (way, row)


def test_without_a_ranker_of_the_old_version_there_is_nothing_to_score(ws: Workspace) -> None:
    with pytest.raises(NotReadyError, match="No ranker reads v1 alone"):
        rehearsal.run(ws, "v2", "v1", CUT)


def test_consumers_with_other_numbers_of_seeds_are_compared_on_those_that_both_have(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, count = np.random.default_rng(0), 400
    facts = {"label": draw.integers(2, size=count), "weight": np.ones(count), "user": np.arange(count) % 40}
    logits = draw.normal(size=(3, count))
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "test.npz", **facts)
    write_json({"request": {"seeds": 3}}, tmp_path / "new" / "consumer.json")
    for seed in range(3):
        (tmp_path / "new" / "v2" / f"seed-{seed}").mkdir(parents=True)
        np.savez(tmp_path / "new" / "v2" / f"seed-{seed}" / "test.npz", logit=logits[seed])

    class Rows:
        def __init__(self, *_: object) -> None: ...

        def between(self, *_: object) -> np.ndarray:
            return np.ones(count, bool)

    monkeypatch.setattr("jobs.features.ranking.TrainingSet", Rows)
    monkeypatch.setattr(rehearsal, "_rankers", lambda *_: [rehearsal._Ranker("more", "ctr", tmp_path / "new", "v2")])
    monkeypatch.setattr(rehearsal, "_logits", lambda *_: logits[:1])
    ranker = rehearsal._Ranker("one", "ctr", tmp_path / "old", "v1")
    found = rehearsal._score(ws, ranker, "v1", "v2", CUT, {way: {} for way in rehearsal.WAYS})
    assert {row["seeds"] for row in found} == {1} and len(found) == len(rehearsal.WAYS) + 1
    assert len({row["auc"] for row in found}) == 1  # the first seed of each is the same
