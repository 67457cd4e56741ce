"""Retrieval: an item index over one snapshot, judged on what users chose later, beside the usual baselines."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from feature_repo.contracts.errors import NotReadyError, SpaceMismatchError
from feature_repo.contracts.naming import ENTITIES, embedding_view
from feature_repo.contracts.types import Snapshot
from feature_repo.lake import read_json, write_json
from jobs.workspace import Progress, Workspace, silent

KS = (10, 50, 100)
HORIZON = timedelta(days=28)


@dataclass(frozen=True)
class Result:
    """Where the index and its scores lie."""

    consumer: str
    folder: Path
    scores: dict[str, Any]
    reused: bool = False


def run(ws: Workspace, name: str, *, progress: Progress = silent) -> Result:
    """Build the item index of the snapshot at the start of the test period and score it.

    Relevant items are those a user acted on (``retrieval_actions``; by default converted, or clicked where the
    log has no conversions) within 28 days from the moment the snapshot could be read. Every method ranks the
    same items for the same users. The same is done for the last 28 days before the test period, so that settings
    can be chosen there and the test period is left alone.

    Raises
    ------
    NotReadyError
        If no snapshot was published before the test period, or nobody chose anything in it.
    """
    consumer = ws.config.consumer(name)
    version = consumer.versions[0]
    test = _pair(ws, version, ws.splits.valid_end)
    if test is None:
        raise NotReadyError(
            f"No snapshot of {version} lies before {ws.splits.valid_end}. Run `headwater backfill` first."
        )
    folder = ws.home.artifacts / f"{name}-{test.users.sha256[:8]}{test.items.sha256[:8]}"
    done = folder / "scores.json"
    reused = done.exists()
    if not reused:
        ws.use_threads()
        progress(f"{name}: build the index and its baselines", 0, 2)
        scores = _score(ws, test)
        if scores is None:
            raise NotReadyError(
                f"Nobody chose a known item within {HORIZON.days} days from {test.users.available_at}. "
                "Set other splits."
            )
        write_json({key: scores["setup"][key] for key in ("index", "items", "snapshot")}, folder / "index.json")
        progress(f"{name}: the same before the test period", 1, 2)
        earlier = _pair(ws, version, ws.splits.valid_end - HORIZON - ws.config.availability_lag)
        validation = None if earlier is None else _score(ws, earlier)
        write_json({**scores, "validation": validation}, done)
        progress(f"{name}: scored", 2, 2)
    views = [embedding_view(entity, version) for entity in ("user", "item")]
    record = {"views": views, "artifact": str(folder.relative_to(ws.home.root)), "snapshot": test.items.snapshot_id}
    ws.ledger.put_consumer(name, consumer.task, list(consumer.versions), record)
    return Result(name, folder, read_json(done), reused)


@dataclass(frozen=True)
class _Pair:
    """The user and the item snapshot of one moment."""

    users: Snapshot
    items: Snapshot


def _pair(ws: Workspace, version: str, until: datetime) -> _Pair | None:
    """Return the last snapshots that could be read at `until`; None where there are none."""
    last = []
    for entity in ENTITIES:
        found = [s for s in ws.ledger.snapshots(embedding_view(entity, version), accepted=True) if s.as_of <= until]
        if not found:
            return None
        last.append(found[-1])
    users, items = last
    if users.space_id != items.space_id or users.as_of != items.as_of:
        raise SpaceMismatchError(
            f"{users.snapshot_id} and {items.snapshot_id} are of two spaces or moments. Refresh both for one as_of."
        )
    return _Pair(users, items)


def _score(ws: Workspace, pair: _Pair) -> dict[str, Any] | None:
    """Score a pair of snapshots and the baselines; None where nobody chose a known item."""
    from jobs.refresh import read_vectors
    from models.downstream.retrieval import als, build_index, popularity, score_retrieval

    user_ids, user_vectors = read_vectors(ws.home.root / pair.users.path, "user_id")
    item_ids, item_vectors = read_vectors(ws.home.root / pair.items.path, "item_id")
    positions = pl.DataFrame({"item_id": item_ids}).with_row_index("item")
    rows = pl.DataFrame({"user_id": user_ids}).with_row_index("user")
    start, cutoff = pair.users.available_at, pair.users.as_of
    actions = ws.config.retrieval_actions or (("conversion",) if ws.log.record.counts.get("conversion") else ("click",))
    acted = pl.col("event_type").cast(pl.String).is_in(list(actions))
    chosen = (
        ws.log.events.filter(acted & pl.col("event_timestamp").is_between(start, start + HORIZON, closed="left"))
        .select("user_id", "item_id")
        .unique()
        .join(positions, on="item_id")
        .join(rows, on="user_id")
    )
    if chosen.height == 0:
        return None
    asked = chosen["user"].unique().sort()
    relevant_by = dict(chosen.sort("item").group_by("user").agg("item").iter_rows())
    relevant = [np.array(relevant_by[user]) for user in asked.to_list()]

    k = max(KS)
    index = build_index(item_vectors)
    found, _ = index.search(user_vectors[asked.to_numpy()], k)
    past = ws.log.events.filter(
        pl.col("event_timestamp").is_between(cutoff - ws.config.coverage, cutoff, closed="left") & acted
    )
    counts = _counts(past, positions)
    factors = item_vectors.shape[1]
    baselines = {f"popularity ({', '.join(actions)})": popularity(counts, len(asked), k)}
    pairs = past.select("user_id", "item_id").join(positions, on="item_id").join(rows, on="user_id")
    baselines[f"ALS ({factors} factors, implicit)"] = als(
        pairs["user"].to_numpy(),
        pairs["item"].to_numpy(),
        np.ones(pairs.height, np.float32),
        (len(user_ids), len(item_ids)),
        asked.to_numpy(),
        k,
        factors=factors,
    )
    reference = next(iter(baselines))
    table = []
    for what, ranked in {f"DERM {pair.users.version}": found, **baselines}.items():
        score = score_retrieval(ranked, relevant, KS, baseline=baselines[reference])
        table.append(
            {
                "model": what,
                **{f"recall_at_{at}": score.recall[at].value for at in KS},
                "ci95_at_100": list(score.recall[100].ci95),
                "ratio_to_popularity_at_100": score.ratio[100].value,
                "ratio_ci95": list(score.ratio[100].ci95),
            }
        )
    return {
        "table": table,
        "setup": {
            "as_of": pair.users.as_of.isoformat(),
            "horizon_days": HORIZON.days,
            "actions": list(actions),
            "users": len(asked),
            "items": len(item_ids),
            "relevant": chosen.height,
            "index": index.kind,
            "snapshot": pair.items.snapshot_id,
        },
        "space_id": pair.users.space_id,
    }


def _counts(events: pl.DataFrame, positions: pl.DataFrame) -> np.ndarray:
    """Count events per item position: float64 [I]."""
    counted = events.group_by("item_id").len("count")
    filled = positions.join(counted, on="item_id", how="left", maintain_order="left")["count"].fill_null(0)
    return filled.cast(pl.Float64).to_numpy()
