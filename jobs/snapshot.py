"""Snapshots by hand: hold any file against a version, overrule a refusal, discard what was refused, list them all."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from feature_repo.contracts.errors import ConfigError, LakeError
from feature_repo.contracts.naming import ENTITIES, join_key
from feature_repo.contracts.types import Decision, Entity, Snapshot, Verdict, View
from feature_repo.lake import read_json, sha256_of
from jobs.workspace import Progress, Workspace, silent

# What would break whoever reads the file; nobody's judgement can make it readable.
STRUCTURE = {"id_not_null", "id_unique", "vector_not_null", "vector_length", "vector_finite"}


def check(
    ws: Workspace,
    path: Path,
    version: str,
    as_of: datetime,
    *,
    entity: Entity | None = None,
    progress: Progress = silent,
) -> Verdict:
    """Hold any file against a version's history, as a refresh would. Publishes and records nothing.

    Parameters
    ----------
    entity
        Whose vectors they are; None reads it from the file's id column.

    Raises
    ------
    NotFoundError
        If there is no such version.
    ConfigError
        If there is no such file, or it has the id columns of both entities or of none and `entity` is not given.
    """
    from jobs.refresh import upstream_at
    from jobs.snapshot_gate import judge

    if not path.is_file():
        state = "is no file" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {state}: name the Parquet file to check.")
    upstream = upstream_at(ws, version, as_of)
    chosen, started = entity or entity_of(path), time.perf_counter()
    progress(f"check {path.name} as {chosen} vectors of {version}", 0, 1)
    verdict = judge(ws, upstream, version, chosen, path, as_of)
    verdict = replace(verdict, seconds=round(time.perf_counter() - started, 4))
    progress(f"check {path.name} as {chosen} vectors of {version}", 1, 1)
    return verdict


def entity_of(path: Path) -> Entity:
    """Return whose vectors a file holds, by its id column; ``user`` where the file cannot be read at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return "user"  # the gate will say what is wrong with the file
    found = [entity for entity in ENTITIES if join_key(entity) in names]
    if len(found) != 1:
        raise ConfigError(
            f"{path} has {'both id columns' if found else 'neither user_id nor item_id'}: say whose vectors they are "
            "with --entity user or --entity item."
        )
    return found[0]


def accept(ws: Workspace, snapshot_id: str, *, by: str, why: str, now: datetime) -> Snapshot:
    """Publish a refused snapshot on a person's word, which is recorded with name and reason.

    The verdict stays what it was, and later bounds do not learn from it.

    Raises
    ------
    NotFoundError
        If there is no such snapshot.
    ConfigError
        If it was not refused, no reason is given, or no reader could read it.
    LakeError
        If its file is not in quarantine any more, or was changed there.
    """
    if not why.strip():
        raise ConfigError('Say why the refusal is wrong: --why "...". It is recorded with your name.')
    from feature_repo.stores import twin

    with ws.home.lock("run"):
        snapshot = _refused(ws, snapshot_id)
        _check_readable(snapshot)
        final = ws.home.snapshot_file(snapshot.view, snapshot.as_of)
        held = ws.home.root / snapshot.path
        source = held if held.exists() else final  # killed after the move: finish what was begun
        if not source.exists():
            raise LakeError(f"{held} is not there any more. Refresh {snapshot.as_of:%Y-%m-%d} again instead.")
        if sha256_of(source) != snapshot.sha256:
            raise LakeError(f"{source} is not the file that was refused. Check it with `headwater snapshot check`.")
        view = View(**read_json(held.parent / "view.json"))
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, final)
        twin.build(final, [join_key(snapshot.entity)])
        accepted = replace(snapshot, accepted=True, path=str(final.relative_to(ws.home.root)))
        ws.ledger.put_decision(Decision(snapshot_id, snapshot.sha256, "accept", by, why, now))
        ws.ledger.put_view(view)
        ws.ledger.put_snapshot(accepted)
        shutil.rmtree(held.parent)
    return accepted


def discard(ws: Workspace, snapshot_id: str, *, by: str, why: str, now: datetime) -> Snapshot:
    """Remove a refused snapshot's rows from quarantine. Its record and verdict stay.

    Raises
    ------
    NotFoundError
        If there is no such snapshot.
    ConfigError
        If it was not refused: published snapshots are never removed.
    """
    with ws.home.lock("run"):
        snapshot = _refused(ws, snapshot_id)
        ws.ledger.put_decision(Decision(snapshot_id, snapshot.sha256, "discard", by, why, now))
        shutil.rmtree((ws.home.root / snapshot.path).parent, ignore_errors=True)
    return snapshot


def rows(ws: Workspace, view: str | None = None) -> list[dict[str, str]]:
    """Return every snapshot as a row for a person: state, failed checks, warnings, seconds of its gate."""
    decided = {decision.sha256: decision for decision in ws.ledger.decisions()}
    found = []
    for snapshot in ws.ledger.snapshots(view):
        verdict = snapshot.verdict
        warnings = [check.name for check in verdict.checks if check.severity == "warning" and not check.passed]
        found.append(
            {
                "snapshot": snapshot.snapshot_id,
                "state": state_of(snapshot, decided.get(snapshot.sha256)),
                "rows": f"{snapshot.rows:,}",
                "refused by": ", ".join(check.name for check in verdict.failures()) or (verdict.error or "-"),
                "warnings": ", ".join(warnings) or "-",
                "gate": "-" if verdict.seconds is None else f"{verdict.seconds:.2f} s",
            }
        )
    return found


def state_of(snapshot: Snapshot, decision: Decision | None) -> str:
    """Return what became of a snapshot, in words."""
    if decision is None:
        return "accepted" if snapshot.accepted else "refused"
    word = "accepted" if decision.action == "accept" else "discarded"
    return f"{word} by {decision.by}: {decision.why}" if decision.why else f"{word} by {decision.by}"


def _refused(ws: Workspace, snapshot_id: str) -> Snapshot:
    snapshot = ws.ledger.snapshot(snapshot_id)
    if snapshot.accepted:
        raise ConfigError(f"{snapshot_id} was not refused; published snapshots stay as they are.")
    return snapshot


def _check_readable(snapshot: Snapshot) -> None:
    checks = {check.name: check for check in snapshot.verdict.checks}
    broken = [name for name in checks if checks[name].passed is not True and _structural(name)]
    if broken or "file_row_groups" not in checks:
        reason = ", ".join(broken) or "the gate never read it to its end"
        raise ConfigError(
            f"{snapshot.snapshot_id} cannot be overruled: whoever reads it would fail ({reason}). "
            f"Discard it with `headwater snapshot discard {snapshot.snapshot_id}` and refresh again."
        )


def _structural(name: str) -> bool:
    return name.startswith("file_") or name in STRUCTURE
