"""Canaries: every live ranker scores recent labelled rows with the previous snapshot and with the new one.

Everything but the vectors of the one view is as it was joined for the training set, so a difference of the two
areas under the curve comes from the snapshot alone. Both snapshots are computed after the rows they score, so neither
value says how good the ranker is; their difference says whether the new vectors still mean what it has learned.

Legend: N rows, D embedding dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from feature_repo.contracts.naming import embedding_view, join_key
from feature_repo.contracts.types import Entity
from feature_repo.lake import read_json
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from jobs.features.ranking import TrainingSet
    from validation.evidence import Canary

WINDOW = timedelta(days=28)
MAX_ROWS = 20_000
MIN_POSITIVES = 50
RESAMPLES = 100


def canaries(
    ws: Workspace, version: str, entity: Entity, path: Path, previous: Path, as_of: datetime
) -> tuple[Canary, ...]:
    """Score the rows of the four weeks before `as_of`, with the labels that had arrived by then.

    A ranker is live when the ledger holds its artifact and it reads the version. One without enough labelled rows
    in that time cannot judge, and gives no canary.

    Parameters
    ----------
    path, previous
        The staged snapshot, which passed all other checks, and the one before.

    Raises
    ------
    NotFoundError, LakeError
        If the artifact or the training set of a live ranker is damaged.
    """
    from jobs.train_downstream import LABELS

    found = []
    for record in ws.ledger.consumers():
        if record["task"] not in LABELS or version not in record["versions"] or "artifact" not in record["record"]:
            continue
        source = _recent(ws, record["name"], LABELS[record["task"]], as_of)
        if source is not None:
            found.append(_canary(ws, record, source, embedding_view(entity, version), entity, path, previous, as_of))
    return tuple(canary for canary in found if canary is not None)


def _recent(ws: Workspace, consumer: str, label: str, as_of: datetime) -> TrainingSet | None:
    """Open the rows of a consumer's training set that lie in the window; None where no shard has any."""
    from jobs.features.ranking import TrainingSet

    folder = ws.home.training_sets / consumer
    if not (folder / "manifest.json").exists():
        return None
    names = [
        name
        for name in read_json(folder / "manifest.json")["files"]
        if any(low < as_of and high >= as_of - WINDOW for low, high in _time_ranges(folder / name))
    ]
    return TrainingSet(folder, label, names, (as_of - WINDOW, as_of)) if names else None


def _time_ranges(shard: Path) -> Iterator[tuple[datetime, datetime]]:
    footer = pq.read_metadata(shard)
    column = footer.schema.to_arrow_schema().names.index("event_timestamp")
    for group in range(footer.num_row_groups):
        statistics = footer.row_group(group).column(column).statistics
        yield statistics.min, statistics.max


def _canary(
    ws: Workspace,
    record: dict[str, Any],
    source: TrainingSet,
    view: str,
    entity: Entity,
    path: Path,
    previous: Path,
    as_of: datetime,
) -> Canary | None:
    from jobs.features.ranking import RankerEncoder
    from models.bootstrap import bootstrap_lift
    from models.downstream.artifact import load_ranker
    from models.downstream.fit import predict
    from validation.evidence import Canary

    artifact = ws.home.root / record["record"]["artifact"]
    # The last variant reads every version that the consumer is pinned to; it is the one that would serve.
    variant = read_json(artifact / "consumer.json")["variants"][-1]
    rows = np.arange(source.frame.height)[-MAX_ROWS:]
    label = source.known_by(as_of)[rows]
    if min(label.sum(), len(label) - label.sum()) < MIN_POSITIVES or view not in variant["views"]:
        return None
    place = artifact / ("-".join(variant["views"]) or "none") / "seed-0"
    saved = load_ranker(place, {name: _space(ws, name) for name in variant["views"]})
    others = {name: source.vectors(name) for name in variant["views"] if name != view}
    ids = source.frame[join_key(entity)]
    encoder = RankerEncoder.load(artifact / "encoder.json")
    logits, keep = {}, np.ones(len(rows), bool)
    for name, file in (("before", previous), ("now", path)):
        vectors = others | {view: _looked_up(file, entity, ids)}
        # Only rows whose entity both snapshots know: who is covered has checks of its own.
        keep &= vectors[view][1][rows] >= 0
        logits[name] = predict(saved.model, source.data(encoder, vectors).take(rows))
    label, weight, user = label[keep], source.frame["weight"].to_numpy()[rows][keep], _users(source, rows)[keep]
    if min(label.sum(), len(label) - label.sum()) < MIN_POSITIVES:
        return None
    before, now = logits["before"][keep], logits["now"][keep]
    lift = bootstrap_lift(label, weight, user, before, {"now": now}, resamples=RESAMPLES)["now"]
    spread = lift.relative_auc_lift
    auc_now = lift.auc.value
    auc_before = auc_now / (1 + spread.value)
    low, high = spread.ci95
    noise = auc_before * (high - low) / 3.92  # a 95% interval is 2 x 1.96 standard errors wide
    return Canary(record["name"], len(label), auc_before, auc_now, noise)


def _space(ws: Workspace, view: str) -> str:
    return ws.ledger.version(view.rsplit("_", 1)[1]).space_id


def _looked_up(path: Path, entity: Entity, ids: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return a snapshot's vectors float32 [V, D] and each row's position in them, -1 where it has none."""
    from jobs.refresh import read_vectors

    known, vectors = read_vectors(path, join_key(entity))
    places = pl.DataFrame({"id": known}).with_row_index("at")
    at = pl.DataFrame({"id": ids}).join(places, on="id", how="left", maintain_order="left")["at"]
    return vectors, at.cast(pl.Int64).fill_null(-1).to_numpy()


def _users(source: TrainingSet, rows: np.ndarray) -> np.ndarray:
    return source.frame["user_id"].rank("dense").cast(pl.Int64).to_numpy()[rows]
