"""A release moves as one pointer, only after everything it needs is there, and back without any work."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import switching
from benchmarks.small_home import NOW, SPACES, START, WEEK, refresh, train
from feature_repo import releases
from feature_repo.contracts.errors import BusyError, ConfigError, LakeError, NotFoundError, NotReadyError
from feature_repo.contracts.naming import choices_view
from feature_repo.contracts.types import Check, Verdict, View
from feature_repo.lake import write_json
from feature_repo.ledger import Ledger
from jobs import apply, materialize, release, versions
from jobs.publication import Candidate, clocked, publish_together
from jobs.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]


def two_releases(ws: Workspace) -> tuple[str, str]:
    first = release.create(ws, now=NOW)
    train(ws, "ctr_ranker", "v2")
    second = release.create(ws, now=NOW + timedelta(hours=1))
    train(ws, "ctr_ranker", "v1")
    return first.name, second.name


def test_a_release_names_all_its_parts_and_is_made_once(ws: Workspace) -> None:
    made = release.create(ws, now=NOW)
    assert made.versions == {"v1": SPACES["v1"]}
    assert made.consumers["ctr_ranker"]["artifact"] == "artifacts/ctr_ranker-v1"
    assert made.index is not None and made.index["snapshot_id"] == "item_embedding_v1-20240128T000000Z"
    assert set(made.snapshots) == {"user_embedding_v1", "item_embedding_v1"}
    assert release.create(ws, now=NOW + timedelta(days=1)) == made
    assert releases.current_release(ws.ledger) is None
    with pytest.raises(NotReadyError, match="cvr_ranker"):
        release.create(ws, ["cvr_ranker"], now=NOW)


def test_the_popularity_that_retrieval_learned_belongs_to_the_release(ws: Workspace) -> None:
    plain = release.create(ws, now=NOW)
    assert plain.index is not None and "popularity" not in plain.index
    learned = {"weight": 0.02, "columns": ["activity_28d"]}
    write_json({"space_id": SPACES["v1"], "popularity": learned}, ws.home.artifacts / "retrieval-1" / "index.json")
    made = release.create(ws, now=NOW)
    assert made.name != plain.name and made.index is not None and made.index["popularity"] == learned
    assert releases.get(ws.ledger, made.name) == made


def test_promote_and_roll_back(online: Workspace) -> None:
    ws = online
    first, second = two_releases(ws)
    assert release.promote(ws, first, by="me", now=NOW).changed
    assert not release.promote(ws, first, by="me", now=NOW).changed
    moved = release.promote(ws, second, by="me", now=NOW)
    assert (moved.before, moved.changed) == (first, True)
    current = releases.current_release(ws.ledger)
    assert current is not None and current.consumers["ctr_ranker"]["versions"] == ["v2"]
    assert releases.history(ws.ledger)[-1].verified["user_embedding_v2"] == "user_embedding_v2-20240128T000000Z"
    started = time.perf_counter()
    assert release.rollback(ws, by="me", now=NOW).release.name == first
    assert time.perf_counter() - started < 1
    assert not release.rollback(ws, first, by="me", now=NOW).changed
    with pytest.raises(NotReadyError, match="nothing to roll back to"):
        release.rollback(ws, by="me", now=NOW)
    with pytest.raises(ConfigError, match="is live"):
        release.drop(ws, first, by="me", now=NOW)
    assert [move.action for move in releases.history(ws.ledger)] == ["promote", "promote", "rollback"]


def test_rolling_back_imports_neither_feast_nor_torch(online: Workspace) -> None:
    code = (
        "import sys; from datetime import UTC, datetime; from pathlib import Path;"
        "from jobs import release; from jobs.workspace import Workspace;"
        "ws = Workspace.open(Path(sys.argv[1]));"
        "stack = [r.name for r in __import__('feature_repo.releases', fromlist=['every']).every(ws.ledger)];"
        "release.rollback(ws, stack[0], by='me', now=datetime.now(UTC)); print(','.join(sys.modules))"
    )
    made = release.create(online, now=NOW)
    release.promote(online, made.name, by="me", now=NOW)
    done = subprocess.run(
        [sys.executable, "-c", code, str(online.home.root)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"feast", "torch", "polars", "duckdb"} & set(done.stdout.strip().split(","))


def test_history_decides_what_a_rollback_goes_back_to() -> None:
    def stack(*moves: tuple[str, str]) -> list[str]:
        found = [releases.Move(at, action, name, NOW, "me", {}) for at, (action, name) in enumerate(moves)]  # type: ignore[arg-type]
        return releases.live_stack(found)

    three = [("promote", name) for name in ("r1", "r2", "r3")]
    assert stack(*three) == ["r1", "r2", "r3"]
    assert stack(*three, ("rollback", "r2"), ("rollback", "r1")) == ["r1"]
    assert stack(*three, ("rollback", "r1")) == ["r1"]
    assert stack(*three, ("promote", "r1")) == ["r2", "r3", "r1"]
    assert stack(*three, ("drop", "r2")) == ["r1", "r3"]
    assert stack() == []


def test_promotion_waits_for_the_online_store(ws: Workspace) -> None:
    apply.run(ws)
    made = release.create(ws, now=NOW)
    with pytest.raises(NotReadyError, match="lacks 60 of 60 rows of user_embedding_v1-20240128"):
        release.promote(ws, made.name, by="me", now=NOW)
    materialize.run(ws, NOW)
    refresh(ws, "v1", START + 4 * WEEK)
    with pytest.raises(NotReadyError, match="lacks 60 of 60 rows of user_embedding_v1-20240204"):
        release.promote(ws, made.name, by="me", now=NOW)
    materialize.run(ws, NOW + WEEK)
    with sqlite3.connect(ws.home.feast / "online.db") as connection:
        table = "headwater_item_embedding_v1"
        key = connection.execute(f"SELECT entity_key FROM {table} ORDER BY entity_key LIMIT 1").fetchone()[0]
        value = connection.execute(
            f"SELECT value FROM {table} WHERE feature_name = 'embedding' AND entity_key <> ?", (key,)
        ).fetchone()[0]
        connection.execute(
            f"UPDATE {table} SET value = ? WHERE feature_name = 'embedding' AND entity_key = ?", (value, key)
        )
    with pytest.raises(NotReadyError, match="1 of 40 rows in the online store differ"):
        release.promote(ws, made.name, by="me", now=NOW)
    assert releases.current_release(ws.ledger) is None


def _publish_choices(ws: Workspace, as_of: datetime) -> None:
    """Publish two items of each of three users."""
    table = pa.table(
        {
            "user_id": [100, 101, 102],
            "items": pa.array([[100, 101], [102, 103], []], pa.list_(pa.int64())),
            "strengths": pa.array([[2.0, 0.5], [1.0, 0.25], []], pa.list_(pa.float32())),
        }
    )
    available_at = as_of + ws.config.availability_lag
    fields = {"items": "list<int64>", "strengths": "list<float>", "available_us": "int64"}
    verdict = Verdict(True, (Check("rows", "critical", True, 3, ">= 1"),))
    view = View(choices_view(), "user", None, "int64", fields, ws.config.ttl_days)
    waiting = Candidate(view, clocked(table, available_at), lambda staged: verdict)
    publish_together(ws, [waiting], as_of, space_id=None, available_at=available_at)


def test_own_choices_that_retrieval_learned_belong_to_the_release_and_must_be_online(ws: Workspace) -> None:
    learned = {"space_id": SPACES["v1"], "own_choices": {"weight": 0.2}}
    write_json(learned, ws.home.artifacts / "retrieval-1" / "index.json")
    with pytest.raises(NotReadyError, match="user_choices has no snapshot that can be read with"):
        release.create(ws, now=NOW)
    apply.run(ws)
    materialize.run(ws, NOW)
    _publish_choices(ws, START + 3 * WEEK)
    made = release.create(ws, now=NOW)
    assert made.index is not None and made.index["own_choices"] == {"weight": 0.2}
    assert made.snapshots["user_choices"] == "user_choices-20240128T000000Z"
    with pytest.raises(NotReadyError, match="Feast does not know user_choices yet"):
        release.promote(ws, made.name, by="me", now=NOW)
    apply.run(ws)
    with pytest.raises(NotReadyError, match="lacks 3 of 3 rows of user_choices-20240128"):
        release.promote(ws, made.name, by="me", now=NOW)
    materialize.run(ws, NOW)
    with sqlite3.connect(ws.home.feast / "online.db") as connection:
        table = "headwater_user_choices"
        both = f"SELECT entity_key, value FROM {table} WHERE feature_name = 'items' ORDER BY entity_key LIMIT 2"
        (first, kept), (_, other) = connection.execute(both)
        change = f"UPDATE {table} SET value = ? WHERE feature_name = 'items' AND entity_key = ?"
        connection.execute(change, (other, first))
    with pytest.raises(NotReadyError, match="1 of 3 rows in the online store differ from user_choices"):
        release.promote(ws, made.name, by="me", now=NOW)
    with sqlite3.connect(ws.home.feast / "online.db") as connection:
        connection.execute(change, (kept, first))
    assert release.promote(ws, made.name, by="me", now=NOW).changed
    assert releases.history(ws.ledger)[-1].verified["user_choices"] == "user_choices-20240128T000000Z"


def test_a_refresh_during_the_promotion_is_noticed(online: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs import online_check

    ws = online
    made = release.create(ws, now=NOW)
    before = releases.history(ws.ledger)
    if before and (live := releases.current_release(ws.ledger)) and live.name == made.name:
        release.rollback(ws, to=releases.live_stack(before)[0], by="me", now=NOW)
    last = ws.ledger.snapshots("user_embedding_v1", accepted=True)[-1].as_of

    def meanwhile(*_: object) -> None:
        refresh(ws, "v1", last + WEEK)

    monkeypatch.setattr(online_check, "check_online", meanwhile)
    with pytest.raises(BusyError, match="refreshed meanwhile"):
        release.promote(ws, made.name, by="me", now=NOW)


def test_artifacts_must_be_what_was_released(ws: Workspace) -> None:
    made = release.create(ws, now=NOW)
    weights = ws.home.artifacts / "ctr_ranker-v1" / "weights"
    weights.write_bytes(b"other")
    with pytest.raises(LakeError, match="was changed since r1"):
        release.check_parts(ws, made, thorough=True)
    shutil.rmtree(weights.parent)
    with pytest.raises(LakeError, match="is gone"):
        release.check_parts(ws, made)


def test_a_dropped_release_frees_its_version(ws: Workspace) -> None:
    made = release.create(ws, now=NOW)
    assert "release r1" in versions.used_by(ws, "v1")
    release.drop(ws, made.name, by="me", now=NOW)
    release.drop(ws, made.name, by="me", now=NOW)
    assert len(releases.history(ws.ledger)) == 1
    assert "release r1" not in versions.used_by(ws, "v1")
    assert release.rows(ws)[0]["state"] == "dropped"
    with pytest.raises(NotReadyError, match="never live, or was dropped"):
        release.rollback(ws, "r1", by="me", now=NOW)


def test_readers_see_one_release_or_the_other_while_the_pointer_moves(online: Workspace) -> None:
    ws = online
    materialize.run(ws, materialize.last_available(ws, NOW + 10 * WEEK))
    names = [release.create(ws, name=name, now=NOW).name for name in ("left",)]
    train(ws, "ctr_ranker", "v2")
    names.append(release.create(ws, name="right", now=NOW).name)
    train(ws, "ctr_ranker", "v1")
    whole = {name: releases.get(ws.ledger, name) for name in names}
    release.promote(ws, "left", by="me", now=NOW)
    seen: list[releases.Release | None] = []
    stop = threading.Event()

    def read() -> None:
        own = Ledger(ws.home.ledger_file)
        while not stop.is_set():
            seen.append(releases.current_release(own))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()

    def wait_until_seen(name: str) -> None:
        deadline, start = time.monotonic() + 30, len(seen)
        while not any(found is not None and found.name == name for found in seen[start:]):
            assert time.monotonic() < deadline, f"no reader saw {name}"
            time.sleep(0.001)

    for _ in range(3):
        release.promote(ws, "right", by="me", now=NOW)
        wait_until_seen("right")
        release.rollback(ws, "left", by="me", now=NOW)
        wait_until_seen("left")
    stop.set()
    for reader in readers:
        reader.join()
    assert len(seen) > 20 and {found.name for found in seen if found} == set(names)
    assert all(found is not None and found == whole[found.name] for found in seen)


def test_two_versions_are_served_under_requests_while_the_pointer_moves(ws: Workspace) -> None:
    apply.run(ws)
    materialize.run(ws, NOW)
    release.create(ws, name="before", now=NOW)
    train(ws, "ctr_ranker", "v2")
    release.create(ws, name="after", now=NOW)
    found = switching.run(ws, ("before", "after"), moves=2, rest=0.3)
    assert found.errors == [] and found.mixed == 0
    assert found.answers["before"] > 2 and found.answers["after"] > 2
    assert sum(found.answers.values()) == found.requests


def test_what_is_missing_is_named(ws: Workspace) -> None:
    with pytest.raises(NotFoundError, match="No release 'r9'"):
        release.promote(ws, "r9", by="me", now=NOW)
    assert releases.current_release(Ledger(ws.home.ledger_file)) is None
