"""Every damage is found: mended where that is safe, named with what to do where it is not."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from benchmarks import small_home
from benchmarks.small_home import NOW, SPACES, START, WEEK, refresh
from feature_repo import ledger_tables as tables
from feature_repo import lifecycle
from feature_repo.contracts.errors import BusyError, LakeError, LedgerError, SnapshotRefusedError
from feature_repo.contracts.types import Check, Verdict
from feature_repo.lake import write_json
from feature_repo.ledger import Ledger
from feature_repo.stores.twin import current, twin_path
from jobs import doctor, release, snapshot, versions
from jobs.cli import app
from jobs.publication import publish_together
from jobs.refresh import read_vectors
from jobs.workspace import Workspace


@pytest.fixture
def whole(ws: Workspace) -> Workspace:
    """Models that the small home only claims to have are made, so that nothing is wrong with it."""
    for space in ws.ledger.spaces():
        write_json({}, ws.home.root / space.artifact / "model.json")
    assert doctor.run(ws).findings == ()
    return ws


def published(ws: Workspace) -> Path:
    return ws.home.root / ws.ledger.snapshots("user_embedding_v1", accepted=True)[-1].path


def test_missing_and_stale_twins_are_built(whole: Workspace) -> None:
    path = published(whole)
    twin_path(path).unlink()
    other = whole.home.root / whole.ledger.snapshots("item_embedding_v1", accepted=True)[0].path
    twin_path(other).write_bytes(b"ARROW1 but no more")
    planned = doctor.run(whole, dry_run=True)
    assert current(path) is None and len(planned.findings) == 2
    result = doctor.run(whole)
    assert result == planned and result.healthy
    assert current(path) is not None and current(other) is not None
    assert doctor.run(whole).findings == ()


def test_a_snapshot_that_a_person_accepted_has_its_twin(whole: Workspace) -> None:
    ws, moment = whole, START + 5 * WEEK
    checks = (
        Check("file_row_groups", "critical", True, 1, ">= 1"),
        Check("coverage", "critical", False, 0.5, ">= 0.9"),
    )
    asked = small_home.candidate(ws, "v1", "user", moment, Verdict(False, checks))
    clocks = {"space_id": SPACES["v1"], "available_at": moment + ws.config.availability_lag}
    with pytest.raises(SnapshotRefusedError):
        publish_together(ws, [asked], moment, **clocks)  # type: ignore[arg-type]
    done = snapshot.accept(ws, "user_embedding_v1-20240211T000000Z", by="me", why="a sale", now=NOW)
    assert current(ws.home.root / done.path) is not None
    assert doctor.run(ws).findings == ()


def test_leftovers_orphans_and_unrecorded_files_are_put_away(whole: Workspace) -> None:
    path = published(whole)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (path.parent / f".{path.name}.{gone.pid}.part").write_bytes(b"half")
    (whole.home.artifacts / f".index-v1-aa.{gone.pid}.part").mkdir()
    stranger = path.with_name("20250101T000000Z.parquet")
    shutil.copy(path, stranger)
    orphan = twin_path(path).with_name("20260101T000000Z.arrow")
    shutil.copy(twin_path(path), orphan)
    result = doctor.run(whole)
    assert len(result.findings) == 4 and result.healthy
    assert not stranger.exists() and not orphan.exists()
    assert (whole.home.quarantine / "unrecorded" / "user_embedding_v1" / stranger.name).exists()
    assert not list(whole.home.root.rglob("*.part"))
    assert doctor.run(whole).findings == ()


def test_a_deleted_or_changed_snapshot_is_named_with_its_command(whole: Workspace) -> None:
    first, second = whole.ledger.snapshots("user_embedding_v1", accepted=True)[:2]
    (whole.home.root / first.path).unlink()
    with open(whole.home.root / second.path, "r+b") as handle:
        handle.seek(200)
        handle.write(b"\0" * 20)
    result = doctor.run(whole)
    yours = [item for item in result.findings if not item.mended]
    assert [item.remedy.split("`")[1] for item in yours] == [
        "headwater refresh v1 --as-of 2024-01-07T00:00:00",
        "headwater refresh v1 --as-of 2024-01-14T00:00:00",
    ]
    assert not result.healthy


def test_missing_models_and_changed_releases_are_named(whole: Workspace) -> None:
    release.create(whole, now=NOW)
    shutil.rmtree(whole.home.root / whole.ledger.spaces()[0].artifact)
    (whole.home.artifacts / "ctr_ranker-v1" / "weights").write_bytes(b"x")
    named = "\n".join(item.what for item in doctor.run(whole).findings)
    assert "The model of v1 is gone" in named and "artifacts/ctr_ranker-v1 of release r1 is gone or changed" in named


def test_a_pruning_that_was_cut_off_is_finished(whole: Workspace) -> None:
    item = whole.ledger.snapshots("user_embedding_v2", accepted=True)[0]
    lifecycle.forget(whole.ledger, item.view, item.as_of + WEEK, [item])
    assert (whole.home.root / item.path).exists()
    result = doctor.run(whole)
    assert [finding.what for finding in result.findings] == [f"The pruning of {item.snapshot_id} was not finished"]
    assert not (whole.home.root / item.path).exists() and not lifecycle.removals(whole.ledger)


def test_a_damaged_ledger_is_named_with_its_backup_which_works(whole: Workspace) -> None:
    doctor.run(whole)
    before = whole.ledger.snapshots()
    path = whole.home.ledger_file
    with open(path, "r+b") as handle:
        handle.seek(4096)
        handle.write(b"\xff" * 4096 * 3)
    assert not doctor.run(Workspace.open(whole.home.root)).healthy
    with open(path, "r+b") as handle:
        handle.seek(4096)
        handle.write(b"\xff" * (path.stat().st_size - 4096))
    fresh = Workspace.open(whole.home.root)
    with pytest.raises(LedgerError, match="restored from a backup"):
        fresh.ledger.snapshots()
    result = doctor.run(fresh)
    assert not result.healthy and doctor.BACKUP in result.findings[0].remedy
    shutil.copy(whole.home.root / doctor.BACKUP, path)
    assert Ledger(path).snapshots() == before


def test_a_deleted_ledger_is_not_taken_for_an_empty_home(whole: Workspace) -> None:
    """The next command makes a new, empty one: no reason to put every snapshot away, or to back the emptiness up."""
    before, root = whole.ledger.snapshots(), whole.home.root
    doctor.run(whole)
    saved, files = (root / doctor.BACKUP).read_bytes(), sorted(whole.home.lake.rglob("*.parquet"))
    whole.home.ledger_file.unlink()
    for command in (["version", "list"], ["doctor"]):
        done = CliRunner().invoke(app, [*command, "--home", str(root)], catch_exceptions=False)
    assert done.exit_code == 1 and "it knows nothing, but the lake holds 16 snapshots" in done.output.replace("\n", " ")
    assert sorted(whole.home.lake.rglob("*.parquet")) == files and (root / doctor.BACKUP).read_bytes() == saved
    shutil.copy(root / doctor.BACKUP, whole.home.ledger_file)
    fresh = Workspace.open(root)
    assert fresh.ledger.snapshots() == before and doctor.run(fresh).findings == ()


def test_deleted_training_sets_and_registries_are_named(whole: Workspace) -> None:
    shutil.rmtree(whole.home.training_sets / "ctr_ranker")
    whole.home.feast.mkdir()
    (whole.home.feast / "online.db").write_bytes(b"")
    remedies = [finding.remedy for finding in doctor.run(whole).findings]
    assert remedies == [
        "run `headwater training-set ctr_ranker`",
        "run `headwater apply`, then `headwater materialize`",
    ]


def test_a_consumer_of_a_version_that_does_not_exist_is_named(whole: Workspace) -> None:
    known = whole.ledger.consumers()[0]
    whole.ledger.put_consumer(known["name"], known["task"], ["v1", "v9"], known["record"])
    (finding,) = doctor.run(whole).findings
    assert "ctr_ranker reads v9" in finding.what and not finding.mended
    assert "there are: v1, v2" in finding.remedy and "`headwater apply`" in finding.remedy


def test_a_damaged_log_is_named_and_a_forgotten_one_entered(learned: Workspace) -> None:
    with learned.ledger.transaction("datasets") as connection:
        connection.execute(sa.delete(tables.datasets))
    result = doctor.run(learned)
    assert result.healthy and "The ledger does not know the log" in result.findings[0].what
    assert doctor.run(learned).findings == ()
    assert learned.ledger.datasets()[0]["fingerprint"] == learned.log.fingerprint
    gone = learned.home.lake / next(iter(learned.log.record.files))
    gone.unlink()
    finding = doctor.run(learned).findings[0]
    assert str(gone) in finding.what and "headwater ingest" in finding.remedy and not finding.mended


def test_a_deleted_snapshot_comes_back_by_the_command_that_the_doctor_names(learned: Workspace) -> None:
    item = learned.ledger.snapshots("user_embedding_v1", accepted=True)[-2]
    path = learned.home.root / item.path
    before = read_vectors(path, "user_id")[1]
    path.unlink()
    command = doctor.run(learned).findings[0].remedy.split("`")[1].split()[1:]
    done = CliRunner().invoke(app, [*command, "--home", str(learned.home.root)], catch_exceptions=False)
    assert done.exit_code == 0 and np.array_equal(read_vectors(path, "user_id")[1], before)
    assert doctor.run(learned).findings == ()


def test_the_doctor_does_not_disturb_a_refresh(whole: Workspace) -> None:
    with whole.home.lock("refresh-v1"), pytest.raises(BusyError):
        doctor.run(whole)


FULL_DISK = """
import resource, sys
from pathlib import Path
from benchmarks.small_home import START, WEEK, refresh
from feature_repo.contracts.errors import HeadwaterError
from jobs import versions
from jobs.workspace import Workspace
ws = Workspace.open(Path(sys.argv[1]))
ws.ledger.snapshots()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
for what in (lambda: refresh(ws, "v1", START + 4 * WEEK), lambda: versions.register(ws, "3" * 16)):
    try:
        what()
    except HeadwaterError as error:
        print(type(error).__name__, error)
