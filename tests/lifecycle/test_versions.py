"""Versions live side by side; nothing that somebody needs is retired or pruned."""

from __future__ import annotations

from datetime import timedelta

import pytest

from benchmarks.small_home import NOW, SPACES, START, WEEK, refresh, train
from feature_repo import lifecycle
from feature_repo.contracts.errors import BusyError, ConfigError, NotFoundError, NotReadyError, SpaceMismatchError
from feature_repo.stores.twin import current, twin_path
from jobs import refresh as real_refresh
from jobs import release, versions, warm_start
from jobs.config import Upstream, save
from jobs.prepare_upstream import WARM_UP
from jobs.workspace import Workspace
from tests.lifecycle.conftest import CUT


def test_a_space_becomes_the_next_version_once(ws: Workspace) -> None:
    first = versions.register(ws, SPACES["v3"], description="the third")
    assert (first.version.version, first.reused) == ("v3", False)
    again = versions.register(ws, SPACES["v3"])
    assert (again.version, again.reused) == (first.version, True)
    with pytest.raises(ConfigError, match="is v3 already"):
        versions.register(ws, SPACES["v3"], name="v4")
    with pytest.raises(NotFoundError):
        versions.register(ws, "0000000000000000")


def test_a_version_never_changes_its_space(ws: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"v1 stands for space 1{16}.*becomes v3"):
        versions.register(ws, SPACES["v3"], name="v1")
    assert ws.ledger.version("v1").space_id == SPACES["v1"]


def test_the_next_number_is_known_to_nobody(ws: Workspace) -> None:
    assert versions.next_version(ws) == "v3"
    added = ws.config.model_copy(update={"upstreams": (*ws.config.upstreams, Upstream(version="v7"))})
    save(added, ws.home)
    assert versions.next_version(Workspace.open(ws.home.root)) == "v8"


def test_what_is_used_is_not_retired_and_the_users_are_named(ws: Workspace) -> None:
    release.create(ws, now=NOW)
    with pytest.raises(ConfigError, match="consumer ctr_ranker, consumer retrieval, release r1"):
        versions.retire(ws, "v1", by="me", why="old", now=NOW)
    versions.retire(ws, "v2", by="me", why="old", now=NOW)
    assert list(lifecycle.retirements(ws.ledger)) == ["v2"]
    assert versions.retire(ws, "v2", by="you", why="again", now=NOW).by == "me"


def test_a_retired_version_is_not_refreshed(ws: Workspace) -> None:
    versions.retire(ws, "v2", by="me", why="old", now=NOW)
    with pytest.raises(NotReadyError, match="retired"):
        real_refresh.run(ws, "v2", START + 5 * WEEK)


def test_no_refresh_before_the_training_ended_and_none_of_another_space(ws: Workspace) -> None:
    with pytest.raises(NotReadyError, match="would know their future"):
        real_refresh.run(ws, "v1", START - WEEK)

    class Other:
        space = ws.ledger.space(SPACES["v2"])

    with pytest.raises(SpaceMismatchError, match="version bridge"):
        real_refresh.run(ws, "v1", START + 5 * WEEK, upstream=Other())  # type: ignore[arg-type]


def test_the_second_refresh_of_one_version_leaves_with_a_word(ws: Workspace) -> None:
    with ws.home.lock("refresh-v1"), pytest.raises(BusyError, match="refresh-v1"):
        real_refresh.run(ws, "v1", START + 5 * WEEK)


def test_pruning_keeps_what_somebody_needs_and_removes_the_rest_whole(ws: Workspace) -> None:
    for week in (4, 5, 6, 7):
        refresh(ws, "v1", START + week * WEEK)
    made = release.create(ws, now=NOW)
    for week in (8, 9, 10):
        refresh(ws, "v1", START + week * WEEK)
    before = {item.snapshot_id: item for item in ws.ledger.snapshots(accepted=True)}
    # The training set ends as week 2 begins, before that week's vectors could be read; the release pins week 7.
    planned = versions.prune(ws, "v1", keep=timedelta(days=7), dry_run=True)
    assert {item.snapshot_id for item in ws.ledger.snapshots(accepted=True)} == set(before)
    done = versions.prune(ws, "v1", keep=timedelta(days=7))
    assert done == planned
    assert {before[name].as_of for name in done.removed} == {START + week * WEEK for week in (2, 3, 4, 5, 6, 8)}
    assert len(done.removed) == 12 and set(made.snapshots.values()) <= done.kept.keys()
    assert all("training set" in done.kept[f"user_embedding_v1-{day}T000000Z"] for day in ("20240107", "20240114"))
    for name in done.removed:
        file = ws.home.root / before[name].path
        assert not file.exists() and not twin_path(file).exists()
    for item in ws.ledger.snapshots(accepted=True):
        assert current(ws.home.root / item.path) is not None
    assert not lifecycle.removals(ws.ledger)


def test_a_pruned_moment_is_not_refreshed_again(ws: Workspace) -> None:
    for week in range(4, 9):
        refresh(ws, "v2", START + week * WEEK)
    done = versions.prune(ws, "v2", keep=timedelta(days=7))
    assert len(done.removed) == 14 and not done.kept
    with pytest.raises(NotReadyError, match="was pruned before 2024-02-25"):
        real_refresh.run(ws, "v2", START + 6 * WEEK)
    assert real_refresh.why_not(ws, "v2", START + 8 * WEEK) is None


def test_a_moved_consumer_frees_its_version(ws: Workspace) -> None:
    train(ws, "ctr_ranker", "v2")
    assert versions.used_by(ws, "v2") == ["consumer ctr_ranker"]
    with pytest.raises(ConfigError, match="consumer ctr_ranker"):
        versions.retire(ws, "v2", by="me", why="old", now=NOW)


def test_the_rows_for_a_person(ws: Workspace) -> None:
    versions.retire(ws, "v2", by="me", why="old", now=NOW)
    first, second = versions.rows(ws)
    assert (first["version"], first["state"], first["snapshots"], first["latest as_of"]) == (
        "v1",
        "refreshed",
        "8",
        "2024-01-28",
    )
    assert second["state"] == "retired" and second["used by"] == "nobody"
    facts = versions.details(ws, "v2")
    assert facts["retired"].endswith("by me: old") and facts["snapshots accepted"] == 8


def test_a_cut_off_that_the_log_does_not_reach_is_refused_before_anything_is_written(learned: Workspace) -> None:
    before, log = (learned.home.root / "config.yaml").read_bytes(), learned.log
    for retrain in (versions.retrain, warm_start.run):
        with pytest.raises(ConfigError, match=f"The log ends at {log.end:%Y-%m-%d}.*up to 2027-10-08"):
            retrain(learned, "v1", CUT.replace(year=2027))
    with pytest.raises(ConfigError, match=f"The log begins at {log.start:%Y-%m-%d}"):
        versions.retrain(learned, "v1", log.start + WARM_UP)
    assert (learned.home.root / "config.yaml").read_bytes() == before
    # The midnight that ends the log's last day is how people write its end; attributes need no weeks of events.
    v1, content = learned.config.upstream("v1"), Upstream(version="v2", kind="content")
    versions.check_train_end(learned, v1, log.end.replace(hour=0, minute=0, second=0) + timedelta(days=1))
    versions.check_train_end(learned, content, log.start + timedelta(days=1))
