"""Stage, gate, publish: the one way by which rows of a feature view become readable.

A snapshot is written under a hidden name beside its final place and gated there. Accepted, it is
renamed into the view's folder and recorded; refused, it moves whole to quarantine with its verdict.
Killed at any point and run again, the result is the same: an unrecorded file is simply replaced.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo import lifecycle
from feature_repo.contracts.errors import SnapshotRefusedError
from feature_repo.contracts.naming import join_key, snapshot_name
from feature_repo.contracts.types import Snapshot, Verdict, View
from feature_repo.failpoints import durable
from feature_repo.lake import replacing, sha256_of, write_json
from feature_repo.lifecycle import Origin
from feature_repo.stores import twin
from jobs.workspace import Workspace
from validation.docs import add_page


@dataclass(frozen=True)
class Publication:
    """One published snapshot and how long its gate took."""

    snapshot: Snapshot
    gate_seconds: float
    reused: bool = False


def clocked(table: pa.Table, available_at: datetime) -> pa.Table:
    """Append the clocks of every stored row: event_timestamp and created, and available_us.

    ``available_us`` repeats event_timestamp as a feature (int64 microseconds since 1970), so that every
    reader, offline and online, can tell how old a value is and a training set can prove that none is
    newer than its label.
    """
    clock = pa.timestamp("us", tz="UTC")
    available_us = int(available_at.timestamp() * 1_000_000)
    table = table.append_column("available_us", pa.array([available_us] * table.num_rows, pa.int64()))
    created = datetime.now(UTC)
    for name, moment in (("event_timestamp", available_at), ("created", created)):
        table = table.append_column(pa.field(name, clock), pa.array([moment] * table.num_rows, clock))
    return table


def published(ws: Workspace, view: str, as_of: datetime) -> Snapshot | None:
    """Return the accepted snapshot of a view at a moment if its file is there unchanged in size."""
    for snapshot in ws.ledger.snapshots(view, accepted=True):
        if snapshot.as_of == as_of and Path(ws.home.root / snapshot.path).exists():
            return snapshot
    return None


def latest_before(ws: Workspace, view: str, as_of: datetime) -> Snapshot | None:
    """Return the latest accepted snapshot of a view before a moment."""
    earlier = [snapshot for snapshot in ws.ledger.snapshots(view, accepted=True) if snapshot.as_of < as_of]
    return earlier[-1] if earlier else None


@dataclass(frozen=True)
class Candidate:
    """Rows that ask to become a snapshot of a view, with both clocks, and the gate that judges their staged file."""

    view: View
    table: pa.Table
    gate: Callable[[Path], Verdict]


def publish(
    ws: Workspace,
    view: View,
    table: pa.Table,
    as_of: datetime,
    *,
    space_id: str | None,
    available_at: datetime,
    gate: Callable[[Path], Verdict],
) -> Publication:
    """Gate a snapshot's rows and publish or quarantine them; see :func:`publish_together`."""
    candidate = Candidate(view, table, gate)
    return publish_together(ws, [candidate], as_of, space_id=space_id, available_at=available_at)[0]


def publish_together(
    ws: Workspace,
    candidates: Sequence[Candidate],
    as_of: datetime,
    *,
    space_id: str | None,
    available_at: datetime,
    origin: Origin | None = None,
) -> list[Publication]:
    """Gate several snapshots of one moment and publish all of them, or none.

    Every gate has spoken before the first file is moved, and one ledger transaction records them all.

    Parameters
    ----------
    origin
        The bridge that made them, where one did.

    Raises
    ------
    SnapshotRefusedError
        If the gate refused any. Those rows lie in quarantine, the others are withheld; readers still see the previous
        snapshots.
    LakeError
        If the disk refuses.
    """
    judged: list[tuple[Snapshot, float]] = []
    with ExitStack() as stack:
        files: list[Path] = []
        for candidate in candidates:
            staged = stack.enter_context(replacing(ws.home.snapshot_file(candidate.view.name, as_of)))
            judged.append(_judge(ws, candidate, staged, as_of, space_id, available_at))
            files.append(staged)
        together = list(zip(candidates, judged, files, strict=True))
        refused = [(candidate, snapshot, file) for candidate, (snapshot, _), file in together if not snapshot.accepted]
        if refused:
            for candidate, snapshot, file in refused:
                _quarantine(ws, candidate.view, snapshot, file)
            raise _refusal(ws, [snapshot for snapshot, _ in judged])
    # The ledger comes last: what it knows of is complete, and what it does not know of is written again.
    for candidate, (snapshot, _) in zip(candidates, judged, strict=True):
        twin.build(ws.home.root / snapshot.path, [join_key(candidate.view.entity)])
    for candidate in candidates:
        ws.ledger.put_view(candidate.view)
    lifecycle.publish(ws.ledger, [snapshot for snapshot, _ in judged], origin)
    return [Publication(snapshot, seconds) for snapshot, seconds in judged]


