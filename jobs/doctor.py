"""Doctor: hold everything on disk against the ledger, mend what can be mended, name the rest.

Nothing that a person might want is deleted: files that nobody recorded move to quarantine/unrecorded/.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from feature_repo import lifecycle, releases
from feature_repo.contracts.errors import HeadwaterError, LakeError, NotReadyError
from feature_repo.contracts.naming import join_key
from feature_repo.contracts.types import Snapshot
from feature_repo.lake import folder_digest, replacing, sha256_of
from feature_repo.ledger import VARIABLE
from jobs.train_upstream import enter_log
from jobs.versions import LOCK
from jobs.workspace import Progress, Workspace, silent

BACKUP = "ledger.backup.db"
SNAPSHOTS = "*/????????T??????Z.parquet"  # below the lake


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be, what was done about it, or what a person has to do."""

    what: str
    remedy: str
    mended: bool


@dataclass(frozen=True)
class Result:
    """Everything that was found."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing is left for a person to do."""
        return all(finding.mended for finding in self.findings)


def run(ws: Workspace, *, dry_run: bool = False, progress: Progress = silent) -> Result:
    """Check ledger, snapshots, twins, leftovers and artifacts of a home folder.

    A ledger that is whole is copied to ``ledger.backup.db``, from which a damaged one can be restored.

    Parameters
    ----------
    dry_run
        Only say what would be mended.

    Raises
    ------
    BusyError
        If another process works on the home folder.
    """
    damage = _ledger(ws)
    if damage:
        return Result((damage,))
    checks = (
        _log,
        _leftovers,
        _removals,
        _snapshots,
        _unrecorded,
        _orphan_twins,
        _artifacts,
        _consumers,
        _training_sets,
        _registry,
    )
    findings: list[Finding] = []
    with ExitStack() as stack:
        # What somebody else is just writing is neither a leftover nor unrecorded.
        for name in ("run", "backfill", LOCK, *(f"refresh-{item.version}" for item in ws.ledger.versions())):
            stack.enter_context(ws.home.lock(name))
        if not dry_run:
            _back_up(ws)
        for step, check in enumerate(checks):
            progress(f"doctor: {check.__name__.strip('_').replace('_', ' ')}", step, len(checks))
            findings += check(ws, not dry_run)
    progress("doctor", len(checks), len(checks))
    return Result(tuple(findings))


def _ledger(ws: Workspace) -> Finding | None:
    path, backup = ws.home.ledger_file, ws.home.root / BACKUP
    if VARIABLE in os.environ:
        # A database with backups of its own; a failure says where it is and what is wrong.
        ws.ledger.snapshots()
        return None
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            answers = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
        reason = "; ".join(answers) if answers != ["ok"] else _emptied(ws)
        if reason is None:
            return None
    except (sqlite3.Error, HeadwaterError) as error:
        reason = str(error)
    remedy = (
        f"Copy {backup} over it: that is its last state that was found whole. What was published since lies in the "
        "lake as unrecorded files: run `headwater doctor` and refresh those moments again."
        if backup.exists()
        else "There is no backup. Keep the file, and start a new home folder from the event log."
    )
    return Finding(f"The ledger {path} is damaged: {reason}", remedy, mended=False)


def _emptied(ws: Workspace) -> str | None:
    """Return why a readable ledger is not this folder's: it was deleted, and the next command made a new one."""
    snapshots = len(list(ws.home.lake.glob(SNAPSHOTS)))
    if ws.ledger.snapshots() or ws.ledger.spaces() or not snapshots:
        return None
    return f"it knows nothing, but the lake holds {snapshots} snapshots"


def _back_up(ws: Workspace) -> None:
    if VARIABLE in os.environ:
        return
    with (
        replacing(ws.home.root / BACKUP) as staged,
        closing(sqlite3.connect(f"file:{ws.home.ledger_file}?mode=ro", uri=True)) as source,
        closing(sqlite3.connect(staged)) as target,
    ):
        source.backup(target)


def _log(ws: Workspace, mend: bool) -> Iterator[Finding]:
    """The ingested log: its files, and its place in the ledger."""
    again = "run the same `headwater ingest` again, with --replace; what was made of the log stays"
    try:
        record = ws.log.record
    except NotReadyError:
        return
    except LakeError as error:
        yield Finding(str(error), again, mended=False)
        return
    for name, size in record.files.items():
        path = ws.home.lake / name
        if not path.is_file() or path.stat().st_size != size:
            yield Finding(f"{path} of the log '{record.name}' is gone or changed", again, mended=False)
    trained_on = {space.data_fingerprint for space in ws.ledger.spaces()}
    if record.fingerprint in trained_on - {row["fingerprint"] for row in ws.ledger.datasets()}:
        if mend:
            enter_log(ws)
        yield Finding(f"The ledger does not know the log '{record.name}'", "entered", mended=True)


