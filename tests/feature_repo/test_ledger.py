"""The ledger keeps what it is told, and refuses what would break a version's promise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from feature_repo.contracts.errors import ConfigError, LedgerError, NotFoundError
from feature_repo.contracts.naming import check_version, embedding_view, moment_stem
from feature_repo.contracts.types import Check, Snapshot, Space, Verdict, Version, View
from feature_repo.ledger import Ledger

T = datetime(2024, 1, 1, tzinfo=UTC)


def space(name: str) -> Space:
    return Space(name, 8, T, "print", f"artifacts/{name}", {"dim": 8})


def snapshot(view: str, day: int, *, accepted: bool = True) -> Snapshot:
    verdict = Verdict(accepted, (Check("rows", "critical", accepted, 5, ">= 1"),))
    as_of = T + timedelta(days=day)
    name = f"{view}-{moment_stem(as_of)}"
    return Snapshot(name, view, "user", "v1", "s1", as_of, as_of, 5, f"lake/{name}", "00", accepted, verdict)


def test_everything_survives_reopening(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.put_space(space("s1"))
    ledger.put_version(Version("v1", "s1", "first", "me", 0.8))
    ledger.put_view(View("user_embedding_v1", "user", "v1", "int64", {"embedding": "list<float>"}, 30))
    for day, accepted in ((2, True), (1, True), (3, False)):
        ledger.put_snapshot(snapshot("user_embedding_v1", day, accepted=accepted))
    ledger.put_consumer("ctr", "ctr", ["v1"], {"views": ["user_embedding_v1"]})
    ledger.put_training_set("ctr", {"rows": 3})
    again = Ledger(tmp_path / "ledger.db")
    assert again.space("s1") == space("s1")
    assert again.version("v1").smoothing == 0.8
    assert [s.as_of.day for s in again.snapshots("user_embedding_v1")] == [2, 3, 4]
    assert [s.as_of.day for s in again.snapshots(accepted=True)] == [2, 3]
    assert again.snapshots(accepted=False)[0].verdict.failures()[0].name == "rows"
    assert again.views()[0].fields == {"embedding": "list<float>"}
    assert again.consumers()[0]["record"] == {"views": ["user_embedding_v1"]}
    assert again.training_sets() == [{"rows": 3}]


def test_a_published_version_never_changes_its_space(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for name in ("s1", "s2"):
        ledger.put_space(space(name))
    ledger.put_version(Version("v1", "s1", "", "", None))
    ledger.put_version(Version("v1", "s2", "trained again before anyone read it", "", None))
    ledger.put_version(Version("v1", "s1", "and again", "", None))
    ledger.put_snapshot(snapshot("user_embedding_v1", 1))
    ledger.put_version(Version("v1", "s1", "described", "", None))
    with pytest.raises(LedgerError, match="register the new space as the next version"):
        ledger.put_version(Version("v1", "s2", "", "", None))
    assert ledger.version("v1").space_id == "s1"


def test_versions_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.put_space(space("s1"))
    for name in ("v10", "v2", "v1"):
        ledger.put_version(Version(name, "s1", "", "", None))
    assert [version.version for version in ledger.versions()] == ["v1", "v2", "v10"]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    with pytest.raises(NotFoundError, match="v7"):
        ledger.version("v7")
    with pytest.raises(NotFoundError, match="nowhere"):
        ledger.space("nowhere")


def test_a_damaged_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"no database at all, but long enough to look like a page of one" * 40)
    with pytest.raises(LedgerError, match="restored from a backup"):
        Ledger(path)


@pytest.mark.parametrize("name", ["1", "v0", "v01", "V1", "v1 ", ""])
def test_version_names_have_one_form(name: str) -> None:
    with pytest.raises(ConfigError, match="v followed by a number"):
        check_version(name)


def test_names_sort_by_time() -> None:
    moments = [T + timedelta(seconds=step) for step in (0, 1, 90_000)]
    stems = [moment_stem(moment.astimezone(timezone(timedelta(hours=hour)))) for hour, moment in enumerate(moments)]
    assert stems == ["20240101T000000Z", "20240101T000001Z", "20240102T010000Z"]
    assert embedding_view("item", "v12") == "item_embedding_v12"
    with pytest.raises(ConfigError, match="time zone"):
        moment_stem(datetime(2024, 1, 1))  # noqa: DTZ001 - that is the point
    with pytest.raises(ConfigError, match="whole seconds"):
        moment_stem(T + timedelta(microseconds=1))
