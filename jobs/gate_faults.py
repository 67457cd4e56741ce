"""Prove the gate on a home folder's own snapshots: every damage is refused, and nothing that is good.

Not a command of `headwater`: `make gate-faults` and the tests run it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contracts.naming import embedding_view, join_key
from feature_repo.contracts.types import Entity, Snapshot, Verdict
from jobs.refresh import Upstream, aligned, load_upstream, read_vectors
from jobs.snapshot_gate import judge, raw_sample
from jobs.workspace import Progress, Workspace, silent
from validation.corruptions import Fault, Material, rotation, with_matrix
from validation.faults import FAULTS

SLOW_STEPS, SLOW_DEGREES = 20, 2.0


@dataclass(frozen=True)
class Outcome:
    """One fault on one entity's snapshot: what was expected and what the gate said."""

    entity: str
    fault: str
    expected: str
    check: str
    verdict: str
    failed: tuple[str, ...]
    seconds: float
    checks: int = 0

    @property
    def right(self) -> bool:
        """Whether the verdict is the expected one, for the expected reason."""
        return self.verdict == self.expected and (
            not self.check or any(check in self.failed for check in self.check.split(" or "))
        )


Once = Callable[[str, Callable[[], Outcome]], Outcome]


def always(name: str, ask: Callable[[], Outcome]) -> Outcome:
    """Ask every time; `benchmarks/gate_faults.py` gives a function that keeps what a killed run found."""
    return ask()


def outcome(entity: str, fault: Fault, verdict: Verdict, seconds: float) -> Outcome:
    """Return what a verdict says of a fault."""
    failed = tuple(check.name for check in verdict.failures()) or ((verdict.error or "",) if verdict.error else ())
    if verdict.accepted:
        failed = tuple(check.name for check in verdict.checks if not check.passed)
    word = "accepted" if verdict.accepted else "refused"
    return Outcome(entity, fault.name, fault.expected, fault.check, word, failed, seconds, len(verdict.checks))


def material(ws: Workspace, version: str, other_version: str, entity: Entity, snapshot: Snapshot) -> Material:
    """Collect a good snapshot and what it may be mixed up with.

    Parameters
    ----------
    snapshot
        An accepted snapshot with at least two before it.
    """
    upstream, other = (_upstream(ws, name) for name in (version, other_version))
    good = pq.read_table(ws.home.root / snapshot.path)
    ids = pl.Series(pl.from_arrow(good[join_key(entity)]))
    view = embedding_view(entity, version)
    earlier = [s for s in ws.ledger.snapshots(view, accepted=True) if s.as_of < snapshot.as_of]
    month = [s for s in earlier if s.as_of <= snapshot.as_of - timedelta(days=28)]
    own = read_vectors(ws.home.root / snapshot.path, join_key(entity))

    def matched(of: tuple[pl.Series, np.ndarray]) -> np.ndarray:
        """Return vectors in the order of the snapshot's ids; its own where an entity is missing."""
        found, known = aligned(ids, *of)
        return np.where(known[:, None], found, own[1])

    other_entity: Entity = "item" if entity == "user" else "user"
    swapped = ws.home.snapshot_file(embedding_view(other_entity, version), snapshot.as_of)
    fresh = upstream.infer(entity, snapshot.as_of)
    return Material(
        good=good,
        previous=matched(read_vectors(ws.home.root / earlier[-1].path, join_key(entity))),
        month_ago=matched(read_vectors(ws.home.root / (month or earlier)[-1].path, join_key(entity))),
        fresh=matched(fresh[:2]),
        other_model=matched(other.infer(entity, snapshot.as_of)[:2]),
        other_entity=read_vectors(swapped, join_key(other_entity))[1],
        cohort=_cohort(ws, entity, ids),
        popular=_popular(ws, entity, ids, snapshot.as_of),
        smoothing=ws.ledger.version(version).smoothing or 0.0,
    )


def _upstream(ws: Workspace, version: str) -> Upstream:
    return load_upstream(ws, ws.ledger.space(ws.ledger.version(version).space_id))


def _cohort(ws: Workspace, entity: Entity, ids: pl.Series) -> np.ndarray:
    """Return the entities of one value of an attribute, 3 to 50% of all; every tenth where there is none."""
    frame = pl.DataFrame({join_key(entity): ids}).join(
        ws.log.attributes(entity), on=join_key(entity), how="left", maintain_order="left"
    )
    for name in ws.log.attribute_columns(entity).categorical:
        counts = frame[name].drop_nulls().value_counts(sort=True)
        for value, count in counts.iter_rows():
            if 0.03 <= count / len(ids) <= 0.5:
                return (frame[name] == value).fill_null(False).to_numpy()
    return np.arange(len(ids)) % 10 == 0


def _popular(ws: Workspace, entity: Entity, ids: pl.Series, as_of: datetime) -> int:
    from jobs.features.history import stats

    counted = stats(ws.log, entity, as_of, ws.config.coverage)
    frame = pl.DataFrame({join_key(entity): ids}).join(counted, on=join_key(entity), how="left", maintain_order="left")
    return int(frame["activity_28d"].fill_null(0).arg_max() or 0)


