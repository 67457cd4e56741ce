"""Stage, gate, publish: the one way by which rows of a feature view become readable.

A snapshot is written under a hidden name beside its final place and gated there. Accepted, it is
renamed into the view's folder and recorded; refused, it moves whole to quarantine with its verdict.
Killed at any point and run again, the result is the same: an unrecorded file is simply replaced.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contracts.errors import SnapshotRefusedError
from feature_repo.contracts.naming import join_key, moment_stem
from feature_repo.contracts.types import Snapshot, Verdict, View
from feature_repo.failpoints import durable
from feature_repo.lake import replacing, sha256_of, write_json
from feature_repo.stores import twin
from jobs.workspace import Workspace


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
    """Gate a snapshot's rows and publish or quarantine them.

    Parameters
    ----------
    table
        The rows, with both clocks.
    gate
        Called with the staged file; returns the verdict.

    Raises
    ------
    SnapshotRefusedError
        If the gate refused. The rows lie in quarantine; readers still see the previous snapshot.
    LakeError
        If the disk refuses.
    """
    final = ws.home.snapshot_file(view.name, as_of)
    snapshot_id = f"{view.name}-{moment_stem(as_of)}"
    refused = ws.home.quarantine / snapshot_id / "snapshot.parquet"
    with replacing(final) as staged:
        pq.write_table(table, staged, compression="zstd", row_group_size=64 * 1024)
        started = time.perf_counter()
        verdict = gate(staged)
        seconds = round(time.perf_counter() - started, 4)
        verdict = replace(verdict, seconds=seconds)
        snapshot = Snapshot(
            snapshot_id=snapshot_id,
            view=view.name,
            entity=view.entity,
            version=view.version,
            space_id=space_id,
            as_of=as_of,
            available_at=available_at,
            rows=table.num_rows,
            path=str((final if verdict.accepted else refused).relative_to(ws.home.root)),
            sha256=sha256_of(staged),
            accepted=verdict.accepted,
            verdict=verdict,
        )
        if not verdict.accepted:
            refused.parent.mkdir(parents=True, exist_ok=True)
            with durable(f"file quarantine/{snapshot_id}"):
                os.replace(staged, refused)
            write_json(verdict.to_dict(), refused.parent / "verdict.json")
            write_json(asdict(view), refused.parent / "view.json")
            ws.ledger.put_snapshot(snapshot)
            reasons = "; ".join(f"{check.name} {check.observed} ({check.bound})" for check in verdict.failures())
            raise SnapshotRefusedError(
                f"The gate refused {snapshot_id}: {reasons or verdict.error}. The previous snapshot goes on "
                f"being read. The rows and the verdict lie in {refused.parent}; see `headwater snapshot list`.",
                verdict,
            )
    # The ledger comes last: what it knows of is complete, and what it does not know of is written again.
    twin.build(final, [join_key(view.entity)])
    ws.ledger.put_view(view)
    ws.ledger.put_snapshot(snapshot)
    return Publication(snapshot, seconds)
