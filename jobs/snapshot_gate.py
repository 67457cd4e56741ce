"""The gate as a job sees it: everything a version's file is held against, for a refresh and a check by hand alike."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.contracts.naming import embedding_view, join_key, snapshot_name
from feature_repo.contracts.types import Entity, Snapshot, Verdict
from feature_repo.lifecycle import earlier_days
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from jobs.refresh import Upstream
    from validation.evidence import Evidence, RawSample

SAMPLE = 512
ANCHOR_BACK = 20


def judge(ws: Workspace, upstream: Upstream, version: str, entity: Entity, path: Path, as_of: datetime) -> Verdict:
    """Hold a file against what a version's snapshot as of a moment has to be. Nothing is published or recorded.

    Parameters
    ----------
    upstream
        The version's loaded model: it says which entities are active, and recomputes a sample.
    path
        The file, staged or anybody's.
    as_of
        The moment that the file claims to describe.

    Returns
    -------
    Verdict
        Never raises for a bad file.
    """
    from jobs.measuring import scan_of
    from validation.gate import default_gate
    from validation.specs import SnapshotSpec

    view = embedding_view(entity, version)
    earlier = earlier_days(ws.ledger, view, as_of)
    previous = _file(ws, earlier[-1]) if earlier else None
    known = ws.log.codes[entity][join_key(entity)]
    spec = SnapshotSpec(
        snapshot_id=snapshot_name(view, as_of),
        entity=entity,
        id_type=id_type_of(known),
        dim=upstream.space.dim,
        as_of=as_of,
        available_at=as_of + ws.config.availability_lag,
        checked_at=datetime.now(UTC),
        known_ids=_arrow(known),
        active_ids=_arrow(upstream.ids(entity, as_of)),
        smoothing=ws.ledger.version(version).smoothing,
        of_attributes=entity == "item" and upstream.space.config.get("kind") == "content",
    )
    with TemporaryDirectory() as scratch:
        return default_gate().check(
            path,
            spec,
            workdir=Path(scratch),
            previous=previous,
            anchor=_file(ws, earlier[-ANCHOR_BACK:][0]) if len(earlier) > 1 else None,
            history=[snapshot.verdict for snapshot in earlier],
            evidence=_evidence(ws, upstream, version, entity, path, previous, as_of),
            scan=scan_of(ws.home, path),
        )


def id_type_of(ids: pl.Series) -> Literal["int64", "string"]:
    """Return the type that an entity's ids have in every snapshot."""
    return "int64" if ids.dtype == pl.Int64 else "string"


def _evidence(
    ws: Workspace,
    upstream: Upstream,
    version: str,
    entity: Entity,
    path: Path,
    previous: Path | None,
    as_of: datetime,
) -> Callable[[], Evidence]:
    def gather() -> Evidence:
        from jobs.canary import canaries
        from jobs.canary_retrieval import retrieval_canaries
        from validation.evidence import Evidence

        raw = raw_sample(upstream, entity, path, as_of)
        if previous is None:
            return Evidence(raw)
        held = (ws, version, entity, path, previous, as_of)
        return Evidence(raw, (*canaries(*held), *retrieval_canaries(*held)))

    return gather


def raw_sample(upstream: Upstream, entity: Entity, path: Path, as_of: datetime, size: int = SAMPLE) -> RawSample:
    """Run the model again for some entities of a file, other ones at every moment, in batches of their own.

    Returns
    -------
    RawSample
        NaN where the model has no vector of an entity.
    """
    from validation.evidence import RawSample
    from validation.tables import read_column

    ids = read_column(path, join_key(entity))
    order = np.random.default_rng(int(as_of.timestamp())).permutation(len(ids))[:size]
    chosen = ids.take(pa.array(order))
    active = _arrow(upstream.ids(entity, as_of))
    place = pc.index_in(chosen, value_set=active).fill_null(-1).to_numpy().astype(np.int64)
    vectors = np.full((len(place), upstream.space.dim), np.nan, np.float32)
    norms = np.full(len(place), np.nan, np.float32)
    found = place >= 0
    if found.any():
        _, vectors[found], norms[found] = upstream.infer(entity, as_of, place[found])
    return RawSample(chosen, vectors, norms)


def _file(ws: Workspace, snapshot: Snapshot) -> Path:
    return ws.home.root / snapshot.path


def _arrow(ids: pl.Series) -> pa.Array:
    return ids.to_arrow().cast(pa.int64() if id_type_of(ids) == "int64" else pa.string())