def _leftovers(ws: Workspace, mend: bool) -> Iterator[Finding]:
    """Files and folders that killed processes left half written."""
    for path in sorted([*ws.home.root.rglob(".*.part"), *ws.home.root.rglob(".*.tmp")]):
        owner = path.name.split(".")[-2]
        if owner.isdigit() and _alive(int(owner)):
            continue
        if mend:
            _remove(path)
        yield Finding(f"{path} was left half written", "removed", mended=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    import shutil

    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError as error:
        raise LakeError(f"Could not remove {path}: {error}. Fix permissions and run again.") from error


def _removals(ws: Workspace, mend: bool) -> Iterator[Finding]:
    """Files of pruned snapshots that are still there."""
    waiting = lifecycle.removals(ws.ledger)
    if waiting and mend:
        from jobs.versions import finish_removals

        finish_removals(ws)
    for snapshot_id in waiting:
        yield Finding(f"The pruning of {snapshot_id} was not finished", "finished", mended=True)


def _snapshots(ws: Workspace, mend: bool) -> Iterator[Finding]:
    """Published files that are gone or changed, and their twins."""
    from feature_repo.stores import twin

    for item in ws.ledger.snapshots(accepted=True):
        path = ws.home.root / item.path
        if not path.exists():
            yield Finding(f"{path} is gone, but the ledger has {item.snapshot_id}", _again(item), mended=False)
        elif sha256_of(path) != item.sha256:
            remedy = f"Move the file away and restore it, or: {_again(item)}"
            yield Finding(f"{path} is not the file that was published", remedy, mended=False)
        elif twin.current(path) is None:
            if mend:
                twin.build(path, [join_key(item.entity)])
            yield Finding(f"{item.snapshot_id} had no current twin", "built", mended=True)


def _again(item: Snapshot) -> str:
    if item.version is None:
        return f"run `headwater backfill` with {item.as_of:%Y-%m-%d} in its period"
    return f"run `headwater refresh {item.version} --as-of {item.as_of:%Y-%m-%dT%H:%M:%S}`"


def _unrecorded(ws: Workspace, mend: bool) -> Iterator[Finding]:
    """Files that readers of a view's folder see, but no gate's verdict stands for."""
    recorded = {ws.home.root / item.path for item in ws.ledger.snapshots()}
    recorded |= {ws.home.root / path for path in lifecycle.removals(ws.ledger).values()}
    for folder in [ws.home.view_folder(name) for name in _folders(ws)]:
        for path in sorted(folder.glob("*.parquet")):
            if path not in recorded:
                target = ws.home.quarantine / "unrecorded" / folder.name / path.name
                if mend:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)
                yield Finding(f"{path} was never recorded", f"moved to {target}; refresh that moment", mended=True)


def _folders(ws: Workspace) -> set[str]:
    """Return the names of folders that hold snapshots; a killed first refresh left one that the ledger lacks."""
    known = {view.name for view in ws.ledger.views()}
    return known | {path.parent.name for path in ws.home.lake.glob(SNAPSHOTS)}


def _orphan_twins(ws: Workspace, mend: bool) -> Iterator[Finding]:
    for path in sorted(ws.home.lake.glob("*/_twin/*.arrow")):
        if not (path.parent.parent / f"{path.stem}.parquet").exists():
            if mend:
                _remove(path)
            yield Finding(f"{path} has no snapshot", "removed", mended=True)


def _artifacts(ws: Workspace, _: bool) -> Iterator[Finding]:
    """Models and indexes that the ledger names."""
    for space in ws.ledger.spaces():
        if not (ws.home.root / space.artifact).is_dir():
            versions = [item.version for item in ws.ledger.versions() if item.space_id == space.space_id]
            name = versions[0] if versions else f"space {space.space_id}"
            remedy = "restore the folder; without it no new vectors of that space can be made"
            yield Finding(f"The model of {name} is gone: {ws.home.root / space.artifact}", remedy, mended=False)
    for consumer in ws.ledger.consumers():
        artifact = consumer["record"].get("artifact")
        if artifact and not (ws.home.root / artifact).is_dir():
            remedy = f"run `headwater train-downstream {consumer['name']}`"
            yield Finding(f"The model of {consumer['name']} is gone: {artifact}", remedy, mended=False)
    for release in releases.usable(ws.ledger):
        for part in [*release.consumers.values(), *([release.index] if release.index else [])]:
            try:
                changed = folder_digest(ws.home.root / part["artifact"]) != part["digest"]
            except LakeError:
                changed = True
            if changed:
                remedy = f"restore it, or drop {release.name} and create another release"
                yield Finding(f"{part['artifact']} of release {release.name} is gone or changed", remedy, mended=False)


def _consumers(ws: Workspace, _: bool) -> Iterator[Finding]:
    """Consumers that are recorded with versions that are not."""
    known = [version.version for version in ws.ledger.versions()]
    for consumer in ws.ledger.consumers():
        unknown = [version for version in consumer["versions"] if version not in known]
        if unknown:
            there = f"there are: {', '.join(known)}" if known else "there is none"
            remedy = f"give it other `versions` in config.yaml ({there}) and run `headwater apply`"
            what = f"The consumer {consumer['name']} reads {', '.join(unknown)}, and there is no such version"
            yield Finding(what, remedy, mended=False)


def _training_sets(ws: Workspace, _: bool) -> Iterator[Finding]:
    """Training sets that the ledger names."""
    for manifest in ws.ledger.training_sets():
        name = manifest["service"]
        folder = ws.home.training_sets / name
        wanted = ["manifest.json", *manifest.get("files", [])]
        gone = [item for item in wanted if not (folder / item).is_file()]
        if gone:
            remedy = f"run `headwater training-set {name}`"
            yield Finding(f"{folder} lacks {', '.join(gone)}", remedy, mended=False)


def _registry(ws: Workspace, _: bool) -> Iterator[Finding]:
    """Feast's registry, where anything was ever registered or loaded."""
    feast = ws.home.feast
    if VARIABLE in os.environ:
        return  # it may lie in the ledger's database
    if feast.is_dir() and any(feast.iterdir()) and not any(feast.glob("registry*.db")):  # one per profile
        remedy = "run `headwater apply`, then `headwater materialize`"
        yield Finding(f"Feast's registry in {feast} is gone", remedy, mended=False)