def inject(
    ws: Workspace,
    version: str,
    other_version: str,
    entity: Entity,
    as_of: datetime,
    *,
    once: Once = always,
    progress: Progress = silent,
) -> list[Outcome]:
    """Apply every fault to the snapshot of one moment and ask the gate, as a refresh would."""
    view = embedding_view(entity, version)
    snapshot = next(s for s in ws.ledger.snapshots(view, accepted=True) if s.as_of == as_of)
    found = material(ws, version, other_version, entity, snapshot)
    upstream = _upstream(ws, version)
    outcomes = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.parquet"

        def ask(fault: Fault) -> Outcome:
            table = found.good if fault.table is None else fault.table(found)
            pq.write_table(table, path, compression="zstd", row_group_size=64 * 1024)
            if fault.file is not None:
                fault.file(path)
            started = time.perf_counter()
            verdict = judge(ws, upstream, version, entity, path, as_of)
            return outcome(entity, fault, verdict, time.perf_counter() - started)

        for step, fault in enumerate(FAULTS):
            progress(f"faults of {entity} vectors", step, len(FAULTS))
            outcomes.append(once(f"{snapshot.sha256} {fault.name}", partial(ask, fault)))
    progress(f"faults of {entity} vectors", len(FAULTS), len(FAULTS))
    return outcomes


def slow_drift(ws: Workspace, version: str, entity: Entity, as_of: datetime) -> Outcome:
    """Turn the space by two degrees at each of twenty refreshes: every step alone is harmless.

    The gate gets no model here, as whoever publishes vectors of a model that drifts would recompute them with the
    same model.
    """
    from validation.gate import default_gate
    from validation.specs import SnapshotSpec

    view = embedding_view(entity, version)
    good = next(s for s in ws.ledger.snapshots(view, accepted=True) if s.as_of == as_of)
    table = pq.read_table(ws.home.root / good.path)
    _, vectors = read_vectors(ws.home.root / good.path, join_key(entity))
    clock = table.schema.field("event_timestamp").type
    fault = Fault("slow drift over 20 refreshes", "anchor_space")
    verdict, files, history = Verdict(True, ()), [], []  # type: Verdict, list[Path], list[Verdict]
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        for step in range(SLOW_STEPS + 1):
            at = as_of + step * timedelta(days=7)
            path = Path(folder) / f"{step}.parquet"
            turned = with_matrix(table, vectors @ rotation(vectors.shape[1], step * SLOW_DEGREES))
            for name in ("event_timestamp", "created"):
                column = pa.array([at] * len(table), clock)
                turned = turned.set_column(turned.schema.get_field_index(name), name, column)
            us = pa.array([int(at.timestamp()) * 1_000_000] * len(table))
            pq.write_table(turned.set_column(turned.schema.get_field_index("available_us"), "available_us", us), path)
            id_type: Any = "int64" if table.schema.field(0).type == pa.int64() else "string"
            spec = SnapshotSpec(view, entity, id_type, vectors.shape[1], at, at)
            verdict = default_gate().check(
                path,
                spec,
                workdir=Path(folder) / "work",
                previous=files[-1] if files else None,
                anchor=files[0] if len(files) > 1 else None,
                history=history,
            )
            if not verdict.accepted:
                break
            files.append(path)
            history.append(verdict)
    return outcome(entity, fault, verdict, (time.perf_counter() - started) / (len(files) + 1))


def clean(
    ws: Workspace, version: str, entity: Entity, *, once: Once = always, progress: Progress = silent
) -> list[Outcome]:
    """Gate every accepted snapshot of a version again: real refreshes with new entities and natural drift."""
    upstream = _upstream(ws, version)

    def ask(snapshot: Snapshot) -> Outcome:
        started = time.perf_counter()
        verdict = judge(ws, upstream, version, entity, ws.home.root / snapshot.path, snapshot.as_of)
        none = Fault(snapshot.snapshot_id, "", expected="accepted")
        return outcome(entity, none, verdict, time.perf_counter() - started)

    outcomes = []
    snapshots = ws.ledger.snapshots(embedding_view(entity, version), accepted=True)
    for step, snapshot in enumerate(snapshots):
        progress(f"clean refreshes of {entity} vectors", step, len(snapshots))
        outcomes.append(once(f"{snapshot.sha256} clean", partial(ask, snapshot)))
    progress(f"clean refreshes of {entity} vectors", len(snapshots), len(snapshots))
    return outcomes


def seconds_per_part(ws: Workspace, version: str, entity: Entity, as_of: datetime) -> dict[str, float]:
    """Return the seconds of each part of the gate on one good snapshot: the best of three, asked in turn, after one.

    ``statistics`` is the file, the streaming pass, the comparisons and Great Expectations together: what is left of
    the whole.
    """
    from jobs.canary import canaries
    from jobs.canary_retrieval import retrieval_canaries

    upstream = _upstream(ws, version)
    snapshots = [s for s in ws.ledger.snapshots(embedding_view(entity, version), accepted=True) if s.as_of <= as_of]
    path, previous = (ws.home.root / snapshot.path for snapshot in (snapshots[-1], snapshots[-2]))
    held = (ws, version, entity, path, previous, as_of)
    parts: dict[str, Callable[[], Any]] = {
        "whole": lambda: judge(ws, upstream, version, entity, path, as_of),
        "agreement": lambda: raw_sample(upstream, entity, path, as_of),
        "canaries of rankers": lambda: canaries(*held),
        "canary of retrieval": lambda: retrieval_canaries(*held),
    }
    seconds = dict.fromkeys(parts, math.inf)
    for turn in range(4):
        for name, work in parts.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name] = min(seconds[name], round(time.perf_counter() - started, 3))
    rest = seconds["whole"] - sum(value for name, value in seconds.items() if name != "whole")
    return {"statistics": round(rest, 3), **seconds}