def _judge(
    ws: Workspace, candidate: Candidate, staged: Path, as_of: datetime, space_id: str | None, available_at: datetime
) -> tuple[Snapshot, float]:
    """Write the rows to their staged file and return the snapshot with its verdict, and the gate's seconds."""
    view, table = candidate.view, candidate.table
    pq.write_table(table, staged, compression="zstd", row_group_size=64 * 1024)
    started = time.perf_counter()
    verdict = _recordable(candidate.gate(staged))
    seconds = round(time.perf_counter() - started, 4)
    snapshot_id = snapshot_name(view.name, as_of)
    if verdict.page is not None:
        # Filed first: nothing is read, and nothing refused, that a person could not look up.
        add_page(ws.home.data_docs, snapshot_id, verdict.page)
    accepted = ws.home.snapshot_file(view.name, as_of)
    path = accepted if verdict.accepted else ws.home.quarantine / snapshot_id / "snapshot.parquet"
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        view=view.name,
        entity=view.entity,
        version=view.version,
        space_id=space_id,
        as_of=as_of,
        available_at=available_at,
        rows=table.num_rows,
        path=str(path.relative_to(ws.home.root)),
        sha256=sha256_of(staged),
        accepted=verdict.accepted,
        verdict=replace(verdict, seconds=seconds),
    )
    return snapshot, seconds


def _recordable(verdict: Verdict) -> Verdict:
    """Return the verdict, or a refusal where it could not be written down: nobody could be shown why it passed."""
    try:
        json.dumps(verdict.to_dict())
        return verdict
    except Exception as error:
        return Verdict(False, (), f"The verdict could not be written down: {type(error).__name__}: {error}")


def _quarantine(ws: Workspace, view: View, snapshot: Snapshot, staged: Path) -> None:
    refused = ws.home.root / snapshot.path
    refused.parent.mkdir(parents=True, exist_ok=True)
    with durable(f"file quarantine/{snapshot.snapshot_id}"):
        os.replace(staged, refused)
    write_json(snapshot.verdict.to_dict(), refused.parent / "verdict.json")
    write_json(asdict(view), refused.parent / "view.json")
    ws.ledger.put_snapshot(snapshot)


def _refusal(ws: Workspace, snapshots: Sequence[Snapshot]) -> SnapshotRefusedError:
    refused = [snapshot for snapshot in snapshots if not snapshot.accepted]
    withheld = [snapshot.snapshot_id for snapshot in snapshots if snapshot.accepted]
    told = []
    for snapshot in refused:
        checks = snapshot.verdict.failures()
        reasons = "; ".join(f"{check.name} {check.observed} ({check.bound})" for check in checks)
        told.append(f"{snapshot.snapshot_id}: {reasons or snapshot.verdict.error}")
    folders = ", ".join(str((ws.home.root / snapshot.path).parent) for snapshot in refused)
    beside = f" {', '.join(withheld)} passed and is not published without it." if withheld else ""
    return SnapshotRefusedError(
        f"The gate refused {' and '.join(told)}. The previous snapshot goes on being read.{beside} The rows and the "
        f"verdict lie in {folders}; see `headwater snapshot list`.",
        refused[0].verdict,
    )