"""


def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(whole: Workspace) -> None:
    """A limit on the size of any file stands for the disk: the next byte is refused, in the middle of a write."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN and resource.RLIMIT_FSIZE is not None
    before = whole.ledger.snapshots()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(whole.home.root)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("LakeError", "LedgerError"))]
    assert lines[0].startswith("LakeError Could not write") and "Free space" in lines[0]
    assert lines[1].startswith("LedgerError") and "free space" in done.stdout
    assert whole.ledger.snapshots() == before and doctor.run(whole).findings == ()
    assert len(refresh(whole, "v1", START + 4 * WEEK)) == 2


def test_a_folder_that_cannot_be_written_is_a_clear_error(whole: Workspace) -> None:
    """Root may write anywhere, so a file in the folder's place stands for a folder without permission."""
    path = whole.home.view_folder("user_embedding_v1")
    aside = path.with_name("aside")
    path.rename(aside)
    path.write_bytes(b"")
    with pytest.raises(LakeError, match="fix permissions"):
        refresh(whole, "v1", START + 4 * WEEK)
    path.unlink()
    aside.rename(path)
    (whole.home.root / ".release.lock").unlink(missing_ok=True)
    (whole.home.root / ".release.lock").mkdir()
    with pytest.raises(LakeError, match=r"Could not open .*release\.lock"):
        versions.prune(whole, keep=timedelta(days=7))
